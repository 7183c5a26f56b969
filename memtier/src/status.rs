//! What a client sees of the tiers: plain data, serialised as it is by the API.
//!
//! Promises: sizes are in pages unless the name says bytes; the states of one [`Status`] add up to `guest_pages`. Must never: hold locks or
//! references into live structures.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How accesses are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TrackerKind {
    /// Page tables dropped, data kept; a page seen mapped again was accessed.
    #[default]
    Unmap,
    /// The host kernel's idle page bitmap, which reads the processor's accessed bits.
    PageIdle,
    /// The hypervisor's dirty log: writes only.
    DirtyLog,
}

impl TrackerKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unmap, Self::PageIdle, Self::DirtyLog];

    /// Its name, as in the API and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmap => "unmap",
            Self::PageIdle => "page_idle",
            Self::DirtyLog => "dirty_log",
        }
    }
}

/// Which tracker a client wants: one of them, or the best one this host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TrackerChoice {
    /// The best one this host has.
    #[default]
    Auto,
    /// [`TrackerKind::Unmap`].
    Unmap,
    /// [`TrackerKind::PageIdle`].
    PageIdle,
    /// [`TrackerKind::DirtyLog`].
    DirtyLog,
}

impl TrackerChoice {
    /// The one that was named; `None` for auto.
    pub const fn named(self) -> Option<TrackerKind> {
        match self {
            Self::Auto => None,
            Self::Unmap => Some(TrackerKind::Unmap),
            Self::PageIdle => Some(TrackerKind::PageIdle),
            Self::DirtyLog => Some(TrackerKind::DirtyLog),
        }
    }
}

impl From<TrackerKind> for TrackerChoice {
    fn from(kind: TrackerKind) -> Self {
        match kind {
            TrackerKind::Unmap => Self::Unmap,
            TrackerKind::PageIdle => Self::PageIdle,
            TrackerKind::DirtyLog => Self::DirtyLog,
        }
    }
}

/// The tracker in use, and why this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrackerInfo {
    /// What was asked for.
    pub wanted: TrackerChoice,
    /// What is in use.
    pub tracker: TrackerKind,
    /// Why, in a sentence.
    pub reason: String,
    /// `accesses` (reads and writes) or `writes`.
    pub sees: String,
    /// Times the tracker was changed while the guest ran.
    pub switches: u64,
    /// Every tracker, whether this host has it, and what is missing if not.
    pub trackers: Vec<TrackerOffer>,
}

/// Whether this host has a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrackerOffer {
    /// Which.
    pub tracker: TrackerKind,
    /// Whether it can be used here.
    pub usable: bool,
    /// What it is good for here, or what is missing.
    pub note: String,
}

/// What backs guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    #[serde(rename = "off")]
    Off,
    /// Transparent huge pages: 2 MiB where the kernel has them and all of it is used, 4 KiB elsewhere.
    #[serde(rename = "thp")]
    Transparent,
    /// Pages of 2 MiB from the host's pool (hugetlbfs); each leaves and comes back as a whole.
    #[serde(rename = "2M")]
    Hugetlb2M,
}
/// A swap area to switch on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AreaSpec {
    /// The file; made when it does not exist and a size is given.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub path: PathBuf,
    /// Bytes the file shall have. Without it the file's own size counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// 0..=32767, higher first. Without it the area comes after all areas switched on before it (-2, -3, ... as in the kernel).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
}

/// One swap area, as a row of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AreaInfo {
    /// The area's number, what `DELETE /memtier/swap_areas/{id}` takes.
    pub id: u8,
    /// The file.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub path: PathBuf,
    /// `file` or `partition`, as in `/proc/swaps`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Usable bytes (the header page and bad slots do not count).
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// The priority in force.
    pub priority: i32,
    /// Slots that failed and are not used again.
    pub bad_slots: u64,
    /// Whether direct I/O is in use.
    pub direct_io: bool,
}

/// What an eviction request came to, in pages; etmem's kernel answers only a byte count, here every page's outcome is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outcomes {
    /// Left for a tier (zero pages too).
    pub evicted: u64,
    /// Nothing there to evict: not guest memory, untouched, discarded or already out.
    pub absent: u64,
    /// In a range that the client locked.
    pub locked: u64,
    /// Mapped by somebody else too. Guest memory is this process's alone, so this stays 0 until memory can be shared between guests.
    pub shared: u64,
    /// Pinned by a device or in another transition.
    pub busy: u64,
    /// Written or pinned while it was leaving.
    pub cancelled: u64,
    /// The tier did not take it; it is back as it was.
    pub error: u64,
}

impl Outcomes {
    /// Adds another request's counts.
    pub fn add(&mut self, other: &Self) {
        self.evicted += other.evicted;
        self.absent += other.absent;
        self.locked += other.locked;
        self.shared += other.shared;
        self.busy += other.busy;
        self.cancelled += other.cancelled;
        self.error += other.error;
    }
}

/// A guest physical range in bytes; both numbers multiples of the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GuestRange {
    /// Guest physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What to reclaim: at least one of the two is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReclaimRequest {
    /// Stop when this many bytes have left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Take only pages that were idle in at least this many scans in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_idle_scans: Option<u32>,
}

/// What a reclaim came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reclaimed {
    /// Guest memory that left, in bytes.
    pub bytes: u64,
    /// By outcome, in pages.
    pub outcomes: Outcomes,
}

/// A series of scans: `loops` times, arm everything, wait `sleep_ms`, look; `interval_ms` between one scan's end and the next one's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ScanPlan {
    /// How many scans, 1..=120 (etmem's range).
    pub loops: u32,
    /// Pause between scans in milliseconds, at most 1,200,000.
    #[serde(default)]
    pub interval_ms: u64,
    /// How long each scan watches, in milliseconds, at most 1,200,000.
    pub sleep_ms: u64,
    /// A page found accessed again and again is looked at every 2^`backoff` scans at least, 0..=8, and counts as accessed in between. 0 looks
    /// at every page in every scan. Without it, 6. Trackers that cost the guest nothing look at every page anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<u32>,
}

/// How far a series of scans is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScanState {
    /// Under way.
    Running,
    /// All loops done.
    Done,
    /// Stopped by the client.
    Cancelled,
    /// Stopped by an error; the report says which.
    Failed,
}

/// What one scan saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScanLoop {
    /// Resident pages accessed while it watched, `assumed` ones included.
    pub accessed: u64,
    /// Pages that count as accessed because they always were lately; this scan did not look at them (see [`ScanPlan::backoff`]).
    #[serde(default)]
    pub assumed: u64,
    /// Resident pages not accessed.
    pub idle: u64,
    /// Time spent arming and collecting, without the waiting, in microseconds.
    pub scan_us: u64,
    /// The longest single call that may have kept a vCPU waiting, in microseconds.
    #[serde(default)]
    pub longest_call_us: u64,
    /// From arming to collected, in microseconds.
    pub duration_us: u64,
}

/// A series of scans: its plan, how far it is, what it saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScanReport {
    /// Its number.
    pub id: u64,
    /// Where it is.
    pub state: ScanState,
    /// What was asked for.
    pub plan: ScanPlan,
    /// Loops that have armed everything: what is accessed from then on is seen by that loop.
    #[serde(default)]
    pub armed: u32,
    /// One entry per finished loop.
    pub loops: Vec<ScanLoop>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Events since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Counters {
    /// Faults that brought a page back from a swap area.
    pub faults_major: u64,
    /// Faults answered without a read: zero pages, first touches in chunks where pages had left.
    pub faults_minor: u64,
    /// Write faults on pages that were leaving or write-protected.
    pub faults_write_protect: u64,
    /// Pages that came back by request: locks, swapoff, pins.
    pub pages_fetched: u64,
    /// Pages that left for a swap area.
    pub pages_out: u64,
    /// Pages that left as zero pages.
    pub pages_out_zero: u64,
    /// Pages that left without a write: their slot still had the same bytes.
    #[serde(default)]
    pub pages_out_clean: u64,
    /// Evictions called off by a write or a pin.
    pub evictions_cancelled: u64,
    /// Pages that a store refused; they stayed resident.
    pub store_errors: u64,
    /// Pages that could not be read back; each is poisoned.
    pub pages_poisoned: u64,
    /// Scans finished.
    pub scans: u64,
    /// Bytes handed to the swap areas.
    pub bytes_written: u64,
    /// Bytes read from the swap areas.
    pub bytes_read: u64,
}

/// Fault latency as the handler saw it: from reading the event to the guest's wake-up, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Latency {
    /// Faults measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// Bounds a client may want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// Swap areas at once.
    pub max_swap_areas: u32,
    /// Loops of one scan request.
    pub max_scan_loops: u32,
    /// Largest interval or sleep of a scan request, in milliseconds.
    pub max_scan_ms: u64,
    /// Ages saturate at this many scans.
    pub max_idle_age: u32,
    /// Pages that swap areas can still take.
    pub swap_free_pages: u64,
    /// Pages that swap areas can take in all.
    pub swap_total_pages: u64,
}

/// Memory with transparent huge pages, in pieces of 2 MiB or more (see `docs/tracking.md`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PieceCounts {
    /// Pieces that may be made of huge pages and are kept as wholes.
    pub whole: u64,
    /// Pieces made of 4 KiB pages.
    pub split: u64,
    /// Times a piece was split.
    pub splits: u64,
    /// Times a piece was collapsed into huge pages.
    pub collapses: u64,
    /// Times the guest or the kernel was against it.
    pub refused: u64,
}

/// The tiers now. `resident + swapped + zero + untouched + discarded + poisoned = guest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// The tracker in use.
    pub tracker: TrackerKind,
    /// Bytes per page.
    pub page_size: u64,
    /// All of guest memory.
    pub guest_pages: u64,
    /// In host memory now. Pages on their way out count here until they have left, pages on their way in from the start.
    pub resident_pages: u64,
    /// Of the resident ones, those whose swap slot still holds the same bytes as when they came back; they leave again without a write, if
    /// they were not written.
    #[serde(default)]
    pub clean_pages: u64,
    /// In a swap area.
    pub swapped_pages: u64,
    /// Out as zero pages.
    pub zero_pages: u64,
    /// Never touched.
    pub untouched_pages: u64,
    /// Given back by the guest.
    pub discarded_pages: u64,
    /// Unreadable, poisoned.
    pub poisoned_pages: u64,
    /// In locked ranges.
    pub locked_pages: u64,
    /// Pinned by devices.
    pub pinned_pages: u64,
    /// How guest memory is made, in a guest with transparent huge pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<PieceCounts>,
    /// Whether pages may leave on their own.
    pub swap_enable: bool,
    /// Bounds.
    pub limits: Limits,
    /// Events since the start.
    pub counters: Counters,
    /// Fault latency.
    pub fault_latency: Latency,
}

/// Sizes by state in bytes, for people who bill or balance memory. The fields add up to `guest_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Report {
    /// All of guest memory.
    pub guest_bytes: u64,
    /// In host memory.
    pub resident_bytes: u64,
    /// In swap areas.
    pub swapped_bytes: u64,
    /// Out as zero pages: costs nothing.
    pub zero_bytes: u64,
    /// Never touched: costs nothing.
    pub untouched_bytes: u64,
    /// Given back by the guest: costs nothing.
    pub discarded_bytes: u64,
    /// Unreadable.
    pub poisoned_bytes: u64,
}

impl From<&Status> for Report {
    fn from(status: &Status) -> Self {
        let bytes = |pages: u64| pages * status.page_size;
        Self {
            guest_bytes: bytes(status.guest_pages),
            resident_bytes: bytes(status.resident_pages),
            swapped_bytes: bytes(status.swapped_pages),
            zero_bytes: bytes(status.zero_pages),
            untouched_bytes: bytes(status.untouched_pages),
            discarded_bytes: bytes(status.discarded_pages),
            poisoned_bytes: bytes(status.poisoned_pages),
        }
    }
}

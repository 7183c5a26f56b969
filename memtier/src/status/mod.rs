//! What a client sees of the tiers: plain data, serialised as it is by the API.
//!
//! Promises: sizes are in pages unless the name says bytes; the states of one [`Status`] add up to `guest_pages`. Must never: hold locks or
//! references into live structures.

mod places;
mod scan;
mod tracker;

use serde::{Deserialize, Serialize};

pub use places::*;
pub use scan::*;
pub use tracker::*;

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

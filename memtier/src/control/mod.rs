//! The tiers of one guest, behind one handle: what a VMM wires in and a client drives.
//!
//! Promises: every request is checked before anything is done; a request that fails says which part was not done and loses nothing. Must
//! never: hold a lock that the fault path takes.
//!
//! Lock order: `gate` (read) → `swapoff` (one swapoff at a time) → a lane of the evictor → the pieces' shape → locks of the slot caches → an
//! area's lock; and `gate` (read) → the trackers' book → the watcher's. `locks` and the pieces' watches → shape are taken alone.

mod areas;
mod error;
pub mod idle_pages;
pub mod insight;
mod leave;
mod locks;
mod refaults;
mod tracker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

pub use error::ControlError;

use crate::arena::Arena;
use crate::control::tracker::Trackers;
use crate::counters::EventCounters;
use crate::evict::Evictor;
use crate::fault::fill::Filler;
use crate::fault::handler::{Answering, Handlers, VcpuThreads};
use crate::fault::latency::LatencyLog;
use crate::frame::word::{Generation, State};
use crate::insight::Insight;
use crate::memory::{GuestMemory, RegionSpec};
use crate::pieces::Pieces;
use crate::pins::PinGuard;
use crate::ranges::RangeSet;
use crate::status::*;
use crate::swap::SwapTier;
use crate::tier::Tier;
use crate::track::scans::{self, Scans};
use crate::track::watcher::Watcher;
use crate::units::{Gfn, MAX_AREAS};

/// What a [`Memtier`] is made from.
#[derive(Debug)]
pub struct MemtierConfig {
    /// Guest memory in ascending frame order, without overlaps.
    pub regions: Vec<RegionSpec>,
    /// Number of vCPUs: shards of the slot caches.
    pub vcpus: u16,
    /// How accesses are seen.
    pub tracker: TrackerChoice,
    /// What backs guest memory; the regions' files were made for it.
    pub huge_pages: HugePages,
}

/// The tiers of one guest. Shared by `Arc`; all methods may be called from any thread.
#[derive(Debug)]
pub struct Memtier {
    arena: Arc<Arena>,
    swap: Arc<SwapTier>,
    evictor: Arc<Evictor>,
    pieces: Option<Arc<Pieces>>,
    insight: Arc<Insight>,
    filler: Arc<Filler>,
    watcher: Arc<Watcher>,
    scans: Scans,
    handlers: Mutex<Handlers>,
    threads: Arc<VcpuThreads>,
    counters: Arc<EventCounters>,
    /// Relaxed: a wish of the client, nothing is handed over by it.
    swap_enable: AtomicBool,
    trackers: Trackers,
    locks: Mutex<RangeSet>,
    swapoff: Mutex<()>,
    /// Read by requests that touch guest memory, for as long as they do; written once, at the end.
    gate: RwLock<Gate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

impl Drop for Memtier {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Memtier {
    /// Registers guest memory with userfaultfd and starts the fault handlers. No page leaves before it is asked for.
    pub fn new(config: MemtierConfig) -> Result<Arc<Self>, ControlError> {
        let memory = GuestMemory::with_frame_size(config.regions, config.huge_pages.into())?;
        let arena = Arc::new(Arena::new(memory, config.huge_pages)?);
        let counters: Arc<EventCounters> = Arc::default();
        let swap = Arc::new(SwapTier::new(config.vcpus.max(1), config.huge_pages.into()));
        let tier: Arc<dyn Tier> = Arc::clone(&swap) as _;
        let filler = Arc::new(Filler::new(Arc::clone(&arena), Arc::clone(&tier), Arc::clone(&counters)));
        let pieces = (config.huge_pages == HugePages::Transparent).then(|| Arc::new(Pieces::new(Arc::clone(&arena))));
        let evictor =
            Arc::new(Evictor::new(Arc::clone(&arena), tier, Arc::clone(&counters), pieces.clone(), config.vcpus));
        let (trackers, tracker) = Trackers::first(config.tracker, &arena)?;
        let insight = Arc::new(Insight::new(&arena.memory));
        let watcher = Arc::new(Watcher::new(
            Arc::clone(&arena),
            tracker,
            pieces.clone(),
            Arc::clone(&evictor),
            Arc::clone(&insight),
        ));
        let threads = Arc::new(VcpuThreads::new(config.vcpus));
        let answering = Arc::new(Answering {
            arena: Arc::clone(&arena),
            filler: Arc::clone(&filler),
            counters: Arc::clone(&counters),
            threads: Arc::clone(&threads),
        });
        let handlers = Handlers::start(answering, handlers_for(config.vcpus)).map_err(ControlError::Threads)?;
        Ok(Arc::new(Self {
            scans: Scans::new(Arc::clone(&watcher), Arc::clone(&counters)),
            arena,
            swap,
            evictor,
            pieces,
            insight,
            filler,
            watcher,
            handlers: Mutex::new(handlers),
            threads,
            counters,
            swap_enable: AtomicBool::new(true),
            trackers,
            locks: Mutex::default(),
            swapoff: Mutex::new(()),
            gate: RwLock::new(Gate::Open),
        }))
    }

    /// The thread `tid` (as `gettid` gives it) runs vCPU `vcpu`: slots freed by its faults go to its cache.
    pub fn set_vcpu_thread(&self, vcpu: u16, tid: u32) {
        self.threads.set(vcpu, tid);
    }

    /// The swap areas, for those who bring their own store.
    pub fn swap(&self) -> &SwapTier {
        &self.swap
    }

    /// Everything at a glance. Walks all frame words: about a millisecond per GiB.
    pub fn status(&self) -> Status {
        // Without this, a first touch since the last scan would count as untouched.
        if let Err(error) = self.arena.refresh(0..self.arena.memory.frames()) {
            tracing::warn!(%error, "looking for first touches failed");
        }
        let counts = self.arena.frames.count();
        let in_memory =
            [State::Resident, State::Clean, State::Evicting, State::Leaving, State::Filling, State::Opening];
        Status {
            tracker: self.watcher.tracker(),
            page_size: self.arena.memory.frame_size().bytes(),
            guest_pages: u64::from(self.arena.memory.frames()),
            resident_pages: in_memory.iter().map(|state| counts.of(*state)).sum(),
            clean_pages: counts.of(State::Clean),
            swapped_pages: counts.of(State::Swapped),
            zero_pages: counts.of(State::Zero),
            untouched_pages: counts.of(State::Untouched),
            discarded_pages: counts.of(State::Discarded),
            poisoned_pages: counts.of(State::Poisoned),
            locked_pages: counts.locked,
            pinned_pages: counts.pinned,
            pieces: self.pieces.as_ref().map(|pieces| pieces.counts()),
            swap_enable: self.swap_enable(),
            limits: self.limits(),
            counters: self.counters(),
            fault_latency: LatencyLog::merge(lock(&self.handlers).latencies()),
        }
    }

    fn limits(&self) -> Limits {
        let capacity = self.swap.capacity();
        Limits {
            max_swap_areas: u32::try_from(MAX_AREAS).unwrap_or(u32::MAX),
            max_scan_loops: scans::MAX_LOOPS,
            max_scan_ms: scans::MAX_MS,
            max_idle_age: max_age(),
            swap_free_pages: capacity.free,
            swap_total_pages: capacity.total,
        }
    }

    fn counters(&self) -> Counters {
        let (events, io) = (&self.counters, self.swap.counters());
        Counters {
            faults_major: events.faults_major.get(),
            faults_minor: events.faults_minor.get(),
            faults_write_protect: events.faults_write_protect.get(),
            pages_fetched: events.pages_fetched.get(),
            pages_out: events.pages_out.get(),
            pages_out_zero: events.pages_out_zero.get(),
            pages_out_clean: events.pages_out_clean.get(),
            evictions_cancelled: events.evictions_cancelled.get(),
            store_errors: events.store_errors.get(),
            pages_poisoned: events.pages_poisoned.get(),
            scans: events.scans.get(),
            bytes_written: io.bytes_written,
            bytes_read: io.bytes_read,
        }
    }

    /// Sizes by state.
    pub fn report(&self) -> Report {
        Report::from(&self.status())
    }

    /// Whether pages may leave on their own (etmem's `kernel_swap_enable`). Requests work either way.
    pub fn swap_enable(&self) -> bool {
        self.swap_enable.load(Ordering::Relaxed)
    }

    /// See [`Self::swap_enable`].
    pub fn set_swap_enable(&self, on: bool) {
        self.swap_enable.store(on, Ordering::Relaxed);
    }

    /// Starts scanning in the background; one series at a time.
    pub fn start_scan(&self, plan: ScanPlan) -> Result<u64, ControlError> {
        Ok(self.scans.start(plan)?)
    }

    /// A series as it is now.
    pub fn scan(&self, id: u64) -> Option<ScanReport> {
        self.scans.get(id)
    }

    /// Cancels; answers the report as it is then. Cancelling a finished series changes nothing.
    pub fn cancel_scan(&self, id: u64) -> Option<ScanReport> {
        self.scans.cancel(id)
    }

    /// page_idle's read: fills `out` from byte `offset` of the bitmap, answers how many bytes (0 at the end).
    pub fn read_idle(&self, offset: u64, out: &mut [u8]) -> Result<usize, ControlError> {
        let _open = self.enter()?;
        Ok(self.watcher.read_idle(offset, out)?)
    }

    /// page_idle's write: clears references and marks idle where a bit is 1. Answers how many bytes were taken.
    pub fn write_idle(&self, offset: u64, bits: &[u8]) -> Result<usize, ControlError> {
        let _open = self.enter()?;
        Ok(self.watcher.write_idle(offset, bits)?)
    }

    /// The idle bitmap's length in bytes.
    pub fn idle_len(&self) -> u64 {
        self.watcher.bitmap_len()
    }

    /// Brings the range back if it is out and keeps it until the guard drops. For device I/O; start and length need not be aligned.
    pub fn pin(&self, range: GuestRange) -> Result<PinGuard, ControlError> {
        let _open = self.enter()?;
        Ok(PinGuard::new(&self.arena, &self.filler, range.start, range.len)?)
    }

    /// Whether the guest frame is poisoned; asked by the VMM when a vCPU gets SIGBUS.
    pub fn is_poisoned(&self, gfn: Gfn) -> bool {
        self.arena.memory.index(gfn).is_some_and(|frame| self.arena.frames.get(frame).state() == State::Poisoned)
    }

    /// Keeps the end away while a request touches guest memory.
    fn enter(&self) -> Result<RwLockReadGuard<'_, Gate>, ControlError> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if *gate == Gate::Open { Ok(gate) } else { Err(ControlError::Closed) }
    }

    /// Stops scans, requests and fault handlers; afterwards guest memory may be unmapped. vCPUs and devices must have stopped for good.
    pub fn shutdown(&self) {
        self.arena.close();
        self.scans.shutdown();
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = Gate::Closed;
        lock(&self.handlers).stop();
    }
}

const fn max_age() -> u32 {
    Generation::MAX_AGE / 2
}

/// As many as can work at once: one per vCPU, not more than there are processors, not more than eight.
fn handlers_for(vcpus: u16) -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    vcpus.clamp(1, 8).min(u16::try_from(processors).unwrap_or(8))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What a client learns from ages: curves, working set, heat, refaults, and the age of every page.
//!
//! Promises: curves and ages are those of the moment of asking, not of the last scan's end, so that what has left since is not counted as
//! resident. Must never: hold a lock while walking frame words.

use crate::control::Memtier;
use crate::frame::word::State;
use crate::insight::{AgeReport, Census, ColdCurve, HeatMap, RefaultReport, WorkingSet};
use crate::units::FrameIndex;

/// In [`Memtier::read_ages`]: this old, or older.
pub const OLDEST: u8 = 253;
/// In [`Memtier::read_ages`]: not in memory (in a tier, given back, lost).
pub const NOT_RESIDENT: u8 = 254;
/// In [`Memtier::read_ages`]: never touched, or no guest memory.
pub const NO_MEMORY: u8 = 255;

impl Memtier {
    fn census(&self) -> Census {
        Census::take(&self.arena, self.arena.clock.finished())
    }

    /// Bytes idle for at least n scans, by n; of all guest memory and of each region.
    pub fn cold_curve(&self) -> ColdCurve {
        ColdCurve::new(&self.census(), self.insight.scans())
    }

    /// Frames by idle age.
    pub fn age_report(&self) -> AgeReport {
        AgeReport::new(&self.census(), self.insight.scans())
    }

    /// The working set by the last `window` scans, at least 1, at most [`MAX_WINDOW`](crate::insight::working_set::MAX_WINDOW).
    pub fn working_set(&self, window: u32) -> WorkingSet {
        self.insight.working_set(&self.census(), window)
    }

    /// Heat over time.
    pub fn heat(&self) -> HeatMap {
        self.insight.heat()
    }

    /// Refaults by distance in bytes, and by vCPU.
    pub fn refault_report(&self) -> RefaultReport {
        let frame_bytes = self.arena.memory.frame_size().bytes();
        let guest_bytes = u64::from(self.arena.memory.frames()) * frame_bytes;
        let (refaults, major) = (self.refaults(), self.major_faults_by_vcpu());
        RefaultReport::new(&refaults, frame_bytes, guest_bytes, &major, &self.written_by_vcpu())
    }

    /// Idle ages, a byte for each 4 KiB guest frame from frame number `first` on: scans since it was last seen used, up to [`OLDEST`], or
    /// [`NOT_RESIDENT`] or [`NO_MEMORY`]. Fills `out` as far as guest memory goes; answers how many bytes, 0 at or beyond the end.
    pub fn read_ages(&self, first: u64, out: &mut [u8]) -> usize {
        let (memory, finished) = (&self.arena.memory, self.arena.clock.finished());
        let left = usize::try_from(memory.end().0.saturating_sub(first)).unwrap_or(usize::MAX);
        let count = out.len().min(left);
        let out = &mut out[..count];
        out.fill(NO_MEMORY);
        let gfns = first..first.saturating_add(count as u64);
        for frame in memory.indices(gfns.clone()).0.into_iter().flatten().map(FrameIndex) {
            let word = self.arena.frames.get(frame);
            let age = match word.state() {
                State::Untouched => NO_MEMORY,
                State::Swapped | State::Zero | State::Discarded | State::Poisoned => NOT_RESIDENT,
                _ => u8::try_from(word.age(finished)).map_or(OLDEST, |age| age.min(OLDEST)),
            };
            // A huge frame is as old throughout; the first and the last one may be cut off by the request.
            let place = |gfn: u64| usize::try_from(gfn.clamp(gfns.start, gfns.end) - gfns.start).unwrap_or(count);
            let own = memory.gfns(frame);
            out[place(own.start)..place(own.end)].fill(age);
        }
        count
    }
}

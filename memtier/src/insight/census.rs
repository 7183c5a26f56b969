//! One walk over all frame words: who was accessed, how old is what.
//!
//! Promises: every frame of a region counts at most once, by its state and age at the moment it is looked at; the frames counted as resident
//! are those that [`Status`](crate::status::Status) counts. Must never: change a word, take a lock, or cost more than a few nanoseconds a frame.

use std::ops::Range;

use crate::arena::Arena;
use crate::frame::FrameTable;
use crate::frame::word::{Generation, State};
use crate::insight::ages::AgeHistogram;
use crate::insight::buckets::{Buckets, Column};
use crate::memory::{GuestMemory, Region};
use crate::units::FrameIndex;

/// Frames by age at one time, per region and per address bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// The scan that ages count from.
    pub finished: Generation,
    /// Bytes of a frame.
    pub frame_bytes: u64,
    /// The regions, ascending.
    pub regions: Vec<RegionCensus>,
    /// Frames seen used by the last scan, for each of [`Buckets::columns`].
    pub touched_by_bucket: Vec<u32>,
}

/// One region's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionCensus {
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Frames in it.
    pub frames: u32,
    /// Frames in memory, by idle age. Pages on their way out count until they have left, pages on their way in from the start.
    pub resident: AgeHistogram,
    /// Frames in a tier, by the scans since they were last seen used.
    pub out: AgeHistogram,
}

impl Census {
    /// Looks at every frame of `arena`; ages count from the scan `finished`.
    pub fn take(arena: &Arena, finished: Generation) -> Self {
        Self::of(&arena.memory, &arena.frames, finished)
    }

    /// The same, from the parts.
    pub fn of(memory: &GuestMemory, table: &FrameTable, finished: Generation) -> Self {
        let buckets = Buckets::of(memory);
        let mut regions: Vec<RegionCensus> = memory.regions().iter().map(RegionCensus::nothing_of).collect();
        let count = |column: &Column| count_frames(table, column.frames.clone(), finished, &mut regions[column.region]);
        let touched_by_bucket = buckets.columns().iter().map(count).collect();
        Self { finished, frame_bytes: buckets.frame_bytes(), regions, touched_by_bucket }
    }

    /// Resident frames that the scan saw used.
    pub fn accessed(&self) -> u64 {
        self.regions.iter().map(|region| region.resident.younger_than(1)).sum()
    }

    /// Resident frames that it did not.
    pub fn idle(&self) -> u64 {
        self.resident() - self.accessed()
    }

    /// Frames in memory.
    pub fn resident(&self) -> u64 {
        self.regions.iter().map(|region| region.resident.total()).sum()
    }

    /// Frames that the last `scans` scans saw used, wherever they are now: what a hot page that had to leave looks like.
    pub fn touched_within(&self, scans: u32) -> u64 {
        self.regions.iter().map(|region| region.resident.younger_than(scans) + region.out.younger_than(scans)).sum()
    }
}

/// Where a frame's page is, for counting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    Tier,
    Nowhere,
}

const fn place_of(state: State) -> Place {
    match state {
        State::Untouched | State::Discarded | State::Poisoned => Place::Nowhere,
        State::Swapped | State::Zero => Place::Tier,
        _ => Place::Memory,
    }
}

/// Counts the frames of a range into `region`; answers how many were seen used by the scan `finished` or since.
fn count_frames(table: &FrameTable, frames: Range<u32>, finished: Generation, region: &mut RegionCensus) -> u32 {
    let mut touched = 0;
    // Neighbours are mostly alike: a run costs one addition to the histogram.
    let mut run = (Place::Nowhere, 0_u32, 0_u64);
    for frame in frames.map(FrameIndex) {
        let word = table.get(frame);
        let (place, age) = (place_of(word.state()), word.age(finished));
        touched += u32::from(age == 0 && place != Place::Nowhere);
        if (place, age) != (run.0, run.1) {
            region.add(run);
            run = (place, age, 0);
        }
        run.2 += 1;
    }
    region.add(run);
    touched
}

impl RegionCensus {
    fn nothing_of(region: &Region) -> Self {
        Self {
            start: region.first.gpa(),
            frames: region.frames().end - region.frames().start,
            resident: AgeHistogram::default(),
            out: AgeHistogram::default(),
        }
    }

    fn add(&mut self, (place, age, frames): (Place, u32, u64)) {
        match place {
            Place::Memory => self.resident.add(age, frames),
            Place::Tier => self.out.add(age, frames),
            Place::Nowhere => {}
        }
    }
}

#[cfg(test)]
#[path = "census_test.rs"]
pub(crate) mod tests;

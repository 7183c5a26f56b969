//! Requests that pages leave: by range, or coldest first.

use std::ops::Range;

use crate::control::{ControlError, Memtier, max_age};
use crate::evict::Demand;
use crate::ranges::frames_of;
use crate::status::{GuestRange, Outcomes, ReclaimRequest, Reclaimed};
use crate::units::FrameIndex;

impl Memtier {
    /// Evicts what is named, whatever its age; every page is accounted for in the answer. A malformed range is an error, nothing is done then.
    /// Pages are the guest's own, of 4 KiB or 2 MiB; so are the units of ranges.
    pub fn evict(&self, ranges: &[GuestRange]) -> Result<Outcomes, ControlError> {
        let _open = self.enter()?;
        let size = self.arena.memory.frame_size();
        let ranges = ranges.iter().map(|range| frames_of(range, size)).collect::<Result<Vec<_>, _>>()?;
        let mut outcomes = Outcomes::default();
        for gfns in ranges {
            let (frames, outside) = self.arena.memory.indices(gfns);
            outcomes.absent = outcomes.absent.saturating_add(outside / size.pages() as u64);
            for part in frames {
                self.arena.refresh(part.clone()).map_err(ControlError::Look)?;
                outcomes.add(&self.evictor.evict(part.map(FrameIndex), Demand::Every));
            }
        }
        Ok(outcomes)
    }

    /// Evicts the coldest pages first.
    pub fn reclaim(&self, request: ReclaimRequest) -> Result<Reclaimed, ControlError> {
        if request.bytes.is_none() && request.min_idle_scans.is_none() {
            return Err(ControlError::NothingAsked);
        }
        let least = request.min_idle_scans.unwrap_or(0);
        if least > max_age() {
            return Err(ControlError::Age(least));
        }
        let _open = self.enter()?;
        let frame_bytes = self.arena.memory.frame_size().bytes();
        let limit = request.bytes.map_or(u64::MAX, |bytes| bytes.div_ceil(frame_bytes));
        self.arena.refresh(0..self.arena.memory.frames()).map_err(ControlError::Look)?;
        let outcomes = self.reclaim_pages(least, limit);
        Ok(Reclaimed { bytes: outcomes.evicted * frame_bytes, outcomes })
    }

    /// Age by age, oldest first, in frame order within an age. Ages are counted once, so that only ages that occur are walked.
    fn reclaim_pages(&self, least: u32, limit: u64) -> Outcomes {
        let finished = self.arena.clock.finished();
        let age_of = |frame| {
            let word = self.arena.frames.get(frame);
            word.is_resident().then(|| word.age(finished))
        };
        let all = || (0..self.arena.memory.frames()).map(FrameIndex);
        let mut by_age = vec![0_u64; max_age() as usize + 1];
        all().filter_map(age_of).for_each(|age| by_age[age.min(max_age()) as usize] += 1);
        let mut outcomes = Outcomes::default();
        let mut take = |ages: Range<u32>| {
            let due = all().filter(|frame| age_of(*frame).is_some_and(|age| ages.contains(&age)));
            let done = self.evictor.evict(due, Demand::UpTo(limit - outcomes.evicted));
            outcomes.add(&done);
            let failing = done.error > 0 && done.evicted == 0;
            if failing { 0 } else { limit - outcomes.evicted }
        };
        // Neighbouring ages that all have to go go in one walk; the age that is more than what is left goes alone.
        let (mut left, mut gathered, mut upper) = (limit, 0_u64, u32::MAX);
        for age in (least..=max_age()).rev() {
            let here = by_age[age as usize];
            if gathered > 0 && gathered + here > left {
                left = take(age + 1..upper);
                (gathered, upper) = (0, age + 1);
            }
            gathered += here;
            if gathered > 0 && (gathered >= left || age == least) {
                left = take(age..upper);
                (gathered, upper) = (0, age);
            }
            if left == 0 {
                break;
            }
        }
        outcomes
    }
}

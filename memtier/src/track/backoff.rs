//! How often a hot frame is looked at: every scan at first, then less and less often.
//!
//! Arming a frame costs the guest's next access a fault that the kernel resolves. A frame that was accessed in each of the last scans will be
//! accessed in the next one too, most likely, so arming it every time buys nothing. Half a byte per frame counts how many looks in a row found it
//! accessed; from [`FREE_LOOKS`] on, the time between looks doubles with each, up to 2^`limit` scans. The first look that finds it idle puts it
//! back to every scan.
//!
//! The looks are spread so that each scan looks at a few neighbours out of every 2 MiB of hot frames. Neighbours tend to be left together:
//! when half of those looked at turn out idle, all of that piece is looked at again in the next scan. So a change is noticed within a scan or
//! two, though each frame's own turn may be far away.
//!
//! Promises: a frame is looked at no less often than every 2^`limit` scans, `limit` at most [`MAX_LIMIT`]; with limit 0, in every scan. Must
//! never: decide about a frame that was idle when last seen: such frames are always looked at.

use std::ops::Range;

use crate::frame::word::Generation;
use crate::units::FrameIndex;

/// Looks in a row that a frame gets in every scan before the interval grows: short series of scans are exact throughout.
pub const FREE_LOOKS: u8 = 2;
/// The largest limit.
pub const MAX_LIMIT: u32 = 8;
/// The limit when a client names none: 64 scans. Measured in `docs/tracking.md`.
pub const DEFAULT_LIMIT: u32 = 6;
/// Neighbours looked at together, as a power of two.
const GROUP_SHIFT: u32 = 3;
/// Frames whose looks count for each other, as a power of two: at the default limit, one group of each piece is looked at in each scan.
const PIECE_SHIFT: u32 = 9;

/// See the module.
#[derive(Debug)]
pub struct Backoff {
    /// Two counts to a byte.
    counts: Vec<u8>,
    /// One per piece, for the scan under way.
    pieces: Vec<Looks>,
}

/// Looks at frames that had backed off.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    /// Frames armed.
    armed: u16,
    /// Those found accessed.
    confirmed: u16,
}

impl Backoff {
    /// For this many frames, all looked at in every scan.
    pub fn new(frames: u32) -> Self {
        let pieces = vec![Looks::default(); frames.div_ceil(1 << PIECE_SHIFT) as usize];
        Self { counts: vec![0; frames.div_ceil(2) as usize], pieces }
    }

    /// A scan begins.
    pub fn begin(&mut self) {
        self.pieces.fill(Looks::default());
    }

    /// Whether scan `generation` looks at a frame that was accessed lately, given how far looks may be apart.
    pub fn is_due(&self, frame: FrameIndex, generation: Generation, limit: u32) -> bool {
        let shift = u32::from(self.count(frame).saturating_sub(FREE_LOOKS)).min(limit).min(MAX_LIMIT);
        let place = generation.0.wrapping_add(frame.0 >> GROUP_SHIFT);
        place & ((1 << shift) - 1) == 0
    }

    /// It is looked at in this scan.
    pub fn armed(&mut self, frame: FrameIndex) {
        if self.count(frame) > FREE_LOOKS {
            self.pieces[piece(frame)].armed += 1;
        }
    }

    /// This scan's look found it accessed.
    pub fn found_accessed(&mut self, frame: FrameIndex) {
        let count = self.count(frame);
        if count > FREE_LOOKS {
            let looks = &mut self.pieces[piece(frame)];
            looks.confirmed = looks.confirmed.saturating_add(1);
        }
        if u32::from(count) < u32::from(FREE_LOOKS) + MAX_LIMIT {
            self.set(frame, count + 1);
        }
    }

    /// It was idle, or is new.
    pub fn reset(&mut self, frame: FrameIndex) {
        self.set(frame, 0);
    }

    /// These frames are new.
    pub fn start_over(&mut self, frames: Range<u32>) {
        frames.for_each(|frame| self.reset(FrameIndex(frame)));
    }

    /// A scan has ended: pieces that look left behind are looked at anew.
    pub fn end(&mut self) {
        for index in 0..self.pieces.len() {
            let Looks { armed, confirmed } = self.pieces[index];
            if armed > 0 && confirmed <= armed / 2 {
                let bytes = 1 << (PIECE_SHIFT - 1);
                let range: Range<usize> = index * bytes..((index + 1) * bytes).min(self.counts.len());
                self.counts[range].fill(0);
            }
        }
    }

    fn count(&self, frame: FrameIndex) -> u8 {
        self.counts[frame.get() / 2] >> (frame.0 % 2 * 4) & 0xf
    }

    fn set(&mut self, frame: FrameIndex, count: u8) {
        let shift = frame.0 % 2 * 4;
        let byte = &mut self.counts[frame.get() / 2];
        *byte = *byte & !(0xf << shift) | count << shift;
    }
}

fn piece(frame: FrameIndex) -> usize {
    frame.get() >> PIECE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans frames that are all accessed all the time; answers how many each scan looked at.
    fn scans(backoff: &mut Backoff, frames: Range<u32>, scans: Range<u32>, limit: u32) -> Vec<usize> {
        scans.map(|scan| look(backoff, frames.clone(), scan, limit, |_| true).len()).collect()
    }

    /// One scan; answers the frames it looked at.
    fn look(
        backoff: &mut Backoff,
        frames: Range<u32>,
        scan: u32,
        limit: u32,
        accessed: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        backoff.begin();
        let due: Vec<u32> =
            frames.filter(|frame| backoff.is_due(FrameIndex(*frame), Generation(scan), limit)).collect();
        for frame in &due {
            backoff.armed(FrameIndex(*frame));
        }
        for frame in due.iter().filter(|frame| accessed(**frame)) {
            backoff.found_accessed(FrameIndex(*frame));
        }
        backoff.end();
        due
    }

    #[test]
    fn a_hot_frame_is_looked_at_less_and_less_often_up_to_the_limit() {
        let mut backoff = Backoff::new(1024);
        let looked: Vec<u32> =
            (1..200).filter(|scan| !look(&mut backoff, 3..4, *scan, 3, |_| true).is_empty()).collect();
        assert_eq!(looked[..3], [1, 2, 3]);
        let gaps: Vec<u32> = looked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= 8), "{gaps:?}");
        assert!(gaps[8..].iter().all(|gap| *gap == 8), "{gaps:?}");
    }

    #[test]
    fn a_frame_found_idle_is_looked_at_in_every_scan_again() {
        let mut backoff = Backoff::new(2);
        scans(&mut backoff, 1..2, 0..100, 4);
        assert!(!(0..4).all(|scan| backoff.is_due(FrameIndex(1), Generation(scan), 4)));
        backoff.reset(FrameIndex(1));
        assert!((0..64).all(|scan| backoff.is_due(FrameIndex(1), Generation(scan), 4)));
        assert_eq!(backoff.count(FrameIndex(0)), 0, "its neighbour is another frame");
    }

    #[test]
    fn without_a_limit_above_zero_every_scan_looks_at_everything() {
        assert_eq!(scans(&mut Backoff::new(16), 0..16, 0..50, 0), [16; 50]);
    }

    #[test]
    fn each_scan_looks_at_a_few_neighbours_of_every_hot_piece() {
        let mut backoff = Backoff::new(4 << PIECE_SHIFT);
        let all = 0..4 << PIECE_SHIFT;
        scans(&mut backoff, all.clone(), 0..400, DEFAULT_LIMIT);
        for scan in 400..464 {
            let due = look(&mut backoff, all.clone(), scan, DEFAULT_LIMIT, |_| true);
            assert_eq!(due.len(), 32);
            for (index, group) in (0..).zip(due.chunks(8)) {
                assert_eq!((group[0] >> PIECE_SHIFT, group[7] - group[0]), (index, 7), "{due:?}");
            }
        }
    }

    #[test]
    fn a_piece_that_was_left_is_looked_at_as_a_whole_in_the_next_scan() {
        let mut backoff = Backoff::new(2 << PIECE_SHIFT);
        let all = 0..2 << PIECE_SHIFT;
        scans(&mut backoff, all.clone(), 0..400, DEFAULT_LIMIT);
        // The guest leaves the second piece and stays in the first one.
        let first = look(&mut backoff, all.clone(), 400, DEFAULT_LIMIT, |frame| frame < 512);
        assert_eq!(first.len(), 16);
        let second = look(&mut backoff, all.clone(), 401, DEFAULT_LIMIT, |frame| frame < 512);
        assert_eq!(second.len(), 8 + 512);
    }
}

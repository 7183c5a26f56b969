//! When a piece's parts are looked at, when it is split, when it is collapsed: decided after each scan.
//!
//! * A whole piece that was in use for [`WATCH_AFTER`] scans is mapped by small entries for [`WATCH_FOR`] scans. If a quarter of it stayed idle
//!   all that time, it is split, so that the idle part can leave; if not, it is whole again and left in peace for twice as long.
//! * A split piece that is all in memory and nearly all accessed in [`COLLAPSE_AFTER`] scans in a row is collapsed.
//! * A whole piece that is idle as a whole needs no decision: it is split when it is asked to leave.
//!
//! Promises: one walk over the frame words per scan. Must never: split on a single scan's word.

use std::ops::Range;
use std::sync::PoisonError;

use super::{Pieces, Shape};
use crate::frame::word::Generation;
use crate::units::FrameIndex;

/// Scans in a row in which a whole piece is in use before its parts are looked at.
pub const WATCH_AFTER: u32 = 4;
/// Scans for which they are.
pub const WATCH_FOR: u32 = 3;
/// Scans in a row in which nearly all of a split piece is accessed before it is collapsed.
pub const COLLAPSE_AFTER: u32 = 4;
/// How often waiting times double at most.
const MAX_DOUBLINGS: u32 = 6;

/// What is remembered of a piece between scans.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Scans in a row that speak for a change.
    streak: u32,
    /// How often a change was not worth it or not possible.
    doublings: u32,
}

/// What a scan found in a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    frames: u32,
    resident: u32,
    accessed: u32,
    /// Resident, and idle for [`WATCH_FOR`] scans.
    cold: u32,
}

/// What to do with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Leave,
    WatchParts,
    Unwatch,
    Split,
    Collapse,
}

impl Watch {
    /// What was decided was not possible just now: the next scan decides the same, if nothing speaks against it.
    fn try_again(&mut self) {
        self.streak = WATCH_AFTER.max(COLLAPSE_AFTER) << MAX_DOUBLINGS;
    }

    fn judge(&mut self, shape: Shape, found: Found) -> Verdict {
        let wait = |scans: u32, doublings: u32| scans << doublings.min(MAX_DOUBLINGS);
        let speaks = match shape {
            Shape::Whole => found.accessed > 0,
            Shape::Watched => true,
            Shape::Split => found.resident == found.frames && found.accessed >= found.frames - found.frames / 10,
        };
        self.streak = if speaks { self.streak + 1 } else { 0 };
        let verdict = match shape {
            Shape::Whole if self.streak >= wait(WATCH_AFTER, self.doublings) => Verdict::WatchParts,
            Shape::Watched if self.streak < WATCH_FOR => Verdict::Leave,
            // All idle: it will be split when it is to leave.
            Shape::Watched if found.cold >= found.frames / 4 && found.accessed > 0 => Verdict::Split,
            Shape::Watched => Verdict::Unwatch,
            Shape::Split if self.streak >= wait(COLLAPSE_AFTER, self.doublings) => Verdict::Collapse,
            _ => Verdict::Leave,
        };
        if verdict != Verdict::Leave {
            self.streak = 0;
        }
        if verdict == Verdict::Unwatch {
            self.doublings = (self.doublings + 1).min(MAX_DOUBLINGS);
        }
        verdict
    }
}

impl Pieces {
    /// Decides about every piece after scan `finished`. `look_anew` is told of frames whose looks start over; `forget` frees the slot that a
    /// frame has kept.
    pub fn after_scan(&self, finished: Generation, mut look_anew: impl FnMut(Range<u32>), forget: impl Fn(FrameIndex)) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        for (piece, watch) in watches.iter_mut().enumerate().filter(|(piece, _)| self.can_be_huge(*piece)) {
            let verdict = watch.judge(self.shape_of(piece), self.found(piece, finished));
            let frames = self.frames(piece);
            let done = match verdict {
                Verdict::Leave => continue,
                Verdict::WatchParts => self.watch_parts(piece).inspect(|()| look_anew(frames)),
                Verdict::Unwatch => {
                    self.unwatch(piece);
                    Ok(())
                }
                Verdict::Split => self.split(FrameIndex(frames.start)),
                Verdict::Collapse => self.collapse(piece, &forget),
            };
            match done {
                Ok(()) if matches!(verdict, Verdict::Split | Verdict::Collapse) => watch.doublings = 0,
                Ok(()) => {}
                Err(error) if error.is_temporary() => watch.try_again(),
                Err(error) => {
                    watch.doublings = (watch.doublings + 1).min(MAX_DOUBLINGS);
                    tracing::debug!(piece, ?verdict, %error, "piece stays as it is");
                }
            }
        }
    }

    fn found(&self, piece: usize, finished: Generation) -> Found {
        let mut found = Found::default();
        for frame in self.frames(piece) {
            let word = self.arena.frames.get(FrameIndex(frame));
            found.frames += 1;
            if word.is_resident() {
                let age = word.age(finished);
                found.resident += 1;
                found.accessed += u32::from(age == 0);
                found.cold += u32::from(age >= WATCH_FOR);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_HOT: Found = Found { frames: 512, resident: 512, accessed: 512, cold: 0 };

    fn verdicts(watch: &mut Watch, shape: Shape, found: Found, scans: usize) -> Vec<Verdict> {
        (0..scans).map(|_| watch.judge(shape, found)).collect()
    }

    #[test]
    fn the_parts_of_a_piece_in_use_are_looked_at_and_split_off_when_they_stay_idle() {
        let mut watch = Watch::default();
        assert_eq!(verdicts(&mut watch, Shape::Whole, ALL_HOT, 4)[2..], [Verdict::Leave, Verdict::WatchParts]);
        let half = Found { accessed: 256, cold: 256, ..ALL_HOT };
        assert_eq!(
            verdicts(&mut watch, Shape::Watched, half, 3),
            [Verdict::Leave, Verdict::Leave, Verdict::Split],
            "not on a single scan's word"
        );
    }

    #[test]
    fn a_piece_that_is_hot_all_over_is_looked_at_less_and_less_often() {
        let mut watch = Watch::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let mut scans = 1;
            while watch.judge(Shape::Whole, ALL_HOT) == Verdict::Leave {
                scans += 1;
            }
            waits.push(scans);
            assert_eq!(verdicts(&mut watch, Shape::Watched, ALL_HOT, 3)[2], Verdict::Unwatch);
        }
        assert_eq!(waits, [4, 8, 16, 32, 64, 128, 256, 256, 256]);
    }

    #[test]
    fn a_split_piece_is_collapsed_only_when_it_is_hot_and_all_there_for_some_scans() {
        let mut watch = Watch::default();
        assert_eq!(verdicts(&mut watch, Shape::Split, ALL_HOT, 4)[3], Verdict::Collapse);
        let out = Found { resident: 511, ..ALL_HOT };
        assert!(verdicts(&mut watch, Shape::Split, out, 20).iter().all(|verdict| *verdict == Verdict::Leave));
        let lukewarm = Found { accessed: 300, ..ALL_HOT };
        assert!(verdicts(&mut watch, Shape::Split, lukewarm, 20).iter().all(|verdict| *verdict == Verdict::Leave));
    }

    #[test]
    fn what_was_not_possible_is_tried_again_after_the_next_scan() {
        let mut watch = Watch::default();
        assert_eq!(verdicts(&mut watch, Shape::Split, ALL_HOT, 4)[3], Verdict::Collapse);
        watch.try_again();
        assert_eq!(watch.judge(Shape::Split, ALL_HOT), Verdict::Collapse);
        assert_eq!(watch.judge(Shape::Split, ALL_HOT), Verdict::Leave);
    }

    #[test]
    fn an_idle_piece_is_left_as_it_is() {
        let idle = Found { accessed: 0, cold: 512, ..ALL_HOT };
        assert!(verdicts(&mut Watch::default(), Shape::Whole, idle, 50).iter().all(|v| *v == Verdict::Leave));
        assert_eq!(verdicts(&mut Watch::default(), Shape::Watched, idle, 3)[2], Verdict::Unwatch);
    }
}

//! Guest ranges as clients name them: checked, and kept as a set.
//!
//! Promises: a range that is not made of whole pages (of the guest's size) or wraps around is refused by its numbers; a [`RangeSet`] holds disjoint ascending ranges that
//! do not touch. Must never: touch frames.

use std::ops::Range;

use crate::status::GuestRange;
use crate::units::{FrameSize, PAGE_SHIFT};

/// Why a range is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Start or length is not a multiple of the page size.
    #[error("range {what} {value:#x} is not a multiple of {unit}")]
    Unaligned {
        /// `start` or `len`.
        what: &'static str,
        /// What was given.
        value: u64,
        /// Bytes in one of the guest's pages.
        unit: u64,
    },
    /// The end is beyond the address space.
    #[error("range {start:#x}+{len:#x} goes beyond the address space")]
    Wraps {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// The frame numbers of a range in bytes, for a guest with frames of this size.
pub fn frames_of(range: &GuestRange, size: FrameSize) -> Result<Range<u64>, RangeError> {
    let unit = size.bytes();
    for (what, value) in [("start", range.start), ("len", range.len)] {
        if !value.is_multiple_of(unit) {
            return Err(RangeError::Unaligned { what, value, unit });
        }
    }
    let wraps = RangeError::Wraps { start: range.start, len: range.len };
    let end = range.start.checked_add(range.len).ok_or(wraps)?;
    Ok(range.start >> PAGE_SHIFT..end >> PAGE_SHIFT)
}

/// A set of frame numbers as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range<u64>>,
}

impl RangeSet {
    /// Adds a range.
    pub fn insert(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let mut merged = new;
        self.ranges.retain(|old| {
            let apart = old.end < merged.start || merged.end < old.start;
            if !apart {
                merged = merged.start.min(old.start)..merged.end.max(old.end);
            }
            apart
        });
        let at = self.ranges.partition_point(|old| old.start < merged.start);
        self.ranges.insert(at, merged);
    }

    /// Takes a range out.
    pub fn remove(&mut self, gone: Range<u64>) {
        let keep = |old: Range<u64>| {
            let before = old.start..old.end.min(gone.start);
            let after = old.start.max(gone.end)..old.end;
            [before, after].into_iter().filter(|part| part.start < part.end)
        };
        if !gone.is_empty() {
            self.ranges = std::mem::take(&mut self.ranges).into_iter().flat_map(keep).collect();
        }
    }

    /// Whether a frame is in it.
    pub fn contains(&self, frame: u64) -> bool {
        let after = self.ranges.partition_point(|range| range.start <= frame);
        after > 0 && frame < self.ranges[after - 1].end
    }

    /// The ranges in bytes, ascending.
    pub fn to_guest_ranges(&self) -> Vec<GuestRange> {
        let to_bytes = |range: &Range<u64>| GuestRange {
            start: range.start << PAGE_SHIFT,
            len: (range.end - range.start) << PAGE_SHIFT,
        };
        self.ranges.iter().map(to_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_ranges_are_refused_with_their_numbers() {
        let refused = |start, len| frames_of(&GuestRange { start, len }, FrameSize::Small).unwrap_err().to_string();
        assert_eq!(refused(1, 4096), "range start 0x1 is not a multiple of 4096");
        assert_eq!(refused(4096, 7), "range len 0x7 is not a multiple of 4096");
        assert_eq!(refused(!0xfff, 0x2000), "range 0xfffffffffffff000+0x2000 goes beyond the address space");
        assert_eq!(frames_of(&GuestRange { start: 0x1000, len: 0x3000 }, FrameSize::Small), Ok(1..4));
        let error = frames_of(&GuestRange { start: 0, len: 0x3000 }, FrameSize::Huge).unwrap_err();
        assert_eq!(error.to_string(), "range len 0x3000 is not a multiple of 2097152");
        assert_eq!(frames_of(&GuestRange { start: 2 << 20, len: 4 << 20 }, FrameSize::Huge), Ok(512..1536));
    }

    proptest! {
        #[test]
        fn a_range_set_is_the_set_of_its_frames(steps in prop::collection::vec((any::<bool>(), 0_u64..40, 0_u64..12), 0..40)) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (add, start, len) in steps {
                if add {
                    set.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    set.remove(start..start + len);
                    model.retain(|frame| !(start..start + len).contains(frame));
                }
                prop_assert!((0..60).all(|frame| set.contains(frame) == model.contains(&frame)));
            let frames: Vec<u64> = set.ranges.iter().cloned().flatten().collect();
                prop_assert_eq!(&frames, &model.iter().copied().collect::<Vec<_>>());
                prop_assert!(set.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", set);
            }
        }
    }
}

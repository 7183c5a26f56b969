//! Guest memory in a fixed number of address buckets, for pictures that cost the same for every guest.
//!
//! Promises: every frame is in exactly one bucket, no bucket reaches over a region's end, all buckets but a region's last have the same
//! power-of-two size. Must never: be more than [`MAX_COLUMNS`], or one per region if there are more regions than that.

use std::ops::Range;

use crate::memory::GuestMemory;

/// The most buckets, unless there are more regions.
pub const MAX_COLUMNS: usize = 256;

/// How guest memory is cut up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    frame_bytes: u64,
    /// Frames in a bucket that is not a region's last.
    width: u32,
    columns: Vec<Column>,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its region's place in the list of regions.
    pub region: usize,
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Its frames.
    pub frames: Range<u32>,
}

impl Buckets {
    /// Cuts up `memory`; the same memory is always cut the same way.
    pub fn of(memory: &GuestMemory) -> Self {
        let frame_bytes = memory.frame_size().bytes();
        let ranges: Vec<Range<u32>> = memory.regions().iter().map(|region| region.frames()).collect();
        let limit = MAX_COLUMNS.max(ranges.len());
        let width = width_for(&ranges, limit);
        let mut columns = Vec::with_capacity(limit);
        for (number, region) in memory.regions().iter().enumerate() {
            let own = region.frames();
            columns.extend(own.clone().step_by(width as usize).map(|first| Column {
                region: number,
                start: region.first.gpa() + u64::from(first - own.start) * frame_bytes,
                frames: first..first.saturating_add(width).min(own.end),
            }));
        }
        Self { frame_bytes, width, columns }
    }

    /// The buckets in address order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Bytes of a frame.
    pub fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Bytes of a bucket that is not a region's last.
    pub fn bucket_bytes(&self) -> u64 {
        u64::from(self.width) * self.frame_bytes
    }
}

/// The smallest power of two that gives no more than `limit` buckets.
fn width_for(ranges: &[Range<u32>], limit: usize) -> u32 {
    let count =
        |width: u32| ranges.iter().map(|range| (range.end - range.start).div_ceil(width) as usize).sum::<usize>();
    let mut width = 1_u32;
    // Ends: with the largest width every range is one or two buckets, and 2^31 frames are more than half of what an index can count.
    while count(width) > limit && width < 1 << 31 {
        width *= 2;
    }
    width
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_width_is_the_least_that_keeps_the_limit(lens in prop::collection::vec(1_u32..1 << 22, 1..6)) {
            let mut next = 0;
            let ranges: Vec<Range<u32>> = lens.iter().map(|len| { next += len; next - len..next }).collect();
            let width = width_for(&ranges, MAX_COLUMNS);
            let count = |width: u32| lens.iter().map(|len| len.div_ceil(width)).sum::<u32>() as usize;
            prop_assert!(width.is_power_of_two() && count(width) <= MAX_COLUMNS);
            prop_assert!(width == 1 || count(width / 2) > MAX_COLUMNS);
        }
    }

    #[test]
    fn a_terabyte_and_a_single_page_have_a_width() {
        assert_eq!(width_for(std::slice::from_ref(&(0..1)), 256), 1);
        assert_eq!(width_for(std::slice::from_ref(&(0..1 << 28)), 256), 1 << 20);
        assert_eq!(width_for(std::slice::from_ref(&(0..u32::MAX)), 256), 1 << 24);
    }
}

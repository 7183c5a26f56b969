//! Guest memory as the tiers see it: regions of memfds, frame numbers, and the way between frame, index and host address.
//!
//! Promises: a [`FrameIndex`] given out is inside guest memory; contents are read through the file, never through the guest mapping. Must
//! never: hand out a reference or pointer into guest memory.
//!
//! Reading through the file rather than through a second mapping costs no page-table entries, can't allocate a page where there is a hole,
//! and needs no unsafe code over bytes that a guest may change.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::page::Page;
use crate::sys::mem;
use crate::units::{FrameIndex, Gfn, Hva, PAGE_SHIFT};

/// A piece of guest memory: `pages` frames from `first` on, the bytes of `file` from its start, already mapped shared at `guest_map`, where
/// KVM and the devices use it.
#[derive(Debug)]
pub struct RegionSpec {
    /// First frame.
    pub first: Gfn,
    /// Length in pages.
    pub pages: u64,
    /// The memfd, from offset 0 on; nothing else is in it. It must be filled through the mapping only, never by `write`: that could make huge
    /// pages, parts of which can't be given back.
    pub file: std::os::fd::OwnedFd,
    /// Where the guest mapping begins. Must stay mapped until the tiers are shut down.
    pub guest_map: Hva,
}

/// Why regions can't be guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No region, or an empty one.
    #[error("guest memory is empty")]
    Empty,
    /// Not in ascending order, or on top of each other.
    #[error("region at {0} overlaps the one before it or comes out of order")]
    Order(Gfn),
    /// More frames than an index can count (16 TiB).
    #[error("guest memory of {0} pages is more than {max} pages", max = u32::MAX)]
    TooLarge(u64),
}

/// One region.
#[derive(Debug)]
pub struct Region {
    /// First frame.
    pub first: Gfn,
    /// Length in pages.
    pub pages: u32,
    /// Index of the first frame.
    pub base: FrameIndex,
    /// Start of the guest mapping.
    pub map: Hva,
    file: File,
}

impl Region {
    /// Indices of its frames.
    pub fn frames(&self) -> Range<u32> {
        self.base.0..self.base.0 + self.pages
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) << PAGE_SHIFT
    }

    /// Host address of a frame in the guest mapping.
    pub fn hva(&self, frame: FrameIndex) -> Hva {
        self.map.offset(self.offset(frame))
    }

    fn offset(&self, frame: FrameIndex) -> u64 {
        u64::from(frame.0 - self.base.0) << PAGE_SHIFT
    }

    /// The index of a host address within the guest mapping.
    pub fn index_of_hva(&self, address: u64) -> FrameIndex {
        let page = (address - self.map.0) >> PAGE_SHIFT;
        FrameIndex(self.base.0 + u32::try_from(page).expect("an address inside the region"))
    }
}

/// All of guest memory.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    frames: u32,
}

impl GuestMemory {
    /// Takes regions in ascending order.
    pub fn new(specs: Vec<RegionSpec>) -> Result<Self, MemoryError> {
        let mut regions: Vec<Region> = Vec::with_capacity(specs.len());
        let mut frames = 0_u32;
        for spec in specs {
            let too_large = || MemoryError::TooLarge(u64::from(frames).saturating_add(spec.pages));
            let pages = u32::try_from(spec.pages).map_err(|_| too_large())?;
            let base = FrameIndex(frames);
            let after = frames.checked_add(pages).ok_or_else(too_large)?;
            if pages == 0 {
                return Err(MemoryError::Empty);
            }
            if regions.last().is_some_and(|last| last.first.offset(u64::from(last.pages)) > spec.first) {
                return Err(MemoryError::Order(spec.first));
            }
            regions.push(Region { first: spec.first, pages, base, map: spec.guest_map, file: File::from(spec.file) });
            frames = after;
        }
        if regions.is_empty() { Err(MemoryError::Empty) } else { Ok(Self { regions, frames }) }
    }

    /// Number of frames.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// One past the last frame number.
    pub fn end(&self) -> Gfn {
        self.regions.last().map_or(Gfn(0), |last| last.first.offset(u64::from(last.pages)))
    }

    /// The region that holds a frame.
    pub fn region(&self, frame: FrameIndex) -> &Region {
        let after = self.regions.partition_point(|region| region.base <= frame);
        &self.regions[after - 1]
    }

    /// A frame number's index, if it is guest memory.
    pub fn index(&self, gfn: Gfn) -> Option<FrameIndex> {
        let after = self.regions.partition_point(|region| region.first <= gfn);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let page = u32::try_from(gfn.0 - region.first.0).ok().filter(|page| *page < region.pages)?;
        Some(FrameIndex(region.base.0 + page))
    }

    /// An index's frame number.
    pub fn gfn(&self, frame: FrameIndex) -> Gfn {
        let region = self.region(frame);
        region.first.offset(u64::from(frame.0 - region.base.0))
    }

    /// A frame's address in the guest mapping.
    pub fn hva(&self, frame: FrameIndex) -> Hva {
        self.region(frame).hva(frame)
    }

    /// The frame at an address of the guest mapping.
    pub fn index_of_hva(&self, address: Hva) -> Option<FrameIndex> {
        let inside = |region: &&Region| (region.map.0..region.map.0 + region.bytes()).contains(&address.0);
        self.regions.iter().find(inside).map(|region| region.index_of_hva(address.0))
    }

    /// The indices of the guest frames in a range of frame numbers; holes are left out. The second value counts what was left out.
    pub fn indices(&self, gfns: Range<u64>) -> (Vec<Range<u32>>, u64) {
        let mut inside = 0;
        let mut ranges = Vec::new();
        for region in &self.regions {
            let start = gfns.start.max(region.first.0);
            let end = gfns.end.min(region.first.0 + u64::from(region.pages));
            if start < end {
                let to_index = |gfn: u64| region.base.0 + u32::try_from(gfn - region.first.0).unwrap_or(region.pages);
                ranges.push(to_index(start)..to_index(end));
                inside += end - start;
            }
        }
        (ranges, gfns.end.saturating_sub(gfns.start) - inside)
    }

    /// Reads `pages.len()` frames from `first` on, all of one region, as they are now. Holes read as zero and stay holes.
    pub fn read(&self, first: FrameIndex, pages: &mut [Page]) -> io::Result<()> {
        let region = self.region(first);
        region.file.read_exact_at(pages.as_flattened_mut(), region.offset(first))
    }

    /// Gives `count` frames from `first` on, all of one region, back to the host.
    pub fn punch(&self, first: FrameIndex, count: u32) -> io::Result<()> {
        let region = self.region(first);
        mem::punch_hole(&region.file, region.offset(first), u64::from(count) << PAGE_SHIFT)
    }

    /// Calls `found` with each run of frames of `frames` that have memory.
    pub fn for_each_present(&self, frames: Range<u32>, mut found: impl FnMut(Range<u32>)) -> io::Result<()> {
        for (region, part) in self.parts(frames) {
            let index = |bytes: u64| region.base.0 + u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(region.pages);
            let end = region.offset(FrameIndex(part.end));
            let mut at = region.offset(FrameIndex(part.start));
            while at < end {
                let Some((start, stop)) = mem::next_data(&region.file, at)?.filter(|(start, _)| *start < end) else {
                    break;
                };
                found(index(start)..index(stop.min(end)));
                at = stop;
            }
        }
        Ok(())
    }

    /// Splits a range of indices at region boundaries.
    pub fn parts(&self, frames: Range<u32>) -> impl Iterator<Item = (&Region, Range<u32>)> {
        self.regions.iter().filter_map(move |region| {
            let own = region.frames();
            let part = frames.start.max(own.start)..frames.end.min(own.end);
            (part.start < part.end).then_some((region, part))
        })
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;

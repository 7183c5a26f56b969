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

use crate::page::{Page, PageSlab};
use crate::status::HugePages;
use crate::sys::mem;
use crate::units::{FrameIndex, FrameSize, Gfn, Hva, PAGE_SHIFT};

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
    /// A region does not consist of whole frames.
    #[error("region at {first}: {what} {value:#x} is not a multiple of the frame size, {size}")]
    Unaligned {
        /// The region's first frame number.
        first: Gfn,
        /// `start`, `length` or `mapping`.
        what: &'static str,
        /// That many bytes.
        value: u64,
        /// What it should be a multiple of.
        size: FrameSize,
    },
    /// A region's file has pages of another size.
    #[error("region at {first}: the file's pages are not of {size}")]
    Backing {
        /// The region's first frame number.
        first: Gfn,
        /// What was expected.
        size: FrameSize,
    },
    /// A region's file can't be looked at.
    #[error("region at {first}: the file can't be examined")]
    File {
        /// The region's first frame number.
        first: Gfn,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl From<HugePages> for FrameSize {
    fn from(pages: HugePages) -> Self {
        match pages {
            // Transparent huge pages come and go beneath frames of 4 KiB.
            HugePages::Off | HugePages::Transparent => Self::Small,
            HugePages::Hugetlb2M => Self::Huge,
        }
    }
}

/// Frames that [`GuestMemory::for_each_present`] asks about at once.
const PIECE: u32 = 512;

/// One region.
#[derive(Debug)]
pub struct Region {
    /// First frame.
    pub first: Gfn,
    /// Length in pages of 4 KiB.
    pub pages: u32,
    /// Index of the first frame.
    pub base: FrameIndex,
    /// Start of the guest mapping.
    pub map: Hva,
    file: File,
    size: FrameSize,
}

impl Region {
    /// Indices of its frames.
    pub fn frames(&self) -> Range<u32> {
        self.base.0..self.base.0 + self.count()
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) << PAGE_SHIFT
    }

    /// Host address of a frame in the guest mapping.
    pub fn hva(&self, frame: FrameIndex) -> Hva {
        self.map.offset(self.offset(frame))
    }

    /// Number of frames.
    fn count(&self) -> u32 {
        self.pages >> (self.size.shift() - PAGE_SHIFT)
    }

    fn offset(&self, frame: FrameIndex) -> u64 {
        u64::from(frame.0 - self.base.0) << self.size.shift()
    }

    fn gfn(&self, frame: FrameIndex) -> Gfn {
        self.first.offset(self.offset(frame) >> PAGE_SHIFT)
    }

    /// Frames whose memory the file holds, mapped or not.
    pub fn held(&self) -> io::Result<u64> {
        Ok(mem::bytes_held(&self.file)? >> self.size.shift())
    }

    /// The index of a host address within the guest mapping.
    pub fn index_of_hva(&self, address: u64) -> FrameIndex {
        let frame = (address - self.map.0) >> self.size.shift();
        FrameIndex(self.base.0 + u32::try_from(frame).expect("an address inside the region"))
    }

    fn check(&self) -> Result<(), MemoryError> {
        let (first, size) = (self.first, self.size);
        for (what, value) in [("start", first.gpa()), ("length", self.bytes()), ("mapping", self.map.0)] {
            if !value.is_multiple_of(size.bytes()) {
                return Err(MemoryError::Unaligned { first, what, value, size });
            }
        }
        let huge = mem::is_hugetlb(&self.file).map_err(|source| MemoryError::File { first, source })?;
        if huge == (size == FrameSize::Huge) { Ok(()) } else { Err(MemoryError::Backing { first, size }) }
    }
}

/// All of guest memory.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    frames: u32,
    size: FrameSize,
}

impl GuestMemory {
    /// Takes regions in ascending order, with frames of 4 KiB.
    pub fn new(specs: Vec<RegionSpec>) -> Result<Self, MemoryError> {
        Self::with_frame_size(specs, FrameSize::Small)
    }

    /// Takes regions in ascending order, made up of frames of this size: whole ones, and huge ones backed by hugetlbfs.
    pub fn with_frame_size(specs: Vec<RegionSpec>, size: FrameSize) -> Result<Self, MemoryError> {
        let mut regions: Vec<Region> = Vec::with_capacity(specs.len());
        let mut frames = 0_u32;
        for spec in specs {
            let too_large = || MemoryError::TooLarge(u64::from(frames).saturating_add(spec.pages));
            let pages = u32::try_from(spec.pages).map_err(|_| too_large())?;
            let base = FrameIndex(frames);
            if pages == 0 {
                return Err(MemoryError::Empty);
            }
            if regions.last().is_some_and(|last| last.first.offset(u64::from(last.pages)) > spec.first) {
                return Err(MemoryError::Order(spec.first));
            }
            let (file, map) = (File::from(spec.file), spec.guest_map);
            let region = Region { first: spec.first, pages, base, map, file, size };
            region.check()?;
            frames = frames.checked_add(region.count()).ok_or_else(too_large)?;
            regions.push(region);
        }
        if regions.is_empty() { Err(MemoryError::Empty) } else { Ok(Self { regions, frames, size }) }
    }

    /// The size of every frame.
    pub fn frame_size(&self) -> FrameSize {
        self.size
    }

    /// A buffer for the pages of one frame.
    pub fn frame_buffer(&self) -> PageSlab {
        PageSlab::new(self.size.pages())
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

    /// The index of the frame that a frame number is in, if it is guest memory.
    pub fn index(&self, gfn: Gfn) -> Option<FrameIndex> {
        let after = self.regions.partition_point(|region| region.first <= gfn);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let page = u32::try_from(gfn.0 - region.first.0).ok().filter(|page| *page < region.pages)?;
        Some(FrameIndex(region.base.0 + (page >> self.pages_shift())))
    }

    /// An index's frame number: that of its first page.
    pub fn gfn(&self, frame: FrameIndex) -> Gfn {
        self.region(frame).gfn(frame)
    }

    /// The frame numbers of an index's pages.
    pub fn gfns(&self, frame: FrameIndex) -> Range<u64> {
        let first = self.gfn(frame).0;
        first..first + self.size.pages() as u64
    }

    fn pages_shift(&self) -> u32 {
        self.size.shift() - PAGE_SHIFT
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

    /// The indices of the frames that a range of frame numbers touches; holes are left out. The second value counts the frame numbers that were
    /// left out.
    pub fn indices(&self, gfns: Range<u64>) -> (Vec<Range<u32>>, u64) {
        let mut inside = 0;
        let mut ranges = Vec::new();
        for region in &self.regions {
            let start = gfns.start.max(region.first.0);
            let end = gfns.end.min(region.first.0 + u64::from(region.pages));
            if start < end {
                let page = |gfn: u64| u32::try_from(gfn - region.first.0).unwrap_or(region.pages);
                let first = page(start) >> self.pages_shift();
                let last = (page(end) - 1) >> self.pages_shift();
                ranges.push(region.base.0 + first..region.base.0 + last + 1);
                inside += end - start;
            }
        }
        (ranges, gfns.end.saturating_sub(gfns.start) - inside)
    }

    /// Reads `pages.len()` pages of 4 KiB from the start of frame `first` on, all of one region, as they are now. Holes read as zero and stay
    /// holes.
    pub fn read(&self, first: FrameIndex, pages: &mut [Page]) -> io::Result<()> {
        self.read_from(first, 0, pages)
    }

    /// The same, leaving out `skip` pages at the start.
    pub fn read_from(&self, first: FrameIndex, skip: usize, pages: &mut [Page]) -> io::Result<()> {
        let region = self.region(first);
        let at = region.offset(first) + ((skip as u64) << PAGE_SHIFT);
        region.file.read_exact_at(pages.as_flattened_mut(), at)
    }

    /// Gives `count` frames from `first` on, all of one region, back to the host.
    pub fn punch(&self, first: FrameIndex, count: u32) -> io::Result<()> {
        let region = self.region(first);
        mem::punch_hole(&region.file, region.offset(first), u64::from(count) << self.size.shift())
    }

    /// Calls `found` with each run of frames of `frames` that have memory. Costs nothing for holes and looks at nothing beyond the range. Of
    /// huge frames only those that are mapped now are found: hugetlbfs says of every offset that there is data, and mincore(2) knows of it
    /// only what the page table has. [`Arena::refresh`](crate::arena::Arena::refresh) finds the others.
    pub fn for_each_present(&self, frames: Range<u32>, found: impl FnMut(Range<u32>)) -> io::Result<()> {
        match self.size {
            FrameSize::Small => self.for_each_held(frames, found),
            FrameSize::Huge => self.for_each_mapped(frames, found),
        }
    }

    fn for_each_mapped(&self, frames: Range<u32>, mut found: impl FnMut(Range<u32>)) -> io::Result<()> {
        for (region, part) in self.parts(frames) {
            for frame in part {
                let mut held = [0_u8];
                mem::pages_held(region.hva(FrameIndex(frame)), &mut held)?;
                if held[0] & 1 == 1 {
                    found(frame..frame + 1);
                }
            }
        }
        Ok(())
    }

    fn for_each_held(&self, frames: Range<u32>, mut found: impl FnMut(Range<u32>)) -> io::Result<()> {
        let mut held = [0_u8; PIECE as usize];
        for (region, mut part) in self.parts(frames) {
            let index = |bytes: u64| region.base.0 + u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(region.pages);
            while !part.is_empty() {
                let from = region.offset(FrameIndex(part.start));
                let Some(start) = mem::next_data(&region.file, from)?.map(index).filter(|start| *start < part.end)
                else {
                    break;
                };
                let piece = start..part.end.min(start + PIECE);
                let held = &mut held[..(piece.end - piece.start) as usize];
                mem::pages_held(region.hva(FrameIndex(start)), held)?;
                let mut at = start;
                for run in held.chunk_by(|a, b| a & 1 == b & 1) {
                    let next = at + u32::try_from(run.len()).expect("a piece is short");
                    if run[0] & 1 == 1 {
                        found(at..next);
                    }
                    at = next;
                }
                part.start = piece.end;
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

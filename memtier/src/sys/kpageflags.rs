//! Host frames: which one is behind a page of this process (`/proc/self/pagemap`), and what the kernel says of it (`/proc/kpageflags`;
//! `Documentation/admin-guide/mm/pagemap.rst`).
//!
//! Promises: what is not told (a hole in host memory, a number that this process may not see) is said to be so, never guessed. Must never:
//! keep what it read; both files tell of a moment, and a page may be elsewhere in the next one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::units::{Hva, PAGE_SHIFT};

/// The page tables of this process.
pub const PAGEMAP: &str = "/proc/self/pagemap";
/// What each host frame is.
pub const KPAGEFLAGS: &str = "/proc/kpageflags";

/// A host frame number: a host physical address in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

impl std::fmt::Display for Pfn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{:x}", self.0)
    }
}

/// Where a page of this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// No page table entry leads to it: untouched, unmapped, or on its way to another frame.
    No,
    /// In memory, but this process may not know where (CAP_SYS_ADMIN).
    Hidden,
    /// In this frame.
    At(Pfn),
}

impl Mapped {
    /// Reads a pagemap entry: bit 63 present, bits 0..=54 the frame number.
    pub fn from_entry(entry: [u8; 8]) -> Self {
        let entry = u64::from_ne_bytes(entry);
        match entry & ((1 << 55) - 1) {
            _ if entry >> 63 == 0 => Self::No,
            0 => Self::Hidden,
            pfn => Self::At(Pfn(pfn)),
        }
    }
}

/// `/proc/self/pagemap`, read for frame numbers.
#[derive(Debug)]
pub struct PageFrames {
    file: File,
}

impl PageFrames {
    /// Opens it. Whether numbers are shown depends on what this process may do now, not on what it may do later.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: File::open(PAGEMAP)? })
    }

    /// Reads an entry for each page from `first` on; [`Mapped::from_entry`] understands them.
    pub fn read(&self, first: Hva, entries: &mut [[u8; 8]]) -> io::Result<()> {
        self.file.read_exact_at(entries.as_flattened_mut(), (first.0 >> PAGE_SHIFT) * 8)
    }

    /// Where one page is.
    pub fn at(&self, page: Hva) -> io::Result<Mapped> {
        let mut entry = [[0; 8]];
        self.read(page, &mut entry)?;
        Ok(Mapped::from_entry(entry[0]))
    }
}

/// What the kernel says of a frame; bits as in `include/uapi/linux/kernel-page-flags.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFlags(pub u64);

impl FrameFlags {
    /// On one of the lists that reclaim works on; only such frames can be marked idle.
    pub const fn is_on_lru(self) -> bool {
        self.0 >> 5 & 1 == 1
    }

    /// First of a compound page.
    pub const fn is_compound_head(self) -> bool {
        self.0 >> 15 & 1 == 1
    }

    /// Of a compound page, not its first.
    pub const fn is_compound_tail(self) -> bool {
        self.0 >> 16 & 1 == 1
    }

    /// Marked idle, and not found accessed since. Up to date only just after the idle page bitmap was read there.
    pub const fn is_idle(self) -> bool {
        self.0 >> 25 & 1 == 1
    }

    /// Of hugetlbfs; such pages are never on a list.
    pub const fn is_hugetlb(self) -> bool {
        self.0 >> 17 & 1 == 1
    }
}

/// `/proc/kpageflags`.
#[derive(Debug)]
pub struct KPageFlags {
    file: File,
}

impl KPageFlags {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: File::open(KPAGEFLAGS)? })
    }

    /// For asking about frames one after the other; best in order.
    pub fn reader(&self) -> FlagReader<'_> {
        FlagReader { file: &self.file, first: 0, words: [[0; 8]; WINDOW], filled: 0 }
    }
}

/// Frames read at once: as many as cost the kernel about as much as the call itself.
const WINDOW: usize = 32;
/// Compound pages have at most 2^18 frames (1 GiB); a little beyond that costs nothing.
const MAX_ORDER: u32 = 20;

/// Reads flags in small windows. What it has read grows old: it is for one pass over some frames.
#[derive(Debug)]
pub struct FlagReader<'a> {
    file: &'a File,
    first: u64,
    words: [[u8; 8]; WINDOW],
    filled: usize,
}

impl FlagReader<'_> {
    /// What a frame is; nothing at all where there is no memory.
    pub fn flags(&mut self, pfn: Pfn) -> io::Result<FrameFlags> {
        let first = pfn.0 - pfn.0 % WINDOW as u64;
        if first != self.first || self.filled == 0 {
            self.fill(first)?;
        }
        let place = usize::try_from(pfn.0 - first).unwrap_or(WINDOW);
        Ok(FrameFlags(self.words[..self.filled].get(place).map_or(0, |word| u64::from_ne_bytes(*word))))
    }

    fn fill(&mut self, first: u64) -> io::Result<()> {
        self.filled = 0;
        let got = self.file.read_at(self.words.as_flattened_mut(), first * 8)?;
        (self.first, self.filled) = (first, got / 8);
        Ok(())
    }

    /// The frame that speaks for this one and its flags: the head of its compound page, or itself.
    ///
    /// A compound page of 2^n frames begins at a multiple of 2^n. So going up in orders from a tail, every start that is too near is a tail
    /// of the same page, and the first head found is its own. A page that falls apart meanwhile has no head any more, and the frame is taken
    /// by itself.
    pub fn head(&mut self, pfn: Pfn) -> io::Result<(Pfn, FrameFlags)> {
        let own = self.flags(pfn)?;
        if own.is_compound_tail() {
            for order in 1..=MAX_ORDER {
                let start = Pfn(pfn.0 >> order << order);
                let flags = self.flags(start)?;
                if flags.is_compound_head() {
                    return Ok((start, flags));
                }
            }
        }
        Ok((pfn, own))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LRU: u64 = 1 << 5;
    const HEAD: u64 = 1 << 15;
    const TAIL: u64 = 1 << 16;

    fn flags_file(words: &[u64]) -> KPageFlags {
        let mut file = tempfile::tempfile().unwrap();
        words.iter().for_each(|word| file.write_all(&word.to_ne_bytes()).unwrap());
        KPageFlags { file }
    }

    #[test]
    fn entries_say_where_a_page_is_or_that_it_may_not_be_known() {
        let mapped = |entry: u64| Mapped::from_entry(entry.to_ne_bytes());
        assert_eq!(mapped(0), Mapped::No);
        assert_eq!(mapped(1 << 62 | 77), Mapped::No);
        assert_eq!(mapped(1 << 63 | 1 << 61), Mapped::Hidden);
        assert_eq!(mapped(1 << 63 | 1 << 61 | 1 << 57 | 1 << 55 | 0x1234), Mapped::At(Pfn(0x1234)));
    }

    #[test]
    fn a_tail_finds_its_own_head_among_pages_of_all_sizes() {
        let mut words = vec![LRU; 64];
        let mut expected: Vec<u64> = (0..64).collect();
        for (start, order) in [(2_usize, 1_u32), (4, 2), (16, 4), (32, 3), (40, 3), (48, 4)] {
            for (at, word) in words.iter_mut().enumerate().skip(start).take(1 << order) {
                *word = if at == start { HEAD | LRU } else { TAIL };
                expected[at] = start as u64;
            }
        }
        let file = flags_file(&words);
        let mut reader = file.reader();
        for (pfn, head) in (0..).zip(expected) {
            let (found, flags) = reader.head(Pfn(pfn)).unwrap();
            assert_eq!((found, flags.is_on_lru()), (Pfn(head), true), "frame {pfn}");
        }
    }

    #[test]
    fn a_tail_whose_head_is_gone_stands_for_itself() {
        let file = flags_file(&[LRU, LRU, LRU, TAIL]);
        assert_eq!(file.reader().head(Pfn(3)).unwrap(), (Pfn(3), FrameFlags(TAIL)));
    }

    #[test]
    fn there_is_nothing_beyond_the_end_of_memory() {
        let file = flags_file(&[LRU; 40]);
        let mut reader = file.reader();
        for pfn in [40, 63, 64, 1 << 40] {
            assert_eq!(reader.flags(Pfn(pfn)).unwrap(), FrameFlags(0));
        }
        assert!(reader.flags(Pfn(39)).unwrap().is_on_lru());
    }

    #[test]
    fn a_page_of_our_own_is_found_unless_numbers_are_hidden() {
        let slab = crate::page::PageSlab::new(1);
        let page = Hva(slab.as_ptr() as u64);
        let frames = PageFrames::open().unwrap();
        // Zeroed memory may not be there yet.
        std::hint::black_box(&slab[0]);
        assert_ne!(std::hint::black_box(slab[0][77]), 1);
        match (frames.at(page).unwrap(), KPageFlags::open()) {
            (Mapped::At(pfn), Ok(flags)) => assert_ne!(flags.reader().flags(pfn).unwrap(), FrameFlags(0), "{pfn}"),
            (mapped, _) => assert_ne!(mapped, Mapped::No),
        }
    }
}

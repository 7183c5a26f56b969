//! Memory whose guest frame numbers are known, to be touched page by page: what trackers are held against.
//!
//! Promises: its pages are of 4 KiB, locked, and each has a frame of its own; between two calls nothing here touches them, and [`Arena::touch`]
//! touches those of its set and no other. Must never: lie among other data, so that nobody touches it by accident.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

use ebb_tests::tracking::sets::PageSet;

const PAGE_BYTES: usize = 4096;
/// In an entry of `/proc/self/pagemap`: the page is there, and the bits of its frame number (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// See the module.
pub struct Arena {
    base: NonNull<u8>,
    pages: usize,
    pagemap: File,
    /// Pages by frame number: page `by_frame[i].1` of the mapping is in frame `by_frame[i].0`.
    by_frame: Vec<(u64, usize)>,
}

impl Arena {
    /// Maps and touches `pages` pages, a multiple of 64, and finds out their frame numbers, which only root is told.
    pub fn new(pages: usize) -> io::Result<Self> {
        if pages == 0 || !pages.is_multiple_of(64) {
            return Err(io::Error::other(format!("{pages} pages are no multiple of 64")));
        }
        let base = map(pages * PAGE_BYTES)?;
        let mut arena = Self { base, pages, pagemap: File::open("/proc/self/pagemap")?, by_frame: Vec::new() };
        for page in 0..pages {
            arena.write(page, 1);
        }
        // SAFETY: the mapping is ours; locking changes none of its bytes.
        check(unsafe { libc::mlock(arena.base.as_ptr().cast(), pages * PAGE_BYTES) })?;
        let mut by_frame: Vec<(u64, usize)> = arena.look_up()?.into_iter().zip(0..).collect();
        by_frame.sort_unstable();
        arena.by_frame = by_frame;
        Ok(arena)
    }

    /// The guest frame numbers of its pages, ascending.
    pub fn frames(&self) -> Vec<u64> {
        self.by_frame.iter().map(|(frame, _)| *frame).collect()
    }

    /// Touches the pages of `set`, which are counted by frame number, once each in that order: writes that word, or reads one. Answers the sum
    /// of what was read, which keeps the reads from being optimised away.
    pub fn touch(&self, set: &PageSet, write: Option<u64>) -> u64 {
        let mut sum: u64 = 0;
        for (place, word) in set.words().iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let page = self.by_frame[place * 64 + bit].1;
                match write {
                    Some(value) => self.write(page, value),
                    None => sum = sum.wrapping_add(self.read(page)),
                }
            }
        }
        sum
    }

    /// Pages that are in another frame than in the beginning, or in none.
    pub fn moved(&self) -> io::Result<u64> {
        let now = self.look_up()?;
        let moved = self.by_frame.iter().filter(|(frame, page)| now[*page] != *frame).count();
        Ok(u64::try_from(moved).unwrap_or(u64::MAX))
    }

    /// The frame number of each page, in the mapping's order. Does not touch the pages.
    fn look_up(&self) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; self.pages * 8];
        let first = self.base.as_ptr().addr() / PAGE_BYTES * 8;
        self.pagemap.read_exact_at(&mut bytes, u64::try_from(first).map_err(io::Error::other)?)?;
        let entries = bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_ne_bytes(*chunk));
        entries
            .map(|entry| match entry & FRAME {
                frame if entry & PRESENT != 0 && frame != 0 => Ok(frame),
                _ => Err(io::Error::other(format!("/proc/self/pagemap tells no frame number ({entry:#x})"))),
            })
            .collect()
    }

    fn word(&self, page: usize) -> *mut u64 {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        // The middle of the page: its neighbours' ends are far away.
        self.base.as_ptr().wrapping_add(page * PAGE_BYTES + PAGE_BYTES / 2).cast()
    }

    fn write(&self, page: usize, value: u64) {
        // SAFETY: `word` is inside the mapping, aligned, and used through raw pointers only, by one thread.
        unsafe { ptr::write_volatile(self.word(page), value) }
    }

    fn read(&self, page: usize) -> u64 {
        // SAFETY: as for `write`.
        unsafe { ptr::read_volatile(self.word(page)) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing points into it any more. A failure would leave it mapped, which harms nobody.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE_BYTES) };
    }
}

/// Memory of its own, of small pages.
fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping where the kernel likes, which touches nothing that exists.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: advice about the mapping just made.
    let advised = check(unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) });
    match advised {
        // A kernel built without huge pages does not know the advice, and needs none.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(NonNull::new(base.cast()).expect("the kernel maps nothing at zero unasked")),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_frame_of_its_own_where_frame_numbers_are_told() {
        match Arena::new(256) {
            Ok(arena) => {
                let frames = arena.frames();
                assert_eq!(frames.len(), 256);
                assert!(frames.windows(2).all(|pair| pair[0] < pair[1]), "ascending, none twice");
                assert_eq!(arena.moved().expect("looked up"), 0);
            }
            Err(error) => assert!(error.to_string().starts_with("/proc/self/pagemap tells no frame number"), "{error}"),
        }
    }

    #[test]
    fn a_touch_writes_to_the_pages_of_the_set_and_to_no_other() {
        let mapping = map(128 * PAGE_BYTES).expect("mapped");
        let pagemap = File::open("/proc/self/pagemap").expect("opened");
        // Frame numbers as if pages lay in reverse order, whatever this process is told.
        let by_frame = (0..128).map(|at| (at, 127 - usize::try_from(at).expect("small"))).collect();
        let arena = Arena { base: mapping, pages: 128, pagemap, by_frame };
        assert_eq!(arena.touch(&PageSet::from_words(vec![0b101, 1 << 63]), Some(7)), 0);
        let written: Vec<usize> = (0..128).filter(|page| arena.read(*page) == 7).collect();
        assert_eq!(written, [0, 125, 127]);
        assert_eq!(arena.touch(&PageSet::from_words(vec![0b111, 0]), None), 14);
    }

    #[test]
    fn an_odd_number_of_pages_is_refused() {
        for pages in [0, 65] {
            let error = Arena::new(pages).err().expect("refused");
            assert_eq!(error.to_string(), format!("{pages} pages are no multiple of 64"));
        }
    }
}

//! Guest memory as devices and loaders use it, and the record of what they wrote.
//!
//! KVM's dirty log knows what vCPUs write, through their page tables. What this process writes through its own mapping is marked here, by
//! `vm-memory` for every access that goes through it, and by hand where the kernel is handed an address ([`crate::virtio::block`]).
//!
//! Promises: while the record is on, a page whose bytes were changed through [`DeviceMemory`] is marked after the change, never before it:
//! whoever clears the mark first and reads the page then has the new bytes, or finds the mark again. Off, a mark costs a fence and a load,
//! and the record takes no memory. Must never: lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Guest memory that keeps a record of writes.
pub type DeviceMemory = GuestMemoryMmap<DeviceWrites>;

/// Bytes that one mark stands for.
const PAGE_SIZE: usize = 4096;
const WORD_BITS: usize = 64;

/// The pages of one region of guest memory that this process wrote. Bit `i % 64` of word `i / 64` is page `i` of 4 KiB.
#[derive(Debug, Default)]
pub struct DeviceWrites {
    pages: usize,
    on: AtomicBool,
    /// Made when the record is first switched on: most guests never need it.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DeviceWrites {
    /// Begins a record without marks. One that is on already goes on.
    pub fn start(&self) {
        if !self.on.load(Ordering::Relaxed) {
            // A device that still sees the record off wrote before this call, and is covered by what the caller takes for granted at the start.
            self.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
            // SeqCst: with the fence in `mark`.
            self.on.store(true, Ordering::SeqCst);
        }
    }

    /// Ends the record.
    pub fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
    }

    /// Sets the bits of pages written since each was last cleared; other bits stay. A page beyond `bits` is left out.
    pub fn add_to(&self, bits: &mut [u64]) {
        // Relaxed: whoever must not miss a write has seen that it is over by other means (a queue's used index, a paused device). The marks
        // come after the write itself, and `clear` is what orders them.
        let words = self.words.get().map_or(&[][..], |words| words);
        for (bits, word) in bits.iter_mut().zip(words) {
            *bits |= word.load(Ordering::Relaxed);
        }
    }

    /// Clears marks: from word `first` on, those whose bit is set. What was written before a mark is visible to whoever cleared it.
    pub fn clear(&self, first: usize, bits: &[u64]) {
        let words = self.words.get().and_then(|words| words.get(first..)).unwrap_or(&[]);
        for (bits, word) in bits.iter().zip(words) {
            // Most words have no marks. Acquire: with the Release in `mark`; the contents read after this are those that were marked, or newer.
            if word.load(Ordering::Relaxed) & bits != 0 {
                word.fetch_and(!bits, Ordering::AcqRel);
            }
        }
    }

    fn mark(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        // SeqCst, with the one in `start`: the bytes written before this are out before the record is found off. Otherwise they could
        // become visible after somebody switched it on, cleared everything and read the page.
        fence(Ordering::SeqCst);
        if self.on.load(Ordering::Relaxed)
            && let Some(words) = self.words.get()
        {
            // Offset and length are those of an access that was checked; the end saturates as `vm-memory`'s own bitmap does.
            let (first, last) = (offset / PAGE_SIZE, offset.saturating_add(len - 1) / PAGE_SIZE);
            for page in first..=last.min(self.pages.saturating_sub(1)) {
                if let Some(word) = words.get(page / WORD_BITS) {
                    // Release: the bytes come before their mark.
                    word.fetch_or(1 << (page % WORD_BITS), Ordering::Release);
                }
            }
        }
    }

    fn words(&self) -> &[AtomicU64] {
        self.words.get_or_init(|| (0..self.pages.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect())
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DeviceWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE;
        let word = self.words.get().and_then(|words| words.get(page / WORD_BITS));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % WORD_BITS) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> <Self as WithBitmapSlice<'_>>::S {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DeviceWrites {
    fn with_len(len: usize) -> Self {
        Self { pages: len.div_ceil(PAGE_SIZE), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Deref;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;

    const PAGES: usize = 130;

    fn written(writes: &DeviceWrites) -> Vec<usize> {
        let mut bits = [0; PAGES.div_ceil(64)];
        writes.add_to(&mut bits);
        (0..bits.len() * 64).filter(|page| bits[page / 64] >> (page % 64) & 1 == 1).collect()
    }

    fn started() -> DeviceWrites {
        let writes = DeviceWrites::with_len(PAGES * PAGE_SIZE);
        writes.start();
        writes
    }

    #[test]
    fn every_page_that_a_write_touches_is_marked_and_no_other() {
        let writes = started();
        writes.mark_dirty(0x1fff, 2);
        writes.mark_dirty(0x40_000, 0);
        writes.mark_dirty(63 * PAGE_SIZE, 2 * PAGE_SIZE);
        writes.mark_dirty((PAGES - 1) * PAGE_SIZE, usize::MAX);
        writes.mark_dirty(PAGES * PAGE_SIZE, 1);
        assert_eq!(written(&writes), [1, 2, 63, 64, PAGES - 1]);
        assert!(writes.dirty_at(0x2abc) && !writes.dirty_at(0x3000));
    }

    #[test]
    fn clearing_takes_the_named_marks_only() {
        let writes = started();
        writes.mark_dirty(0, PAGES * PAGE_SIZE);
        writes.clear(1, &[0b101, u64::MAX]);
        writes.clear(7, &[u64::MAX]);
        let expected: Vec<usize> = (0..64).chain([65]).chain(67..128).collect();
        assert_eq!(written(&writes), expected);
    }

    #[test]
    fn a_record_that_is_off_takes_no_memory_and_begins_empty() {
        let writes = DeviceWrites::with_len(PAGES * PAGE_SIZE);
        writes.mark_dirty(0, 1);
        writes.clear(0, &[1]);
        assert!(written(&writes).is_empty() && writes.words.get().is_none());
        writes.start();
        writes.mark_dirty(0, 1);
        writes.start();
        assert_eq!(written(&writes), [0]);
        writes.stop();
        writes.mark_dirty(PAGE_SIZE, 1);
        writes.start();
        assert!(written(&writes).is_empty());
    }

    #[test]
    fn every_kind_of_write_through_guest_memory_is_marked() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x8000), 0x4000)]).unwrap();
        let record = |region: usize| memory.iter().nth(region).unwrap().deref().bitmap();
        (0..2).for_each(|region| record(region).start());
        memory.write_obj(1u32, GuestAddress(0x8ffe)).unwrap();
        memory.store(1u64, GuestAddress(0x1000), Ordering::Relaxed).unwrap();
        memory.write_slice(&[1; 8], GuestAddress(0x3ffc)).unwrap_err();
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(0x100).unwrap();
        memory.read_exact_volatile_from(GuestAddress(0xb000), &mut file, 0x100).unwrap();
        memory.read_obj::<u64>(GuestAddress(0x2000)).unwrap();
        assert_eq!((written(record(0)), written(record(1))), (vec![1, 3], vec![0, 1, 3]));
    }
}

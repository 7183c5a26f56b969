//! Page-aligned memory of our own: what direct I/O wants, and what a page passes through on its way out or in.
//!
//! Promises: every buffer starts at a multiple of [`PAGE_SIZE`] and stays there. Must never: alias guest memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::units::PAGE_SIZE;

/// One page's bytes.
pub type Page = [u8; PAGE_SIZE];

/// A fixed number of pages, page-aligned, contiguous, zeroed at first. Dereferences to a slice of pages.
#[derive(Debug)]
pub struct PageSlab {
    pages: NonNull<Page>,
    count: usize,
}

// SAFETY: the slab owns its allocation alone, as a `Box<[Page]>` would; pages are plain bytes.
unsafe impl Send for PageSlab {}
// SAFETY: shared access only reads plain bytes; writing needs `&mut`.
unsafe impl Sync for PageSlab {}

impl PageSlab {
    /// A slab of `count` zeroed pages.
    ///
    /// # Panics
    /// If `count` is 0 or the size overflows.
    pub fn new(count: usize) -> Self {
        assert!(count > 0, "a slab has at least one page");
        let layout = Self::layout(count);
        // SAFETY: the layout's size is not zero, since count is not.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(pages) = NonNull::new(start.cast::<Page>()) else { handle_alloc_error(layout) };
        Self { pages, count }
    }

    fn layout(count: usize) -> Layout {
        let bytes = count.checked_mul(PAGE_SIZE).expect("slab size fits usize");
        Layout::from_size_align(bytes, PAGE_SIZE).expect("a power-of-two alignment and a size below isize::MAX")
    }
}

impl Drop for PageSlab {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, freed once.
        unsafe { dealloc(self.pages.as_ptr().cast(), Self::layout(self.count)) }
    }
}

impl Deref for PageSlab {
    type Target = [Page];

    fn deref(&self) -> &[Page] {
        // SAFETY: `count` initialised pages that this slab owns; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr(), self.count) }
    }
}

impl DerefMut for PageSlab {
    fn deref_mut(&mut self) -> &mut [Page] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_ptr(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_is_page_aligned_and_zeroed() {
        let slab = PageSlab::new(3);
        assert_eq!(slab.as_ptr() as usize % PAGE_SIZE, 0);
        assert_eq!(slab.len(), 3);
        assert!(slab.iter().flatten().all(|byte| *byte == 0));
    }
}

//! Large tables that start as zeros and cost memory only where they were written to.
//!
//! Promises: every element is zero at first; a part that was given back is zero again. Must never: hold a type for which zero bytes are not a
//! value.

use std::io;
use std::ops::{Deref, DerefMut, Range};

/// Types that all-zero bytes are a valid value of, and that need no drop.
///
/// # Safety
/// Exactly that.
pub unsafe trait Zero: Sized + Sync + Send {}

// SAFETY: integers, and atomics with the layout of integers.
unsafe impl Zero for u16 {}
// SAFETY: as above.
unsafe impl Zero for u32 {}
// SAFETY: as above.
unsafe impl Zero for std::sync::atomic::AtomicU8 {}
// SAFETY: as above.
unsafe impl Zero for std::sync::atomic::AtomicU64 {}

/// A fixed-size table in anonymous memory that the system fills in page by page as it is touched.
#[derive(Debug)]
pub struct Zeroed<T: Zero> {
    start: *mut T,
    len: usize,
}

// SAFETY: the table owns its memory alone, as a `Box<[T]>` would.
unsafe impl<T: Zero> Send for Zeroed<T> {}
// SAFETY: as above; `T` is `Sync`.
unsafe impl<T: Zero> Sync for Zeroed<T> {}

impl<T: Zero> Zeroed<T> {
    /// A table of `len` zeros.
    pub fn new(len: usize) -> io::Result<Self> {
        let bytes = Self::bytes(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    /// Bytes to map: never none, which the kernel would refuse.
    fn bytes(len: usize) -> Option<usize> {
        len.max(1).checked_mul(size_of::<T>())
    }
}

impl Zeroed<std::sync::atomic::AtomicU64> {
    /// Makes the elements zero again and gives their memory back, as far as they fill whole pages. For atomics only: others may be looking.
    pub fn give_back(&self, range: Range<usize>) {
        let Some(part) = self.get(range) else { return };
        let page = crate::units::PAGE_SIZE;
        let first = part.as_ptr().addr().next_multiple_of(page);
        let end = part.as_ptr_range().end.addr() / page * page;
        if first < end {
            let start = self.start.with_addr(first).cast();
            // SAFETY: whole pages inside the mapping. That they turn to zero under readers is a write to atomics like any other.
            unsafe { libc::madvise(start, end - first, libc::MADV_DONTNEED) };
        }
    }
}

impl<T: Zero> Drop for Zeroed<T> {
    fn drop(&mut self) {
        let bytes = Self::bytes(self.len).expect("computed before, in new");
        // SAFETY: mapped in `new` with this length, unmapped once; no reference into it outlives the table.
        unsafe { libc::munmap(self.start.cast(), bytes) };
    }
}

impl<T: Zero> Deref for Zeroed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements, mapped readable, page-aligned, all-zero or written as `T` since.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Zero> DerefMut for Zeroed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, mapped writable, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

//! A request's guest memory as the kernel's scatter list: disk bytes go between file and guest without a copy of ours.
//!
//! Promises: every address in the list stays mapped as long as the list lives, because it borrows the guest memory; what the kernel wrote is
//! marked as written, also when it failed halfway. Must never: make a reference to guest memory; only the kernel follows the addresses. The
//! guest may change the bytes at any time, which harms only itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::{Bitmap, RefSlice};
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::virtio::block::sys::offset;
use crate::virtio::buffers::{Buffers, as_usize};
use crate::{DeviceMemory, DeviceWrites};

/// Pieces that one system call takes at most (the kernel's UIO_MAXIOV).
const CALL_LIMIT: usize = 1024;

/// What is still to be read or written.
pub struct GuestIovec<'memory> {
    parts: Vec<libc::iovec>,
    /// Parts before this one are done.
    next: usize,
    /// The same pieces as guest memory knows them: they keep it borrowed, and know where its record of writes is.
    slices: Vec<VolatileSlice<'memory, RefSlice<'memory, DeviceWrites>>>,
}

#[derive(Clone, Copy)]
enum Direction {
    FromFile,
    ToFile,
}

impl<'memory> GuestIovec<'memory> {
    /// The host addresses of `buffers`.
    pub fn new(memory: &'memory DeviceMemory, buffers: &Buffers) -> io::Result<Self> {
        let count = buffers.segments().len();
        let (mut parts, mut slices) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for segment in buffers.segments() {
            let pieces = memory
                .get_slices(GuestAddress(segment.gpa), as_usize(segment.len), Permissions::ReadWrite)
                .map_err(io::Error::other)?;
            for piece in pieces {
                let slice = piece.map_err(io::Error::other)?;
                let guard = slice.ptr_guard_mut();
                parts.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
                slices.push(slice);
            }
        }
        Ok(Self { parts, next: 0, slices })
    }

    /// Fills all of it with the file's bytes from `at` on.
    pub fn fill_from(mut self, file: &File, at: u64) -> io::Result<()> {
        let filled = self.transfer(file, at, Direction::FromFile);
        // Afterwards: a mark that came before its bytes could be cleared before them. All of it, since after an error nobody knows how far
        // the kernel came.
        self.slices.iter().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
        filled
    }

    /// Writes all of it to the file from `at` on.
    pub fn write_to(mut self, file: &File, at: u64) -> io::Result<()> {
        self.transfer(file, at, Direction::ToFile)
    }

    fn transfer(&mut self, file: &File, mut at: u64, direction: Direction) -> io::Result<()> {
        while self.next < self.parts.len() {
            match self.call(file, at, direction) {
                // The file is shorter than it was.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.advance(count);
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn call(&self, file: &File, at: u64, direction: Direction) -> io::Result<usize> {
        let left = &self.parts[self.next..];
        let count = libc::c_int::try_from(left.len().min(CALL_LIMIT)).map_err(io::Error::other)?;
        let (fd, at) = (file.as_raw_fd(), offset(at)?);
        // SAFETY: `left` holds at least `count` entries. Each one came from a volatile slice of guest memory that is mapped readable and
        // writable for as long as `self.slices` borrow it, and the kernel treats it as memory that others may change.
        let done = unsafe {
            match direction {
                Direction::FromFile => libc::preadv(fd, left.as_ptr(), count, at),
                Direction::ToFile => libc::pwritev(fd, left.as_ptr(), count, at),
            }
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// `count` bytes are done; the kernel never does more than the list holds.
    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.parts.get_mut(self.next) {
            if count < part.iov_len {
                part.iov_base = part.iov_base.wrapping_byte_add(count);
                part.iov_len -= count;
                return;
            }
            count -= part.iov_len;
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::virtio::testing::{buffers, memory};

    #[test]
    fn bytes_go_through_the_pieces_in_order() {
        let memory = memory(0x10000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let pieces = buffers(&memory, &[(0x5000, 3), (0x100, 1), (0x9000, 4)]);
        GuestIovec::new(&memory, &pieces).unwrap().fill_from(&file, 1).unwrap();
        let mut bytes = [0; 8];
        pieces.copy_to(&memory, &mut bytes).unwrap();
        assert_eq!(&bytes, b"12345678");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x100)).unwrap(), b'4');
        GuestIovec::new(&memory, &pieces).unwrap().write_to(&file, 0).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"12345678");
    }

    #[test]
    fn a_piece_may_cross_from_one_region_of_memory_to_the_next() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap();
        let file = tempfile::tempfile().unwrap();
        memory.write_slice(b"both sides", GuestAddress(0xffb)).unwrap();
        GuestIovec::new(&memory, &buffers(&memory, &[(0xffb, 10)])).unwrap().write_to(&file, 0).unwrap();
        let mut bytes = [0; 10];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"both sides");
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_fine() {
        let memory = memory(0x10000);
        let file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..=255).cycle().take(0x3000).collect();
        memory.write_slice(&text, GuestAddress(0)).unwrap();
        let pieces: Vec<(u64, u32)> = (0..0x1000).map(|i| (i * 3, 3)).collect();
        GuestIovec::new(&memory, &buffers(&memory, &pieces)).unwrap().write_to(&file, 0).unwrap();
        let mut bytes = vec![0; 0x3000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, text);
    }

    #[test]
    fn what_the_kernel_fills_is_marked_as_written_and_what_it_reads_is_not() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000)]).unwrap();
        memory.iter().for_each(|region| std::ops::Deref::deref(region).bitmap().start());
        let written = || -> Vec<u64> {
            let dirty = |page: &u64| {
                let (region, at) = memory.to_region_addr(GuestAddress(page << 12)).unwrap();
                region.bitmap().dirty_at(usize::try_from(at.0).unwrap())
            };
            (0..8).filter(dirty).collect()
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 0x2000]).unwrap();
        let pieces = buffers(&memory, &[(0x1fff, 2), (0x3800, 0x1000)]);
        GuestIovec::new(&memory, &pieces).unwrap().write_to(&file, 0).unwrap();
        assert!(written().is_empty());
        GuestIovec::new(&memory, &pieces).unwrap().fill_from(&file, 0).unwrap();
        assert_eq!(written(), [1, 2, 3, 4]);
        GuestIovec::new(&memory, &buffers(&memory, &[(0x7000, 16)])).unwrap().fill_from(&file, 0x2000).unwrap_err();
        assert_eq!(written(), [1, 2, 3, 4, 7], "after an error too");
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error_and_not_zeros() {
        let memory = memory(0x10000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 700]).unwrap();
        let error =
            GuestIovec::new(&memory, &buffers(&memory, &[(0x1000, 1024)])).unwrap().fill_from(&file, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn advancing_stops_inside_a_piece_and_skips_whole_ones() {
        let memory = memory(0x10000);
        let mut iovec = GuestIovec::new(&memory, &buffers(&memory, &[(0, 4), (0x100, 4), (0x200, 4)])).unwrap();
        let second = iovec.parts[1].iov_base;
        iovec.advance(4);
        assert_eq!((iovec.next, iovec.parts[1].iov_len), (1, 4));
        iovec.advance(1);
        assert_eq!((iovec.next, iovec.parts[1].iov_len, iovec.parts[1].iov_base), (1, 3, second.wrapping_byte_add(1)));
        iovec.advance(7);
        assert_eq!(iovec.next, 3);
    }
}

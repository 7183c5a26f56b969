//! Whether shared memory can be put together into huge pages on request, by trying it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// From include/uapi/asm-generic/mman-common.h; Linux 6.1.
const MADV_COLLAPSE: i32 = 25;
/// A huge page.
const HUGE: usize = 2 << 20;
/// Room for a whole one, wherever the mapping begins.
const LEN: usize = 2 * HUGE;

/// Puts 2 MiB of a memfd's small pages together, and gives all of it back.
pub fn collapse_shared_memory() -> io::Result<()> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"ebb-check".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(LEN as u64)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let map = unsafe { libc::mmap(ptr::null_mut(), LEN, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let map = Mapping(map.cast());
    let aligned = map.0.wrapping_add(map.0.align_offset(HUGE));
    for offset in (0..HUGE).step_by(4096) {
        // SAFETY: an aligned huge page lies inside a mapping twice as long, so this byte does too.
        unsafe { aligned.add(offset).write_volatile(1) };
    }
    // SAFETY: as above; collapsing changes no bytes.
    match unsafe { libc::madvise(aligned.cast(), HUGE, MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

struct Mapping(*mut u8);

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped above with this length; nothing uses it any more.
        unsafe { libc::munmap(self.0.cast(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trying_leaves_no_mapping_behind() {
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("ebb-check").count();
        // Whether it works is the kernel's business.
        let _ = collapse_shared_memory();
        assert_eq!(maps(), 0);
    }
}

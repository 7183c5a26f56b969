//! Whether shared memory can be put together into huge pages on request, by trying it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// From include/uapi/asm-generic/mman-common.h; Linux 6.1.
const MADV_COLLAPSE: i32 = 25;
/// A huge page.
const HUGE: usize = 2 << 20;
/// Room for a whole one, wherever the room begins.
const ROOM: usize = 2 * HUGE;

/// Puts 2 MiB of a memfd's small pages together, and gives all of it back.
pub fn collapse_shared_memory() -> io::Result<()> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"ebb-check".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(HUGE as u64)?;
    let reserved = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let room = Room(mapped(unsafe { libc::mmap(ptr::null_mut(), ROOM, libc::PROT_NONE, reserved, -1, 0) })?);
    // A huge page must be aligned in the file as in memory: the file's begin goes to an aligned address.
    let page = room.0.wrapping_add(room.0.align_offset(HUGE));
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: an aligned huge page lies inside room for two, which is ours and which nothing else uses.
    mapped(unsafe { libc::mmap(page.cast(), HUGE, protection, flags, file.as_raw_fd(), 0) })?;
    for offset in (0..HUGE).step_by(4096) {
        // SAFETY: inside the mapping just made.
        unsafe { page.add(offset).write_volatile(1) };
    }
    // SAFETY: the mapping just made; collapsing changes no bytes.
    match unsafe { libc::madvise(page.cast(), HUGE, MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mapped(address: *mut libc::c_void) -> io::Result<*mut u8> {
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}

struct Room(*mut u8);

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: mapped above with this length, in one piece or in parts; nothing uses it any more.
        unsafe { libc::munmap(self.0.cast(), ROOM) };
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

//! Calls that ask the kernel what it can do, and undo themselves.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Bytes of `struct io_uring_params` (include/uapi/linux/io_uring.h), in 64-bit words.
const IO_URING_PARAMS_WORDS: usize = 15;

/// Sets up a ring of one entry and closes it again.
pub fn io_uring() -> io::Result<()> {
    let mut params = [0u64; IO_URING_PARAMS_WORDS];
    // SAFETY: the kernel reads and writes 120 bytes at the address, which is what the array has; zeros ask for the defaults.
    let answer = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1u32, params.as_mut_ptr()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(answer).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

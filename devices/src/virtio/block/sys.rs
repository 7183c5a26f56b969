//! The system calls on a disk's file that the standard library does not have.
//!
//! Promises: thin; one call each, errors as the kernel gives them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes the open-file-description lock on the whole file: alone or among readers. Answers whether it was free.
///
/// Unlike a process's lock it is not lost when another descriptor of the same file is closed, and it conflicts within this process too.
pub fn lock_file(file: &File, alone: bool) -> io::Result<bool> {
    let kind = if alone { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: i16::try_from(kind).map_err(io::Error::other)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: 0,
        // Up to the end, wherever that will be.
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the command reads one `flock` at an address that is valid for the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// How a range becomes zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Its space is given back.
    Deallocate,
    /// Its space stays reserved.
    KeepAllocated,
}

/// Makes a range read as zeros without changing the file's length. Answers false if this file can't do it that way.
pub fn zero_range(file: &File, start: u64, bytes: u64, how: Zeroing) -> io::Result<bool> {
    let mode = libc::FALLOC_FL_KEEP_SIZE
        | match how {
            Zeroing::Deallocate => libc::FALLOC_FL_PUNCH_HOLE,
            Zeroing::KeepAllocated => libc::FALLOC_FL_ZERO_RANGE,
        };
    let (start, bytes) = (offset(start)?, offset(bytes)?);
    loop {
        // SAFETY: takes numbers only.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, start, bytes) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(false),
            _ => return Err(error),
        }
    }
}

/// A file offset or length as the kernel takes it.
pub fn offset(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

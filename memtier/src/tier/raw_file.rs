//! The calls on a swap file that the standard library does not offer.
//!
//! Promises: safe to call on any file; an error is the system's own. Must never: decide what a file is good for.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Asks the file system to go around the page cache from now on (`O_DIRECT`). It may accept and still refuse the I/O itself.
pub fn set_direct(file: &File, on: bool) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointers.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: F_SETFL takes an integer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Makes room for the file's first `len` bytes, so that writing them can't fail for lack of space. `EOPNOTSUPP` where that is not possible.
pub fn preallocate(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: fallocate takes no pointers.
        match check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Bytes that the file system still has for those without privileges.
pub fn room(file: &File) -> io::Result<u64> {
    // SAFETY: statvfs is plain integers, for which zero bytes are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is a statvfs to be written to, and outlives the call.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut stat) })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether the file is nothing but holes and room set aside: no byte was ever written. A file system that can't tell answers `false`.
pub fn holds_no_data(file: &File) -> io::Result<bool> {
    // SAFETY: lseek takes no pointers. The file's position, which it moves, is used by nobody: all I/O names its offset.
    if unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA) } >= 0 {
        return Ok(false);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(true),
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(error),
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn room_set_aside_is_not_data_until_it_is_written_to() {
        let file = tempfile::tempfile().unwrap();
        assert!(holds_no_data(&file).unwrap());
        file.set_len(1 << 20).unwrap();
        assert!(holds_no_data(&file).unwrap());
        preallocate(&file, 1 << 20).unwrap();
        assert!(file.metadata().unwrap().blocks() >= 1 << 11);
        file.write_all_at(b"x", 70_000).unwrap();
        assert!(!holds_no_data(&file).unwrap());
        assert!(room(&file).unwrap() > 0);
    }

    #[test]
    fn a_length_that_no_file_can_have_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(preallocate(&file, u64::MAX).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    }
}

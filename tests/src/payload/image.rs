//! The payload image as a file that a machine can load.
//!
//! Promises: the program that embeds it runs anywhere; nothing is left on disk. Must never: outlive its machine's loading needs it to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

/// The image that `build.rs` made.
const IMAGE: &[u8] = include_bytes!(env!("EBB_PAYLOAD"));

/// A memory file with the image in it.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
}

impl Image {
    /// Makes the file.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the name is a C string; the flags take no further arguments.
        let fd = unsafe { libc::memfd_create(c"ebb-payload".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(IMAGE)?;
        Ok(Self { file })
    }

    /// A path under which this process can open it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

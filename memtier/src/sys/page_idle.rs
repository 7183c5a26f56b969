//! The host kernel's idle page bitmap (`mm/page_idle.c`, `Documentation/admin-guide/mm/idle_page_tracking.rst`).
//!
//! Promises: chunks past the end of host memory take no marks, and reading says how many there were before it. Must never: know what a frame
//! is used for.
//!
//! Reading clears the references of the frames that are marked idle in every page table that maps them, KVM's included, and answers 1 where
//! none was found. Writing 1 clears references and marks. Neither takes entries out of a processor's translation cache, see [`scratch`].
//!
//! Where host memory does not end at a multiple of 64 frames, the kernel does all that is asked for the last frames, but counts only whole
//! chunks as done: it takes their marks and says that it took none, and looks for their references without giving the bits out. They are
//! found in `/proc/kpageflags` then.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

pub mod scratch;

/// The bitmap, mode 0600.
pub const PATH: &str = "/sys/kernel/mm/page_idle/bitmap";
/// Host frames per chunk.
pub const CHUNK_FRAMES: u64 = 64;
/// Chunks that the kernel takes at once: sysfs passes a page.
pub const CHUNKS_AT_ONCE: u64 = 512;

/// The bitmap, opened.
#[derive(Debug)]
pub struct IdleBitmap {
    file: File,
}

impl IdleBitmap {
    /// Opens it for reading and marking.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(PATH)? })
    }

    /// Reads native 64-bit chunks; bit `i` of chunk `c` is host frame `64 c + i`. Answers how many there are before the end of host memory; of
    /// a part of a chunk behind them, the kernel has looked for references.
    pub fn read(&self, first: u64, chunks: &mut [[u8; 8]]) -> io::Result<usize> {
        let mut done = 0;
        while done < chunks.len() {
            match self.file.read_at(chunks[done..].as_flattened_mut(), (first + done as u64) * 8) {
                Ok(0) => break,
                // The kernel gives whole chunks.
                Ok(got) => done += got / 8,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Marks the frames whose bits are set; the others stay as they are.
    pub fn mark(&self, first: u64, chunks: &[[u8; 8]]) -> io::Result<()> {
        match self.file.write_all_at(chunks.as_flattened(), first * 8) {
            // The rest is past the end of host memory, or the part of a chunk before it.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) || error.kind() == io::ErrorKind::WriteZero => {
                Ok(())
            }
            done => done,
        }
    }
}

//! Slots in a regular file or on a block device.
//!
//! Promises: one process uses a file at a time, and nothing is left to clean up when it dies, however it dies; a file that may hold somebody's
//! data is refused, never overwritten; the file is readable by its owner alone. Writes are batched, reads take no lock. Must never: grow a file
//! that it was not told to grow.

mod create;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use create::OpenError;

use super::raw_file;
use super::store::{PageStore, StoreKind, WriteRun, byte_offset};
use super::write_ring::{RingBroken, WriteRing};
use crate::page::{Page, PageSlab};
use crate::units::{Bytes, PAGE_SIZE, SlotOffset};

/// How often a read is tried that fails for want of memory: in all about two seconds.
const PASSING_TRIES: u64 = 60;

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::ENOBUFS))
}

/// A swap file or swap partition, open and locked.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    path: PathBuf,
    kind: StoreKind,
    slots: u64,
    bad: Vec<SlotOffset>,
    direct: bool,
    /// `None` where io_uring is not to be had. Held over the I/O of a batch of writes, by nobody who reads.
    ring: Mutex<Option<WriteRing>>,
}

impl FileStore {
    /// Opens the file and locks it. With a size it is made that long, and made at all if need be; without one it is taken as it is.
    pub fn open(path: &Path, size: Option<Bytes>) -> Result<Self, OpenError> {
        let opened = create::open(path, size)?;
        let direct = go_direct(&opened.file);
        if !direct {
            tracing::info!(path = %path.display(), "no direct I/O here, using the page cache");
        }
        let ring =
            WriteRing::new().inspect_err(|error| tracing::info!(%error, "no io_uring here, writing with pwrite")).ok();
        Ok(Self {
            slots: u64::from(opened.header.last_slot().0) + 1,
            bad: opened.header.bad_slots().to_vec(),
            file: opened.file,
            path: path.to_owned(),
            kind: opened.kind,
            direct,
            ring: Mutex::new(ring),
        })
    }

    /// The same without io_uring, as it works where a seccomp filter forbids that.
    #[must_use]
    pub fn without_ring(mut self) -> Self {
        *self.ring.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        self
    }

    /// Reads at a slot; `into` is page-aligned where direct I/O wants it.
    fn read_aligned(&self, first: SlotOffset, into: &mut [u8]) -> io::Result<()> {
        let (mut done, mut tries) = (0, 0);
        while done < into.len() {
            match self.file.read_at(&mut into[done..], byte_offset(first) + done as u64) {
                // Direct I/O may end in the middle of a page only at the file's end.
                Ok(n) if n == 0 || (self.direct && n % 512 != 0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The system is short of something, not the file: a page must not be taken for lost because of that.
                Err(error) if is_passing(&error) && tries < PASSING_TRIES => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(tries));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl PageStore for FileStore {
    fn slots(&self) -> u64 {
        self.slots
    }

    fn bad_slots(&self) -> &[SlotOffset] {
        &self.bad
    }

    fn write(&self, runs: &mut [WriteRun<'_>]) {
        let mut done = vec![0; runs.len()];
        // A thread that panicked here left the ring without writes under way or did not get so far: it can be used on.
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let wants_copy = self.direct && runs.iter().any(|run| !is_aligned(run.bytes()));
        if let (Some(live), false) = (ring.as_mut(), wants_copy) {
            match live.write(self.file.as_raw_fd(), runs, &mut done) {
                Ok(()) => return,
                Err(RingBroken(error)) => {
                    tracing::warn!(%error, path = %self.path.display(), "io_uring failed, writing with pwrite from now on");
                    *ring = None;
                }
            }
        }
        for (run, done) in runs.iter_mut().zip(done).filter(|(run, _)| run.outcome.is_ok()) {
            let at = byte_offset(run.first) + done as u64;
            run.outcome = match wants_copy {
                false => self.file.write_all_at(&run.bytes()[done..], at),
                true => {
                    let mut copy = PageSlab::new(run.pages.len());
                    copy.copy_from_slice(run.pages);
                    self.file.write_all_at(&copy.as_flattened()[done..], at)
                }
            };
        }
    }

    fn read(&self, slot: SlotOffset, into: &mut Page) -> io::Result<()> {
        if !self.direct || is_aligned(into) {
            return self.read_aligned(slot, into);
        }
        let mut bounce = AlignedPage([0; PAGE_SIZE]);
        self.read_aligned(slot, &mut bounce.0)?;
        into.copy_from_slice(&bounce.0);
        Ok(())
    }

    fn read_run(&self, first: SlotOffset, into: &mut [Page]) -> io::Result<()> {
        if !self.direct || is_aligned(into.as_flattened()) {
            return self.read_aligned(first, into.as_flattened_mut());
        }
        (first.0..).zip(into).try_for_each(|(slot, page)| self.read(SlotOffset(slot), page))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn kind(&self) -> StoreKind {
        self.kind
    }

    fn direct_io(&self) -> bool {
        self.direct
    }
}

/// Where a page that direct I/O can't reach as it lies passes through, on the stack.
#[repr(C, align(4096))]
struct AlignedPage(Page);

/// The strictest alignment that block devices with pages of 4 KiB ask for.
fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(PAGE_SIZE)
}

/// Switches to direct I/O if both the file system and a first read agree. The read is of a slot that was not just written, so that it does not
/// have to wait for the disk to take the header.
fn go_direct(file: &File) -> bool {
    let mut page = AlignedPage([0; PAGE_SIZE]);
    if raw_file::set_direct(file, true).is_err() {
        return false;
    }
    if file.read_at(&mut page.0, PAGE_SIZE as u64).is_ok() {
        return true;
    }
    if let Err(error) = raw_file::set_direct(file, false) {
        tracing::warn!(%error, "direct I/O can't be switched off again");
    }
    false
}

#[cfg(test)]
mod tests;

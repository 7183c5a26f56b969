//! Writes through io_uring: all runs of a batch at once, one system call in the good case.
//!
//! Promises: every completion is looked at, a short write is continued where it stopped, and no call returns while the kernel may still read
//! from the pages it was given, whatever goes wrong. Must never: read; that goes without a ring, so that it waits for no write.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, cqueue, opcode, types};

use super::store::{WriteRun, byte_offset};

/// Writes under way at once. One batch of pages has at most as many runs.
const ENTRIES: u32 = 64;

/// The ring failed for good, with no write under way; what has no outcome yet must be written another way.
#[derive(Debug)]
pub struct RingBroken(pub io::Error);

/// A ring for writing.
pub struct WriteRing(IoUring);

impl std::fmt::Debug for WriteRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteRing")
    }
}

impl WriteRing {
    /// A new ring. `ENOSYS` or `EPERM` where the kernel or a seccomp filter does not allow it.
    pub fn new() -> io::Result<Self> {
        IoUring::new(ENTRIES).map(Self)
    }

    /// Writes all runs and fills in their outcomes. After an error, `done[i]` bytes of run `i` are written and the others are not under way.
    pub fn write(&mut self, fd: RawFd, runs: &mut [WriteRun<'_>], done: &mut [usize]) -> Result<(), RingBroken> {
        let chunk = usize::try_from(ENTRIES).expect("a small number");
        for (runs, done) in runs.chunks_mut(chunk).zip(done.chunks_mut(chunk)) {
            Batch { ring: &mut self.0, fd: types::Fd(fd), runs, done, pending: 0 }.run()?;
        }
        Ok(())
    }
}

/// At most [`ENTRIES`] runs being written.
struct Batch<'b, 'p> {
    ring: &'b mut IoUring,
    fd: types::Fd,
    runs: &'b mut [WriteRun<'p>],
    done: &'b mut [usize],
    /// Entries pushed whose completion was not seen yet.
    pending: usize,
}

impl Batch<'_, '_> {
    fn run(mut self) -> Result<(), RingBroken> {
        for i in 0..self.runs.len() {
            self.push(i);
        }
        while self.pending > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    self.wait_out();
                    return Err(RingBroken(error));
                }
            }
            while let Some(completion) = self.next_completion() {
                let i = self.take_in(&completion);
                if self.runs[i].outcome.is_ok() && self.done[i] < self.runs[i].bytes().len() {
                    self.push(i);
                }
            }
        }
        Ok(())
    }

    /// Puts what is left of run `i` into the submission queue.
    fn push(&mut self, i: usize) {
        let (run, done) = (&self.runs[i], self.done[i]);
        let rest = &run.bytes()[done..];
        let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
        let offset = byte_offset(run.first) + done as u64;
        let entry = opcode::Write::new(self.fd, rest.as_ptr(), len).offset(offset).build().user_data(i as u64);
        // SAFETY: the bytes outlive the write: `run` comes back only when nothing is pending or the kernel has finished with all it took, and
        // the caller's borrow of the pages outlasts `run`. The descriptor is the caller's, open as long.
        unsafe { self.ring.submission().push(&entry) }.expect("one entry per run, and no more runs than entries");
        self.pending += 1;
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        let completion = self.ring.completion().next();
        self.pending -= usize::from(completion.is_some());
        completion
    }

    /// Notes what a completion says; answers which run it was.
    fn take_in(&mut self, completion: &cqueue::Entry) -> usize {
        let i = usize::try_from(completion.user_data()).expect("pushed from an index");
        match usize::try_from(completion.result()) {
            Ok(0) => self.runs[i].outcome = Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => self.done[i] += bytes,
            Err(_) => {
                let error = io::Error::from_raw_os_error(-completion.result());
                if !is_passing(&error) {
                    self.runs[i].outcome = Err(error);
                }
            }
        }
        i
    }

    /// The kernel takes no more entries. Waits for those that it has taken; those still in the submission queue it will never see, since the
    /// ring is given up.
    fn wait_out(&mut self) {
        let untaken = self.ring.submission().len();
        while self.pending > untaken {
            match self.next_completion() {
                Some(completion) => {
                    self.take_in(&completion);
                }
                // Entering the kernel by any way lets it post completions that wait for this thread.
                None => std::thread::yield_now(),
            }
        }
    }
}

/// Whether trying again is all there is to do.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
impl WriteRing {
    /// Puts something else where the ring's descriptor was, so that the next call into the kernel fails.
    pub(super) fn break_off(&mut self) {
        use std::os::fd::AsRawFd;
        let null = std::fs::File::open("/dev/null").expect("/dev/null opens");
        // SAFETY: replaces one of our own descriptors, which the ring alone uses, and only to enter the kernel and to close it.
        let replaced = unsafe { libc::dup2(null.as_raw_fd(), self.0.as_raw_fd()) };
        assert_eq!(replaced, self.0.as_raw_fd());
    }
}

//! The host's pool of huge pages, for tests that need some: taken for as long as a test runs, by one test at a time.
//!
//! Promises: the pool has the size it had before, when the last test is done. Must never: let two tests change it at once, in whatever process.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use memtier::units::FrameSize;

/// Pages of 4 KiB in a huge page.
pub const PAGES: u64 = FrameSize::Huge.pages() as u64;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Huge pages in the pool that were not there before.
pub struct Pool {
    before: u64,
    /// Locked as long as this lives.
    _lock: File,
}

impl Pool {
    /// Adds so many pages to the pool.
    ///
    /// # Panics
    /// If the host does not let us, or has no memory for them.
    pub fn with(pages: u64) -> Self {
        let path = std::env::temp_dir().join("memtier-test-huge-pages.lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        // SAFETY: flock takes no pointers.
        assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0, "{}", std::io::Error::last_os_error());
        let pool = Self { before: number("nr"), _lock: lock };
        set(pool.before + pages);
        assert_eq!(number("nr"), pool.before + pages, "the host has no memory for {pages} huge pages");
        pool
    }

    /// As [`Pool::with`], if this process may change the pool.
    pub fn if_allowed(pages: u64) -> Option<Self> {
        let pool = OpenOptions::new().write(true).open(format!("{POOL}/nr_hugepages"));
        pool.is_ok().then(|| Self::with(pages))
    }

    /// Takes so many of the free pages away again, or gives them back.
    pub fn shrink_to(&self, pages: u64) {
        set(self.before + pages);
    }

    /// Pages that nobody uses or has reserved.
    pub fn available(&self) -> u64 {
        number("free") - number("resv")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        set(self.before);
    }
}

fn number(which: &str) -> u64 {
    std::fs::read_to_string(format!("{POOL}/{which}_hugepages")).unwrap().trim().parse().unwrap()
}

fn set(pages: u64) {
    std::fs::write(format!("{POOL}/nr_hugepages"), pages.to_string()).unwrap();
}

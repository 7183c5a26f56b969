//! A guest without a machine: a memfd, mapped shared, used by this process's threads as vCPUs would. The kernel treats their faults alike.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod huge;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memtier::status::{AreaSpec, GuestRange, HugePages, TrackerChoice};
use memtier::units::{Gfn, Hva, PAGE_SIZE};
use memtier::{Memtier, MemtierConfig, RegionSpec};

/// One region of a guest.
pub struct Mapped {
    first: u64,
    pages: u64,
    map: *mut u8,
    pub file: File,
}

// SAFETY: the mapping is only reached by volatile accesses below, as guest memory is by vCPUs.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn new(first: u64, pages: u64, huge: HugePages) -> (Self, RegionSpec) {
        let (file_flags, map_flags) = match huge {
            HugePages::Hugetlb2M => (libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, libc::MAP_SHARED),
            _ => (libc::MFD_CLOEXEC, libc::MAP_SHARED | libc::MAP_NORESERVE),
        };
        // SAFETY: a literal name and no pointers kept.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), file_flags) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let file = unsafe { File::from_raw_fd(fd) };
        let bytes = usize::try_from(pages).unwrap() * PAGE_SIZE;
        file.set_len(bytes as u64).unwrap();
        // SAFETY: a new shared mapping of our own file.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, map_flags, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED);
        let spec = RegionSpec {
            first: Gfn(first),
            pages,
            file: OwnedFd::from(file.try_clone().unwrap()),
            guest_map: Hva(map as u64),
        };
        (Self { first, pages, map: map.cast(), file }, spec)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once, after the tiers were shut down.
        unsafe { libc::munmap(self.map.cast(), usize::try_from(self.pages).unwrap() * PAGE_SIZE) };
    }
}

/// Guest memory and its tiers.
pub struct Guest {
    pub tiers: Arc<Memtier>,
    pub regions: Vec<Mapped>,
    pub dir: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.tiers.shutdown();
    }
}

pub const WORDS: u64 = PAGE_SIZE as u64 / 8;

impl Guest {
    /// One region of `pages`, two shards, no swap area.
    pub fn new(pages: u64) -> Self {
        Self::with_regions(&[(0, pages)])
    }

    /// With one swap area.
    pub fn with_swap(pages: u64) -> Self {
        let guest = Self::new(pages);
        guest.swapon("swap", pages * 2);
        guest
    }

    pub fn with_regions(regions: &[(u64, u64)]) -> Self {
        Self::backed_by(regions, HugePages::Off)
    }

    /// The same with memory of another kind. Huge pages from the pool need a [`huge::Pool`] first.
    pub fn backed_by(regions: &[(u64, u64)], huge_pages: HugePages) -> Self {
        let (regions, specs) = regions.iter().map(|(first, pages)| Mapped::new(*first, *pages, huge_pages)).unzip();
        let config = MemtierConfig { regions: specs, vcpus: 2, tracker: TrackerChoice::Unmap, huge_pages };
        let tiers = Memtier::new(config).unwrap();
        Self { tiers, regions, dir: tempfile::tempdir().unwrap() }
    }

    pub fn swapon(&self, name: &str, pages: u64) -> memtier::units::AreaId {
        let spec =
            AreaSpec { path: self.path(name), size: Some((pages + 1) * PAGE_SIZE as u64), ..AreaSpec::default() };
        self.tiers.swapon(&spec).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Drops the page tables of all of guest memory, as a tracker does; the memory stays.
    pub fn unmap(&self) {
        for region in &self.regions {
            let len = usize::try_from(region.pages).unwrap() * PAGE_SIZE;
            // SAFETY: a shared mapping of our own, whose contents stay in its file.
            assert_eq!(unsafe { libc::madvise(region.map.cast(), len, libc::MADV_DONTNEED_LOCKED) }, 0);
        }
    }

    fn word(&self, gfn: u64, word: u64) -> *mut u64 {
        let region = self.regions.iter().find(|r| (r.first..r.first + r.pages).contains(&gfn)).unwrap();
        let offset = usize::try_from((gfn - region.first) * WORDS + word).unwrap();
        // SAFETY: inside the mapping, since the frame is inside the region and word < WORDS by the callers.
        unsafe { region.map.cast::<u64>().add(offset) }
    }

    pub fn read(&self, gfn: u64, word: u64) -> u64 {
        // SAFETY: an aligned address inside the mapping.
        unsafe { self.word(gfn, word).read_volatile() }
    }

    pub fn write(&self, gfn: u64, word: u64, value: u64) {
        // SAFETY: an aligned address inside the mapping.
        unsafe { self.word(gfn, word).write_volatile(value) }
    }

    /// Fills a page with words that no other page and version has.
    pub fn fill(&self, gfn: u64, version: u64) {
        (0..WORDS).for_each(|word| self.write(gfn, word, pattern(gfn, version, word)));
    }

    /// Panics with the first word that differs.
    pub fn check(&self, gfn: u64, version: u64) {
        for word in 0..WORDS {
            let (found, expected) = (self.read(gfn, word), pattern(gfn, version, word));
            assert_eq!(found, expected, "frame {gfn:#x} word {word} version {version}: found {found:#x}");
        }
    }

    /// Waits until so many pages have come back with their slots kept: a handler takes its last step for a page after it has woken who waited
    /// for it.
    pub fn wait_for_clean(&self, pages: u64) {
        let began = Instant::now();
        while self.tiers.status().clean_pages < pages {
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", self.tiers.status());
            std::thread::yield_now();
        }
    }

    /// Gives a page to a system call: how many bytes it took.
    pub fn send(&self, gfn: u64) -> std::io::Result<usize> {
        let (_reader, writer) = std::io::pipe()?;
        // SAFETY: the page is inside the mapping; the kernel answers EFAULT if it can't be read.
        let sent = unsafe { libc::write(writer.as_raw_fd(), self.word(gfn, 0).cast(), PAGE_SIZE) };
        usize::try_from(sent).map_err(|_| std::io::Error::last_os_error())
    }

    pub fn host_pages(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.regions.iter().map(|region| region.file.metadata().unwrap().blocks() / 8).sum()
    }
}

pub fn pattern(gfn: u64, version: u64, word: u64) -> u64 {
    (gfn << 32 | version << 12 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub fn range(first: u64, pages: u64) -> GuestRange {
    GuestRange { start: first * PAGE_SIZE as u64, len: pages * PAGE_SIZE as u64 }
}

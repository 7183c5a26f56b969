//! Memory shaped like a guest's, with a thread in the place of a vCPU.
//!
//! Promises: a page is touched by the thread that was told to, by one access, a read or a write; nothing else touches it. Must never: make
//! references into it.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use memtier::RegionSpec;
use memtier::memory::GuestMemory;
use memtier::units::{Gfn, Hva, PAGE_SIZE};

const HUGE: usize = 2 << 20;

/// A memfd, mapped shared at the start of a huge page's place.
pub struct Ground {
    map: *mut u8,
    pages: u32,
    file: File,
}

// SAFETY: the mapping is reached by volatile accesses and system calls only, as guest memory is by vCPUs.
unsafe impl Send for Ground {}
// SAFETY: as above.
unsafe impl Sync for Ground {}

impl Ground {
    /// Memory of `pages` pages, none of them there yet. It stays mapped until the program ends.
    pub fn new(pages: u32) -> io::Result<Self> {
        // SAFETY: a literal name and no pointers kept.
        let fd = unsafe { libc::memfd_create(c"ground".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, known to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        let bytes = pages as usize * PAGE_SIZE;
        file.set_len(bytes as u64)?;
        // SAFETY: a reservation at a place of the kernel's choice, then the file over its aligned part.
        let map = unsafe {
            let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let room = libc::mmap(std::ptr::null_mut(), bytes + HUGE, libc::PROT_NONE, nothing, -1, 0);
            if room == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let start = room.cast::<u8>().add(room.cast::<u8>().align_offset(HUGE));
            let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
            libc::mmap(start.cast(), bytes, rights, flags, file.as_raw_fd(), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { map: map.cast(), pages, file })
    }

    /// As the tiers see it.
    pub fn memory(&self) -> Result<GuestMemory, Box<dyn Error>> {
        let file = OwnedFd::from(self.file.try_clone()?);
        let spec = RegionSpec { first: Gfn(0), pages: u64::from(self.pages), file, guest_map: Hva(self.map as u64) };
        Ok(GuestMemory::new(vec![spec])?)
    }

    /// How many pages it has.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The address of a page.
    pub fn at(&self, page: u32) -> Hva {
        Hva(self.map as u64).offset(u64::from(page) * PAGE_SIZE as u64)
    }

    /// Reads or writes a word of a page.
    pub fn touch(&self, page: u32, write: bool) {
        assert!(page < self.pages, "there is no page {page}");
        // SAFETY: inside the mapping and aligned; nobody has a reference to it.
        unsafe {
            let word = self.map.add(page as usize * PAGE_SIZE).cast::<u64>();
            if write {
                word.write_volatile(u64::from(page));
            } else {
                std::hint::black_box(word.read_volatile());
            }
        }
    }

    /// Advises the kernel about `pages` pages.
    pub fn advise(&self, first: u32, pages: u32, advice: libc::c_int) -> io::Result<()> {
        assert!(first + pages <= self.pages, "pages {first}+{pages} are not all there");
        // SAFETY: a part of the shared mapping, whose contents no advice used here changes.
        match unsafe { libc::madvise(self.at(first).0 as *mut libc::c_void, pages as usize * PAGE_SIZE, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

//! Which pages of a range this process has mapped: `PAGEMAP_SCAN` (Linux 6.7), or reading `/proc/self/pagemap` where that is missing.
//!
//! Promises: both ways give the same answer: runs of pages with a present page-table entry, ascending, without overlap. Must never: change
//! what is mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::units::{Hva, PAGE_SHIFT};

/// From `include/uapi/linux/fs.h`.
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<ScanArg>() as u64) << 16 | (b'f' as u64) << 8 | 16;
const PAGE_IS_PRESENT: u64 = 1 << 3;
/// Bit 63 of a pagemap entry: a page is mapped (`Documentation/admin-guide/mm/pagemap.rst`).
const PM_PRESENT: u64 = 1 << 63;

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}
const _: () = assert!(size_of::<ScanArg>() == 96 && size_of::<Region>() == 24);

/// Regions per `PAGEMAP_SCAN` call, entries per read: what a call's argument may take on our side (12 KiB, 32 KiB).
const REGIONS: usize = 512;
const ENTRIES: usize = 4096;

/// How present pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The `PAGEMAP_SCAN` ioctl.
    Scan,
    /// Reading one 8-byte entry per page.
    Read,
}

/// `/proc/self/pagemap`, opened.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    method: Method,
}

impl Pagemap {
    /// Opens it and takes the ioctl if the kernel has it.
    pub fn open() -> io::Result<Self> {
        let mut pagemap = Self { file: File::open("/proc/self/pagemap")?, method: Method::Scan };
        let probe = pagemap.present(Hva(0), 0, |_| ());
        if let Err(error) = probe {
            if error.raw_os_error() != Some(libc::ENOTTY) {
                return Err(error);
            }
            pagemap.method = Method::Read;
        }
        Ok(pagemap)
    }

    /// Opens it for one method, for comparing the two.
    pub fn with_method(method: Method) -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/pagemap")?, method })
    }

    /// The method in use.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Calls `found` with each run of present pages in the range, as host addresses.
    pub fn present(&self, start: Hva, len: u64, found: impl FnMut(Range<u64>)) -> io::Result<()> {
        match self.method {
            Method::Scan => self.present_by_scan(start.0, start.0 + len, found),
            Method::Read => self.present_by_read(start.0, start.0 + len, found),
        }
    }

    fn present_by_scan(&self, start: u64, end: u64, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
        let mut regions = [Region { start: 0, end: 0, categories: 0 }; REGIONS];
        let mut at = start;
        loop {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: 0,
                start: at,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_PRESENT,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_PRESENT,
            };
            // SAFETY: the argument has the kernel's layout, `vec` has room for `vec_len` regions, and both outlive the call.
            let got = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let Ok(got) = usize::try_from(got) else {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                }
            };
            regions.iter().take(got).for_each(|region| found(region.start..region.end));
            at = arg.walk_end;
            if at >= end {
                return Ok(());
            }
        }
    }

    fn present_by_read(&self, start: u64, end: u64, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
        let mut bytes = vec![0_u8; ENTRIES * 8];
        let mut run: Option<Range<u64>> = None;
        let mut page = start >> PAGE_SHIFT;
        let last = end >> PAGE_SHIFT;
        while page < last {
            let count = (last - page).min(ENTRIES as u64);
            let wanted = usize::try_from(count * 8).unwrap_or(bytes.len());
            self.file.read_exact_at(&mut bytes[..wanted], page * 8)?;
            for entry in bytes[..wanted].as_chunks::<8>().0 {
                let address = page << PAGE_SHIFT;
                let next = (page + 1) << PAGE_SHIFT;
                if u64::from_ne_bytes(*entry) & PM_PRESENT != 0 {
                    run.get_or_insert(address..address).end = next;
                } else if let Some(run) = run.take() {
                    found(run);
                }
                page += 1;
            }
        }
        run.into_iter().for_each(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_number_is_the_kernels() {
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
    }

    #[test]
    fn both_methods_find_the_same_pages() {
        let mut slab = crate::page::PageSlab::new(8192);
        for page in [0, 1, 2, 77, 1000, 1001, 8191] {
            slab[page][0] = 1;
        }
        let start = Hva(slab.as_ptr() as u64);
        let look = |method| {
            let mut pages = Vec::new();
            let pagemap = Pagemap::with_method(method).unwrap();
            pagemap.present(start, 8192 << PAGE_SHIFT, |run| pages.push(run)).unwrap();
            pages
        };
        let by_read = look(Method::Read);
        assert_eq!(look(Method::Scan), by_read);
        assert!(by_read.iter().any(|run| run.contains(&(start.0 + (77 << PAGE_SHIFT)))));
    }
}

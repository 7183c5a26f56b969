//! Guest memory: where it is in the guest, what backs it, how it is mapped here.
//!
//! Promises: one memfd per region, of 4 KiB pages or of the host's huge pages, mapped shared at a 2 MiB boundary, and mapped for as long as anything of this process may use it. Must
//! never: hand out Rust references into guest memory; it is volatile.

mod guest;
mod hugetlb;
pub mod layout;
mod mapping;

pub use guest::{GuestRam, MemoryError};

/// The host's memory in bytes, if it tells.
pub fn host_memory() -> Option<u64> {
    // SAFETY: sysconf reads no memory of ours.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: as above.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(page_size).ok()?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_host_tells_its_memory() {
        let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
        let line = text.lines().find(|line| line.starts_with("MemTotal:")).expect("MemTotal");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        assert_eq!(super::host_memory(), Some(kib << 10));
    }
}

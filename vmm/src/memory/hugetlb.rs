//! The host's pool of huge pages: what it has when a guest can't get what it needs.
//!
//! Promises: a guest that does not fit is told how many pages it needs and how many are free. Must never: change the pool.

use std::io;

use memtier::units::FrameSize;

use super::guest::MemoryError;
use super::mapping::MapError;

/// The pool of pages of 2 MiB, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool {
    total: u64,
    /// Neither in use nor reserved by somebody who has not touched them yet.
    available: u64,
}

/// Makes a mapping's failure for want of huge pages say so. `memory` is what the whole guest needs.
pub fn explain(error: MemoryError, memory: u64, size: FrameSize) -> MemoryError {
    let short = matches!(&error, MemoryError::Map { source: MapError::Mmap(source), .. } if source.raw_os_error() == Some(libc::ENOMEM));
    if size != FrameSize::Huge || !short {
        return error;
    }
    let needed = memory / size.bytes();
    match pool() {
        // With enough of them it failed for another reason.
        Ok(Pool { total, available }) if available < needed => {
            MemoryError::TooFewHugePages { needed, available, total }
        }
        _ => error,
    }
}

fn pool() -> io::Result<Pool> {
    let [total, free, reserved] = [number("nr")?, number("free")?, number("resv")?];
    Ok(Pool { total, available: free.saturating_sub(reserved) })
}

fn number(which: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{which}_hugepages"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use memtier::status::HugePages;

    const TEBIBYTE: u64 = 1 << 40;

    #[test]
    fn a_guest_that_does_not_fit_the_pool_is_told_the_numbers() {
        let error = GuestRam::new(TEBIBYTE, HugePages::Hugetlb2M).expect_err("no host of ours has as much");
        let Pool { total, available } = pool().expect("the pool's numbers");
        let text = "guest memory needs 524288 huge pages of 2 MiB, ";
        assert!(error.to_string().starts_with(text), "{error}");
        let rest = format!("{available} of the host's {total} are free; vm.nr_hugepages sets how many there are");
        assert_eq!(error.to_string().strip_prefix(text), Some(rest.as_str()));
    }

    #[test]
    fn memory_that_is_not_whole_huge_pages_is_refused() {
        let error = GuestRam::new((130 << 20) + 4096, HugePages::Hugetlb2M).expect_err("a page too many");
        assert_eq!(error.to_string(), "133124 KiB of guest memory is not a multiple of 2 MiB, the size of a huge page");
        GuestRam::new((130 << 20) + 4096, HugePages::Transparent).expect("transparent ones come as they can");
    }

    #[test]
    fn other_failures_stay_what_they_are() {
        let source = || MapError::Mmap(io::Error::from_raw_os_error(libc::EPERM));
        let error = explain(MemoryError::Map { len: TEBIBYTE, source: source() }, TEBIBYTE, FrameSize::Huge);
        assert!(matches!(error, MemoryError::Map { len: TEBIBYTE, .. }));
        let full = MapError::Mmap(io::Error::from_raw_os_error(libc::ENOMEM));
        let error = explain(MemoryError::Map { len: TEBIBYTE, source: full }, TEBIBYTE, FrameSize::Small);
        assert!(matches!(error, MemoryError::Map { .. }));
    }
}

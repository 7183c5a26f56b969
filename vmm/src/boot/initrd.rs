//! The initial RAM disk.
//!
//! Promises: it lies as high as kernel and memory allow, page-aligned, clear of the kernel. Must never: read it into this process first.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use devices::DeviceMemory;
use memtier::units::{Bytes as Size, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::layout::RamRange;

/// Why there is no initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// Not opened.
    #[error("cannot open initrd {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing in it, or not a file.
    #[error("initrd {} is {what}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// No room between kernel and the highest address allowed.
    #[error("initrd {} of {} does not fit beside the kernel; free below its limit: {}", .path.display(), Size(*.len), Size(*.free))]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// What is free.
        free: u64,
    },
    /// Not read into guest memory.
    #[error("cannot read initrd {} into guest memory", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads the file to the top of `free`.
pub fn load(memory: &DeviceMemory, path: &Path, free: Range<u64>) -> Result<RamRange, InitrdError> {
    let path = path.to_path_buf();
    let (mut file, len) = match open(&path) {
        Ok(opened) => opened,
        Err(source) => return Err(InitrdError::Open { path, source }),
    };
    let Some(len) = len else { return Err(InitrdError::Unusable { path, what: "not a regular file" }) };
    if len == 0 {
        return Err(InitrdError::Unusable { path, what: "empty" });
    }
    let Some(start) = place(len, &free) else {
        return Err(InitrdError::NoRoom { path, len, free: free.end.saturating_sub(free.start) });
    };
    let count = usize::try_from(len).expect("it fits in guest memory, which is mapped here");
    match memory.read_exact_volatile_from(GuestAddress(start), &mut file, count) {
        Ok(()) => Ok(RamRange { start, len }),
        Err(source) => Err(InitrdError::Read { path, source }),
    }
}

fn open(path: &Path) -> io::Result<(File, Option<u64>)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let len = metadata.is_file().then_some(metadata.len());
    Ok((file, len))
}

fn place(len: u64, free: &Range<u64>) -> Option<u64> {
    let start = free.end.checked_sub(len)? & !(PAGE_SIZE as u64 - 1);
    (start >= free.start).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn it_goes_to_the_top_at_a_page_boundary() {
        assert_eq!(place(1, &(0x10_0000..0x80_0000)), Some(0x7f_f000));
        assert_eq!(place(0x1000, &(0x10_0000..0x80_0000)), Some(0x7f_f000));
        assert_eq!(place(0x1001, &(0x10_0000..0x80_0000)), Some(0x7f_e000));
        assert_eq!(place(0x70_0000, &(0x10_0000..0x80_0000)), Some(0x10_0000));
        assert_eq!(place(0x70_0001, &(0x10_0000..0x80_0000)), None);
        assert_eq!(place(0x1000, &(Range { start: 0x80_0000, end: 0x10_0000 })), None);
    }

    #[test]
    fn its_bytes_arrive_and_its_errors_name_it() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory");
        let mut file = tempfile::NamedTempFile::new().expect("file");
        let empty = load(&memory, file.path(), 0..4 << 20).expect_err("empty");
        assert!(empty.to_string().ends_with("is empty"), "{empty}");
        file.write_all(&[0xa5; 5000]).expect("written");
        let range = load(&memory, file.path(), 0..4 << 20).expect("loaded");
        assert_eq!((range.start, range.len), ((4 << 20) - 8192, 5000));
        let mut back = [0; 5001];
        memory.read_slice(&mut back, GuestAddress(range.start)).expect("RAM");
        assert!(back[..5000].iter().all(|byte| *byte == 0xa5) && back[5000] == 0);
        let small = load(&memory, file.path(), 0..4096).expect_err("no room").to_string();
        assert!(small.contains("5000 B") && small.contains("4 KiB"), "{small}");
        let missing = load(&memory, Path::new("/nonexistent/initrd"), 0..4096).expect_err("missing").to_string();
        assert_eq!(missing, "cannot open initrd /nonexistent/initrd");
    }
}

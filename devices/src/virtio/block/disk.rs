//! The file behind a disk.
//!
//! Promises: while a writable [`Disk`] lives, no other process that asks has the file open as a disk, and none writes under a read-only one.
//! The lock belongs to the open file, so the kernel drops it when the process ends, however it ends. Must never: make a file longer or
//! shorter.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::DeviceMemory;
use crate::virtio::block::iovec::GuestIovec;
use crate::virtio::block::request::{SECTOR_SIZE, SectorRange};
use crate::virtio::block::sys::{Zeroing, lock_file, zero_range};
use crate::virtio::buffers::Buffers;

/// Bytes of a disk's identity, as GET_ID gives them.
pub const ID_LEN: usize = 20;

/// Why a file can't be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can't be opened or looked at.
    #[error("can't open disk {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe, a terminal.
    #[error("disk {} is neither a file nor a block device", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It holds no sector.
    #[error("disk {} has {size} bytes, less than a sector of {SECTOR_SIZE}", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// Somebody else uses it.
    #[error("disk {} is in use", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It can't be locked.
    #[error("can't lock disk {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; ID_LEN],
}

impl Disk {
    /// Opens and locks `path`: shared among readers if `read_only`, else alone. A length that is not a multiple of 512 is cut for the guest;
    /// the rest of the file stays as it is.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A pipe without a peer would block here. Files and block devices don't care.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| explain_open(path, source))?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(DiskError::NotAFile { path: path.to_owned() });
        }
        match lock_file(&file, !read_only) {
            Ok(true) => {}
            Ok(false) => return Err(DiskError::InUse { path: path.to_owned() }),
            Err(source) => return Err(DiskError::Lock { path: path.to_owned(), source }),
        }
        // Where the end is holds for block devices too; their metadata say 0.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let sectors = size / SECTOR_SIZE;
        if sectors == 0 {
            return Err(DiskError::TooSmall { path: path.to_owned(), size });
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            tracing::warn!(path = %path.display(), size, "the disk's last {} bytes are not a sector", size % SECTOR_SIZE);
        }
        Ok(Self { file, sectors, read_only, id: identity(metadata.dev(), metadata.rdev(), metadata.ino()) })
    }

    /// Its capacity.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What GET_ID answers: the same for the same file, as long as the host knows it by the same numbers.
    pub fn id(&self) -> &[u8; ID_LEN] {
        &self.id
    }

    /// Reads from `sector` on until `into` is full. The caller checked the range and pinned the memory.
    pub(super) fn read(&self, memory: &DeviceMemory, sector: u64, into: &Buffers) -> io::Result<()> {
        GuestIovec::new(memory, into)?.fill_from(&self.file, sector * SECTOR_SIZE)
    }

    /// Writes all of `from` from `sector` on. The caller checked the range and pinned the memory.
    pub(super) fn write(&self, memory: &DeviceMemory, sector: u64, from: &Buffers) -> io::Result<()> {
        GuestIovec::new(memory, from)?.write_to(&self.file, sector * SECTOR_SIZE)
    }

    /// Makes what was written survive a crash of the host.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the range's space back if the filesystem can; its contents are undefined afterwards.
    pub(super) fn discard(&self, range: SectorRange) -> io::Result<()> {
        // Only advice: where it can't be done, nothing is lost.
        zero_range(&self.file, range.start(), range.bytes(), Zeroing::Deallocate).map(drop)
    }

    /// Makes the range read as zeros; gives its space back if `unmap` and the filesystem can.
    pub(super) fn write_zeroes(&self, range: SectorRange, unmap: bool) -> io::Result<()> {
        let (start, bytes) = (range.start(), range.bytes());
        if unmap && zero_range(&self.file, start, bytes, Zeroing::Deallocate)? {
            return Ok(());
        }
        if zero_range(&self.file, start, bytes, Zeroing::KeepAllocated)? {
            return Ok(());
        }
        self.write_zeroes_by_hand(start, bytes)
    }

    fn write_zeroes_by_hand(&self, start: u64, bytes: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let end = start + bytes;
        let mut at = start;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let count = left.min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }
}

/// Opening a directory for writing fails with an error that does not say so.
fn explain_open(path: &Path, source: io::Error) -> DiskError {
    if source.kind() == io::ErrorKind::IsADirectory {
        DiskError::NotAFile { path: path.to_owned() }
    } else {
        DiskError::Open { path: path.to_owned(), source }
    }
}

/// 20 bytes of text from what the host calls the file: the inode for a file, the device number for a block device.
fn identity(device: u64, special: u64, inode: u64) -> [u8; ID_LEN] {
    let text = format!("{device:x}-{special:x}-{inode:x}");
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    id
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;

//! Opening a swap file: making it, locking it, and deciding whether it may be written to.
//!
//! Promises: what comes out is locked, has a valid header and is as long as that says; a refusal changed nothing that was there before. A
//! process killed at any point leaves a file that the same call accepts again. Must never: write to a file that holds data and is not ours.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::super::raw_file;
use super::super::store::StoreKind;
use crate::page::Page;
use crate::swap::header::{HeaderError, SwapHeader};
use crate::units::{Bytes, PAGE_SIZE, SlotOffset};

/// Slots that an area has at least: the header and one to use.
pub const MIN_SLOTS: u64 = 2;

/// What must be zero at both ends of a block device before it counts as empty: the places where file systems, volume managers and RAID keep
/// what they are known by.
const DEVICE_ENDS: u64 = 1 << 20;

/// Why a file can't be a swap area.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file and no size to make one.
    #[error("swap file {} does not exist; give a size to have it made", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A directory.
    #[error("swap file {} is a directory", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// A socket, a pipe, a character device.
    #[error("swap file {} is neither a regular file nor a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Somebody has it: another ebb, this one, the kernel as swap, or a mounted file system.
    #[error("swap file {} is in use by another ebb or by the system", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It holds data and no header of ours.
    #[error(
        "{} is not empty and is not an Ebb swap file, so it is left alone; name another file, or empty this one first \
         (truncate -s 0 for a file, zeros over the first and last MiB for a device)",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What its first page lacks.
        #[source]
        source: HeaderError,
    },
    /// It was ours, but is damaged or shorter than it claims.
    #[error("swap file {} can't be used as it is; give a size to have it made anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        #[source]
        source: HeaderError,
    },
    /// Not enough for a header and one slot.
    #[error("swap file {} would have {size}, at least {least} are needed", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// The size asked for, or the file's own.
        size: Bytes,
        /// The least.
        least: Bytes,
    },
    /// A device does not grow.
    #[error("{} has {size}, {asked} were asked for", path.display())]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        size: Bytes,
        /// The size asked for.
        asked: Bytes,
    },
    /// The file system is full, or a limit on file sizes is reached.
    #[error("no room for a swap file of {size} at {}", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The size asked for.
        size: Bytes,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read it and that can't be changed.
    #[error("swap file {} has mode {mode:03o} and it can't be set to 600", path.display())]
    Insecure {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("can't {action} swap file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A file that may be written to.
pub(super) struct Opened {
    pub file: File,
    pub kind: StoreKind,
    pub header: SwapHeader,
}

/// Opens, locks and checks the file, and makes it as long as `size` says.
pub(super) fn open(path: &Path, size: Option<Bytes>) -> Result<Opened, OpenError> {
    if let Some(size) = size {
        check_size(path, size)?;
    }
    let at = At { path };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(OpenError::Directory { path: path.to_owned() }),
        Ok(found) if found.file_type().is_file() => at.regular(size),
        Ok(found) if found.file_type().is_block_device() => at.device(size),
        Ok(_) => Err(OpenError::Kind { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match size {
            Some(size) => at.new_file(size),
            None => Err(OpenError::Missing { path: path.to_owned() }),
        },
        Err(source) => Err(at.io("look at")(source)),
    }
}

fn check_size(path: &Path, size: Bytes) -> Result<(), OpenError> {
    let least = Bytes::from_pages(MIN_SLOTS);
    if size < least { Err(OpenError::TooSmall { path: path.to_owned(), size, least }) } else { Ok(()) }
}

/// Steps on one path; each error names it.
#[derive(Clone, Copy)]
struct At<'a> {
    path: &'a Path,
}

impl At<'_> {
    /// Makes the file. The header is written before the file gets its length: whoever is killed in between leaves a file that is
    /// empty or ours, and either may be used again.
    fn new_file(self, size: Bytes) -> Result<Opened, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path)
            .map_err(self.io("make"))?;
        self.lock(&file)?;
        self.shape(file, None, size).inspect_err(|_| {
            // It was not there before, so it shall not be there after. A failure to remove it adds nothing to the error.
            let _ = fs::remove_file(self.path);
        })
    }

    fn regular(self, size: Option<Bytes>) -> Result<Opened, OpenError> {
        let file = self.open_existing(0)?;
        self.lock(&file)?;
        let found = file.metadata().map_err(self.io("look at"))?;
        if !found.is_file() {
            return Err(OpenError::Kind { path: self.path.to_owned() });
        }
        let len = Bytes(found.len());
        if raw_file::holds_no_data(&file).map_err(self.io("look at"))? {
            let size = size.unwrap_or(len);
            check_size(self.path, size)?;
            self.close_to_others(&file, found.permissions().mode())?;
            return self.shape(file, None, size);
        }
        let header = match self.read_header(&file)? {
            Ok(header) => Some(header),
            Err(source @ HeaderError::Checksum { .. }) if size.is_none() => {
                return Err(OpenError::Damaged { path: self.path.to_owned(), source });
            }
            // The magic is ours: the rest may be made anew.
            Err(HeaderError::Checksum { .. }) => None,
            Err(source) => return Err(OpenError::Foreign { path: self.path.to_owned(), source }),
        };
        self.close_to_others(&file, found.permissions().mode())?;
        match (header, size) {
            (header, Some(size)) => self.shape(file, header, size),
            (Some(header), None) => match header.check_len(len) {
                Ok(()) => Ok(Opened { file, kind: StoreKind::File, header }),
                Err(source) => Err(OpenError::Damaged { path: self.path.to_owned(), source }),
            },
            (None, None) => unreachable!("a damaged header without a size was refused above"),
        }
    }

    fn device(self, size: Option<Bytes>) -> Result<Opened, OpenError> {
        // On a block device O_EXCL means: not if a file system, a RAID or another opener with O_EXCL has it.
        let mut file = self.open_existing(libc::O_EXCL)?;
        self.lock(&file)?;
        let len = Bytes(file.seek(SeekFrom::End(0)).map_err(self.io("measure"))?);
        let size = size.unwrap_or(len);
        if size > len {
            return Err(OpenError::DeviceTooSmall { path: self.path.to_owned(), size: len, asked: size });
        }
        check_size(self.path, size)?;
        let old = match self.read_header(&file)? {
            Ok(header) => Some(header),
            Err(_) if self.ends_are_zero(&file, len)? => None,
            Err(source) => return Err(OpenError::Foreign { path: self.path.to_owned(), source }),
        };
        let header = self.header(old, size)?;
        file.write_all_at(&header.encode(), 0).map_err(self.io("write the header of"))?;
        Ok(Opened { file, kind: StoreKind::Partition, header })
    }

    /// Writes the header and gives a regular file its length.
    fn shape(self, file: File, old: Option<SwapHeader>, size: Bytes) -> Result<Opened, OpenError> {
        let header = self.header(old, size)?;
        let no_space = |source| OpenError::NoSpace { path: self.path.to_owned(), size, source };
        let failed = |action| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EFBIG | libc::EDQUOT) => no_space(source),
                _ => self.io(action)(source),
            }
        };
        file.write_all_at(&header.encode(), 0).map_err(failed("write the header of"))?;
        let (len, found) = (header.bytes().0, file.metadata().map_err(self.io("look at"))?);
        if found.len() > len {
            file.set_len(len).map_err(failed("shorten"))?;
        }
        // Asked before, since some file systems fill themselves up to the brim before they say that they can't.
        if len.saturating_sub(found.blocks() * 512) > raw_file::room(&file).map_err(self.io("look at"))? {
            return Err(no_space(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        match raw_file::preallocate(&file, len) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                file.set_len(len).map_err(failed("lengthen"))?;
            }
            other => other.map_err(failed("make room for"))?,
        }
        Ok(Opened { file, kind: StoreKind::File, header })
    }

    fn header(self, old: Option<SwapHeader>, size: Bytes) -> Result<SwapHeader, OpenError> {
        // Whole pages, and no more of them than a slot number can name.
        let last = SlotOffset(u32::try_from(size.pages() - 1).unwrap_or(u32::MAX));
        match old {
            Some(old) => old.resized(last),
            None => SwapHeader::new(last),
        }
        .map_err(|source| OpenError::Damaged { path: self.path.to_owned(), source })
    }

    fn open_existing(self, flags: i32) -> Result<File, OpenError> {
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_NOCTTY).open(self.path);
        opened.map_err(|source| match source.raw_os_error() {
            // ETXTBSY: the kernel swaps to it, or runs it.
            Some(libc::EBUSY | libc::ETXTBSY) => OpenError::InUse { path: self.path.to_owned() },
            _ => self.io("open")(source),
        })
    }

    /// Takes the file for this process alone. The lock belongs to the open file, so it goes with the process.
    fn lock(self, file: &File) -> Result<(), OpenError> {
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse { path: self.path.to_owned() },
            TryLockError::Error(source) => self.io("lock")(source),
        })
    }

    /// Guest memory goes in there: nobody else may read it.
    fn close_to_others(self, file: &File, mode: u32) -> Result<(), OpenError> {
        if mode & 0o077 == 0 {
            return Ok(());
        }
        let mode = mode & 0o777;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(|source| OpenError::Insecure {
            path: self.path.to_owned(),
            mode,
            source,
        })
    }

    /// The outer error is the disk's, the inner one says what the first page is instead of a header.
    fn read_header(self, file: &File) -> Result<Result<SwapHeader, HeaderError>, OpenError> {
        let mut page: Page = [0; PAGE_SIZE];
        match file.read_exact_at(&mut page, 0) {
            Ok(()) => Ok(SwapHeader::decode(&page)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(HeaderError::Magic)),
            Err(source) => Err(self.io("read")(source)),
        }
    }

    fn ends_are_zero(self, file: &File, len: Bytes) -> Result<bool, OpenError> {
        let span = DEVICE_ENDS.min(len.0);
        let mut bytes = vec![0; usize::try_from(span).expect("at most 1 MiB")];
        for at in [0, len.0 - span] {
            file.read_exact_at(&mut bytes, at).map_err(self.io("read"))?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn io(self, action: &'static str) -> impl Fn(io::Error) -> OpenError {
        move |source| OpenError::Io { path: self.path.to_owned(), action, source }
    }
}

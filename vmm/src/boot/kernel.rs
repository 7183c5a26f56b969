//! Kernel images: which kind a file is, whether it fits, and its way into guest memory.
//!
//! Promises: a file that is no kernel is refused by name, one that does not fit with the sizes. Must never: trust a number in the file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use devices::DeviceMemory;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use memtier::units::Bytes as Size;
use vm_memory::GuestAddress;

use super::elf::{self, ElfError};
use crate::memory::layout;

/// The 64-bit entry is this far behind the start of a loaded bzImage.
pub const BZIMAGE_ENTRY_64: u64 = 0x200;

/// Where `HdrS` is in a bzImage.
const HEADER_MAGIC_AT: u64 = 0x202;
/// Boot protocol 2.12 brought `xloadflags`, which tells whether there is a 64-bit entry.
const MIN_PROTOCOL: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
/// `COMMAND_LINE_SIZE` of x86 Linux without the final NUL: an ELF kernel does not tell its limit.
const ELF_CMDLINE_LIMIT: u64 = 2047;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not opened.
    #[error("cannot open kernel {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Opened but not read.
    #[error("cannot read kernel {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither bzImage nor ELF.
    #[error("{} is not a kernel: neither a bzImage nor an ELF file", .path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// A bzImage that this machine cannot enter.
    #[error("{} is a bzImage without a 64-bit entry (boot protocol {}.{:02}, 2.12 or later is needed)", .path.display(), .version >> 8, .version & 0xff)]
    No64BitEntry {
        /// The file.
        path: PathBuf,
        /// Its boot protocol version.
        version: u16,
    },
    /// An ELF file that is no kernel for this machine.
    #[error("{} is not a kernel for this machine", .path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// More memory needed than there is, or memory below 1 MiB wanted.
    #[error("kernel {} needs guest memory from {start:#x} to {end:#x}, usable is 0x100000 to {limit:#x} ({} of memory)", .path.display(), Size(*.memory))]
    DoesNotFit {
        /// The file.
        path: PathBuf,
        /// Lowest byte it needs.
        start: u64,
        /// Behind the highest byte it needs.
        end: u64,
        /// End of RAM below the hole.
        limit: u64,
        /// Guest memory.
        memory: u64,
    },
    /// The loader refused it.
    #[error("cannot load kernel {}", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Kernel {
    /// Its kind and what belongs to it.
    pub image: Image,
    /// Behind the last byte that it uses before it knows the memory map.
    pub end: u64,
}

/// The kinds of kernel images.
#[derive(Debug)]
pub enum Image {
    /// A bzImage.
    BzImage {
        /// Its setup header.
        header: Box<setup_header>,
        /// Where its protected-mode part was loaded.
        load: u64,
    },
    /// An ELF image.
    Elf {
        /// The ELF entry.
        entry: u64,
        /// The PVH entry, if the image has one.
        pvh_entry: Option<u64>,
    },
}

impl Kernel {
    /// The longest command line that it takes, without the final NUL.
    pub fn cmdline_limit(&self) -> u64 {
        match &self.image {
            Image::BzImage { header, .. } => u64::from(header.cmdline_size),
            Image::Elf { .. } => ELF_CMDLINE_LIMIT,
        }
    }

    /// Behind the highest byte that an initrd may have.
    pub fn initrd_end(&self) -> u64 {
        match &self.image {
            Image::BzImage { header, .. } => u64::from(header.initrd_addr_max) + 1,
            Image::Elf { .. } => layout::HOLE_START,
        }
    }
}

/// Loads the file at `path`.
pub fn load(memory: &DeviceMemory, memory_size: u64, path: &Path) -> Result<Kernel, KernelError> {
    let mut file = open(path)?;
    let read_error = |source| KernelError::Read { path: path.to_path_buf(), source };
    if magic_at::<4>(&mut file, 0).map_err(read_error)? == Some(elf::MAGIC) {
        return load_elf(memory, memory_size, path, &mut file);
    }
    if magic_at::<4>(&mut file, HEADER_MAGIC_AT).map_err(read_error)? == Some(*b"HdrS") {
        return load_bzimage(memory, memory_size, path, &mut file);
    }
    Err(KernelError::NotAKernel { path: path.to_path_buf() })
}

fn open(path: &Path) -> Result<File, KernelError> {
    let open_error = |source| KernelError::Open { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(open_error)?;
    // A directory opens, but cannot be read; a pipe has no positions.
    match file.metadata().map_err(open_error)?.is_file() {
        true => Ok(file),
        false => Err(KernelError::NotAKernel { path: path.to_path_buf() }),
    }
}

/// The bytes at `offset`, `None` if the file ends before.
fn magic_at<const N: usize>(file: &mut File, offset: u64) -> io::Result<Option<[u8; N]>> {
    let mut magic = [0; N];
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(Some(magic)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn load_bzimage(memory: &DeviceMemory, memory_size: u64, path: &Path, file: &mut File) -> Result<Kernel, KernelError> {
    let version = magic_at(file, 0x206).map_err(|source| KernelError::Read { path: path.to_path_buf(), source })?;
    let version = u16::from_le_bytes(version.unwrap_or_default());
    let xloadflags = magic_at(file, 0x236).map_err(|source| KernelError::Read { path: path.to_path_buf(), source })?;
    let xloadflags = u16::from_le_bytes(xloadflags.unwrap_or_default());
    if version < MIN_PROTOCOL || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry { path: path.to_path_buf(), version });
    }
    // The kernel's preferred address is where it would decompress itself to anyway, and `init_size` from there on is what it may use until
    // it knows the memory map.
    let preferred = magic_at(file, 0x258).map_err(|source| KernelError::Read { path: path.to_path_buf(), source })?;
    let load = u64::from_le_bytes(preferred.unwrap_or_default());
    let init_size = magic_at(file, 0x260).map_err(|source| KernelError::Read { path: path.to_path_buf(), source })?;
    let init_size = u64::from(u32::from_le_bytes(init_size.unwrap_or_default()));
    let file_size = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let end = load.saturating_add(init_size.max(file_size));
    check_fit(path, memory_size, load, end)?;

    let loaded = BzImage::load(memory, Some(GuestAddress(load)), file, None)
        .map_err(|source| KernelError::Load { path: path.to_path_buf(), source })?;
    let header = loaded.setup_header.ok_or_else(|| KernelError::NotAKernel { path: path.to_path_buf() })?;
    Ok(Kernel { image: Image::BzImage { header: Box::new(header), load }, end })
}

fn load_elf(memory: &DeviceMemory, memory_size: u64, path: &Path, file: &mut File) -> Result<Kernel, KernelError> {
    let span = elf::span(file).map_err(|source| KernelError::Elf { path: path.to_path_buf(), source })?;
    check_fit(path, memory_size, span.start, span.end)?;
    let loaded =
        Elf::load(memory, None, file, None).map_err(|source| KernelError::Load { path: path.to_path_buf(), source })?;
    let pvh_entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Some(address.0),
        _ => None,
    };
    Ok(Kernel { image: Image::Elf { entry: loaded.kernel_load.0, pvh_entry }, end: span.end })
}

/// Below 1 MiB are the boot structures, so that no image may begin there; above the hole none of the entries can reach it.
fn check_fit(path: &Path, memory: u64, start: u64, end: u64) -> Result<(), KernelError> {
    let limit = layout::low_memory_end(memory);
    if start >= layout::HIGH_RAM_START && end <= limit {
        return Ok(());
    }
    Err(KernelError::DoesNotFit { path: path.to_path_buf(), start, end, limit, memory })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    const MEMORY: u64 = 8 << 20;

    fn try_load(bytes: &[u8]) -> (Result<Kernel, KernelError>, DeviceMemory) {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 8 << 20)]).expect("memory");
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(bytes).expect("written");
        (load(&memory, MEMORY, file.path()), memory)
    }

    fn bzimage(version: u16, xloadflags: u16, init_size: u32) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
        image[0x211] = 1;
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x20_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
        image.extend_from_slice(b"protected-mode part");
        image
    }

    #[test]
    fn a_bzimage_goes_to_its_preferred_address() {
        let (kernel, memory) = try_load(&bzimage(0x020f, 1, 0x10_0000));
        let kernel = kernel.expect("loaded");
        assert_eq!((kernel.end, kernel.cmdline_limit()), (0x30_0000, 2047));
        let mut back = [0; 19];
        memory.read_slice(&mut back, GuestAddress(0x20_0000)).expect("RAM");
        assert_eq!(&back, b"protected-mode part");
    }

    #[test]
    fn an_elf_image_goes_where_its_headers_say() {
        let (kernel, memory) = try_load(&elf::testing::image(0x30_0000, b"code", 0x2000));
        let kernel = kernel.expect("loaded");
        assert!(matches!(kernel.image, Image::Elf { entry: 0x30_0000, pvh_entry: None }), "{kernel:?}");
        assert_eq!(kernel.end, 0x30_2000);
        let mut back = [0; 4];
        memory.read_slice(&mut back, GuestAddress(0x30_0000)).expect("RAM");
        assert_eq!(&back, b"code");
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
            let error = try_load(bytes).0.expect_err("not a kernel").to_string();
            assert!(error.ends_with("is not a kernel: neither a bzImage nor an ELF file"), "{error}");
        }
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let directory = load(&memory, 1 << 20, Path::new("/")).expect_err("a directory").to_string();
        assert_eq!(directory, "/ is not a kernel: neither a bzImage nor an ELF file");
        let missing = load(&memory, 1 << 20, Path::new("/nonexistent/kernel")).expect_err("missing").to_string();
        assert_eq!(missing, "cannot open kernel /nonexistent/kernel");
    }

    #[test]
    fn old_and_32_bit_bzimages_are_refused_with_their_version() {
        for (version, flags) in [(0x020b, 1), (0x020f, 0)] {
            let error = try_load(&bzimage(version, flags, 0x1000)).0.expect_err("no 64-bit entry");
            assert!(matches!(error, KernelError::No64BitEntry { version: v, .. } if v == version), "{error}");
        }
        let error = try_load(&bzimage(0x020b, 1, 0x1000)).0.expect_err("old").to_string();
        assert!(error.contains("boot protocol 2.11, 2.12 or later"), "{error}");
    }

    #[test]
    fn a_kernel_that_needs_more_memory_than_there_is_says_so() {
        let error = try_load(&bzimage(0x020f, 1, 72 << 20)).0.expect_err("too large").to_string();
        assert!(error.contains("needs guest memory from 0x200000 to 0x4a00000"), "{error}");
        assert!(error.contains("8 MiB"), "{error}");
        let low = try_load(&elf::testing::image(0x9000, b"code", 4)).0.expect_err("over the boot structures");
        assert!(matches!(low, KernelError::DoesNotFit { start: 0x9000, .. }), "{low}");
    }

    #[test]
    fn an_elf_file_for_another_machine_is_refused() {
        let mut image = elf::testing::image(0x30_0000, b"code", 4);
        image[18] = 183;
        assert!(matches!(try_load(&image).0, Err(KernelError::Elf { source: ElfError::Machine, .. })));
    }
}

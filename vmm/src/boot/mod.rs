//! From files to a guest that can take its first instruction: kernel, initrd, command line and what the boot protocol wants beside them.
//!
//! Promises: every structure lies where [`crate::memory::layout`] says, within RAM; a file that is not what it should be is an error naming
//! it. Must never: touch KVM; registers are the vCPU's part, told by [`Entry`].

mod cmdline;
mod elf;
mod initrd;
mod kernel;
mod linux;
mod memory_map;
mod pvh;
mod reset_vector;
pub mod tables;

use std::path::PathBuf;

use devices::DeviceMemory;
use vm_memory::GuestMemoryError;

pub use cmdline::{CmdlineError, DEFAULT_CMDLINE};
pub use initrd::InitrdError;
pub use kernel::KernelError;

use crate::config::{BootSource, EntryMode};
use crate::memory::layout;
use kernel::{Image, Kernel};

/// Where and how vCPUs start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol: `RSI` points to `boot_params`.
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// PVH: 32-bit protected mode, `EBX` points to `hvm_start_info`.
    Pvh {
        /// First instruction.
        rip: u64,
    },
    /// A payload image, on every vCPU.
    EveryVcpu {
        /// First instruction.
        rip: u64,
    },
}

/// Why nothing can boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Payload images are ELF files.
    #[error("{} is a bzImage; a payload image is an ELF file", .path.display())]
    PayloadNotElf {
        /// The file.
        path: PathBuf,
    },
    /// A boot structure does not fit in RAM.
    #[error("cannot write the {what} to guest memory")]
    Write {
        /// Which structure.
        what: &'static str,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads all of `source` into guest memory.
pub fn load(memory: &DeviceMemory, memory_size: u64, source: &BootSource) -> Result<Entry, BootError> {
    let kernel = kernel::load(memory, memory_size, &source.kernel)?;
    if source.entry == EntryMode::EveryVcpu {
        let Image::Elf { entry, .. } = kernel.image else {
            return Err(BootError::PayloadNotElf { path: source.kernel.clone() });
        };
        tables::write(memory)?;
        return Ok(Entry::EveryVcpu { rip: entry });
    }
    load_linux(memory, memory_size, source, &kernel)
}

fn load_linux(
    memory: &DeviceMemory,
    memory_size: u64,
    source: &BootSource,
    kernel: &Kernel,
) -> Result<Entry, BootError> {
    let text = source.cmdline.as_deref().unwrap_or(DEFAULT_CMDLINE);
    cmdline::write(memory, text, kernel.cmdline_limit())?;
    reset_vector::write(memory)?;
    let low_end = layout::low_memory_end(memory_size);
    let initrd = match &source.initrd {
        Some(path) => Some(initrd::load(memory, path, kernel.end..low_end.min(kernel.initrd_end()))?),
        None => None,
    };
    let handover = Handover { memory_size, initrd, cmdline_len: text.len() as u64 };
    match &kernel.image {
        Image::Elf { pvh_entry: Some(rip), .. } => {
            pvh::write(memory, &handover)?;
            Ok(Entry::Pvh { rip: *rip })
        }
        Image::Elf { entry, .. } => {
            tables::write(memory)?;
            linux::write(memory, linux::header_for_elf(), &handover)?;
            Ok(Entry::Linux64 { rip: *entry })
        }
        Image::BzImage { header, load } => {
            tables::write(memory)?;
            linux::write(memory, **header, &handover)?;
            Ok(Entry::Linux64 { rip: load + kernel::BZIMAGE_ENTRY_64 })
        }
    }
}

/// What a boot protocol hands to the kernel.
struct Handover {
    memory_size: u64,
    initrd: Option<layout::RamRange>,
    cmdline_len: u64,
}

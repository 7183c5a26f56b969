//! Linux's `boot_params` ("zero page") for the 64-bit entry.
//!
//! Promises: a bzImage's own header is kept, only what a loader must fill in is filled in. Must never: set what the machine does not have
//! (screen, disks of the BIOS, EFI).

use devices::DeviceMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::memory_map::memory_map;
use super::{BootError, Handover};
use crate::memory::layout;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// The header that an ELF kernel, which brings none, gets.
pub fn header_for_elf() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: 0x020f,
        loadflags: 1,
        kernel_alignment: 2 << 20,
        initrd_addr_max: u32::MAX,
        ..setup_header::default()
    }
}

/// Writes the zero page.
pub(super) fn write(memory: &DeviceMemory, header: setup_header, handover: &Handover) -> Result<(), BootError> {
    let params = params(header, handover);
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE_START))
        .map_err(|source| BootError::Write { what: "boot parameters", source })
}

fn params(mut header: setup_header, handover: &Handover) -> boot_params {
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = below_4_gib(layout::CMDLINE_START);
    if let Some(initrd) = handover.initrd {
        header.ramdisk_image = below_4_gib(initrd.start);
        header.ramdisk_size = below_4_gib(initrd.len);
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: layout::ACPI_START, ..boot_params::default() };
    let map = memory_map(handover.memory_size);
    for (index, (range, kind)) in map.iter().enumerate() {
        params.e820_table[index] = boot_e820_entry { addr: range.start, size: range.len, r#type: *kind as u32 };
    }
    params.e820_entries = u8::try_from(map.len()).expect("a handful of ranges");
    params
}

/// The loader places command line and initrd below the hole, which begins below 4 GiB.
fn below_4_gib(value: u64) -> u32 {
    u32::try_from(value).expect("placed below the hole")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::RamRange;

    #[test]
    fn the_zero_page_tells_map_initrd_command_line_and_tables() {
        let initrd = Some(RamRange { start: 0x300_0000, len: 0x1234 });
        let handover = Handover { memory_size: 64 << 20, initrd, cmdline_len: 5 };
        let params = params(header_for_elf(), &handover);
        assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI_START);
        let header = params.hdr;
        assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x300_0000, 0x1234));
        assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
        assert_eq!({ header.type_of_loader }, 0xff);
        let last = params.e820_table[usize::from(params.e820_entries) - 1];
        assert_eq!(({ last.addr }, { last.size }, { last.r#type }), (0x10_0000, 63 << 20, 1));
    }

    #[test]
    fn a_kernels_own_header_is_kept() {
        let header = setup_header { kernel_alignment: 0x100_0000, init_size: 77, ..header_for_elf() };
        let handover = Handover { memory_size: 64 << 20, initrd: None, cmdline_len: 0 };
        let kept = params(header, &handover).hdr;
        assert_eq!(({ kept.kernel_alignment }, { kept.init_size }, { kept.ramdisk_size }), (0x100_0000, 77, 0));
    }
}

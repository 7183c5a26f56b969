//! PVH's start info: what a kernel entered by its `XEN_ELFNOTE_PHYS32_ENTRY` note gets.
//!
//! Promises: start info, module list and memory map lie together in one page below 1 MiB. Must never: claim version 1 fields without filling
//! them in (the memory map and the RSDP).

use devices::DeviceMemory;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::memory_map::memory_map;
use super::{BootError, Handover};
use crate::memory::layout;

const MAGIC: u32 = 0x336e_c578;
const MODULES_AT: u64 = layout::PVH_START + 0x80;
const MAP_AT: u64 = layout::PVH_START + 0x100;

/// Writes the start info and what it points to.
pub(super) fn write(memory: &DeviceMemory, handover: &Handover) -> Result<(), BootError> {
    let map = memory_map(handover.memory_size);
    for (address, (range, kind)) in (MAP_AT..).step_by(size_of::<hvm_memmap_table_entry>()).zip(&map) {
        let entry = hvm_memmap_table_entry { addr: range.start, size: range.len, type_: *kind as u32, reserved: 0 };
        put(memory, entry, address)?;
    }
    if let Some(initrd) = handover.initrd {
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.len, cmdline_paddr: 0, reserved: 0 };
        put(memory, module, MODULES_AT)?;
    }
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::from(handover.initrd.is_some()),
        modlist_paddr: if handover.initrd.is_some() { MODULES_AT } else { 0 },
        cmdline_paddr: if handover.cmdline_len > 0 { layout::CMDLINE_START } else { 0 },
        rsdp_paddr: layout::ACPI_START,
        memmap_paddr: MAP_AT,
        memmap_entries: u32::try_from(map.len()).expect("a handful of ranges"),
        reserved: 0,
    };
    put(memory, start_info, layout::PVH_START)
}

fn put<T: ByteValued>(memory: &DeviceMemory, value: T, address: u64) -> Result<(), BootError> {
    memory.write_obj(value, GuestAddress(address)).map_err(|source| BootError::Write { what: "PVH start info", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::RamRange;

    #[test]
    fn start_info_leads_to_map_and_initrd() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let initrd = Some(RamRange { start: 0x300_0000, len: 0x1234 });
        write(&memory, &Handover { memory_size: 5 << 30, initrd, cmdline_len: 5 }).expect("written");
        let info: hvm_start_info = memory.read_obj(GuestAddress(layout::PVH_START)).expect("RAM");
        assert_eq!((info.magic, info.version, info.rsdp_paddr), (MAGIC, 1, layout::ACPI_START));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).expect("RAM");
        assert_eq!((module.paddr, module.size), (0x300_0000, 0x1234));
        let last = info.memmap_paddr + 24 * u64::from(info.memmap_entries - 1);
        let entry: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).expect("RAM");
        assert_eq!((entry.addr, entry.size, entry.type_), (4 << 30, 2 << 30, 1));
        assert!(last + 24 <= layout::PVH_END);
    }
}

//! Descriptor and page tables for a start in 64-bit mode.
//!
//! Promises: segments are flat and have the selectors that Linux's boot protocol wants; the first 4 GiB are mapped one to one with 2 MiB
//! pages, for the supervisor, writable. Must never: map more; what lies above is the kernel's to map.

use devices::DeviceMemory;
use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::BootError;
use crate::memory::layout;

/// Selector of the code segment: `__BOOT_CS`.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments: `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task segment.
pub const TASK_SELECTOR: u16 = 0x20;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
const GIB_MAPPED: u64 = 4;

/// The segments of a start in 64-bit mode (`long`) or in 32-bit protected mode.
pub fn segments(long: bool) -> Segments {
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 0x3, db: 1, l: 0, ..code };
    let task = kvm_segment { selector: TASK_SELECTOR, limit: 0x67, type_: 0xb, db: 0, s: 0, l: 0, g: 0, ..code };
    Segments { code, data, task }
}

/// Code, data and task segment of a start.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    /// For `CS`.
    pub code: kvm_segment,
    /// For `DS`, `ES`, `FS`, `GS`, `SS`.
    pub data: kvm_segment,
    /// For `TR`.
    pub task: kvm_segment,
}

/// The descriptor table that holds `segments` at their selectors.
pub fn gdt(segments: &Segments) -> [u64; 6] {
    // The task descriptor of 64-bit mode takes two entries; the second is the base's high half, zero.
    [0, 0, descriptor(&segments.code), descriptor(&segments.data), descriptor(&segments.task), 0]
}

/// Bytes that the descriptor table takes, minus one: the limit that `GDTR` wants.
pub const GDT_LIMIT: u16 = 6 * 8 - 1;

fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

/// [`write_to`] as a step of booting.
pub(super) fn write(memory: &DeviceMemory) -> Result<(), BootError> {
    write_to(memory).map_err(|source| BootError::Write { what: "boot tables", source })
}

/// Writes descriptor table, interrupt table and page tables for 64-bit mode.
pub fn write_to(memory: &DeviceMemory) -> Result<(), GuestMemoryError> {
    for (address, entry) in (layout::GDT_START..).step_by(8).zip(gdt(&segments(true))) {
        put(memory, entry, address)?;
    }
    put(memory, 0, layout::IDT_START)?;
    let (pml4, pdpt) = (layout::PAGE_TABLES_START, layout::PAGE_TABLES_START + PAGE);
    put(memory, pdpt | PRESENT | WRITABLE, pml4)?;
    for gib in 0..GIB_MAPPED {
        let directory = pdpt + PAGE + gib * PAGE;
        put(memory, directory | PRESENT | WRITABLE, pdpt + gib * 8)?;
        for index in 0..512 {
            let target = (gib << 30) + (index << 21);
            put(memory, target | PRESENT | WRITABLE | HUGE, directory + index * 8)?;
        }
    }
    Ok(())
}

fn put(memory: &DeviceMemory, value: u64, address: u64) -> Result<(), GuestMemoryError> {
    memory.write_obj(value, GuestAddress(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_architectures_bits() {
        let table = gdt(&segments(true));
        assert_eq!(table[usize::from(CODE_SELECTOR / 8)], 0x00af_9b00_0000_ffff);
        assert_eq!(table[usize::from(DATA_SELECTOR / 8)], 0x00cf_9300_0000_ffff);
        assert_eq!(table[usize::from(TASK_SELECTOR / 8)], 0x0000_8b00_0000_0067);
        assert_eq!(gdt(&segments(false))[2], 0x00cf_9b00_0000_ffff);
        assert_eq!(size_of_val(&table), usize::from(GDT_LIMIT) + 1);
        assert!(layout::GDT_START + u64::from(GDT_LIMIT) < layout::IDT_START);
    }

    #[test]
    fn page_tables_map_the_first_four_gib_one_to_one() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        write(&memory).expect("written");
        let walk = |address: u64| {
            let mut table = layout::PAGE_TABLES_START;
            for shift in [39, 30, 21] {
                let entry: u64 = memory.read_obj(GuestAddress(table + (address >> shift & 511) * 8)).expect("RAM");
                if entry & PRESENT == 0 {
                    return None;
                }
                if entry & HUGE != 0 {
                    return Some((entry & !0x1f_ffff) + (address & 0x1f_ffff));
                }
                table = entry & !0xfff;
            }
            None
        };
        for address in [0, 0x1234_5678, 0x3fff_ffff, 0x4000_0000, 0xfee0_0000, 0xffff_ffff] {
            assert_eq!(walk(address), Some(address), "{address:#x}");
        }
        assert_eq!(walk(1 << 32), None);
        const { assert!(layout::PAGE_TABLES_START + PAGE * (2 + GIB_MAPPED) == layout::PAGE_TABLES_END) }
    }
}

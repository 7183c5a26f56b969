//! Where things are in guest physical memory.
//!
//! Promises: ranges below do not overlap (a test compares them all). Must never: depend on a particular guest.
//!
//! ```text
//! 0            boot structures (GDT, start info, boot_params, page tables, command line)
//! 640 KiB - 1K end of low RAM as the guest is told
//! 896 KiB      ACPI tables, up to 1 MiB
//! 1 MiB        RAM: kernel, initrd (as high as allowed), free memory
//! 3 GiB        the 32-bit hole: virtio-mmio windows, I/O APIC, local APICs, KVM's own pages
//! 4 GiB        RAM, if there is more
//! ```

/// The least memory that holds the boot structures and the ACPI tables.
pub const MIN_MEMORY: u64 = HIGH_RAM_START;

/// The global descriptor table.
pub const GDT_START: u64 = 0x500;
/// An empty interrupt descriptor table.
pub const IDT_START: u64 = 0x540;
/// PVH's `hvm_start_info`, module list and memory map.
pub const PVH_START: u64 = 0x6000;
/// End of the page for PVH.
#[cfg(test)]
pub const PVH_END: u64 = 0x7000;
/// Linux's `boot_params` ("zero page").
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Top of the boot stack, below the page tables.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// Page tables: PML4, PDPT, four page directories.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// End of the page tables.
#[cfg(test)]
pub const PAGE_TABLES_END: u64 = 0xf000;
/// The kernel's command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// The longest command line with its final NUL that fits, whatever the kernel takes.
pub const CMDLINE_MAX: u64 = 0x1_0000;

/// Low RAM ends here for the guest, where the extended BIOS data area would be.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables begin here; the RSDP is first, where a guest that searches finds it too.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0xf_f000;
/// The page with the reset vector; it ends low memory.
pub const RESET_PAGE: u64 = ACPI_END;
/// Where real mode starts after a reset: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM above the first mebibyte.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Start of the hole without RAM below 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole.
pub const HOLE_END: u64 = 1 << 32;

/// The first virtio-mmio window.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Bytes from one virtio-mmio window to the next.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// The I/O APIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs on Intel when a guest has paging off.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel for real mode.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// A piece of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl RamRange {
    /// The address behind the last byte.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }
}

/// The pieces that `memory` bytes of RAM make around the hole: one or two, ascending.
pub fn ram_ranges(memory: u64) -> Vec<RamRange> {
    let below = memory.min(HOLE_START);
    let mut ranges = vec![RamRange { start: 0, len: below }];
    if memory > below {
        ranges.push(RamRange { start: HOLE_END, len: memory - below });
    }
    ranges
}

/// Where RAM below the hole ends.
pub fn low_memory_end(memory: u64) -> u64 {
    memory.min(HOLE_START)
}

/// The window of virtio-mmio device number `index`.
pub fn virtio_window(index: usize) -> u64 {
    VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::irq;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram_ranges(64 << 20), [RamRange { start: 0, len: 64 << 20 }]);
        assert_eq!(ram_ranges(HOLE_START), [RamRange { start: 0, len: HOLE_START }]);
        assert_eq!(
            ram_ranges(HOLE_START + 4096),
            [RamRange { start: 0, len: HOLE_START }, RamRange { start: HOLE_END, len: 4096 }]
        );
    }

    #[test]
    fn nothing_overlaps() {
        let windows_end = virtio_window(irq::MAX_VIRTIO_DEVICES);
        let ranges = [
            (GDT_START, IDT_START),
            (IDT_START, IDT_START + 16),
            (PVH_START, PVH_END),
            (ZERO_PAGE_START, ZERO_PAGE_START + 0x1000),
            (BOOT_STACK_TOP - 0xff0, BOOT_STACK_TOP),
            (PAGE_TABLES_START, PAGE_TABLES_END),
            (CMDLINE_START, CMDLINE_START + CMDLINE_MAX),
            (ACPI_START, ACPI_END),
            (RESET_PAGE, HIGH_RAM_START),
            (HIGH_RAM_START, HOLE_START),
            (VIRTIO_MMIO_START, windows_end),
            (u64::from(IO_APIC), u64::from(IO_APIC) + 0x1000),
            (u64::from(LOCAL_APIC), u64::from(LOCAL_APIC) + 0x1000),
            (KVM_IDENTITY_MAP, KVM_IDENTITY_MAP + 0x1000),
            (KVM_TSS, KVM_TSS + 0x3000),
        ];
        for pair in ranges.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}

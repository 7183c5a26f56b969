//! Registers at the start, for each way in.
//!
//! Promises: what the boot protocol or the payload contract says is so, everything else is as after a reset. Must never: touch KVM.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_regs, kvm_sregs};

use crate::boot::{Entry, tables};
use crate::memory::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 1 << 1;

/// General registers of vCPU `index` in a guest of `memory` bytes.
pub fn general(entry: Entry, index: u8, memory: u64) -> kvm_regs {
    let start = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rsi: layout::ZERO_PAGE_START,
            rsp: layout::BOOT_STACK_TOP,
            rbp: layout::BOOT_STACK_TOP,
            ..start
        },
        Entry::Pvh { rip } => kvm_regs { rip, rbx: layout::PVH_START, ..start },
        Entry::EveryVcpu { rip } => kvm_regs { rip, rdi: u64::from(index), rsi: memory, ..start },
    }
}

/// Changes the reset state `sregs` to what the entry wants: segments, tables, paging.
pub fn special(entry: Entry, sregs: &mut kvm_sregs) {
    let long = !matches!(entry, Entry::Pvh { .. });
    let tables::Segments { code, data, task } = tables::segments(long);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if !long {
        return;
    }
    sregs.gdt = kvm_dtable { base: layout::GDT_START, limit: tables::GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable { base: layout::IDT_START, limit: 7, ..Default::default() };
    sregs.cr0 |= CR0_MP | CR0_NE | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES_START;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    if matches!(entry, Entry::EveryVcpu { .. }) {
        sregs.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT;
    }
}

/// The floating-point unit after `FNINIT`, SSE exceptions masked.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// Local interrupt pins as firmware leaves them: LINT0 for the legacy controller, LINT1 for NMIs.
pub fn local_interrupts(lapic: &mut kvm_lapic_state) {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4;
    const MODE_EXTINT: u32 = 7;
    set_delivery_mode(lapic, LINT0, MODE_EXTINT);
    set_delivery_mode(lapic, LINT1, MODE_NMI);
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = [0, 1, 2, 3].map(|byte| lapic.regs[register + byte].to_ne_bytes()[0]);
    let value = u32::from_le_bytes(bytes) & !0x700 | mode << 8;
    for (byte, new) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[register + byte] = std::ffi::c_char::from_ne_bytes([new]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_starts_paged_with_boot_params_in_rsi() {
        let entry = Entry::Linux64 { rip: 0x100_0200 };
        let regs = general(entry, 0, 1 << 30);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0200, layout::ZERO_PAGE_START, 2));
        let mut sregs = kvm_sregs { cr0: 0x6000_0010, ..Default::default() };
        special(entry, &mut sregs);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0033, 0x9000, 0x20, 0x500));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.ss.selector, sregs.gdt.limit), (0x10, 1, 0x18, 47));
    }

    #[test]
    fn pvh_starts_unpaged_with_start_info_in_ebx() {
        let entry = Entry::Pvh { rip: 0x100_0000 };
        assert_eq!(general(entry, 0, 1 << 30).rbx, layout::PVH_START);
        let mut sregs = kvm_sregs::default();
        special(entry, &mut sregs);
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer, sregs.cs.db, sregs.cs.l), (0x11, 0, 0, 1, 0));
    }

    #[test]
    fn payloads_get_index_and_memory() {
        let regs = general(Entry::EveryVcpu { rip: 0x20_0000 }, 3, 1 << 30);
        assert_eq!((regs.rip, regs.rdi, regs.rsi, regs.rsp), (0x20_0000, 3, 1 << 30, 0));
        assert_eq!(regs.rflags >> 12 & 3, 0, "IOPL");
        assert_eq!(regs.rflags >> 9 & 1, 0, "interrupts");
    }

    #[test]
    fn local_interrupt_pins_keep_their_other_bits() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[0x352] = 1;
        local_interrupts(&mut lapic);
        assert_eq!(lapic.regs[0x350..0x354], [0, 7, 1, 0]);
        assert_eq!(lapic.regs[0x360..0x364], [0, 4, 0, 0]);
    }
}

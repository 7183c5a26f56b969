//! The MADT: local APICs and the I/O APIC.
//!
//! Promises: APIC ids equal vCPU indices. Must never: announce the 8259s; no interrupt line leads to them.

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::memory::layout;

/// The table for `cpus` vCPUs.
pub fn madt(cpus: u8) -> MADT {
    let controller = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut table = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for cpu in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    table
}

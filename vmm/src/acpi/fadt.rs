//! The FADT: reduced hardware, and the registers that end the guest.
//!
//! Promises: port numbers are those at which the devices sit. Must never: name a fixed-hardware register; there are none.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use devices::{ResetRegister, SleepRegisters};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::wiring::ports;

/// There are devices on the legacy ports: the serial port.
const LEGACY_DEVICES: u16 = 1 << 0;
/// There is a keyboard controller.
const I8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// The table, pointing to the DSDT.
pub fn fadt(dsdt: u64) -> FADT {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    table.iapc_boot_arch = (LEGACY_DEVICES | I8042 | NO_VGA | NO_CMOS_CLOCK).into();
    table.reset_reg = byte_port(ports::RESET);
    table.reset_value = ResetRegister::VALUE;
    table.sleep_control_reg = byte_port(ports::SLEEP + offset(SleepRegisters::CONTROL));
    table.sleep_status_reg = byte_port(ports::SLEEP + offset(SleepRegisters::STATUS));
    table.finalize()
}

fn byte_port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn offset(register: u64) -> u16 {
    u16::try_from(register).expect("one of two registers")
}

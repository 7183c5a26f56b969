//! ACPI: how the guest learns of vCPUs, interrupt controllers, devices and the registers that end it.
//!
//! Promises: tables lie between `ACPI_START` and `ACPI_END`, the RSDP first, each with a right checksum. Must never: describe a device that
//! the machine does not have.

mod dsdt;
mod fadt;
mod madt;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use devices::DeviceMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::layout;

const OEM_ID: [u8; 6] = *b"EBB   ";
const OEM_TABLE_ID: [u8; 8] = *b"EBBVM   ";
const OEM_REVISION: u32 = 1;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// Number of vCPUs.
    pub cpus: u8,
    /// Number of virtio-mmio devices.
    pub virtio_devices: usize,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More tables than room.
    #[error("the ACPI tables take {len} bytes, there is room for {room}")]
    TooLarge {
        /// What they take.
        len: u64,
        /// What there is.
        room: u64,
    },
    /// Not written.
    #[error("cannot write the ACPI tables to guest memory")]
    Write(#[source] GuestMemoryError),
}

/// Writes all tables.
pub fn write(memory: &DeviceMemory, hardware: Hardware) -> Result<(), AcpiError> {
    let bytes = tables(hardware);
    let (len, room) = (bytes.len() as u64, layout::ACPI_END - layout::ACPI_START);
    if len > room {
        return Err(AcpiError::TooLarge { len, room });
    }
    memory.write_slice(&bytes, GuestAddress(layout::ACPI_START)).map_err(AcpiError::Write)
}

/// The bytes from `ACPI_START` on.
fn tables(hardware: Hardware) -> Vec<u8> {
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.put(&dsdt::dsdt(hardware.virtio_devices));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(area.put(&fadt::fadt(dsdt)));
    xsdt.add_entry(area.put(&madt::madt(hardware.cpus)));
    let xsdt = area.put(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    area.bytes
}

/// An empty table with our names.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER: u32 = 36;
    Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// Tables one after another, each at a multiple of 16.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and answers its guest address.
    fn put(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = layout::ACPI_START + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::irq::MAX_VIRTIO_DEVICES;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn number(bytes: &[u8], offset: usize, len: usize) -> u64 {
        bytes[offset..offset + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// The table at a guest address, checksum checked.
    fn at(area: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI_START).expect("small");
        let len = usize::try_from(number(area, start + 4, 4)).expect("small");
        let table = &area[start..start + len];
        assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
        table
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_has_a_right_checksum() {
        for (cpus, virtio_devices) in [(1, 0), (2, 3), (32, MAX_VIRTIO_DEVICES)] {
            let area = tables(Hardware { cpus, virtio_devices });
            assert_eq!(&area[..8], b"RSD PTR ");
            assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0), "checksums of the RSDP");
            let xsdt = at(&area, number(&area, 24, 8));
            assert_eq!(&xsdt[..4], b"XSDT");
            assert_eq!(xsdt.len(), 36 + 2 * 8);
            let fadt = at(&area, number(xsdt, 36, 8));
            assert_eq!(&fadt[..4], b"FACP");
            let madt = at(&area, number(xsdt, 44, 8));
            assert_eq!(&madt[..4], b"APIC");
            assert_eq!(madt.len(), 44 + 8 * usize::from(cpus) + 12);
            let dsdt = at(&area, number(fadt, 140, 8));
            assert_eq!(&dsdt[..4], b"DSDT");
            assert!(area.len() as u64 <= layout::ACPI_END - layout::ACPI_START);
        }
    }

    #[test]
    fn the_fadt_says_reduced_hardware_and_where_the_registers_are() {
        let area = tables(Hardware { cpus: 1, virtio_devices: 0 });
        let xsdt = at(&area, number(&area, 24, 8));
        let fadt = at(&area, number(xsdt, 36, 8));
        let flags = number(fadt, 112, 4);
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "HW_REDUCED_ACPI, RESET_REG_SUP");
        let boot_arch = number(fadt, 109, 2);
        assert_eq!(boot_arch, 0b10_0111, "legacy devices, 8042, no VGA, no CMOS clock");
        assert_eq!((fadt[116], number(fadt, 120, 8)), (1, u64::from(crate::wiring::ports::RESET)));
        assert_eq!((fadt[244], number(fadt, 248, 8)), (1, u64::from(crate::wiring::ports::SLEEP)));
        assert_eq!(number(fadt, 260, 8), u64::from(crate::wiring::ports::SLEEP) + 1);
    }
}

//! The DSDT: soft-off and every device that cannot be found by looking.
//!
//! Promises: addresses and interrupts are those of the wiring. Must never: contain methods; everything is a constant.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use devices::{SerialPort, SleepRegisters};

use super::table;
use crate::memory::layout;
use crate::wiring::{irq, ports};

/// The table for a machine with this many virtio-mmio devices.
pub fn dsdt(virtio_devices: usize) -> Sdt {
    let mut aml = Vec::new();
    soft_off(&mut aml);
    serial(&mut aml);
    keyboard(&mut aml);
    for index in 0..virtio_devices {
        virtio(&mut aml, index);
    }
    let mut table = table(*b"DSDT", 2);
    table.append_slice(&aml);
    table
}

/// `\_S5`: what to write to the sleep control register.
fn soft_off(aml: &mut Vec<u8>) {
    let value = SleepRegisters::S5;
    Name::new("_S5_".into(), &Package::new(vec![&value, &ZERO, &ZERO, &ZERO])).to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    let len = u8::try_from(SerialPort::LEN).expect("a UART has eight ports");
    let io = IO::new(ports::SERIAL, ports::SERIAL, 0, len);
    let interrupt = edge(irq::SERIAL_GSI);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &interrupt]));
    device(aml, "COM1", &EISAName::new("PNP0501"), 0, &[&resources]);
}

fn keyboard(aml: &mut Vec<u8>) {
    let data = IO::new(ports::I8042_DATA, ports::I8042_DATA, 1, 1);
    let command = IO::new(ports::I8042_COMMAND, ports::I8042_COMMAND, 1, 1);
    let interrupt = edge(irq::KEYBOARD_GSI);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&data, &command, &interrupt]));
    device(aml, "PS2K", &EISAName::new("PNP0303"), 0, &[&resources]);
}

fn virtio(aml: &mut Vec<u8>, index: usize) {
    let window = u32::try_from(layout::virtio_window(index)).expect("windows lie below 4 GiB");
    let size = u32::try_from(layout::VIRTIO_MMIO_SIZE).expect("a page");
    let memory = Memory32Fixed::new(true, window, size);
    let interrupt = edge(irq::virtio_gsi(index));
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory, &interrupt]));
    let coherent = Name::new("_CCA".into(), &1u8);
    let id = u8::try_from(index).expect("fewer devices than interrupt lines");
    device(aml, &format!("VR{index:02}"), &"LNRO0005", id, &[&coherent, &resources]);
}

fn device(aml: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u8, more: &[&dyn Aml]) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid];
    children.extend_from_slice(more);
    let device = Device::new(Path::new(name), children);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// Edge-triggered, active high, not shared: what an event file descriptor makes.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_virtio_device_has_its_own_window_and_line() {
        let table = dsdt(3);
        let bytes = table.as_slice();
        let count = |needle: &[u8]| bytes.windows(needle.len()).filter(|window| *window == needle).count();
        assert_eq!(count(b"LNRO0005"), 3);
        for index in 0..3u32 {
            let window = (0xd000_0000 + index * 0x1000).to_le_bytes();
            assert_eq!(count(&[&window[..], &0x1000u32.to_le_bytes()].concat()), 1);
            // Extended interrupt descriptor: length 6, consumer and edge, one number.
            assert_eq!(count(&[0x89, 6, 0, 0b11, 1, 5 + u8::try_from(index).expect("small"), 0, 0, 0]), 1);
        }
        assert_eq!((count(b"COM1"), count(b"PS2K"), count(b"_S5_")), (1, 1, 1));
    }
}

//! Which device has which interrupt line.
//!
//! Promises: no line is given twice. Must never: give a line beyond the I/O APIC's pins.

/// The i8042's keyboard interrupt.
pub const KEYBOARD_GSI: u32 = 1;
/// The first serial port.
pub const SERIAL_GSI: u32 = 4;
/// The first line for virtio devices.
const FIRST_VIRTIO_GSI: u32 = 5;
/// Pins of KVM's I/O APIC.
pub const IO_APIC_PINS: u32 = 24;

/// How many virtio devices have a line of their own.
pub const MAX_VIRTIO_DEVICES: usize = (IO_APIC_PINS - FIRST_VIRTIO_GSI) as usize;

/// The line of virtio device number `index`, below [`MAX_VIRTIO_DEVICES`].
pub fn virtio_gsi(index: usize) -> u32 {
    assert!(index < MAX_VIRTIO_DEVICES, "the configuration was checked");
    FIRST_VIRTIO_GSI + u32::try_from(index).expect("below the number of pins")
}

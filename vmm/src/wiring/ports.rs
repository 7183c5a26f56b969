//! Which device has which I/O ports.
//!
//! Promises: ranges do not overlap (the bus refuses it). Must never: use ports of hardware that guests probe for.

/// The first serial port, COM1.
pub const SERIAL: u16 = 0x3f8;
/// The keyboard controller's data port; its command port is [`I8042_COMMAND`].
pub const I8042_DATA: u16 = 0x60;
/// The keyboard controller's command port.
pub const I8042_COMMAND: u16 = 0x64;
/// ACPI's sleep control register; the status register follows it.
pub const SLEEP: u16 = 0x600;
/// ACPI's reset register.
pub const RESET: u16 = 0x608;

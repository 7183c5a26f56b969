//! Which device is where, and what connects it to the rest of the machine.
//!
//! Promises: the ports, windows and interrupt lines here are those that the ACPI tables tell. Must never: run a vCPU.

pub mod console;
pub mod devices;
pub mod irq;
pub mod pin;
pub mod ports;
mod terminal;

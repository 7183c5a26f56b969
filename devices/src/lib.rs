//! Ebb's devices: what a guest finds on its port-I/O and memory-mapped buses.
//!
//! Promises: nothing that a guest writes makes a device panic, block for ever or touch memory outside the guest's; every file and event is
//! closed when its device drops. Must never: know the machine around it (KVM, vCPUs) or the tiers of memory behind it; both reach a device
//! only as event file descriptors and as the [`Pinner`].

pub mod bus;
mod event;
pub mod i8042;
pub mod memory;
pub mod pin;
pub mod power;
pub mod serial;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use i8042::I8042;
pub use memory::{DeviceMemory, DeviceWrites};
pub use pin::{NoPin, PinError, Pinned, Pinner};
pub use power::{PowerRequest, PowerSignal, ResetRegister, SleepRegisters};
pub use serial::SerialPort;

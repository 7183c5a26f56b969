//! Code where the processor starts after a reset, and where a BIOS would be: it pulls the reset line of the keyboard controller.
//!
//! A kernel that knows EFI and finds reduced-hardware ACPI tries EFI to reboot, and without EFI jumps to the BIOS in real mode as its last
//! resort (Debian's stock kernels do). With nothing there it would run through zeros for ever.
//!
//! Promises: whoever gets there resets the machine. Must never: lie in memory that the guest is told is free.

use devices::DeviceMemory;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::layout;

/// `mov al, 0xfe; out 0x64, al; hlt; jmp` to the `hlt`.
const CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Puts it there.
pub fn write(memory: &DeviceMemory) -> Result<(), BootError> {
    let written = memory.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR));
    written.map_err(|source| BootError::Write { what: "reset vector", source })
}

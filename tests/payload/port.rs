//! I/O ports: how the image talks to the host (ring 3 may use them, its IOPL is 3).
//!
//! Promises: one exit to the host per call. Must never: touch memory.

use crate::abi::{MAX_VCPUS, PORT_BASE, PORT_DATA, PORT_DOORBELL, PORTS_PER_VCPU, RING3_STACK_BYTES};

/// One vCPU's ports.
pub struct Ports {
    base: u16,
}

impl Ports {
    /// The ports of vCPU `vcpu`.
    pub fn of(vcpu: u64) -> Self {
        Self { base: PORT_BASE + (vcpu % MAX_VCPUS) as u16 * PORTS_PER_VCPU }
    }

    /// The ports of the vCPU that runs this, found from its stack: for those who were not told.
    pub fn of_this_stack() -> Self {
        unsafe extern "C" {
            static ring3_stacks: u8;
        }
        let marker = 0u8;
        let stack = &raw const marker as u64 - &raw const ring3_stacks as u64;
        Self::of(stack / RING3_STACK_BYTES)
    }

    /// Asks the host for a command; answers whether one is in the mailbox.
    pub fn command_waits(&self) -> bool {
        self.read(PORT_DOORBELL) != 0
    }

    /// Tells the host that something happened; see [`crate::abi::event`].
    pub fn announce(&self, event: u32) {
        self.write(PORT_DOORBELL, event);
    }

    /// Sends a word that belongs to the next event.
    pub fn data(&self, word: u32) {
        self.write(PORT_DATA, word);
    }

    /// Sends two words that belong to the next event, low half first.
    pub fn data64(&self, word: u64) {
        self.data(word as u32);
        self.data((word >> 32) as u32);
    }

    fn read(&self, offset: u16) -> u32 {
        let value: u32;
        // SAFETY: port input changes nothing but its register; the host may have changed memory meanwhile, so memory is clobbered.
        unsafe {
            core::arch::asm!("in eax, dx", out("eax") value, in("dx") self.base + offset, options(nostack, preserves_flags))
        }
        value
    }

    fn write(&self, offset: u16, value: u32) {
        // SAFETY: as for `read`: the host sees what was written to memory before.
        unsafe {
            core::arch::asm!("out dx, eax", in("dx") self.base + offset, in("eax") value, options(nostack, preserves_flags))
        }
    }
}

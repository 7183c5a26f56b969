//! One queue's registers.
//!
//! Promises: a queue is ready only with a layout that was checked, and its layout does not change while it is ready.

use crate::DeviceMemory;
use crate::virtio::queue::{QueueError, QueueLayout};

/// What the driver wrote about a queue.
#[derive(Clone, Debug)]
pub struct QueueRegisters {
    max: u16,
    ready: bool,
    layout: QueueLayout,
}

impl QueueRegisters {
    /// A queue of at most `max` entries, not ready.
    pub fn new(max: u16) -> Self {
        Self { max, ready: false, layout: QueueLayout { size: u32::from(max), ..QueueLayout::default() } }
    }

    /// The most entries it can have.
    pub fn max(&self) -> u16 {
        self.max
    }

    /// Whether the driver has finished setting it up.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Where it is.
    pub fn layout(&self) -> &QueueLayout {
        &self.layout
    }

    /// To change where it is, while it is not ready.
    pub fn layout_mut(&mut self) -> Option<&mut QueueLayout> {
        (!self.ready).then_some(&mut self.layout)
    }

    /// Checks the layout; if it holds, the queue is ready.
    pub fn make_ready(&mut self, memory: &DeviceMemory) -> Result<(), QueueError> {
        self.layout.check(memory, self.max)?;
        self.ready = true;
        Ok(())
    }

    /// Not ready any more.
    pub fn withdraw(&mut self) {
        self.ready = false;
    }

    /// As it was in the beginning.
    pub fn reset(&mut self) {
        *self = Self::new(self.max);
    }
}

/// Replaces the low 32 bits.
pub fn replace_low(register: &mut u64, value: u32) {
    *register = *register & !u64::from(u32::MAX) | u64::from(value);
}

/// Replaces the high 32 bits.
pub fn replace_high(register: &mut u64, value: u32) {
    *register = *register & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_two_halves() {
        let mut register = 0x1111_2222_3333_4444;
        replace_low(&mut register, 0xaaaa_bbbb);
        assert_eq!(register, 0x1111_2222_aaaa_bbbb);
        replace_high(&mut register, 0xcccc_dddd);
        assert_eq!(register, 0xcccc_dddd_aaaa_bbbb);
    }
}

//! How a device calls its driver: interrupt status, configuration generation, and the event that KVM turns into an interrupt.
//!
//! Promises: the status bit is set before the interrupt is signalled; a driver that acknowledges one cause keeps the others. Must never:
//! block the thread that interrupts.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::event::signal;

/// Shared by a transport (which shows it to the driver) and its device's threads (which raise it).
#[derive(Debug)]
pub struct Interrupt {
    event: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    complaints: AtomicU32,
}

/// How many of a guest's mistakes are logged: enough to find a bug in a driver, too few to fill a disk.
const COMPLAINTS: u32 = 16;

impl Interrupt {
    /// Signals `event`, which the machine connects to the guest's interrupt controller (edge-triggered).
    pub fn new(event: EventFd) -> Self {
        Self {
            event,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            complaints: AtomicU32::new(0),
        }
    }

    /// A queue has used buffers.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space has changed; call it after the change.
    pub fn config_changed(&self) {
        // Release: who sees the new generation (Acquire in `generation`) sees the change.
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device can't go on until the driver resets it: DEVICE_NEEDS_RESET.
    pub fn device_failed(&self) {
        // Release: with the status read by the driver after the interrupt (Acquire in `needs_reset`).
        self.needs_reset.store(true, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The causes not acknowledged yet.
    pub fn status(&self) -> u32 {
        // Acquire: what the device wrote before it raised the bit is there for whoever sees the bit.
        self.status.load(Ordering::Acquire)
    }

    /// The driver has seen `causes`.
    pub fn acknowledge(&self, causes: u32) {
        // AcqRel: the clearing stays between the driver's look at the causes and its look at the rings.
        self.status.fetch_and(!causes, Ordering::AcqRel);
    }

    /// Counts changes of the configuration space.
    pub fn generation(&self) -> u32 {
        // Acquire: see `config_changed`.
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the device gave up.
    pub fn needs_reset(&self) -> bool {
        // Acquire: see `device_failed`.
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The driver reset the device: nothing is pending, nothing has failed. The generation goes on counting.
    pub fn reset(&self) {
        // Relaxed: the device's threads have ended, and only the thread that resets looks.
        self.status.store(0, Ordering::Relaxed);
        self.needs_reset.store(false, Ordering::Relaxed);
    }

    /// Whether one more mistake of the driver may be logged. Resets don't start the count anew.
    pub fn may_complain(&self) -> bool {
        // Relaxed: a count that orders nothing. The look before keeps it from wrapping around.
        self.complaints.load(Ordering::Relaxed) < COMPLAINTS
            && self.complaints.fetch_add(1, Ordering::Relaxed) < COMPLAINTS
    }

    fn raise(&self, cause: u32) {
        // Release: see `status`. The signal comes after, so the handler finds the bit.
        self.status.fetch_or(cause, Ordering::Release);
        signal(&self.event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::new_event;

    fn interrupt() -> (Interrupt, EventFd) {
        let event = new_event().unwrap();
        (Interrupt::new(event.try_clone().unwrap()), event)
    }

    #[test]
    fn causes_add_up_until_each_is_acknowledged() {
        let (interrupt, event) = interrupt();
        assert_eq!(interrupt.status(), 0);
        interrupt.queue_used();
        interrupt.config_changed();
        assert_eq!(event.read().unwrap(), 2);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        interrupt.acknowledge(u32::MAX);
        assert_eq!(interrupt.status(), 0);
    }

    #[test]
    fn a_change_of_configuration_counts() {
        let (interrupt, _) = interrupt();
        interrupt.config_changed();
        interrupt.config_changed();
        interrupt.queue_used();
        assert_eq!(interrupt.generation(), 2);
        interrupt.reset();
        assert_eq!((interrupt.generation(), interrupt.status()), (2, 0));
    }

    #[test]
    fn a_failed_device_says_so_until_reset() {
        let (interrupt, event) = interrupt();
        interrupt.device_failed();
        assert!(interrupt.needs_reset());
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(event.read().unwrap(), 1);
        interrupt.reset();
        assert!(!interrupt.needs_reset());
    }

    #[test]
    fn a_guest_cannot_fill_the_log() {
        let (interrupt, _) = interrupt();
        let mut complaints = 0;
        for _ in 0..1000 {
            complaints += u32::from(interrupt.may_complain());
            interrupt.reset();
        }
        assert_eq!(complaints, COMPLAINTS);
    }
}

//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): a page of registers in front of one device.
//!
//! Promises: a device starts only after a complete negotiation and only with rings that were checked; what a driver does out of turn is
//! ignored. While a request is at work registers go on answering; only a reset waits for it. Must never: offer what it does not do (queue
//! reset, shared memory, packed rings).

mod queues;
mod status;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use self::queues::{QueueRegisters, replace_high, replace_low};
use self::status::Transition;
use crate::DeviceMemory;
use crate::bus::BusDevice;
use crate::event::{new_event, signal};
use crate::pin::Pinner;
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{ActiveQueue, QueueContext};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "Ebb.", little-endian: who made the transport; drivers don't care.
const VENDOR: u32 = 0x2e62_6245;

/// What the transport itself offers.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device with its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: DeviceMemory,
    pinner: Arc<dyn Pinner>,
    interrupt: Arc<Interrupt>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    /// The driver accepted a feature with a number from 64 on; there are none.
    unknown_features: bool,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
    queue_events: Vec<EventFd>,
    active: bool,
}

impl MmioTransport {
    /// Bytes that the registers take.
    pub const LEN: u64 = 0x1000;
    /// Offset of the register that takes queue notifications, for ioeventfds: 4 bytes wide, the value is the queue's number.
    pub const QUEUE_NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

    /// Puts registers in front of `device`. `interrupt_event` is what KVM turns into the device's interrupt (edge-triggered).
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: DeviceMemory,
        pinner: Arc<dyn Pinner>,
        interrupt_event: EventFd,
    ) -> io::Result<Self> {
        let queues: Vec<_> = device.queue_sizes().iter().map(|max| QueueRegisters::new(*max)).collect();
        let queue_events = queues.iter().map(|_| new_event()).collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            memory,
            pinner,
            interrupt: Arc::new(Interrupt::new(interrupt_event)),
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            unknown_features: false,
            queue_select: 0,
            queues,
            queue_events,
            active: false,
        })
    }

    /// What notifications signal, by queue number. The same for the transport's whole life.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Lets the device finish the requests at work, then holds it until [`Self::resume`].
    pub fn pause(&mut self) {
        self.device.pause();
    }

    /// Lets the device go on.
    pub fn resume(&mut self) {
        self.device.resume();
    }

    /// As if the driver had reset the device: when this returns, the device does not touch guest memory.
    pub fn reset(&mut self) {
        self.stop_device();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.unknown_features = false;
        self.queue_select = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.interrupt.reset();
    }

    fn stop_device(&mut self) {
        self.device.reset();
        self.active = false;
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn status(&self) -> u32 {
        let failed = if self.interrupt.needs_reset() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.status | failed
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => word(self.offered(), self.device_features_select),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |queue| u32::from(queue.max())),
            register::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.status(),
            // A shared memory region that does not exist has the length -1 and the address -1.
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            // Write-only registers, and none.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value),
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.lay_out_queue(offset, value),
        }
    }

    /// The registers that say where a queue is.
    fn lay_out_queue(&mut self, offset: u32, value: u32) {
        let Some(layout) = self.configurable().and_then(QueueRegisters::layout_mut) else { return };
        match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => layout.size = value,
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => replace_low(&mut layout.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => replace_high(&mut layout.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => replace_low(&mut layout.available, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => replace_high(&mut layout.available, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => replace_low(&mut layout.used, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => replace_high(&mut layout.used, value),
            // Read-only registers, and none.
            _ => {}
        }
    }

    /// The selected queue while the driver may set it up: features agreed on, device not started.
    fn configurable(&mut self) -> Option<&mut QueueRegisters> {
        let state = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED;
        if self.status & state != VIRTIO_CONFIG_S_FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn accept_features(&mut self, value: u32) {
        let negotiating = VIRTIO_CONFIG_S_DRIVER;
        if self.status & (negotiating | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED) != negotiating {
            return;
        }
        match self.driver_features_select {
            0 => replace_low(&mut self.driver_features, value),
            1 => replace_high(&mut self.driver_features, value),
            _ => self.unknown_features |= value != 0,
        }
    }

    fn features_acceptable(&self) -> bool {
        // Without VERSION_1 it would be a legacy driver, and rings and configuration would mean something else.
        !self.unknown_features
            && self.driver_features & !self.offered() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn set_queue_ready(&mut self, value: u32) {
        if value == 0 {
            return self.withdraw_queue();
        }
        let Self { memory, interrupt, .. } = self;
        let (memory, interrupt) = (memory.clone(), Arc::clone(interrupt));
        let index = self.queue_select;
        if let Some(queue) = self.configurable()
            && let Err(error) = queue.make_ready(&memory)
            && interrupt.may_complain()
        {
            tracing::warn!(queue = index, error = &error as &dyn std::error::Error, "queue refused");
        }
    }

    /// The driver takes a queue back. From a device that works on it that is possible only by stopping the device; no driver does it other
    /// than on its way out.
    fn withdraw_queue(&mut self) {
        let Some(index) = usize::try_from(self.queue_select).ok().filter(|index| *index < self.queues.len()) else {
            return;
        };
        if self.active && self.queues[index].ready() {
            self.stop_device();
            if self.queues.iter().enumerate().any(|(other, queue)| other != index && queue.ready()) {
                self.interrupt.device_failed();
            }
        }
        self.queues[index].withdraw();
    }

    fn notify(&self, value: u32) {
        if self.active
            && let Some(event) = usize::try_from(value).ok().and_then(|index| self.queue_events.get(index))
        {
            signal(event);
        }
    }

    fn set_status(&mut self, value: u32) {
        match status::transition(self.status, value) {
            Transition::Reset => self.reset(),
            Transition::Refused => {
                if self.interrupt.may_complain() {
                    tracing::warn!(now = self.status, wanted = value, "device status refused");
                }
            }
            Transition::Add(added) => self.add_status(added),
        }
    }

    fn add_status(&mut self, mut added: u32) {
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_acceptable() {
            // The driver reads the status back and finds out.
            added &= !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_FAILED != 0 {
            // The driver gave up and may use its memory for something else.
            self.stop_device();
        } else if added & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && let Err(error) = self.activate()
        {
            if self.interrupt.may_complain() {
                tracing::warn!(error = &error as &dyn std::error::Error, "virtio device not started");
            }
            self.interrupt.device_failed();
        }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let context = QueueContext {
            memory: self.memory.clone(),
            pinner: Arc::clone(&self.pinner),
            interrupt: Arc::clone(&self.interrupt),
            features: self.driver_features,
        };
        let mut queues = Vec::new();
        for ((index, registers), event) in (0..).zip(&self.queues).zip(&self.queue_events) {
            if registers.ready() {
                let event = event.try_clone().map_err(ActivateError::Thread)?;
                let queue = ActiveQueue::new(index, registers.max(), registers.layout(), event, context.clone())
                    .map_err(|source| ActivateError::Queue { index, source })?;
                queues.push(queue);
            }
        }
        let QueueContext { memory, pinner, interrupt, features } = context;
        self.device.activate(Activation { features, memory, queues, interrupt, pinner })?;
        self.active = true;
        Ok(())
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config) = offset.checked_sub(u64::from(register::VIRTIO_MMIO_CONFIG)) {
            self.device.read_config(config, data);
        } else if let (Some(register), Ok(bytes)) = (register_at(offset), <&mut [u8; 4]>::try_from(data)) {
            *bytes = self.read_register(register).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(u64::from(register::VIRTIO_MMIO_CONFIG)) {
            if self.has(VIRTIO_CONFIG_S_DRIVER) && !self.has(VIRTIO_CONFIG_S_FAILED) {
                self.device.write_config(config, data);
            }
        } else if let (Some(register), Ok(bytes)) = (register_at(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(bytes));
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.device.reset();
    }
}

/// Registers are four bytes wide, at multiples of four; other accesses have no meaning (section 4.2.2.2).
fn register_at(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| offset % 4 == 0)
}

/// The 32 bits of `features` that a select register chooses.
fn word(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;

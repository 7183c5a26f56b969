//! The registers with which a guest ends itself: ACPI's sleep control and status registers and its reset register, as a hardware-reduced
//! FADT names them.
//!
//! Promises: the first request counts, later ones change nothing; its event stays readable. Must never: end anything itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::event::{new_event, signal};

/// What a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// To be switched off.
    PowerOff,
    /// To be started anew.
    Reset,
}

const NOTHING: u8 = 0;
const POWER_OFF: u8 = 1;
const RESET: u8 = 2;

struct Shared {
    request: AtomicU8,
    event: EventFd,
}

/// Where devices say that the guest wants to end, and the machine listens. Clones are the same signal.
#[derive(Clone)]
pub struct PowerSignal(Arc<Shared>);

impl PowerSignal {
    /// A signal that nobody raised yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared { request: AtomicU8::new(NOTHING), event: new_event()? })))
    }

    /// Asks for `request`, unless something was asked for before.
    pub fn raise(&self, request: PowerRequest) {
        let code = match request {
            PowerRequest::PowerOff => POWER_OFF,
            PowerRequest::Reset => RESET,
        };
        // Relaxed: the word itself is all there is to see, and the event's write and read order it for whoever waits there.
        if self.0.request.compare_exchange(NOTHING, code, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            signal(&self.0.event);
        }
    }

    /// What was asked for, if anything.
    pub fn requested(&self) -> Option<PowerRequest> {
        // Relaxed: see `raise`.
        match self.0.request.load(Ordering::Relaxed) {
            POWER_OFF => Some(PowerRequest::PowerOff),
            RESET => Some(PowerRequest::Reset),
            _ => None,
        }
    }

    /// Readable once something was asked for. For polling; do not read it.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }
}

/// ACPI's SLEEP_CONTROL_REG (byte 0) and SLEEP_STATUS_REG (byte 1).
pub struct SleepRegisters {
    signal: PowerSignal,
}

impl SleepRegisters {
    /// Bytes that the two registers take.
    pub const LEN: u64 = 2;
    /// Offset of the control register.
    pub const CONTROL: u64 = 0;
    /// Offset of the status register.
    pub const STATUS: u64 = 1;
    /// The SLP_TYP value that means soft-off, what the DSDT's `_S5` must say.
    pub const S5: u8 = 5;

    const SLEEP_ENABLE: u8 = 1 << 5;
    const SLEEP_TYPE_SHIFT: u32 = 2;
    const SLEEP_TYPE_MASK: u8 = 0b111;

    /// Registers that raise `signal`.
    pub fn new(signal: PowerSignal) -> Self {
        Self { signal }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // The control register's bits read as zero, and a machine that never slept has never woken (WAK_STS).
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Self::CONTROL, [value]) = (offset, data)
            && value & Self::SLEEP_ENABLE != 0
            && value >> Self::SLEEP_TYPE_SHIFT & Self::SLEEP_TYPE_MASK == Self::S5
        {
            self.signal.raise(PowerRequest::PowerOff);
        }
    }
}

/// ACPI's RESET_REG.
pub struct ResetRegister {
    signal: PowerSignal,
}

impl ResetRegister {
    /// Bytes that the register takes.
    pub const LEN: u64 = 1;
    /// What a guest writes to reset, the FADT's RESET_VALUE.
    pub const VALUE: u8 = 1;

    /// A register that raises `signal`.
    pub fn new(signal: PowerSignal) -> Self {
        Self { signal }
    }
}

impl BusDevice for ResetRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (0, &[Self::VALUE]) {
            self.signal.raise(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLP_EN_S5: u8 = 1 << 5 | 5 << 2;

    #[test]
    fn sleep_type_5_with_sleep_enable_powers_off() {
        let signal = PowerSignal::new().unwrap();
        let mut registers = SleepRegisters::new(signal.clone());
        registers.write(SleepRegisters::CONTROL, &[5 << 2]);
        registers.write(SleepRegisters::CONTROL, &[1 << 5 | 3 << 2]);
        registers.write(SleepRegisters::STATUS, &[SLP_EN_S5]);
        registers.write(SleepRegisters::CONTROL, &[SLP_EN_S5, 0]);
        assert_eq!(signal.requested(), None);
        assert!(signal.event().read().is_err());
        registers.write(SleepRegisters::CONTROL, &[SLP_EN_S5]);
        assert_eq!(signal.requested(), Some(PowerRequest::PowerOff));
        assert_eq!(signal.event().read().unwrap(), 1);
    }

    #[test]
    fn the_sleep_registers_read_as_zero() {
        let mut registers = SleepRegisters::new(PowerSignal::new().unwrap());
        registers.write(SleepRegisters::CONTROL, &[SLP_EN_S5]);
        let mut both = [0xaa; 2];
        registers.read(0, &mut both);
        assert_eq!(both, [0, 0]);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let signal = PowerSignal::new().unwrap();
        let mut register = ResetRegister::new(signal.clone());
        register.write(0, &[0]);
        register.write(0, &[2]);
        register.write(0, &[1, 0]);
        assert_eq!(signal.requested(), None);
        register.write(0, &[ResetRegister::VALUE]);
        assert_eq!(signal.requested(), Some(PowerRequest::Reset));
    }

    #[test]
    fn the_first_request_counts() {
        let signal = PowerSignal::new().unwrap();
        signal.raise(PowerRequest::Reset);
        signal.raise(PowerRequest::PowerOff);
        assert_eq!(signal.requested(), Some(PowerRequest::Reset));
        assert_eq!(signal.event().read().unwrap(), 1, "one request, one event");
    }
}

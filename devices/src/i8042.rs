//! A small i8042: the keyboard controller at ports 0x60 and 0x64, of which a guest without a screen uses two things: the reset line, and
//! Ctrl-Alt-Del as the machine's way to ask for a clean end.
//!
//! Enough is answered for Linux' i8042 and atkbd drivers to find a keyboard (with `i8042.noaux i8042.nomux i8042.dumbkbd`, and without
//! `dumbkbd` too). The controller does not translate: what it hands out is scan code set 2.
//!
//! Promises: one interrupt per byte the guest can read, while the guest wants interrupts. Must never: queue more than [`OUTPUT_LIMIT`] bytes.

use std::collections::VecDeque;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::event::signal;
use crate::power::{PowerRequest, PowerSignal};

/// The most bytes that wait for the guest; more are dropped, as a keyboard does.
pub const OUTPUT_LIMIT: usize = 16;

/// Offset of the data port from 0x60.
const DATA: u64 = 0;
/// Offset of the status and command port.
const COMMAND: u64 = 4;

mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const LAST_WAS_COMMAND: u8 = 1 << 3;
    /// Set: the keyboard is not locked with a key.
    pub const UNLOCKED: u8 = 1 << 4;
}

mod command {
    pub const READ_CONTROL: u8 = 0x20;
    pub const WRITE_CONTROL: u8 = 0x60;
    pub const TEST_AUX: u8 = 0xa9;
    pub const TEST_CONTROLLER: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub const WRITE_AUX_BUFFER: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    /// From here on: pulse the output port's low lines whose bits are 0. Line 0 is the CPU's reset.
    pub const PULSE: u8 = 0xf0;
}

mod control {
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_DISABLED: u8 = 1 << 4;
}

/// The reset line (not asserted) and A20 (on).
const OUTPUT_PORT: u8 = 0b11;
const RESET_LINE: u8 = 1;

const KEYBOARD_ACK: u8 = 0xfa;

/// Ctrl, Alt and Delete down, then up again in reverse, in scan code set 2. Releasing them matters: a guest that only starts a clean
/// shutdown would otherwise think that Ctrl and Alt are still held.
const CTRL_ALT_DEL: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// Why Ctrl-Alt-Del was not typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyboardError {
    /// The guest has no keyboard driver, or not yet.
    #[error("the guest is not listening to its keyboard")]
    NotListening,
    /// The guest did not read what was typed before.
    #[error("the guest has not read {waiting} bytes from its keyboard")]
    Full {
        /// Bytes that wait.
        waiting: usize,
    },
}

/// The controller with its keyboard. Put it at port 0x60, [`Self::LEN`] ports long.
pub struct I8042 {
    power: PowerSignal,
    interrupt: EventFd,
    control: u8,
    last_was_command: bool,
    /// The command whose data byte is to come.
    pending: Option<u8>,
    output: VecDeque<u8>,
}

impl I8042 {
    /// Ports from 0x60 to 0x64; those between the two are not the controller's and read as ones.
    pub const LEN: u64 = 5;

    /// A controller that raises `power` when the guest pulls the reset line, and signals `interrupt` (IRQ 1) for keyboard data.
    pub fn new(power: PowerSignal, interrupt: EventFd) -> Self {
        Self {
            power,
            interrupt,
            control: control::SYSTEM | control::KEYBOARD_INTERRUPT,
            last_was_command: false,
            pending: None,
            output: VecDeque::with_capacity(OUTPUT_LIMIT),
        }
    }

    /// Types Ctrl-Alt-Del.
    pub fn ctrl_alt_del(&mut self) -> Result<(), KeyboardError> {
        let wanted = control::KEYBOARD_INTERRUPT | control::KEYBOARD_DISABLED;
        if self.control & wanted != control::KEYBOARD_INTERRUPT {
            return Err(KeyboardError::NotListening);
        }
        let waiting = self.output.len();
        if waiting + CTRL_ALT_DEL.len() > OUTPUT_LIMIT {
            return Err(KeyboardError::Full { waiting });
        }
        self.answer(&CTRL_ALT_DEL);
        Ok(())
    }

    /// Queues bytes for the data port. The first one that becomes readable interrupts; the next ones do as they move up.
    fn answer(&mut self, bytes: &[u8]) {
        let was_empty = self.output.is_empty();
        let room = OUTPUT_LIMIT - self.output.len();
        self.output.extend(bytes.iter().take(room));
        if was_empty {
            self.announce();
        }
    }

    fn announce(&self) {
        if !self.output.is_empty() && self.control & control::KEYBOARD_INTERRUPT != 0 {
            signal(&self.interrupt);
        }
    }

    fn status(&self) -> u8 {
        let mut bits = status::UNLOCKED | status::SYSTEM;
        if !self.output.is_empty() {
            bits |= status::OUTPUT_FULL;
        }
        if self.last_was_command {
            bits |= status::LAST_WAS_COMMAND;
        }
        bits
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.output.pop_front().unwrap_or(0);
        self.announce();
        byte
    }

    fn write_command(&mut self, code: u8) {
        self.last_was_command = true;
        self.pending = None;
        match code {
            command::READ_CONTROL => self.answer(&[self.control]),
            command::READ_OUTPUT_PORT => self.answer(&[OUTPUT_PORT]),
            command::TEST_CONTROLLER => self.answer(&[0x55]),
            command::TEST_KEYBOARD => self.answer(&[0]),
            // There is no auxiliary port: its clock line never moves.
            command::TEST_AUX => self.answer(&[1]),
            command::DISABLE_KEYBOARD => self.control |= control::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.control &= !control::KEYBOARD_DISABLED,
            command::WRITE_CONTROL
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_BUFFER
            | command::WRITE_AUX_BUFFER
            | command::WRITE_AUX => self.pending = Some(code),
            command::PULSE.. if code & RESET_LINE == 0 => self.power.raise(PowerRequest::Reset),
            _ => {}
        }
    }

    fn write_data(&mut self, byte: u8) {
        self.last_was_command = false;
        match self.pending.take() {
            Some(command::WRITE_CONTROL) => {
                let was_silent = self.control & control::KEYBOARD_INTERRUPT == 0;
                self.control = byte;
                if was_silent {
                    self.announce();
                }
            }
            Some(command::WRITE_OUTPUT_PORT) if byte & RESET_LINE == 0 => self.power.raise(PowerRequest::Reset),
            Some(command::WRITE_KEYBOARD_BUFFER) => self.answer(&[byte]),
            // The rest of the output port, and an auxiliary device that is not there.
            Some(_) => {}
            None => self.write_keyboard(byte),
        }
    }

    /// A command to the keyboard, or a command's parameter: acknowledged either way.
    fn write_keyboard(&mut self, byte: u8) {
        const IDENTIFY: u8 = 0xf2;
        const RESET: u8 = 0xff;
        match byte {
            IDENTIFY => self.answer(&[KEYBOARD_ACK, 0xab, 0x83]),
            RESET => self.answer(&[KEYBOARD_ACK, 0xaa]),
            _ => self.answer(&[KEYBOARD_ACK]),
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            match offset {
                DATA => *byte = self.read_data(),
                COMMAND => *byte = self.status(),
                _ => {}
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            match offset {
                DATA => self.write_data(*byte),
                COMMAND => self.write_command(*byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::new_event;

    struct Machine {
        controller: I8042,
        power: PowerSignal,
        interrupt: EventFd,
    }

    impl Machine {
        fn new() -> Self {
            let (power, interrupt) = (PowerSignal::new().unwrap(), new_event().unwrap());
            let controller = I8042::new(power.clone(), interrupt.try_clone().unwrap());
            Self { controller, power, interrupt }
        }

        fn read(&mut self, offset: u64) -> u8 {
            let mut byte = [0];
            self.controller.read(offset, &mut byte);
            byte[0]
        }

        fn command(&mut self, code: u8) {
            self.controller.write(COMMAND, &[code]);
        }

        fn data(&mut self, byte: u8) {
            self.controller.write(DATA, &[byte]);
        }

        /// As Linux' interrupt handler: one byte per interrupt.
        fn read_by_interrupt(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            while self.interrupt.read().is_ok() {
                assert_ne!(self.read(COMMAND) & status::OUTPUT_FULL, 0);
                bytes.push(self.read(DATA));
            }
            bytes
        }
    }

    #[test]
    fn the_reset_command_resets() {
        let mut machine = Machine::new();
        machine.command(0xff);
        assert_eq!(machine.power.requested(), None);
        machine.command(0xfe);
        assert_eq!(machine.power.requested(), Some(PowerRequest::Reset));
    }

    #[test]
    fn the_output_port_resets_when_its_reset_line_goes_low() {
        let mut machine = Machine::new();
        machine.command(command::WRITE_OUTPUT_PORT);
        machine.data(OUTPUT_PORT);
        assert_eq!(machine.power.requested(), None);
        machine.command(command::WRITE_OUTPUT_PORT);
        machine.data(0b10);
        assert_eq!(machine.power.requested(), Some(PowerRequest::Reset));
    }

    #[test]
    fn linux_finds_a_controller_and_an_untranslated_keyboard() {
        let mut machine = Machine::new();
        // Flush, read the control byte, check the key lock, write the control byte back without and then with the interrupt.
        assert_eq!(machine.read(COMMAND) & status::OUTPUT_FULL, 0);
        machine.command(command::READ_CONTROL);
        assert_eq!(machine.read(COMMAND) & status::OUTPUT_FULL, status::OUTPUT_FULL);
        let found = machine.read(DATA);
        assert_eq!(found & 0x40, 0, "a control byte without translation makes Linux expect scan code set 2");
        assert_ne!(machine.read(COMMAND) & status::UNLOCKED, 0);
        for wanted in [found | control::KEYBOARD_DISABLED, found & !control::KEYBOARD_DISABLED] {
            machine.command(command::WRITE_CONTROL);
            machine.data(wanted);
            machine.command(command::READ_CONTROL);
            assert_eq!(machine.read(DATA), wanted);
        }
        machine.command(command::TEST_CONTROLLER);
        assert_eq!(machine.read(DATA), 0x55);
        machine.command(command::TEST_KEYBOARD);
        assert_eq!(machine.read(DATA), 0);
        machine.command(command::TEST_AUX);
        assert_ne!(machine.read(DATA), 0, "no auxiliary port");
    }

    #[test]
    fn the_keyboard_identifies_itself_and_acknowledges() {
        let mut machine = Machine::new();
        machine.data(0xf2);
        assert_eq!(machine.read_by_interrupt(), [KEYBOARD_ACK, 0xab, 0x83]);
        machine.data(0xff);
        assert_eq!(machine.read_by_interrupt(), [KEYBOARD_ACK, 0xaa]);
        machine.data(0xed);
        machine.data(0x02);
        assert_eq!(machine.read_by_interrupt(), [KEYBOARD_ACK, KEYBOARD_ACK]);
    }

    #[test]
    fn ctrl_alt_del_arrives_with_one_interrupt_per_byte() {
        let mut machine = Machine::new();
        machine.controller.ctrl_alt_del().unwrap();
        assert_eq!(machine.read_by_interrupt(), CTRL_ALT_DEL);
        assert_eq!(machine.read(COMMAND) & status::OUTPUT_FULL, 0);
    }

    #[test]
    fn ctrl_alt_del_is_refused_when_nobody_would_read_it() {
        let mut machine = Machine::new();
        machine.controller.ctrl_alt_del().unwrap();
        let error = machine.controller.ctrl_alt_del().unwrap_err();
        assert_eq!(error.to_string(), "the guest has not read 11 bytes from its keyboard");
        assert_eq!(machine.read_by_interrupt(), CTRL_ALT_DEL, "the first one is whole");

        machine.command(command::DISABLE_KEYBOARD);
        let error = machine.controller.ctrl_alt_del().unwrap_err();
        assert_eq!(error.to_string(), "the guest is not listening to its keyboard");
        machine.command(command::ENABLE_KEYBOARD);
        machine.command(command::WRITE_CONTROL);
        machine.data(0);
        assert_eq!(machine.controller.ctrl_alt_del(), Err(KeyboardError::NotListening));
    }

    #[test]
    fn bytes_that_wait_are_announced_when_interrupts_come_on() {
        let mut machine = Machine::new();
        machine.command(command::WRITE_CONTROL);
        machine.data(0);
        machine.data(0xf2);
        assert!(machine.interrupt.read().is_err());
        machine.command(command::WRITE_CONTROL);
        machine.data(control::KEYBOARD_INTERRUPT);
        assert_eq!(machine.read_by_interrupt(), [KEYBOARD_ACK, 0xab, 0x83]);
    }

    #[test]
    fn a_flood_of_commands_is_dropped_at_the_limit() {
        let mut machine = Machine::new();
        for _ in 0..1000 {
            machine.data(0xf2);
            machine.command(command::READ_CONTROL);
        }
        assert_eq!(machine.controller.output.len(), OUTPUT_LIMIT);
    }

    #[test]
    fn the_ports_between_read_as_ones() {
        let mut machine = Machine::new();
        assert_eq!([1, 2, 3].map(|port| machine.read(port)), [0xff; 3]);
        let mut wide = [0; 4];
        machine.controller.read(DATA, &mut wide);
        assert_eq!(wide, [0xff; 4]);
    }
}

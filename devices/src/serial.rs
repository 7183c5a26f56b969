//! The serial port: a 16550 whose output goes to any writer and whose input comes from the machine's console thread.
//!
//! Promises: input that the receive FIFO can't hold waits here and follows as the guest reads; output that the writer refuses is lost and
//! counted, as on a line without a listener. Must never: hold more than [`INPUT_LIMIT`] waiting bytes, or stop the guest over its console
//! (a writer that blocks does block the vCPU: give it one that does not).

use std::collections::VecDeque;
use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{Error as UartError, NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::event::{new_event, signal};

/// The most bytes that wait for room in the FIFO.
pub const INPUT_LIMIT: usize = 4096;

/// The FIFO's size, which the UART does not tell.
const FIFO: usize = 64;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        signal(&self.0);
        Ok(())
    }
}

/// One serial port.
pub struct SerialPort {
    uart: Serial<Interrupt, NoEvents, Box<dyn Write + Send>>,
    waiting: VecDeque<u8>,
    /// Input was turned away for lack of room; say when there is some.
    refused: bool,
    room: EventFd,
    lost: u64,
}

impl SerialPort {
    /// Ports that it takes.
    pub const LEN: u64 = 8;

    /// A port that signals `interrupt` and writes what the guest sends to `output`.
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self {
            uart: Serial::new(Interrupt(interrupt), output),
            waiting: VecDeque::new(),
            refused: false,
            room: new_event()?,
            lost: 0,
        })
    }

    /// Takes input for the guest; answers how many bytes it took. When that is fewer than all, offer the rest again after
    /// [`Self::room_event`].
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_LIMIT - self.waiting.len());
        self.waiting.extend(&bytes[..taken]);
        self.refused |= taken < bytes.len();
        self.refill();
        taken
    }

    /// Signalled when all waiting input went to the guest after some had been refused.
    pub fn room_event(&self) -> &EventFd {
        &self.room
    }

    /// Output bytes that the writer refused so far.
    pub fn lost_bytes(&self) -> u64 {
        self.lost
    }

    /// Moves waiting input to the FIFO once that is empty: then the guest gets one interrupt per FIFO, not one per byte.
    fn refill(&mut self) {
        if self.waiting.is_empty() || self.uart.fifo_capacity() < FIFO {
            return;
        }
        let count = self.waiting.len().min(FIFO);
        let chunk: Vec<u8> = self.waiting.iter().take(count).copied().collect();
        // In loopback mode the UART takes nothing; the bytes go on waiting.
        let taken = self.uart.enqueue_raw_bytes(&chunk).unwrap_or(0);
        self.waiting.drain(..taken);
        if self.waiting.is_empty() && self.refused {
            self.refused = false;
            signal(&self.room);
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // The registers are a byte wide; an access over several is one to the first.
        if let (Ok(register), Some(first)) = (u8::try_from(offset), data.first_mut()) {
            *first = self.uart.read(register);
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(register), Some(first)) = (u8::try_from(offset), data.first()) {
            match self.uart.write(register, *first) {
                Ok(()) => {}
                Err(UartError::IOError(_)) => self.lost += 1,
                // The trigger never fails, and a write never meets a full FIFO.
                Err(UartError::Trigger(_) | UartError::FullFifo) => {}
            }
            // A write may have ended loopback mode.
            self.refill();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const MCR: u64 = 4;
    const LSR: u64 = 5;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, Screen, EventFd) {
        let (screen, interrupt) = (Screen::default(), new_event().unwrap());
        (SerialPort::new(interrupt.try_clone().unwrap(), Box::new(screen.clone())).unwrap(), screen, interrupt)
    }

    fn read(port: &mut SerialPort, register: u64) -> u8 {
        let mut byte = [0];
        port.read(register, &mut byte);
        byte[0]
    }

    fn read_all(port: &mut SerialPort) -> Vec<u8> {
        let mut bytes = Vec::new();
        while read(port, LSR) & 1 != 0 {
            bytes.push(read(port, DATA));
        }
        bytes
    }

    #[test]
    fn output_reaches_the_writer() {
        let (mut port, screen, _) = port();
        for byte in b"hello" {
            port.write(DATA, &[*byte]);
        }
        assert_eq!(*screen.0.lock().unwrap(), b"hello");
        assert_eq!(port.lost_bytes(), 0);
    }

    #[test]
    fn input_interrupts_when_the_guest_enabled_that() {
        let (mut port, _, interrupt) = port();
        port.enqueue(b"a");
        assert!(interrupt.read().is_err());
        port.write(IER, &[1]);
        assert!(interrupt.read().is_ok(), "input that was there before is announced");
        assert_eq!(read_all(&mut port), b"a");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole_and_interrupts_again() {
        let (mut port, _, interrupt) = port();
        port.write(IER, &[1]);
        let text: Vec<u8> = (0..200).collect();
        assert_eq!(port.enqueue(&text), 200);
        assert_eq!(interrupt.read().unwrap(), 1);
        let mut bytes = Vec::new();
        for _ in 0..FIFO {
            bytes.push(read(&mut port, DATA));
        }
        assert_eq!(interrupt.read().unwrap(), 1, "the next FIFO full is announced");
        bytes.extend(read_all(&mut port));
        assert_eq!(bytes, text);
    }

    #[test]
    fn input_beyond_the_limit_is_refused_until_there_is_room() {
        let (mut port, _, _) = port();
        let flood = vec![b'x'; INPUT_LIMIT + 100];
        assert_eq!(port.enqueue(&flood), INPUT_LIMIT);
        assert_eq!(port.enqueue(&flood), FIFO, "the FIFO took that many");
        assert_eq!(port.enqueue(&flood), 0);
        assert!(port.room_event().read().is_err());
        assert_eq!(read_all(&mut port).len(), INPUT_LIMIT + FIFO);
        assert_eq!(port.room_event().read().unwrap(), 1);
    }

    #[test]
    fn input_waits_while_the_guest_tests_the_loopback() {
        let (mut port, _, _) = port();
        port.write(MCR, &[1 << 4]);
        assert_eq!(port.enqueue(b"later"), 5);
        assert_eq!(read(&mut port, LSR) & 1, 0);
        port.write(MCR, &[0]);
        assert_eq!(read_all(&mut port), b"later");
    }

    #[test]
    fn output_that_the_writer_refuses_is_counted() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut port = SerialPort::new(new_event().unwrap(), Box::new(Closed)).unwrap();
        port.write(DATA, b"a");
        port.write(DATA, b"b");
        assert_eq!(port.lost_bytes(), 2);
    }

    #[test]
    fn wide_and_far_accesses_are_harmless() {
        let (mut port, screen, _) = port();
        port.write(DATA, b"wide");
        port.write(0x1_0000, b"x");
        port.write(DATA, b"");
        let mut wide = [0xee; 4];
        port.read(LSR, &mut wide);
        assert_eq!((wide[0] & 0x60, &wide[1..]), (0x60, &[0, 0, 0][..]));
        port.read(0x1_0000, &mut wide);
        assert_eq!(wide, [0; 4]);
        assert_eq!(*screen.0.lock().unwrap(), b"w");
    }
}

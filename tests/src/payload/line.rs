//! The line to one vCPU: a port device that hands commands to the image and takes its events.
//!
//! Promises: the vCPU gets a command as soon as one is there; who waits for an event wakes when it comes. Must never: keep the vCPU in the
//! device for longer than [`IDLE_WAIT`], since it has to be stoppable; nor believe more words than an event has.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::abi::{PORT_DATA, PORT_DOORBELL, event};

/// How long an idle vCPU waits in the device before it goes around.
const IDLE_WAIT: Duration = Duration::from_millis(10);

/// Words that the longest event has.
const MAX_WORDS: usize = 8;

/// A word that held what nobody wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Guest physical address of the word.
    pub address: u64,
    /// The word expected; for versioned pages the least version that would have been right.
    pub least: u64,
    /// As `least`; for versioned pages the highest version that would have been right.
    pub most: u64,
    /// The word found.
    pub found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:#x}: expected {:#x}..={:#x}, found {:#x}", self.address, self.least, self.most, self.found)
    }
}

/// An exception in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u32,
    /// Its error code, 0 for those without.
    pub error_code: u32,
    /// Where.
    pub rip: u64,
    /// Which address a page fault or a machine check is about.
    pub address: u64,
}

impl Exception {
    /// The vector of a machine check.
    pub const MACHINE_CHECK: u32 = 18;
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exception {} (error code {:#x}) at {:#x} about {:#x}",
            self.vector, self.error_code, self.rip, self.address
        )
    }
}

/// What the image announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Ready,
    Done,
    Mismatch(Mismatch),
    Exception(Exception),
    Panic { line: u32 },
    Unknown { event: u32 },
}

#[derive(Debug, Default)]
struct State {
    command_waits: bool,
    words: Vec<u32>,
    events: VecDeque<Event>,
}

/// One vCPU's line, shared by the device on its ports and whoever commands it.
#[derive(Debug, Default)]
pub(super) struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

impl Line {
    /// Tells the vCPU that its mailbox holds a command.
    pub(super) fn ring(&self) {
        self.lock().command_waits = true;
        self.changed.notify_all();
    }

    /// The next event, waiting for it until `deadline`.
    pub(super) fn next(&self, deadline: Instant) -> Option<Event> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), left, |state| state.events.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.events.pop_front()
    }

    fn take_command(&self) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), IDLE_WAIT, |state| !state.command_waits);
        std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).0.command_waits)
    }

    fn add_word(&self, word: u32) {
        let mut state = self.lock();
        if state.words.len() < MAX_WORDS {
            state.words.push(word);
        }
    }

    fn announce(&self, event: u32) {
        let mut state = self.lock();
        let words = std::mem::take(&mut state.words);
        state.events.push_back(decode(event, &words));
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here is ever half-changed when a thread panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(event: u32, words: &[u32]) -> Event {
    let double = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    match (event, words.len()) {
        (event::READY, 0) => Event::Ready,
        (event::DONE, 0) => Event::Done,
        (event::MISMATCH, 8) => {
            Event::Mismatch(Mismatch { address: double(0), least: double(2), most: double(4), found: double(6) })
        }
        (event::EXCEPTION, 6) => {
            Event::Exception(Exception { vector: words[0], error_code: words[1], rip: double(2), address: double(4) })
        }
        (event::PANIC, 1) => Event::Panic { line: words[0] },
        _ => Event::Unknown { event },
    }
}

/// The device on a vCPU's ports.
#[derive(Debug)]
pub(super) struct LineDevice(pub(super) Arc<Line>);

impl devices::BusDevice for LineDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == u64::from(PORT_DOORBELL)
            && let Some(first) = data.first_mut()
        {
            *first = u8::from(self.0.take_command());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = data.try_into().map(u32::from_le_bytes) else { return };
        if offset == u64::from(PORT_DOORBELL) {
            self.0.announce(word);
        } else if offset == u64::from(PORT_DATA) {
            self.0.add_word(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::BusDevice;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_command_is_handed_over_once() {
        let line = Arc::new(Line::default());
        let mut device = LineDevice(Arc::clone(&line));
        let mut answer = || {
            let mut data = [0xff; 4];
            device.read(0, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(answer(), 0);
        line.ring();
        assert_eq!((answer(), answer()), (1, 0));
    }

    #[test]
    fn an_event_takes_the_words_before_it_and_no_others() {
        let line = Arc::new(Line::default());
        let mut device = LineDevice(Arc::clone(&line));
        let mut out = |offset: u64, word: u32| device.write(offset, &word.to_le_bytes());
        for word in 1..=6 {
            out(4, word);
        }
        out(0, event::EXCEPTION);
        out(0, event::DONE);
        out(4, 7);
        out(0, event::DONE);
        let exception = Exception { vector: 1, error_code: 2, rip: 4 << 32 | 3, address: 6 << 32 | 5 };
        assert_eq!(line.next(soon()), Some(Event::Exception(exception)));
        assert_eq!(line.next(soon()), Some(Event::Done));
        assert_eq!(line.next(soon()), Some(Event::Unknown { event: event::DONE }));
        assert_eq!(line.next(Instant::now()), None);
    }

    #[test]
    fn words_without_end_are_dropped() {
        let line = Arc::new(Line::default());
        let mut device = LineDevice(Arc::clone(&line));
        for _ in 0..1000 {
            device.write(4, &[0; 4]);
        }
        assert_eq!(line.lock().words.len(), MAX_WORDS);
    }
}

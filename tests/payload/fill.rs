//! Fills pages with seeded words and verifies them.
//!
//! Promises: verifying reads every word and counts every mismatch; the first one is reported with address, expected and found. Must
//! never: write while verifying.

use crate::abi::{PAGE, event};
use crate::mailbox::{Args, Mailbox};
use crate::memory;
use crate::pattern::{WORDS, kind_of, word};
use crate::port::Ports;

/// See [`crate::abi::command::FILL`].
pub fn fill(mailbox: &Mailbox, args: &Args) {
    let &[seed, start, pages, kinds, ..] = args;
    for page in 0..pages {
        let address = start + page * PAGE;
        let kind = kind_of(seed, address / PAGE, kinds);
        for index in 0..WORDS {
            memory::write(address + index * 8, word(seed, address / PAGE, kind, index));
        }
    }
    mailbox.results(&[pages]);
}

/// See [`crate::abi::command::VERIFY`].
pub fn verify(mailbox: &Mailbox, ports: &Ports, args: &Args) {
    let &[seed, start, pages, kinds, ..] = args;
    let mut mismatches = Mismatches::new(ports);
    for page in 0..pages {
        let address = start + page * PAGE;
        let kind = kind_of(seed, address / PAGE, kinds);
        for index in 0..WORDS {
            let expected = word(seed, address / PAGE, kind, index);
            let found = memory::read(address + index * 8);
            if found != expected {
                mismatches.report(address + index * 8, expected, expected, found);
            }
        }
    }
    mailbox.results(&mismatches.results());
}

/// Counts words that are wrong. The first ones are reported to the host at once, all of them are counted.
pub struct Mismatches<'a> {
    ports: &'a Ports,
    count: u64,
    first: [u64; 3],
}

impl<'a> Mismatches<'a> {
    /// How many are reported one by one; a whole wrong page would take seconds.
    const REPORTED: u64 = 8;

    /// None so far.
    pub fn new(ports: &'a Ports) -> Self {
        Self { ports, count: 0, first: [0; 3] }
    }

    /// The word at `address` should have been between two values (or, where only one is right, that one) and is another.
    #[cold]
    pub fn report(&mut self, address: u64, least: u64, most: u64, found: u64) {
        if self.count == 0 {
            self.first = [address, least, found];
        }
        if self.count < Self::REPORTED {
            for word in [address, least, most, found] {
                self.ports.data64(word);
            }
            self.ports.announce(event::MISMATCH);
        }
        self.count += 1;
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// As [`crate::abi::command::VERIFY`] answers.
    pub fn results(&self) -> [u64; 4] {
        [self.count, self.first[0], self.first[1], self.first[2]]
    }
}

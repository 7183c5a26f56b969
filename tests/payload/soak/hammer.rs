//! The narrowest window: one word, written as fast as the CPU can.
//!
//! Promises: every number is checked before the next one is written. Must never: touch any other workload memory.

use crate::abi::counter;
use crate::fill::Mismatches;
use crate::mailbox::{Args, Mailbox};
use crate::memory;
use crate::port::Ports;

/// Writes between two looks at the mailbox.
const STRETCH: u64 = 4096;

/// See [`crate::abi::command::HAMMER`].
pub fn hammer(mailbox: &Mailbox, ports: &Ports, args: &Args) {
    let &[address, ..] = args;
    let mut mismatches = Mismatches::new(ports);
    let mut last = memory::read(address);
    while !mailbox.stop() {
        for _ in 0..STRETCH {
            let found = memory::read(address);
            if found != last {
                mismatches.report(address, last, last, found);
            }
            last = last.wrapping_add(1);
            memory::write(address, last);
        }
        mailbox.count(counter::OPS, STRETCH);
    }
    mailbox.results(&[last, mismatches.count()]);
}

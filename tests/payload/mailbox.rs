//! A vCPU's mailbox page: command and arguments in, results and counters out.
//!
//! Promises: reads and writes nothing but that page. Must never: be used for another vCPU's page.

use crate::abi::{MAILBOX_BASE, MAX_VCPUS, PAGE, mailbox};
use crate::memory;

/// Arguments of a command.
pub type Args = [u64; mailbox::ARG_COUNT];

/// One vCPU's mailbox.
pub struct Mailbox {
    base: u64,
}

impl Mailbox {
    /// The mailbox of vCPU `vcpu`.
    pub fn of(vcpu: u64) -> Self {
        Self { base: MAILBOX_BASE + vcpu % MAX_VCPUS * PAGE }
    }

    /// The command that the host left.
    pub fn command(&self) -> u64 {
        memory::read(self.base + mailbox::COMMAND)
    }

    /// The command's arguments.
    pub fn args(&self) -> Args {
        core::array::from_fn(|index| memory::read(self.base + mailbox::ARGS + index as u64 * 8))
    }

    /// Leaves results, in order.
    pub fn results(&self, values: &[u64]) {
        for (index, value) in values.iter().take(mailbox::RESULT_COUNT).enumerate() {
            memory::write(self.base + mailbox::RESULTS + index as u64 * 8, *value);
        }
    }

    /// Whether the host wants the running workload to end.
    pub fn stop(&self) -> bool {
        memory::read(self.base + mailbox::STOP) != 0
    }

    /// Adds to a counter; see [`crate::abi::counter`].
    pub fn count(&self, counter: usize, more: u64) {
        let address = self.base + mailbox::COUNTERS + counter as u64 * 8;
        memory::write(address, memory::read(address) + more);
    }
}

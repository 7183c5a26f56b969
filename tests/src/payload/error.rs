//! What can go wrong with a payload guest.

use std::time::Duration;

use super::line::Exception;

/// Why a command did not end with results, or a guest did not start.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The machine refused to be built, started or stopped.
    #[error("the machine failed")]
    Machine(#[from] vmm::MachineError),
    /// The image could not be handed to the machine.
    #[error("the payload image could not be put into a memory file")]
    Image(#[source] std::io::Error),
    /// A guest address that is not guest memory.
    #[error("no guest memory at {address:#x}")]
    Memory {
        /// The address.
        address: u64,
        /// What the memory said.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// More vCPUs or memory than the image has tables for.
    #[error("{what} is {value:#x}, the payload image can do {limit:#x}")]
    BeyondImage {
        /// What is too much.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// The most the image can do.
        limit: u64,
    },
    /// Nothing came from the vCPU for too long.
    #[error("vCPU {vcpu} did not answer within {waited:?}")]
    Timeout {
        /// The vCPU.
        vcpu: u8,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The guest ended meanwhile.
    #[error("the guest ended before vCPU {vcpu} answered")]
    Ended {
        /// The vCPU.
        vcpu: u8,
    },
    /// The command raised an exception in the guest.
    #[error("vCPU {vcpu}: {exception}")]
    Exception {
        /// The vCPU.
        vcpu: u8,
        /// Which, and where.
        exception: Exception,
    },
    /// The image panicked.
    #[error("the payload image panicked on vCPU {vcpu} in line {line}")]
    Panic {
        /// The vCPU.
        vcpu: u8,
        /// The line of one of the image's sources.
        line: u32,
    },
    /// The image said something that it should not.
    #[error("vCPU {vcpu} announced event {event}, which does not fit here")]
    Protocol {
        /// The vCPU.
        vcpu: u8,
        /// The event's number.
        event: u32,
    },
}

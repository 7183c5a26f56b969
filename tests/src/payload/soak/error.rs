//! What a soak can find wrong.

use std::io;
use std::path::PathBuf;

use memtier::ControlError;
use memtier::status::{GuestRange, Outcomes, Status};
use memtier::units::Gfn;

use crate::payload::{Mismatch, PayloadError, Verified};

/// What was wrong first.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// The guest could not be driven.
    #[error("the payload guest failed")]
    Payload(#[from] PayloadError),
    /// The guest ended on its own.
    #[error("the guest ended in the middle of the soak")]
    GuestEnded,
    /// A vCPU found a word that nobody wrote.
    #[error("vCPU {vcpu} found a wrong word {mismatch}")]
    Mismatch {
        /// The vCPU.
        vcpu: u8,
        /// The word.
        mismatch: Mismatch,
    },
    /// A page that the kernel read into guest memory holds something else.
    #[error("a direct read is lost at {address:#x}: expected {expected:#x}, found {found:#x}")]
    DirectRead {
        /// Guest physical address of the word.
        address: u64,
        /// What was read into it.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// An eviction's answer does not account for every page.
    #[error("evicting {} pages at {} came to {outcomes:?}", range.len >> 12, Gfn::containing(range.start))]
    Unaccounted {
        /// What was to be evicted.
        range: GuestRange,
        /// The answer.
        outcomes: Outcomes,
    },
    /// Pages left that had to stay.
    #[error("pages at {} were {why} and left all the same: {outcomes:?}", Gfn::containing(range.start))]
    Left {
        /// Locked or pinned.
        why: &'static str,
        /// What was to be evicted.
        range: GuestRange,
        /// The answer.
        outcomes: Outcomes,
    },
    /// The sizes by state do not add up.
    #[error("sizes add up to {sum} pages of {}: {status:?}", status.guest_pages)]
    Sum {
        /// Their sum.
        sum: u64,
        /// The sizes.
        status: Box<Status>,
    },
    /// A page was poisoned although nothing was wrong with its store.
    #[error("{pages} pages are poisoned")]
    Poisoned {
        /// How many.
        pages: u64,
    },
    /// An area is on that was switched off, or has pages when all are off.
    #[error("{swapped} pages are still swapped with every area off")]
    StillSwapped {
        /// How many.
        swapped: u64,
    },
    /// The tiers refused something.
    #[error("{what} was refused")]
    Control {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: ControlError,
    },
    /// The machine refused to pause or go on.
    #[error("the machine failed")]
    Machine(#[from] vmm::MachineError),
    /// The file for direct I/O failed.
    #[error("{what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SoakError {
    /// Names what was asked for, for `map_err`.
    pub(super) fn refused(what: &'static str) -> impl FnOnce(ControlError) -> Self {
        move |source| Self::Control { what, source }
    }

    /// An error if vCPU `vcpu` found anything wrong.
    pub(super) fn unless_clean(vcpu: u8, verified: &Verified) -> Result<(), Self> {
        match verified.first.first() {
            Some(mismatch) => Err(Self::Mismatch { vcpu, mismatch: *mismatch }),
            None => Ok(()),
        }
    }
}

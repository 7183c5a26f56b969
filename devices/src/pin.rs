//! Keeping guest pages in place while a device works on them.
//!
//! Direct I/O and ring accesses use the guest mapping. A page that has left would fault there, and one that cannot be brought back would
//! kill the device's thread; so a device asks for its pages first and gets an error instead.
//!
//! Promises: while a [`Pinned`] lives, all of its pages are present and readable. Must never: know how pages leave or come back.

use std::error::Error;

/// Why pages could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Some of the range is not guest memory.
    #[error("{len:#x} bytes at {gpa:#x} are not all guest memory")]
    NotMemory {
        /// Guest physical address of the first byte.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// A page of the range was lost.
    #[error("the page at {gpa:#x} can't be read back")]
    Unreadable {
        /// Guest physical address of the page.
        gpa: u64,
    },
    /// Something else.
    #[error("can't pin {len:#x} bytes at {gpa:#x}")]
    Failed {
        /// Guest physical address of the first byte.
        gpa: u64,
        /// Bytes.
        len: u64,
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Keeps guest pages in place while a device or the kernel works on them directly.
pub trait Pinner: Send + Sync {
    /// Brings back what is out of `gpa..gpa + len` and keeps it until the result drops. The range need not be page-aligned; `len` is not 0.
    /// Ranges may overlap others that are pinned: each pin counts.
    fn pin(&self, gpa: u64, len: u64) -> Result<Box<dyn Pinned>, PinError>;
}

/// Pages that stay where they are until this drops.
pub trait Pinned: Send {}

/// For machines whose memory never leaves: nothing to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPin;

impl Pinner for NoPin {
    fn pin(&self, _gpa: u64, _len: u64) -> Result<Box<dyn Pinned>, PinError> {
        // A box of nothing allocates nothing.
        Ok(Box::new(NoPin))
    }
}

impl Pinned for NoPin {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tiers_everything_is_pinned_already() {
        assert!(NoPin.pin(0, u64::MAX).is_ok());
    }

    #[test]
    fn errors_name_the_range() {
        let messages = [
            PinError::NotMemory { gpa: 0x1000, len: 0x20 },
            PinError::Unreadable { gpa: 0x3000 },
            PinError::Failed { gpa: 0x1000, len: 0x20, source: "gone".into() },
        ]
        .map(|error| error.to_string());
        assert_eq!(
            messages,
            [
                "0x20 bytes at 0x1000 are not all guest memory",
                "the page at 0x3000 can't be read back",
                "can't pin 0x20 bytes at 0x1000"
            ]
        );
    }
}

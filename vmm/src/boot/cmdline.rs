//! The kernel's command line.
//!
//! Promises: what does not fit is refused with its length and the limit, never cut. Must never: add to what the user gave.

use devices::DeviceMemory;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::layout;

/// The command line when the user gives none: the first serial port as console, and an end of the machine after a panic. This machine has
/// no PCI bus and no mouse port, so that looking for them is spared.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd";

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Longer than the kernel takes.
    #[error("the kernel command line has {length} bytes, this kernel takes {limit}")]
    TooLong {
        /// Its length without the final NUL.
        length: usize,
        /// What the kernel takes, without the final NUL.
        limit: u64,
    },
    /// A byte that a command line cannot carry.
    #[error("the kernel command line has a control character at byte {offset}")]
    Control {
        /// Where.
        offset: usize,
    },
}

/// Checks `text` against `limit` and writes it with its final NUL.
pub fn write(memory: &DeviceMemory, text: &str, limit: u64) -> Result<(), BootError> {
    check(text, limit)?;
    let bytes = [text.as_bytes(), &[0]].concat();
    memory
        .write_slice(&bytes, GuestAddress(layout::CMDLINE_START))
        .map_err(|source| BootError::Write { what: "command line", source })
}

fn check(text: &str, limit: u64) -> Result<(), CmdlineError> {
    let limit = limit.min(layout::CMDLINE_MAX - 1);
    if text.len() as u64 > limit {
        return Err(CmdlineError::TooLong { length: text.len(), limit });
    }
    match text.bytes().position(|byte| byte.is_ascii_control() && byte != b'\t') {
        Some(offset) => Err(CmdlineError::Control { offset }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_of_exactly_the_limit_fits_and_one_more_byte_does_not() {
        assert_eq!(check(&"x".repeat(2047), 2047), Ok(()));
        let error = check(&"x".repeat(2048), 2047).expect_err("too long");
        assert_eq!(error.to_string(), "the kernel command line has 2048 bytes, this kernel takes 2047");
    }

    #[test]
    fn a_kernel_that_takes_more_than_there_is_room_for_gets_the_room() {
        let room = layout::CMDLINE_MAX - 1;
        let text = "x".repeat(usize::try_from(layout::CMDLINE_MAX).expect("small"));
        assert_eq!(check(&text, u64::MAX), Err(CmdlineError::TooLong { length: text.len(), limit: room }));
    }

    #[test]
    fn control_characters_are_refused() {
        assert_eq!(check("quiet\0init=/bin/sh", 2047), Err(CmdlineError::Control { offset: 5 }));
        assert_eq!(check("a\nb", 2047), Err(CmdlineError::Control { offset: 1 }));
    }

    #[test]
    fn it_ends_with_a_nul_in_guest_memory() {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        memory.write_slice(&[0xff; 16], GuestAddress(layout::CMDLINE_START)).expect("RAM");
        write(&memory, "quiet", 2047).expect("written");
        let mut back = [0; 7];
        memory.read_slice(&mut back, GuestAddress(layout::CMDLINE_START)).expect("RAM");
        assert_eq!(&back, b"quiet\0\xff");
    }
}

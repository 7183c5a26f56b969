//! The terminal that a person sits at.
//!
//! Promises: what was set before comes back when the guard drops. Must never: change a file that is no terminal.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// A terminal that passes keys on as they are typed, until this drops.
pub struct RawTerminal {
    fd: OwnedFd,
    before: libc::termios,
}

impl RawTerminal {
    /// Switches `fd` over; `None` if it is no terminal.
    pub fn new(fd: OwnedFd) -> io::Result<Option<Self>> {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the kernel writes a termios to where the pointer leads, or fails.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: tcgetattr succeeded, so it filled in everything.
        let before = unsafe { settings.assume_init() };
        let mut raw = before;
        // Output processing stays: our own messages on the same terminal want their line ends.
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        raw.c_iflag &= !(libc::ICRNL | libc::IXON);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        set(&fd, &raw)?;
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = set(&self.fd, &self.before) {
            tracing::warn!("the terminal's settings are not restored: {error}");
        }
    }
}

fn set(fd: &OwnedFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: the kernel reads a termios from where the reference points.
    match unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_file_is_left_alone() {
        let file = tempfile::tempfile().expect("file");
        assert!(RawTerminal::new(file.into()).expect("no error").is_none());
    }

    #[test]
    fn a_terminals_settings_come_back() {
        // A terminal of our own: the other end is what a terminal emulator would hold.
        let emulator = OpenOptions::new().read(true).write(true).open("/dev/ptmx").expect("ptmx");
        let flags = |terminal: &std::fs::File| {
            let mut settings = MaybeUninit::<libc::termios>::uninit();
            // SAFETY: as in `RawTerminal::new`.
            assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) }, 0);
            // SAFETY: filled in.
            unsafe { settings.assume_init() }.c_lflag
        };
        let before = flags(&emulator);
        let raw = RawTerminal::new(emulator.try_clone().expect("duplicate").into()).expect("set").expect("a terminal");
        assert_eq!(flags(&emulator) & (libc::ICANON | libc::ECHO), 0);
        drop(raw);
        assert_eq!(flags(&emulator), before);
    }
}

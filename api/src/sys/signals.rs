//! SIGTERM, SIGINT and SIGHUP taken by one thread that waits for them; SIGXFSZ not at all.
//!
//! Promises: no handler runs, so nothing is interrupted half way. Must never: be set up after other threads exist, since only threads made
//! later inherit the blocked signals.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Makes a write beyond the file size limit (`ulimit -f`) an error as any other. Without this it ends the process, and the guest with it.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: ignoring a signal installs no handler.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The signals that end a guest, blocked in this thread and all that it makes.
pub struct EndSignals(libc::sigset_t);

impl EndSignals {
    /// Blocks them.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: the set was initialised above and the number is a signal's.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: initialised above.
        let set = unsafe { set.assume_init() };
        // SAFETY: the set is initialised, and a null old set is allowed.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Blocks this thread until one of them comes, and answers its name.
    pub fn wait(&self) -> io::Result<&'static str> {
        let mut signal = 0;
        // SAFETY: the set is initialised, and the number's place is ours.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(match signal {
                libc::SIGTERM => "SIGTERM",
                libc::SIGINT => "SIGINT",
                _ => "SIGHUP",
            }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

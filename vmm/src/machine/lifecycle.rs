//! Where a machine is, and how its guest ended.
//!
//! Promises: the first reason reported is the one told; `Exited` is final, and its event stays readable. Must never: wait under its lock for
//! anything but its own condition.

use std::fmt;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It switched itself off.
    PowerOff,
    /// It asked to be started anew.
    Reset,
    /// A fault while handling a fault while handling a fault.
    TripleFault,
    /// [`crate::Machine::stop`].
    Stopped,
    /// Something that the guest or this host could not survive.
    Failed(String),
}

impl ExitReason {
    /// Whether the guest ended as it wanted to.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::TripleFault => f.write_str("the guest crashed with a triple fault"),
            Self::Stopped => f.write_str("the guest was stopped"),
            Self::Failed(what) => write!(f, "the guest failed: {what}"),
        }
    }
}

/// Where a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineState {
    /// Built; no instruction yet.
    NotStarted,
    /// vCPUs run.
    Running,
    /// vCPUs and devices are held.
    Paused,
    /// Ended and taken down.
    Exited,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "is not started",
            Self::Running => "is running",
            Self::Paused => "is paused",
            Self::Exited => "has exited",
        })
    }
}

/// The state of one machine.
pub struct Lifecycle {
    now: Mutex<Now>,
    changed: Condvar,
    event: EventFd,
}

struct Now {
    state: MachineState,
    reason: Option<ExitReason>,
}

impl Lifecycle {
    /// Not started.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)?;
        let now = Mutex::new(Now { state: MachineState::NotStarted, reason: None });
        Ok(Self { now, changed: Condvar::new(), event })
    }

    /// Where it is.
    pub fn state(&self) -> MachineState {
        self.lock().state
    }

    /// From one state to another; does nothing in a third.
    pub fn change(&self, from: MachineState, to: MachineState) {
        let mut now = self.lock();
        if now.state == from {
            now.state = to;
        }
    }

    /// Keeps the reason if it is the first.
    pub fn report(&self, reason: ExitReason) {
        self.lock().reason.get_or_insert(reason);
    }

    /// The end, told to all who wait. Without a reason reported before, `reason` counts.
    pub fn finish(&self, reason: ExitReason) {
        let mut now = self.lock();
        now.reason.get_or_insert(reason);
        now.state = MachineState::Exited;
        self.changed.notify_all();
        // As a semaphore this stays readable: each reader takes one off, and nobody reads this often. Below the maximum it cannot fail.
        let _ = self.event.write(u64::MAX - 1);
    }

    /// Waits for the end.
    pub fn wait(&self) -> ExitReason {
        let exited = |now: &mut Now| now.state != MachineState::Exited;
        let now = self.changed.wait_while(self.lock(), exited).unwrap_or_else(PoisonError::into_inner);
        now.reason.clone().unwrap_or(ExitReason::Stopped)
    }

    /// Readable after the end.
    ///
    /// # Panics
    /// If this process has no file descriptor left.
    pub fn event(&self) -> EventFd {
        self.event.try_clone().expect("a file descriptor is left")
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Both fields are right at every point where a panic is possible.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_and_the_event_stays_readable() {
        let lifecycle = Lifecycle::new().expect("made");
        let event = lifecycle.event();
        event.read().expect_err("not yet");
        lifecycle.report(ExitReason::Reset);
        lifecycle.report(ExitReason::Stopped);
        lifecycle.finish(ExitReason::PowerOff);
        assert_eq!(lifecycle.wait(), ExitReason::Reset);
        for _ in 0..3 {
            event.read().expect("readable");
        }
        lifecycle.change(MachineState::Running, MachineState::Paused);
        assert_eq!(lifecycle.state(), MachineState::Exited);
    }

    #[test]
    fn ends_are_told_in_sentences() {
        assert_eq!(ExitReason::PowerOff.to_string(), "the guest powered off");
        assert_eq!(ExitReason::Failed("vCPU 0: x".into()).to_string(), "the guest failed: vCPU 0: x");
        assert!(ExitReason::Reset.is_success() && !ExitReason::TripleFault.is_success());
    }
}

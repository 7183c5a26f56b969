//! One vCPU of a payload guest: commands in, results out.
//!
//! Promises: every wait has an end; mismatches that the image reports while a command runs are kept with its results. Must never: touch
//! workload memory.

use std::time::{Duration, Instant};

use super::abi::{MAILBOX_BASE, PAGE, counter, mailbox};
use super::command::{AccessLoop, Command, Pages, Touch, VersionedPages};
use super::error::PayloadError;
use super::line::{Event, Line, Mismatch};
use super::memory::GuestWords;

/// How long a command may take unless its caller says otherwise: far more than any needs, since the machine may be busy.
const COMMAND_TIME: Duration = Duration::from_secs(120);

/// How often a wait looks whether the guest is still there.
const LOOK: Duration = Duration::from_millis(200);

/// What a verifying command found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Words that were wrong.
    pub mismatches: u64,
    /// The first few of them.
    pub first: Vec<Mismatch>,
}

impl Verified {
    /// Whether every word was right.
    pub fn is_clean(&self) -> bool {
        self.mismatches == 0 && self.first.is_empty()
    }
}

/// What an access loop measured.
#[derive(Clone, Copy, Debug)]
pub struct LoopResult {
    /// Accesses made.
    pub accesses: u64,
    /// Time stamp counter cycles that they took.
    pub cycles: u64,
}

/// A running workload's counters; see `abi::counter`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Operations of any kind.
    pub operations: u64,
    /// Own pages verified.
    pub verified: u64,
    /// Own pages written.
    pub written: u64,
    /// Other vCPUs' pages checked.
    pub foreign: u64,
    /// Passes over pages that were written in a tight loop.
    pub passes: u64,
    /// Words that were wrong.
    pub mismatches: u64,
}

impl Counters {
    /// Adds another vCPU's counts.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.verified += other.verified;
        self.written += other.written;
        self.foreign += other.foreign;
        self.passes += other.passes;
        self.mismatches += other.mismatches;
    }
}

/// One vCPU.
#[derive(Clone, Copy)]
pub struct Vcpu<'a> {
    pub(super) index: u8,
    pub(super) line: &'a Line,
    pub(super) machine: &'a vmm::Machine,
}

impl<'a> Vcpu<'a> {
    /// Waits until the image is in ring 3 and asks for commands.
    pub(super) fn wait_ready(&self, time: Duration) -> Result<(), PayloadError> {
        match self.next(Instant::now() + time, time)? {
            Event::Ready => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    /// Starts a command. The one before must have ended.
    pub fn begin(&self, command: Command) -> Result<(), PayloadError> {
        let (number, args) = command.encode();
        let words = self.words();
        words.write(self.mailbox() + mailbox::STOP, 0)?;
        words.write(self.mailbox() + mailbox::COMMAND, number)?;
        words.write_all(self.mailbox() + mailbox::ARGS, args)?;
        self.line.ring();
        Ok(())
    }

    /// Waits for the command to end; answers its results and the mismatches reported meanwhile.
    pub fn finish(&self, time: Duration) -> Result<([u64; mailbox::RESULT_COUNT], Vec<Mismatch>), PayloadError> {
        let deadline = Instant::now() + time;
        let mut mismatches = Vec::new();
        loop {
            match self.next(deadline, time)? {
                Event::Done => break,
                Event::Mismatch(mismatch) => mismatches.push(mismatch),
                Event::Exception(exception) => {
                    self.wait_ready(time)?;
                    return Err(PayloadError::Exception { vcpu: self.index, exception });
                }
                Event::Panic { line } => {
                    // The panic ends in an exception of its own, and that in a new beginning.
                    self.next(deadline, time)?;
                    self.wait_ready(time)?;
                    return Err(PayloadError::Panic { vcpu: self.index, line });
                }
                other => return Err(self.unexpected(other)),
            }
        }
        let mut results = [0; mailbox::RESULT_COUNT];
        for (result, address) in results.iter_mut().zip((self.mailbox() + mailbox::RESULTS..).step_by(8)) {
            *result = self.words().read(address)?;
        }
        Ok((results, mismatches))
    }

    /// The mismatch that a running command has reported, if one came within `time`.
    pub fn mismatch_within(&self, time: Duration) -> Result<Option<Mismatch>, PayloadError> {
        match self.line.next(Instant::now() + time) {
            None => Ok(None),
            Some(Event::Mismatch(mismatch)) => Ok(Some(mismatch)),
            Some(Event::Exception(exception)) => Err(PayloadError::Exception { vcpu: self.index, exception }),
            Some(other) => Err(self.unexpected(other)),
        }
    }

    /// Asks a command without an end to end.
    pub fn ask_to_stop(&self) -> Result<(), PayloadError> {
        self.words().write(self.mailbox() + mailbox::STOP, 1)
    }

    /// Touches pages; answers how many.
    pub fn touch(&self, touch: Touch) -> Result<u64, PayloadError> {
        self.run(Command::Touch(touch)).map(|(results, _)| results[0])
    }

    /// Fills pages.
    pub fn fill(&self, pages: Pages) -> Result<(), PayloadError> {
        self.run(Command::Fill(pages)).map(|_| ())
    }

    /// Verifies pages.
    pub fn verify(&self, pages: Pages) -> Result<Verified, PayloadError> {
        self.run(Command::Verify(pages)).map(|(results, first)| Verified { mismatches: results[0], first })
    }

    /// Verifies a soak's pages.
    pub fn audit(&self, pages: VersionedPages) -> Result<Verified, PayloadError> {
        self.run(Command::Audit(pages)).map(|(results, first)| Verified { mismatches: results[0], first })
    }

    /// Runs an access loop to its end.
    pub fn access(&self, access: AccessLoop) -> Result<LoopResult, PayloadError> {
        self.run(Command::Loop(access)).map(|(results, _)| LoopResult { accesses: results[0], cycles: results[1] })
    }

    /// Waits for a command that was told to stop; what it found as [`Verified`].
    pub fn finish_verified(&self) -> Result<Verified, PayloadError> {
        self.finish(COMMAND_TIME).map(|(results, first)| Verified { mismatches: results[0], first })
    }

    /// The running command's counters. They count on from one command to the next.
    pub fn counters(&self) -> Result<Counters, PayloadError> {
        let read = |index: usize| self.words().read(self.mailbox() + mailbox::COUNTERS + index as u64 * 8);
        Ok(Counters {
            operations: read(counter::OPS)?,
            verified: read(counter::VERIFIED)?,
            written: read(counter::WRITTEN)?,
            foreign: read(counter::FOREIGN)?,
            passes: read(counter::PASSES)?,
            mismatches: read(counter::MISMATCHES)?,
        })
    }

    /// Runs a command to its end.
    pub fn run(&self, command: Command) -> Result<([u64; mailbox::RESULT_COUNT], Vec<Mismatch>), PayloadError> {
        self.begin(command)?;
        self.finish(COMMAND_TIME)
    }

    fn next(&self, deadline: Instant, waited: Duration) -> Result<Event, PayloadError> {
        loop {
            let now = Instant::now();
            if let Some(event) = self.line.next(deadline.min(now + LOOK)) {
                return Ok(event);
            }
            if self.machine.state() == vmm::MachineState::Exited {
                return Err(PayloadError::Ended { vcpu: self.index });
            }
            if now >= deadline {
                return Err(PayloadError::Timeout { vcpu: self.index, waited });
            }
        }
    }

    fn unexpected(&self, event: Event) -> PayloadError {
        use super::abi::event;
        let number = match event {
            Event::Exception(exception) => return PayloadError::Exception { vcpu: self.index, exception },
            Event::Panic { line } => return PayloadError::Panic { vcpu: self.index, line },
            Event::Ready => event::READY,
            Event::Done => event::DONE,
            Event::Mismatch(_) => event::MISMATCH,
            Event::Unknown { event } => event,
        };
        PayloadError::Protocol { vcpu: self.index, event: number }
    }

    fn mailbox(&self) -> u64 {
        MAILBOX_BASE + u64::from(self.index) * PAGE
    }

    fn words(&self) -> GuestWords<'a> {
        GuestWords::new(self.machine.memory())
    }
}

//! The guest as routes and command line see it, so that they depend on a handful of verbs and not on a machine.
//!
//! Promises: `vmm`'s machine fulfils it as it is. Must never: add behaviour of its own.

use std::error::Error;
use std::sync::Arc;

use memtier::Memtier;
use vmm::config::MachineConfig;
use vmm::{ExitReason, Machine, MachineState};

/// Why the machine refused. The chain behind it says the rest.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct GuestError(Box<dyn Error + Send + Sync>);

impl GuestError {
    /// Wraps whatever the machine said.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Built, no instruction run yet.
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are held.
    Paused,
    /// It has ended.
    Exited,
}

/// A guest that has been built. All methods may be called from any thread.
pub trait Guest: Send + Sync {
    /// Where it is in its life.
    fn state(&self) -> GuestState;
    /// Holds all vCPUs.
    fn pause(&self) -> Result<(), GuestError>;
    /// Lets all vCPUs run on.
    fn resume(&self) -> Result<(), GuestError>;
    /// Presses Ctrl+Alt+Del on its keyboard controller.
    fn send_ctrl_alt_del(&self) -> Result<(), GuestError>;
    /// Its memory tiers; `None` when tiering is off.
    fn memtier(&self) -> Option<Arc<Memtier>>;
    /// Ends it from outside; [`Guest::wait`] then returns.
    fn stop(&self);
    /// Blocks until it has ended and everything is torn down.
    fn wait(&self) -> ExitReason;
}

/// Makes guests.
pub trait Launch: Send + Sync {
    /// Builds a guest and starts it.
    fn launch(&self, config: MachineConfig) -> Result<Arc<dyn Guest>, GuestError>;
}

/// Launches real machines on KVM.
#[derive(Debug)]
pub struct Kvm;

impl Launch for Kvm {
    fn launch(&self, config: MachineConfig) -> Result<Arc<dyn Guest>, GuestError> {
        let machine = Machine::build(config).map_err(GuestError::new)?;
        machine.start().map_err(GuestError::new)?;
        Ok(machine)
    }
}

impl Guest for Machine {
    fn state(&self) -> GuestState {
        match self.state() {
            MachineState::NotStarted => GuestState::NotStarted,
            MachineState::Running => GuestState::Running,
            MachineState::Paused => GuestState::Paused,
            MachineState::Exited => GuestState::Exited,
        }
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.pause().map_err(GuestError::new)
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.resume().map_err(GuestError::new)
    }

    fn send_ctrl_alt_del(&self) -> Result<(), GuestError> {
        self.send_ctrl_alt_del().map_err(GuestError::new)
    }

    fn memtier(&self) -> Option<Arc<Memtier>> {
        self.memtier().cloned()
    }

    fn stop(&self) {
        self.stop();
    }

    fn wait(&self) -> ExitReason {
        self.wait()
    }
}

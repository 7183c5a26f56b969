//! The machine: built, started, paused, resumed, ended.
//!
//! ```text
//!              start            pause
//!  NotStarted ───────▶ Running ◀──────▶ Paused
//!       │                 │     resume     │
//!       │ stop            │ guest ends, stop
//!       └────────────────▶ Exited ◀────────┘
//! ```
//!
//! Each end is taken down in one order: vCPU threads joined, devices stopped, tiers shut down, then `Exited` is told. Guest memory stays
//! mapped until the [`Machine`] is dropped.
//!
//! Promises: every method may be called from any thread at any time; a call that does not fit the state is an error, not a hang. Must never:
//! be used from a vCPU's or a device's own thread, except [`Machine::stop`].
//!
//! Locks: `control` orders start, pause, resume and a stop before the start; a stop of a running guest takes no lock that these hold while
//! they wait, so it ends a pause that is under way. Under `control`: the lifecycle's lock, the gate's, one device's at a time.

mod build;
mod lifecycle;
mod supervise;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::DeviceMemory;
use devices::i8042::KeyboardError;
use kvm_ioctls::VcpuFd;
use memtier::{ControlError, DirtyLog, Memtier};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::AcpiError;
use crate::boot::BootError;
use crate::config::{ConfigError, MachineConfig};
use crate::kvm::KvmError;
use crate::kvm::dirty::KvmDirtyLog;
use crate::memory::{GuestRam, MemoryError};
use crate::vcpu::run::Shared;
use crate::wiring::console::ConsoleError;
use crate::wiring::devices::{DeviceError, Devices};

pub use crate::wiring::devices::ExtraPio;
use lifecycle::Lifecycle;
pub use lifecycle::{ExitReason, MachineState};

/// Why a machine was not built, or does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The tiers.
    #[error(transparent)]
    Tiering(#[from] ControlError),
    /// Something that the operating system did not give.
    #[error("cannot make {what}")]
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not in this state.
    #[error("cannot {action} a machine that {state}")]
    State {
        /// What was asked for.
        action: &'static str,
        /// How the machine is.
        state: MachineState,
    },
    /// The keyboard.
    #[error(transparent)]
    Keyboard(#[from] KeyboardError),
}

/// What the machine's threads work on.
struct Inner {
    // Declared before what keeps guest memory mapped: devices hold handles to it.
    devices: Devices,
    shared: Arc<Shared>,
    lifecycle: Lifecycle,
}

/// A virtual machine. Dropping it ends the guest and waits for its end.
pub struct Machine {
    config: MachineConfig,
    inner: Arc<Inner>,
    control: Mutex<Control>,
    ram: Arc<GuestRam>,
}

/// What belongs to the one who starts.
struct Control {
    /// The vCPUs until they are started.
    vcpus: Vec<VcpuFd>,
    /// The thread that takes the machine down, once it is started.
    supervisor: Option<JoinHandle<()>>,
}

impl Machine {
    /// Everything up to, not including, the first guest instruction.
    pub fn build(config: MachineConfig) -> Result<Arc<Self>, MachineError> {
        Self::build_with(config, Vec::new())
    }

    /// As [`Self::build`], with additional devices on I/O ports: for payload guests and debugging.
    pub fn build_with(config: MachineConfig, extra: Vec<ExtraPio>) -> Result<Arc<Self>, MachineError> {
        config.validate()?;
        build::build(config, extra).map(Arc::new)
    }

    /// Starts the guest, once.
    pub fn start(&self) -> Result<(), MachineError> {
        let mut control = self.control();
        match self.state() {
            MachineState::NotStarted => {}
            state => return Err(MachineError::State { action: "start", state }),
        }
        let vcpus = std::mem::take(&mut control.vcpus);
        let (supervisor, started) = supervise::start(&self.inner, vcpus, &self.config.console)?;
        control.supervisor = Some(supervisor);
        started
    }

    /// Holds all vCPUs and devices. When this returns the guest does not change any more, until [`Self::resume`].
    pub fn pause(&self) -> Result<(), MachineError> {
        let _control = self.control();
        match self.state() {
            MachineState::Running => {
                self.inner.shared.gate.pause();
                self.inner.devices.pause();
                self.inner.lifecycle.change(MachineState::Running, MachineState::Paused);
                Ok(())
            }
            MachineState::Paused => Ok(()),
            state => Err(MachineError::State { action: "pause", state }),
        }
    }

    /// Lets a paused guest go on.
    pub fn resume(&self) -> Result<(), MachineError> {
        let _control = self.control();
        match self.state() {
            MachineState::Paused => {
                self.inner.devices.resume();
                self.inner.lifecycle.change(MachineState::Paused, MachineState::Running);
                self.inner.shared.gate.resume();
                Ok(())
            }
            MachineState::Running => Ok(()),
            state => Err(MachineError::State { action: "resume", state }),
        }
    }

    /// Where it is.
    pub fn state(&self) -> MachineState {
        self.inner.lifecycle.state()
    }

    /// Waits until the guest has ended and everything is taken down.
    pub fn wait(&self) -> ExitReason {
        self.inner.lifecycle.wait()
    }

    /// An event that is readable once the guest has ended and everything is taken down, and stays so however often it is read.
    pub fn on_exit(&self) -> EventFd {
        self.inner.lifecycle.event()
    }

    /// Ends the guest from outside. Does nothing to one that has ended. Returns at once; [`Self::wait`] waits for the end.
    pub fn stop(&self) {
        if self.state() == MachineState::NotStarted {
            let mut control = self.control();
            // A start may have come first.
            if self.state() == MachineState::NotStarted {
                control.vcpus.clear();
                supervise::take_down(&self.inner, Some(ExitReason::Stopped));
                return;
            }
        }
        self.inner.stop();
    }

    /// What it was made from.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// The tiers, if memory is tiered.
    pub fn memtier(&self) -> Option<&Arc<Memtier>> {
        self.inner.shared.memtier.as_ref()
    }

    /// The log of guest pages written that the tiers ask; for others who want to know. It is shared: who starts or clears it does so for all.
    pub fn dirty_log(&self) -> Option<Arc<dyn DirtyLog>> {
        self.inner.shared.dirty_log.as_ref().map(KvmDirtyLog::handle)
    }

    /// How often a vCPU had to stop because its dirty ring was full; 0 where there are no rings.
    pub fn dirty_ring_stops(&self) -> u64 {
        self.inner.shared.dirty_log.as_ref().and_then(KvmDirtyLog::rings).map_or(0, |rings| rings.times_full())
    }

    /// Guest memory. While the guest exists, whatever is out comes back when it is read here; after its end only what was in memory then is
    /// what the guest left.
    pub fn memory(&self) -> &DeviceMemory {
        self.ram.handle()
    }

    /// Types Ctrl-Alt-Del, with which most guests end themselves cleanly.
    pub fn send_ctrl_alt_del(&self) -> Result<(), MachineError> {
        match self.state() {
            MachineState::Running => Ok(self.inner.devices.keyboard().ctrl_alt_del()?),
            state => Err(MachineError::State { action: "type on", state }),
        }
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Ends a guest that was started.
    fn stop(&self) {
        self.lifecycle.report(ExitReason::Stopped);
        self.shared.gate.stop();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        self.wait();
        // It has nothing left to do but to let go of the machine's parts; guest memory is unmapped when all have.
        if let Some(supervisor) = self.control().supervisor.take()
            && supervisor.join().is_err()
        {
            tracing::error!("the machine's thread panicked");
        }
    }
}

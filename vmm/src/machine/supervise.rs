//! The thread that starts the vCPU threads, waits for their end and takes the machine down.
//!
//! Promises: the order of an end is always the same: vCPUs, devices, console, tiers, then those who wait are told. Must never: leave a thread
//! behind.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;

use super::{ExitReason, Inner, MachineError, MachineState};
use crate::config::ConsoleConfig;
use crate::vcpu::run::Vcpu;
use crate::wiring::console::Input;

/// The thread and whether the guest runs. If not, everything is taken down again.
type Started = (JoinHandle<()>, Result<(), MachineError>);

/// Starts everything; returns when the guest runs, or when it does not and everything is taken down again.
pub fn start(inner: &Arc<Inner>, vcpus: Vec<VcpuFd>, console: &ConsoleConfig) -> Result<Started, MachineError> {
    let (told, tell) = mpsc::channel();
    let supervisor = Supervisor { inner: Arc::clone(inner), console: console.clone() };
    let spawned = thread::Builder::new().name("machine".into()).spawn(move || supervisor.run(vcpus, &told));
    match spawned {
        Ok(thread) => {
            // The supervisor answers before it ends; were it to panic, the guest would be gone.
            let gone = |_| Err(MachineError::State { action: "start", state: MachineState::Exited });
            Ok((thread, tell.recv().unwrap_or_else(gone)))
        }
        Err(source) => {
            take_down(inner, Some(ExitReason::Failed("no thread to run it".into())));
            Err(MachineError::System { what: "a thread", source })
        }
    }
}

/// After the last vCPU thread: the rest, in order.
pub fn take_down(inner: &Inner, reason: Option<ExitReason>) {
    inner.devices.stop();
    if let Some(memtier) = &inner.shared.memtier {
        memtier.shutdown();
    }
    inner.lifecycle.finish(reason.unwrap_or(ExitReason::Stopped));
}

struct Supervisor {
    inner: Arc<Inner>,
    console: ConsoleConfig,
}

impl Supervisor {
    fn run(self, vcpus: Vec<VcpuFd>, told: &Sender<Result<(), MachineError>>) {
        let count = vcpus.len();
        let (threads, result) = self.spawn(vcpus);
        let input = result.and_then(|()| self.console_input());
        let (input, result) = match input {
            Ok(input) => (input, Ok(())),
            Err(error) => {
                self.inner.lifecycle.report(ExitReason::Failed(error.to_string()));
                self.inner.shared.gate.stop();
                (None, Err(error))
            }
        };
        // Every thread is at the gate before the first one goes through: pause and stop know them all.
        if result.is_ok() && self.inner.shared.gate.wait_for_all(count) {
            self.inner.lifecycle.change(MachineState::NotStarted, MachineState::Running);
            self.inner.shared.gate.resume();
        }
        // An error is told only when everything is taken down. Sending fails only if the one who started is gone.
        let failure = match result {
            Ok(()) => {
                let _ = told.send(Ok(()));
                None
            }
            Err(error) => Some(error),
        };
        for thread in threads {
            if thread.join().is_err() {
                self.inner.lifecycle.report(ExitReason::Failed("a vCPU thread panicked".into()));
                self.inner.shared.gate.stop();
            }
        }
        drop(input);
        take_down(&self.inner, None);
        if let Some(error) = failure {
            let _ = told.send(Err(error));
        }
    }

    /// Spawns as many vCPU threads as it gets.
    fn spawn(&self, vcpus: Vec<VcpuFd>) -> (Vec<JoinHandle<()>>, Result<(), MachineError>) {
        let mut threads = Vec::with_capacity(vcpus.len());
        for (index, fd) in (0..).zip(vcpus) {
            let vcpu = Vcpu::new(index, fd, Arc::clone(&self.inner.shared));
            let ending = Ending(Arc::clone(&self.inner));
            let body = move || {
                if let Some(reason) = vcpu.run() {
                    ending.0.lifecycle.report(reason);
                }
            };
            match thread::Builder::new().name(format!("vcpu{index}")).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(source) => return (threads, Err(MachineError::System { what: "a vCPU thread", source })),
            }
        }
        (threads, Ok(()))
    }

    fn console_input(&self) -> Result<Option<Input>, MachineError> {
        if self.console != ConsoleConfig::Stdio {
            return Ok(None);
        }
        let inner: Weak<Inner> = Arc::downgrade(&self.inner);
        let input = Input::start(self.inner.devices.serial(), move || {
            if let Some(inner) = inner.upgrade() {
                inner.stop();
            }
        })?;
        Ok(Some(input))
    }
}

/// Stops all other vCPUs when the thread that holds it ends, however it ends.
struct Ending(Arc<Inner>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.shared.gate.stop();
    }
}

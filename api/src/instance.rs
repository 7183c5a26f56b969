//! One instance from nothing to its end: described, started once, running, gone.
//!
//! Promises: requests from many threads see one consistent phase; a failed start leaves the description as it was. Must never: hold its lock
//! while a machine is built, or while the guest is asked for something.
//!
//! ```text
//!  Describing --start()--> Starting --built--> Started
//!       ^                     |
//!       +------ refused ------+        stop() in any phase ends wait_for_guest() or the guest
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::config::{Draft, DraftError};
use crate::guest::{Guest, GuestError, Launch};

/// Why a request does not fit the instance's phase, or what went wrong in serving it.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Only before the start.
    #[error("this is not possible after the guest was started")]
    AlreadyStarted,
    /// Only after the start.
    #[error("this is not possible before the guest is started")]
    NotStarted,
    /// Neither before nor after.
    #[error("the guest is being started")]
    Starting,
    /// The process was told to end.
    #[error("the instance is being stopped")]
    Stopping,
    /// A description that does not make a machine.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The machine refused.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

enum Phase {
    Describing,
    Starting,
    Started(Arc<dyn Guest>),
}

struct Inner {
    draft: Draft,
    phase: Phase,
    stopping: bool,
}

/// One instance, shared between the command line and the API.
pub struct Instance {
    inner: Mutex<Inner>,
    changed: Condvar,
    launcher: Box<dyn Launch>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("draft", &self.lock().draft).finish_non_exhaustive()
    }
}

impl Instance {
    /// An instance that is described by `draft` and not started.
    pub fn new(draft: Draft, launcher: Box<dyn Launch>) -> Self {
        let inner = Inner { draft, phase: Phase::Describing, stopping: false };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), launcher }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is a single assignment, so that a panicking holder leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The description as it is now.
    pub fn draft(&self) -> Draft {
        self.lock().draft.clone()
    }

    /// Changes the description, before the start only. On an error nothing is changed.
    pub fn describe<T>(&self, change: impl FnOnce(&mut Draft) -> Result<T, DraftError>) -> Result<T, InstanceError> {
        let mut inner = self.lock();
        match inner.phase {
            Phase::Describing => {}
            Phase::Starting => return Err(InstanceError::Starting),
            Phase::Started(_) => return Err(InstanceError::AlreadyStarted),
        }
        let mut draft = inner.draft.clone();
        let answer = change(&mut draft)?;
        inner.draft = draft;
        Ok(answer)
    }

    /// Builds the guest and starts it. Blocks while that is done.
    pub fn start(&self) -> Result<Arc<dyn Guest>, InstanceError> {
        let config = {
            let mut inner = self.lock();
            match inner.phase {
                Phase::Describing if inner.stopping => return Err(InstanceError::Stopping),
                Phase::Describing => {}
                Phase::Starting => return Err(InstanceError::Starting),
                Phase::Started(_) => return Err(InstanceError::AlreadyStarted),
            }
            let config = inner.draft.machine_config()?;
            inner.phase = Phase::Starting;
            config
        };
        let launched = self.launcher.launch(config);
        let mut inner = self.lock();
        let answer = match launched {
            Ok(guest) => {
                if inner.stopping {
                    guest.stop();
                }
                inner.phase = Phase::Started(Arc::clone(&guest));
                Ok(guest)
            }
            Err(error) => {
                inner.phase = Phase::Describing;
                Err(error.into())
            }
        };
        drop(inner);
        self.changed.notify_all();
        answer
    }

    /// The guest, once it was started.
    pub fn guest(&self) -> Result<Arc<dyn Guest>, InstanceError> {
        match &self.lock().phase {
            Phase::Describing => Err(InstanceError::NotStarted),
            Phase::Starting => Err(InstanceError::Starting),
            Phase::Started(guest) => Ok(Arc::clone(guest)),
        }
    }

    /// Blocks until somebody has started the guest; `None` when [`Instance::stop`] came first.
    pub fn wait_for_guest(&self) -> Option<Arc<dyn Guest>> {
        let mut inner = self.lock();
        loop {
            match &inner.phase {
                Phase::Started(guest) => return Some(Arc::clone(guest)),
                Phase::Describing if inner.stopping => return None,
                Phase::Describing | Phase::Starting => {}
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the guest, or the waiting for one; no guest is started from now on.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.stopping = true;
        let guest = match &inner.phase {
            Phase::Started(guest) => Some(Arc::clone(guest)),
            Phase::Describing | Phase::Starting => None,
        };
        drop(inner);
        self.changed.notify_all();
        if let Some(guest) = guest {
            guest.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use crate::config::bodies::BootSource;
    use crate::guest::GuestState;
    use memtier::Memtier;
    use vmm::ExitReason;
    use vmm::config::MachineConfig;

    /// A guest that only ends.
    #[derive(Default)]
    struct Ender {
        ended: Mutex<bool>,
        changed: Condvar,
    }

    impl Guest for Ender {
        fn state(&self) -> GuestState {
            GuestState::Running
        }
        fn pause(&self) -> Result<(), GuestError> {
            Ok(())
        }
        fn resume(&self) -> Result<(), GuestError> {
            Ok(())
        }
        fn send_ctrl_alt_del(&self) -> Result<(), GuestError> {
            Ok(())
        }
        fn memtier(&self) -> Option<Arc<Memtier>> {
            None
        }
        fn stop(&self) {
            *self.ended.lock().unwrap() = true;
            self.changed.notify_all();
        }
        fn wait(&self) -> ExitReason {
            let ended = self.ended.lock().unwrap();
            let _ended = self.changed.wait_while(ended, |ended| !*ended).unwrap();
            ExitReason::Stopped
        }
    }

    /// Says when a launch begins, and ends it when told.
    struct Gated {
        begun: Sender<()>,
        go: Mutex<Receiver<()>>,
    }

    impl Launch for Gated {
        fn launch(&self, _config: MachineConfig) -> Result<Arc<dyn Guest>, GuestError> {
            self.begun.send(()).unwrap();
            self.go.lock().unwrap().recv().map_err(GuestError::new)?;
            Ok(Arc::new(Ender::default()))
        }
    }

    fn gated() -> (Arc<Instance>, Receiver<()>, Sender<()>) {
        let (begun, has_begun) = channel();
        let (go, wait) = channel();
        let mut draft = Draft::default();
        draft.boot = Some(BootSource { kernel_image_path: "k".into(), initrd_path: None, boot_args: None });
        let launcher = Gated { begun, go: Mutex::new(wait) };
        (Arc::new(Instance::new(draft, Box::new(launcher))), has_begun, go)
    }

    #[test]
    fn stopping_before_the_start_ends_the_waiting_and_forbids_the_start() {
        let (instance, _has_begun, _go) = gated();
        let waiter = Arc::clone(&instance);
        let waiting = thread::spawn(move || waiter.wait_for_guest().is_none());
        instance.stop();
        assert!(waiting.join().unwrap());
        assert!(matches!(instance.start(), Err(InstanceError::Stopping)));
    }

    #[test]
    fn stopping_during_the_start_ends_the_guest_as_soon_as_it_is_there() {
        let (instance, has_begun, go) = gated();
        let starter = Arc::clone(&instance);
        let starting = thread::spawn(move || starter.start().is_ok());
        has_begun.recv().unwrap();
        assert!(matches!(instance.start(), Err(InstanceError::Starting)));
        instance.stop();
        go.send(()).unwrap();
        assert!(starting.join().unwrap());
        let guest = instance.wait_for_guest().expect("the guest was built");
        assert!(matches!(guest.wait(), ExitReason::Stopped));
    }

    #[test]
    fn a_guest_is_started_once() {
        let (instance, _has_begun, go) = gated();
        go.send(()).unwrap();
        let guest = instance.start().expect("started");
        assert!(matches!(instance.start(), Err(InstanceError::AlreadyStarted)));
        assert!(matches!(instance.describe(|_| Ok(())), Err(InstanceError::AlreadyStarted)));
        instance.stop();
        assert!(matches!(guest.wait(), ExitReason::Stopped));
    }
}

//! A device's thread: waits for its queues, serves them, and stops or pauses when told.
//!
//! Promises: when [`Worker::pause`] or [`Worker::stop`] returns, no request is being worked on. A queue that turns out broken makes the
//! device ask for a reset; the thread then only waits for its end. Must never: outlive its [`Worker`].

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::event::{new_event, signal};
use crate::virtio::chain::Chain;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{ActiveQueue, QueueError};

/// What a device does with a request.
pub trait RequestHandler: Send {
    /// Works on one request of queue `queue`; answers how many bytes it wrote into the chain's writable memory, from its beginning.
    fn handle(&mut self, queue: u16, chain: &Chain) -> u32;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct State {
    target: Target,
    /// The thread waits for another target, or has ended.
    parked: bool,
}

/// What thread and owner share. Lock order: nothing else is locked while `state` is.
struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// `target != Run`, to be seen between two requests without the lock.
    interrupted: AtomicBool,
    /// Ends the thread's wait for its queues.
    wake: EventFd,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between two plain stores is not possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aim(&self, target: Target) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.target = target;
        // Relaxed: only a hint to look at `state` soon; the mutex orders everything that matters.
        self.interrupted.store(target != Target::Run, Ordering::Relaxed);
        self.changed.notify_all();
        signal(&self.wake);
        state
    }

    fn interrupted(&self) -> bool {
        // Relaxed: see `aim`.
        self.interrupted.load(Ordering::Relaxed)
    }

    fn wait_while_running(&self) {
        let mut state = self.state();
        while state.target == Target::Run {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits out a pause; answers whether to go on.
    fn park(&self) -> bool {
        let mut state = self.state();
        loop {
            match state.target {
                Target::Run => {
                    state.parked = false;
                    return true;
                }
                Target::Stop => return false,
                Target::Pause => {
                    state.parked = true;
                    self.changed.notify_all();
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// Says that the thread has ended, however it did: a pause must not wait for one that panicked.
struct Ended(Arc<Control>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.state().parked = true;
        self.0.changed.notify_all();
    }
}

/// A running device thread. Dropping it stops it.
pub struct Worker {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts thread `name` on `queues`. The first thing it does is to look into all of them.
    pub fn spawn(
        name: &str,
        queues: Vec<ActiveQueue>,
        handler: Box<dyn RequestHandler>,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<Self> {
        let control = Arc::new(Control {
            state: Mutex::new(State { target: Target::Run, parked: false }),
            changed: Condvar::new(),
            interrupted: AtomicBool::new(false),
            wake: new_event()?,
        });
        let epoll = Epoll::new()?;
        for (event, token) in queues.iter().map(ActiveQueue::event).chain([&control.wake]).zip(0..) {
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, token))?;
        }
        let work = Work { queues, handler, interrupt, epoll, control: Arc::clone(&control), broken: false };
        let ended = Ended(Arc::clone(&control));
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let _ended = ended;
            work.run();
        })?;
        Ok(Self { control, thread: Some(thread) })
    }

    /// Lets the request at work finish, then holds the thread until [`Self::resume`].
    pub fn pause(&self) {
        let mut state = self.control.aim(Target::Pause);
        while !state.parked {
            state = self.control.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the thread go on; it looks into all queues first.
    pub fn resume(&self) {
        drop(self.control.aim(Target::Run));
    }

    /// Lets the request at work finish, then ends the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.control.aim(Target::Stop));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a device's thread panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

struct Work {
    queues: Vec<ActiveQueue>,
    handler: Box<dyn RequestHandler>,
    interrupt: Arc<Interrupt>,
    epoll: Epoll,
    control: Arc<Control>,
    broken: bool,
}

impl Work {
    fn run(mut self) {
        while self.control.park() {
            for index in 0..self.queues.len() {
                self.serve(index);
            }
            while !self.broken && self.wait() {}
            if self.broken {
                self.control.wait_while_running();
            }
        }
    }

    /// Waits for events and serves the queues they belong to; answers false once it was woken to look at the target. What an interrupted
    /// `serve` left undone is safe: the wake-up that comes with the interruption leads back to `run`, which looks into all queues.
    fn wait(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 16];
        let count = match self.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                // Not possible with a valid descriptor and buffer; waiting again at once would only spin.
                self.give_up(&error);
                return false;
            }
        };
        let mut woken = false;
        for event in &events[..count] {
            let index = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some(queue) = self.queues.get(index) else {
                // Whoever wakes us changes the target before, so `park` sees it.
                let _ = self.control.wake.read();
                woken = true;
                continue;
            };
            // Before the rings are looked at: a notification that comes later is a new event.
            let _ = queue.event().read();
            self.serve(index);
        }
        !woken
    }

    fn serve(&mut self, index: usize) {
        if self.broken || self.control.interrupted() {
            return;
        }
        let Self { queues, handler, control, .. } = self;
        let queue = &mut queues[index];
        let number = queue.index();
        let served: Result<(), QueueError> =
            queue.serve(|| control.interrupted(), |chain| handler.handle(number, chain));
        if let Err(error) = served {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &(dyn std::error::Error + 'static)) {
        if self.interrupt.may_complain() {
            tracing::warn!(error, "a virtio device gives up until it is reset");
        }
        self.broken = true;
        self.interrupt.device_failed();
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;

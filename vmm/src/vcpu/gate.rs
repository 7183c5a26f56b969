//! Where vCPU threads are held and let go.
//!
//! ```text
//!  spawned ──▶ held (Pause) ──resume──▶ in the guest (Run) ──pause──▶ held ...
//!                 └────────────stop──────────┴──▶ left (Stop, for good)
//! ```
//!
//! A visit is lighter than a pause: every thread comes out of the guest once and goes back without being held.
//!
//! Promises: [`Gate::pause`] returns only when every thread that has entered is held or has left; after [`Gate::stop`] every thread leaves;
//! [`Gate::visit`] returns when every thread was outside the guest once. A thread that was told to come out does, wherever it was when it was
//! told. Must never: be locked while the guest runs.
//!
//! Locks: one, held for a few instructions; nothing else is locked under it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::signals;

/// What vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Wait at the gate.
    Pause = 0,
    /// Run the guest.
    Run = 1,
    /// End.
    Stop = 2,
}

/// The gate of one machine.
#[derive(Debug)]
pub struct Gate {
    order: AtomicU8,
    threads: Mutex<Threads>,
    changed: Condvar,
    /// How many wait in [`Gate::visit`].
    visitors: AtomicU32,
}

#[derive(Debug, Default)]
struct Threads {
    /// Those that have entered and not left.
    entered: Vec<Thread>,
    /// How many of them are held.
    held: usize,
}

#[derive(Clone, Debug)]
struct Thread {
    id: u32,
    steps: Arc<Steps>,
}

/// Steps of one thread over the guest's threshold: odd while it is inside. Written by that thread only.
#[derive(Debug, Default)]
struct Steps(AtomicU64);

impl Steps {
    /// SeqCst, here and in `now`: with the number of visitors. Either a visitor sees that the thread came out, or the thread sees the visitor.
    fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Gate {
    /// A gate that holds everyone.
    pub fn new() -> Self {
        Self {
            order: AtomicU8::new(Order::Pause as u8),
            threads: Mutex::default(),
            changed: Condvar::new(),
            visitors: AtomicU32::new(0),
        }
    }

    /// The order in force. Asked by a vCPU thread after it cleared its exit request and before it enters the guest.
    pub fn order(&self) -> Order {
        // Acquire: with the Release in `give`; what the one who gave the order did before is seen by those who follow it.
        match self.order.load(Ordering::Acquire) {
            0 => Order::Pause,
            1 => Order::Run,
            _ => Order::Stop,
        }
    }

    /// Makes the calling thread one that the gate knows, until the result drops.
    pub fn enter(&self) -> Entered<'_> {
        let thread = Thread { id: signals::thread_id(), steps: Arc::default() };
        self.lock().entered.push(thread.clone());
        Entered { gate: self, thread }
    }

    /// Waits until `count` threads have entered and are held. False if a stop came first.
    pub fn wait_for_all(&self, count: usize) -> bool {
        let guard = self.lock();
        let _held = self.changed.wait_while(guard, |threads| threads.held < count && self.order() != Order::Stop);
        self.order() != Order::Stop
    }

    /// Gets every thread out of the guest and waits until it is held or has left.
    pub fn pause(&self) {
        let mut guard = self.lock();
        if !self.give(Order::Pause) {
            return;
        }
        // Only one signal each: a thread outside the guest asks for the order before it enters, one that is inside comes out, and one in
        // between finds its exit request set when it enters (see `signals`).
        guard.kick();
        while guard.held < guard.entered.len() && self.order() == Order::Pause {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until every thread that is in the guest has come out once, and asks it to. What the processor buffers while a guest runs is with
    /// KVM then. Threads that are outside anyway are left alone; none is held.
    ///
    /// A thread that waits in the guest for a page comes out when the page is there: not to be called by whoever brings pages.
    pub fn visit(&self) {
        let guard = self.lock();
        self.visitors.fetch_add(1, Ordering::SeqCst);
        let inside: Vec<(Thread, u64)> = guard
            .entered
            .iter()
            .map(|thread| (thread.clone(), thread.steps.now()))
            .filter(|(_, steps)| steps % 2 == 1)
            .collect();
        // As in `pause`, one signal each is enough.
        inside.iter().for_each(|(thread, _)| signals::kick(thread.id));
        let waiting = |_: &mut Threads| inside.iter().any(|(thread, before)| thread.steps.now() == *before);
        let _guard = self.changed.wait_while(guard, waiting).unwrap_or_else(PoisonError::into_inner);
        self.visitors.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lets all threads go.
    pub fn resume(&self) {
        let _guard = self.lock();
        self.give(Order::Run);
        self.changed.notify_all();
    }

    /// Sends all threads away for good.
    pub fn stop(&self) {
        let guard = self.lock();
        self.give(Order::Stop);
        guard.kick();
        self.changed.notify_all();
    }

    /// Changes the order; called with the lock held, so that a thread that is about to wait cannot miss it. False after a stop, which is
    /// final.
    fn give(&self, order: Order) -> bool {
        if self.order() == Order::Stop {
            return false;
        }
        // Release: see `order`.
        self.order.store(order as u8, Ordering::Release);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Threads> {
        // A panic under the lock is impossible but for a failed allocation; the numbers are right at every point.
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Threads {
    fn kick(&self) {
        for thread in &self.entered {
            signals::kick(thread.id);
        }
    }
}

/// A thread's place at the gate.
#[derive(Debug)]
pub struct Entered<'a> {
    gate: &'a Gate,
    thread: Thread,
}

impl Entered<'_> {
    /// Runs the guest by `trip`, so that visitors know where the thread is.
    pub fn in_guest<T>(&self, trip: impl FnOnce() -> T) -> T {
        let _inside = Inside::new(self);
        trip()
    }

    /// Holds the calling thread until the order is another one than to pause.
    pub fn hold(&self) {
        let mut guard = self.gate.lock();
        guard.held += 1;
        self.gate.changed.notify_all();
        while self.gate.order() == Order::Pause {
            guard = self.gate.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        guard.held -= 1;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut guard = self.gate.lock();
        guard.entered.retain(|thread| thread.id != self.thread.id);
        self.gate.changed.notify_all();
    }
}

/// A thread between going into the guest and having come out, however it does.
struct Inside<'a>(&'a Entered<'a>);

impl<'a> Inside<'a> {
    fn new(entered: &'a Entered<'a>) -> Self {
        entered.thread.steps.step();
        Self(entered)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.thread.steps.step();
        let gate = self.0.gate;
        // SeqCst: see `Steps::step`.
        if gate.visitors.load(Ordering::SeqCst) != 0 {
            // Under the lock, so that a visitor that looked before this step and waits after it does not miss it.
            let _guard = gate.lock();
            gate.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    /// Threads that count while they may.
    fn with_counters(count: usize, test: impl FnOnce(&Gate, &[AtomicU64])) {
        signals::install().expect("handlers");
        let gate = Gate::new();
        let counters: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for counter in &counters {
                let gate = &gate;
                scope.spawn(move || {
                    let entered = gate.enter();
                    loop {
                        match gate.order() {
                            Order::Run => _ = counter.fetch_add(1, Ordering::Relaxed),
                            Order::Pause => entered.hold(),
                            Order::Stop => return,
                        }
                    }
                });
            }
            assert!(gate.wait_for_all(count));
            test(&gate, &counters);
            gate.stop();
        });
    }

    fn read(counters: &[AtomicU64]) -> Vec<u64> {
        counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn nobody_runs_before_the_first_resume_and_nobody_while_paused() {
        with_counters(3, |gate, counters| {
            assert_eq!(read(counters), [0, 0, 0]);
            for _ in 0..200 {
                gate.resume();
                gate.pause();
                let before = read(counters);
                thread::yield_now();
                assert_eq!(read(counters), before);
            }
        });
    }

    #[test]
    fn a_visit_waits_for_a_thread_inside_and_not_for_one_outside() {
        signals::install().expect("handlers");
        let gate = Gate::new();
        let entered = gate.enter();
        gate.visit();
        let (visited, came_out) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            entered.in_guest(|| {
                scope.spawn(|| {
                    gate.visit();
                    assert!(came_out.load(Ordering::SeqCst), "the visit ended while the thread was inside");
                    visited.store(true, Ordering::SeqCst);
                });
                while gate.visitors.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
                came_out.store(true, Ordering::SeqCst);
            });
        });
        assert!(visited.load(Ordering::SeqCst));
    }

    #[test]
    fn visits_by_many_end_while_threads_come_and_go() {
        signals::install().expect("handlers");
        let gate = Gate::new();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let entered = gate.enter();
                        (0..100).for_each(|_| entered.in_guest(thread::yield_now));
                    }
                });
            }
            let visitors: Vec<_> = (0..2).map(|_| scope.spawn(|| (0..1000).for_each(|_| gate.visit()))).collect();
            for visitor in visitors {
                visitor.join().expect("no panic");
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(gate.visitors.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_stop_is_final_and_ends_a_pause() {
        with_counters(2, |gate, _| {
            gate.stop();
            gate.resume();
            assert_eq!(gate.order(), Order::Stop);
            gate.pause();
            assert!(!gate.wait_for_all(99));
        });
    }
}

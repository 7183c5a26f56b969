//! Where vCPU threads are held and let go.
//!
//! ```text
//!  spawned ──▶ held (Pause) ──resume──▶ in the guest (Run) ──pause──▶ held ...
//!                 └────────────stop──────────┴──▶ left (Stop, for good)
//! ```
//!
//! Promises: [`Gate::pause`] returns only when every thread that has entered is held or has left; after [`Gate::stop`] every thread leaves. A
//! thread that was told to come out does, wherever it was when it was told. Must never: be locked while the guest runs.
//!
//! Locks: one, held for a few instructions; nothing else is locked under it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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
}

#[derive(Debug, Default)]
struct Threads {
    /// Ids of those that have entered and not left.
    ids: Vec<u32>,
    /// How many of them are held.
    held: usize,
}

impl Gate {
    /// A gate that holds everyone.
    pub fn new() -> Self {
        Self { order: AtomicU8::new(Order::Pause as u8), threads: Mutex::default(), changed: Condvar::new() }
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
        let id = signals::thread_id();
        self.lock().ids.push(id);
        Entered { gate: self, id }
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
        while guard.held < guard.ids.len() && self.order() == Order::Pause {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
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
        for id in &self.ids {
            signals::kick(*id);
        }
    }
}

/// A thread's place at the gate.
#[derive(Debug)]
pub struct Entered<'a> {
    gate: &'a Gate,
    id: u32,
}

impl Entered<'_> {
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
        guard.ids.retain(|id| *id != self.id);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
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

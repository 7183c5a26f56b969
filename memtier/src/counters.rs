//! Events since the start, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter. Relaxed: counts are read for people, nothing is handed over by them.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` events.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts one event; answers how many that makes.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are now. Relaxed: a hint for what may be skipped; exact when nothing moves.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more. Counted before others can see it, so that it is never taken off first.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the tiers count themselves; the fields are explained at [`crate::status::Counters`].
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "explained at status::Counters")]
pub struct EventCounters {
    pub faults_major: Counter,
    pub faults_minor: Counter,
    pub faults_write_protect: Counter,
    pub pages_fetched: Counter,
    pub pages_out: Counter,
    pub pages_out_zero: Counter,
    pub pages_out_clean: Counter,
    pub evictions_cancelled: Counter,
    pub store_errors: Counter,
    pub pages_poisoned: Counter,
    /// Faults put off because the host had no memory for the page, or was in other trouble.
    pub faults_deferred: Counter,
    pub scans: Counter,
}

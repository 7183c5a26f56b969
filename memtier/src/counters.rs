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

    /// How many so far.
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
    pub evictions_cancelled: Counter,
    pub store_errors: Counter,
    pub pages_poisoned: Counter,
    pub scans: Counter,
}

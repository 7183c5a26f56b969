//! Series of scans that a client starts, watches and cancels.
//!
//! Promises: one series runs at a time; a finished one can be asked for until [`KEPT`] newer ones exist. Must never: let a client wait for a
//! scan's sleep (cancelling cuts it short).

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::counters::EventCounters;
use crate::status::{ScanPlan, ScanReport, ScanState};
use crate::track::backoff;
use crate::track::watcher::Watcher;

/// Reports kept.
pub const KEPT: usize = 32;
/// The most loops of one series (etmem's bound).
pub const MAX_LOOPS: u32 = 120;
/// The longest interval or sleep in milliseconds (etmem's 1200 s).
pub const MAX_MS: u64 = 1_200_000;

/// Why a series does not start.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A number is out of its range.
    #[error("scan {key} {value} is not in {min}..={max}")]
    Range {
        /// The plan's key.
        key: &'static str,
        /// What was given.
        value: u64,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// One is running.
    #[error("scan {0} is still running")]
    Busy(u64),
    /// The guest has ended.
    #[error("the guest has ended")]
    Closed,
    /// The thread could not be started.
    #[error("the scan thread can't be started")]
    Thread(#[source] std::io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Scans {
    shared: Arc<Shared>,
    counters: Arc<EventCounters>,
    watcher: Arc<Watcher>,
}

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Book {
    reports: BTreeMap<u64, ScanReport>,
    last: u64,
    /// The newest series' thread; it waits for the one before it.
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

impl Scans {
    /// Scans by `watcher`.
    pub fn new(watcher: Arc<Watcher>, counters: Arc<EventCounters>) -> Self {
        Self { shared: Arc::default(), counters, watcher }
    }

    /// Starts a series; answers its number.
    pub fn start(&self, plan: ScanPlan) -> Result<u64, ScanError> {
        check(&plan)?;
        let mut book = self.shared.lock();
        if book.closed {
            return Err(ScanError::Closed);
        }
        if let Some(report) = book.reports.values().find(|report| report.state == ScanState::Running) {
            return Err(ScanError::Busy(report.id));
        }
        let id = book.last + 1;
        let series = Series {
            id,
            plan,
            shared: Arc::clone(&self.shared),
            watcher: Arc::clone(&self.watcher),
            counters: Arc::clone(&self.counters),
        };
        // A cancelled series may still be at its last step; two must never scan at once.
        let previous = book.thread.take();
        let body = move || {
            if previous.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("the scan thread panicked");
            }
            series.run();
        };
        book.thread = Some(std::thread::Builder::new().name("scan".into()).spawn(body).map_err(ScanError::Thread)?);
        book.last = id;
        let report = ScanReport { id, state: ScanState::Running, plan, armed: 0, loops: Vec::new(), error: None };
        book.reports.insert(id, report);
        if book.reports.len() > KEPT {
            book.reports.pop_first();
        }
        Ok(id)
    }

    /// A series as it is now.
    pub fn get(&self, id: u64) -> Option<ScanReport> {
        self.shared.lock().reports.get(&id).cloned()
    }

    /// Cancels a series; one that has ended stays as it is.
    pub fn cancel(&self, id: u64) -> Option<ScanReport> {
        let mut book = self.shared.lock();
        let report = book.reports.get_mut(&id)?;
        if report.state == ScanState::Running {
            report.state = ScanState::Cancelled;
        }
        let report = report.clone();
        self.shared.changed.notify_all();
        Some(report)
    }

    /// Cancels what runs and waits for its thread.
    pub fn shutdown(&self) {
        let running = {
            let mut book = self.shared.lock();
            book.closed = true;
            book.thread.take()
        };
        self.shared.changed.notify_all();
        if running.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the scan thread panicked");
        }
    }
}

fn check(plan: &ScanPlan) -> Result<(), ScanError> {
    let ranges = [
        ("loops", u64::from(plan.loops), 1, u64::from(MAX_LOOPS)),
        ("interval_ms", plan.interval_ms, 0, MAX_MS),
        ("sleep_ms", plan.sleep_ms, 0, MAX_MS),
        ("backoff", u64::from(plan.backoff.unwrap_or(backoff::DEFAULT_LIMIT)), 0, u64::from(backoff::MAX_LIMIT)),
    ];
    for (key, value, min, max) in ranges {
        if !(min..=max).contains(&value) {
            return Err(ScanError::Range { key, value, min, max });
        }
    }
    Ok(())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One series at work.
struct Series {
    id: u64,
    plan: ScanPlan,
    shared: Arc<Shared>,
    watcher: Arc<Watcher>,
    counters: Arc<EventCounters>,
}

impl Series {
    fn run(&self) {
        for index in 0..self.plan.loops {
            if index > 0 && !self.sleep(self.plan.interval_ms) {
                return;
            }
            let limit = self.plan.backoff.unwrap_or(backoff::DEFAULT_LIMIT);
            match self.watcher.scan(limit, || self.watch(index + 1)) {
                Ok(Some(seen)) => {
                    self.counters.scans.add(1);
                    self.report(|report| report.loops.push(seen));
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "scan failed");
                    self.report(|report| {
                        report.state = ScanState::Failed;
                        report.error = Some(error.to_string());
                    });
                    return;
                }
            }
        }
        self.report(|report| {
            if report.state == ScanState::Running {
                report.state = ScanState::Done;
            }
        });
    }

    /// All is armed: lets the scan's time pass. False when the series was cancelled meanwhile.
    fn watch(&self, armed: u32) -> bool {
        self.report(|report| report.armed = armed);
        self.sleep(self.plan.sleep_ms)
    }

    /// False when the series was cancelled meanwhile.
    fn sleep(&self, ms: u64) -> bool {
        let until = Instant::now() + Duration::from_millis(ms);
        let mut book = self.shared.lock();
        loop {
            let running = book.reports.get(&self.id).is_some_and(|report| report.state == ScanState::Running);
            if book.closed || !running {
                return false;
            }
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return true;
            };
            book = self.shared.changed.wait_timeout(book, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn report(&self, change: impl FnOnce(&mut ScanReport)) {
        if let Some(report) = self.shared.lock().reports.get_mut(&self.id) {
            change(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_out_of_range_are_refused_by_key() {
        let plan = ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 0, backoff: None };
        assert!(check(&plan).is_ok());
        let refused = |plan| check(&plan).unwrap_err().to_string();
        assert_eq!(refused(ScanPlan { loops: 0, ..plan }), "scan loops 0 is not in 1..=120");
        assert_eq!(refused(ScanPlan { loops: 121, ..plan }), "scan loops 121 is not in 1..=120");
        assert_eq!(refused(ScanPlan { backoff: Some(9), ..plan }), "scan backoff 9 is not in 0..=8");
        assert_eq!(refused(ScanPlan { sleep_ms: MAX_MS + 1, ..plan }), "scan sleep_ms 1200001 is not in 0..=1200000");
        assert_eq!(
            refused(ScanPlan { interval_ms: u64::MAX, ..plan }),
            format!("scan interval_ms {} is not in 0..=1200000", u64::MAX)
        );
    }
}

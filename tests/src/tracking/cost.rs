//! What seeing costs: the scan itself, and the guest that is scanned.
//!
//! Promises: what is compared was measured in the same run, by turns; memory is touched before it is timed, since fresh memory is slow. Must
//! never: judge.

use std::time::{Duration, Instant};

use memtier::status::{ScanLoop, ScanPlan, ScanState};

use crate::payload::abi::{PAGE, WORK_BASE};
use crate::payload::{AccessLoop, AccessPattern, Command, TieredVm};

/// How long a guest's loop may take to end once it is told to.
const END: Duration = Duration::from_secs(60);

/// A guest whose first vCPU walks over part of its memory again and again.
#[derive(Debug)]
pub struct Walker<'a> {
    vm: &'a TieredVm,
    /// Whether it writes.
    write: bool,
}

/// How fast it walked.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Accesses per second.
    pub rate: f64,
    /// Whole walks over all pages.
    pub walks: f64,
}

impl std::fmt::Debug for TieredVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TieredVm").finish_non_exhaustive()
    }
}

impl<'a> Walker<'a> {
    /// Touches `pages` pages once.
    ///
    /// # Panics
    /// If the guest does not do it.
    pub fn new(vm: &'a TieredVm, pages: u64, write: bool) -> Self {
        let walker = Self { vm, write };
        walker.begin(pages, pages);
        vm.vcpu(0).finish(Duration::from_secs(300)).expect("touched");
        walker
    }

    fn begin(&self, pages: u64, accesses: u64) {
        let walk = AccessLoop {
            pattern: AccessPattern::Sequential,
            write: self.write,
            start: WORK_BASE,
            pages,
            accesses,
            seed: 1,
            histogram: None,
        };
        self.vm.vcpu(0).begin(Command::Loop(walk)).expect("begun");
    }

    /// Walks over the first `pages` pages while `meanwhile` runs.
    ///
    /// # Panics
    /// If the guest does not do it.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn walk(&self, pages: u64, meanwhile: impl FnOnce()) -> Pace {
        self.begin(pages, u64::MAX);
        let began = Instant::now();
        meanwhile();
        let took = began.elapsed();
        self.vm.vcpu(0).ask_to_stop().expect("guest memory");
        let (results, _) = self.vm.vcpu(0).finish(END).expect("ended");
        let accesses = results[0] as f64;
        Pace { rate: accesses / took.as_secs_f64(), walks: accesses / pages as f64 }
    }

    /// Scans, while the guest does whatever it does.
    pub fn scan(&self, plan: ScanPlan) -> Vec<ScanLoop> {
        scan(self.vm, plan)
    }

    /// What one scan takes from a guest that walks over `pages` pages all the time, in seconds of its work: walks with some scans in them
    /// against walks without, by turns, `turns` times; the median of the differences. Hot pages have backed off before if they are going to.
    pub fn lost_per_scan(&self, pages: u64, backoff: u32, turns: u32) -> f64 {
        // Enough for a walk over pages that were all armed, if each costs 30 us.
        let all_ms = pages * 30 / 1000 + 20;
        let series = |loops, sleep_ms| ScanPlan { loops, interval_ms: 0, sleep_ms, backoff: Some(backoff) };
        let plan = if backoff == 0 { series(1, all_ms) } else { series(4, all_ms / 8 + 50) };
        self.walk(pages, || {
            let settling: &[(u32, u64)] =
                if backoff == 0 { &[(2, all_ms)] } else { &[(6, all_ms), (10, all_ms / 3), (120, all_ms / 20 + 10)] };
            settling.iter().for_each(|(loops, sleep_ms)| drop(self.scan(series(*loops, *sleep_ms))));
        });
        let scans = plan.loops;
        let span = Duration::from_millis(plan.sleep_ms * u64::from(scans) * 3 / 2);
        let mut lost: Vec<f64> = (0..turns)
            .map(|_| {
                let without = self.walk(pages, || std::thread::sleep(span));
                let mut scanned = Duration::ZERO;
                let with = self.walk(pages, || {
                    let began = Instant::now();
                    drop(self.scan(plan));
                    // To the same length, so that the loop's beginning and end weigh the same.
                    std::thread::sleep(span.saturating_sub(began.elapsed()));
                    scanned = began.elapsed();
                });
                (1.0 - with.rate / without.rate) * scanned.as_secs_f64() / f64::from(scans)
            })
            .collect();
        lost.sort_by(f64::total_cmp);
        lost[lost.len() / 2]
    }
}

/// Runs a series to its end.
///
/// # Panics
/// If it does not end well.
pub fn scan(vm: &TieredVm, plan: ScanPlan) -> Vec<ScanLoop> {
    let tiers = vm.memtier();
    let id = tiers.start_scan(plan).expect("started");
    let step = Duration::from_millis(1);
    loop {
        let report = tiers.scan(id).expect("kept");
        match report.state {
            ScanState::Running => std::thread::sleep(step),
            ScanState::Done => return report.loops,
            other => panic!("scan {id} is {other:?}: {:?}", report.error),
        }
    }
}

/// Nanoseconds of scanning per page: of a page that was touched, and of one that stayed idle.
#[derive(Clone, Copy, Debug)]
pub struct PerPage {
    /// Of a page touched since the scan before.
    pub touched: f64,
    /// Of a page that stayed idle.
    pub idle: f64,
    /// The longest call that may have kept a vCPU waiting, in microseconds.
    pub longest_call_us: u64,
}

/// The least of some scans each way: whatever else the host does makes a scan longer, never shorter. All pages are touched between a scan's
/// arming and its end, so each scan arms all and collects all.
///
/// # Panics
/// If the guest did not get around to touching all.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn per_page(walker: &Walker<'_>, pages: u64) -> PerPage {
    // A page that was armed costs the walker some microseconds.
    let sleep_ms = (pages / 25).max(100);
    let plan = ScanPlan { loops: 3, interval_ms: 0, sleep_ms, backoff: Some(0) };
    let mut busy = Vec::new();
    walker.walk(pages, || busy = walker.scan(plan));
    let all_touched = |seen: &&ScanLoop| seen.accessed >= pages;
    let touched = busy.iter().filter(all_touched).map(|seen| seen.scan_us).min();
    let touched =
        touched.unwrap_or_else(|| panic!("no scan of {pages} pages saw all of them touched: {busy:?}")) as f64;
    let longest_call_us = busy.iter().map(|seen| seen.longest_call_us).max().unwrap_or(0);
    let quiet = walker.scan(ScanPlan { loops: 6, interval_ms: 0, sleep_ms: 1, backoff: Some(0) });
    let idle = quiet.iter().skip(1).map(|seen| seen.scan_us).min().unwrap_or(0) as f64;
    PerPage { touched: touched * 1000.0 / pages as f64, idle: idle * 1000.0 / pages as f64, longest_call_us }
}

/// A guest's memory for this many pages of workload.
pub const fn memory_for(pages: u64) -> u64 {
    WORK_BASE + pages * PAGE
}

//! Everything at once: threads write and verify at full speed while others evict, scan, pin, lock and switch areas.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Guest, WORDS, range};
use memtier::status::{ReclaimRequest, ScanPlan};

const PAGES: u64 = 512;

/// xorshift64*: enough to choose what to do next.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

fn vcpu(guest: &Guest, index: u64, stop: &AtomicBool) {
    let mut dice = Dice(index + 1);
    let mut versions = vec![0_u64; usize::try_from(PAGES).unwrap()];
    let own = |n: u64| n * 2 + index;
    (0..PAGES / 2).for_each(|n| guest.fill(own(n), 0));
    while !stop.load(Ordering::Relaxed) {
        let gfn = own(dice.roll(PAGES / 2));
        let version = &mut versions[usize::try_from(gfn).unwrap()];
        guest.check(gfn, *version);
        *version += 1;
        guest.fill(gfn, *version);
    }
    (0..PAGES / 2).map(own).for_each(|gfn| guest.check(gfn, versions[usize::try_from(gfn).unwrap()]));
}

/// Reads what the vCPUs write: two threads fault on one page. Contents change meanwhile, so only that it goes on is checked.
fn onlooker(guest: &Guest, progress: &AtomicU64, stop: &AtomicBool) {
    let mut dice = Dice(99);
    while !stop.load(Ordering::Relaxed) {
        guest.read(dice.roll(PAGES), dice.roll(WORDS));
        progress.fetch_add(1, Ordering::Relaxed);
    }
}

fn disturb(guest: &Guest, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice(seed);
    while !stop.load(Ordering::Relaxed) {
        let start = dice.roll(PAGES);
        let part = range(start, dice.roll(PAGES - start) + 1);
        match dice.roll(10) {
            0..3 => _ = guest.tiers.evict(&[part]).unwrap(),
            3 => _ = guest.tiers.reclaim(ReclaimRequest { bytes: Some(part.len), min_idle_scans: None }).unwrap(),
            4 => _ = guest.tiers.write_idle(0, &[0xff; 64]).unwrap(),
            5 => _ = guest.tiers.start_scan(ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 1, backoff: None }),
            6 => drop(guest.tiers.pin(part).unwrap()),
            7 => {
                guest.tiers.lock(&[part]).unwrap();
                guest.tiers.unlock(&[part]).unwrap();
            }
            8 => {
                // Whatever the last scan was, it may end here.
                if let Ok(id) =
                    guest.tiers.start_scan(ScanPlan { loops: 3, interval_ms: 1, sleep_ms: 1, backoff: None })
                {
                    guest.tiers.cancel_scan(id).unwrap();
                }
            }
            _ => {
                let status = guest.tiers.status();
                let sum = status.resident_pages
                    + status.swapped_pages
                    + status.zero_pages
                    + status.untouched_pages
                    + status.discarded_pages
                    + status.poisoned_pages;
                assert_eq!(sum, status.guest_pages, "{status:?}");
                assert_eq!(status.poisoned_pages, 0);
            }
        }
    }
}

/// A fault that nobody answers would keep the test from ever ending; so it ends the process.
fn watch_for_hangs(progress: &AtomicU64, stop: &AtomicBool) {
    let mut last = (u64::MAX, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let now = progress.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > Duration::from_secs(20) {
            eprintln!("no access was completed for 20 seconds: a fault was not answered");
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn nothing_is_lost_in_the_storm() {
    let guest = Guest::with_swap(PAGES);
    let stop = AtomicBool::new(false);
    let progress = AtomicU64::new(0);
    let until = Instant::now() + Duration::from_secs(8);
    std::thread::scope(|scope| {
        scope.spawn(|| watch_for_hangs(&progress, &stop));
        let workers = [
            scope.spawn(|| onlooker(&guest, &progress, &stop)),
            scope.spawn(|| vcpu(&guest, 0, &stop)),
            scope.spawn(|| vcpu(&guest, 1, &stop)),
            scope.spawn(|| disturb(&guest, 7, &stop)),
            scope.spawn(|| disturb(&guest, 8, &stop)),
        ];
        // Areas come and go all the while; a panic anywhere ends it at once.
        let mut turn = 0;
        while Instant::now() < until && workers.iter().all(|worker| !worker.is_finished()) {
            let area = guest.swapon(&format!("turn-{}", turn % 2), PAGES);
            std::thread::sleep(Duration::from_millis(50));
            guest.tiers.swapoff(area).unwrap();
            turn += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(turn > 5, "areas were switched {turn} times");
    });
    // No slot leaked and none was freed twice: those in use are those of pages that are out, and of pages that have kept theirs. A handler
    // frees a slot after it has woken the guest, so not before it has stopped.
    guest.tiers.shutdown();
    let status = guest.tiers.status();
    let used = guest.tiers.swap_areas()[0].used / status.page_size;
    assert_eq!(used, status.swapped_pages + status.clean_pages, "{status:?}");
    let counters = status.counters;
    assert!(counters.pages_out_clean > 0, "{counters:?}");
    assert!(counters.faults_major > 1000 && counters.evictions_cancelled > 0, "{counters:?}");
}

//! Pages leave and come back, on real memfds, a real userfaultfd and real swap files.

mod common;

use std::os::unix::fs::FileExt;

use common::{Guest, range};
use memtier::control::ControlError;
use memtier::status::{Outcomes, ReclaimRequest, ScanPlan, ScanState};
use memtier::units::Gfn;

fn evicted(pages: u64) -> Outcomes {
    Outcomes { evicted: pages, ..Outcomes::default() }
}

#[test]
fn pages_leave_the_host_and_come_back_with_every_word() {
    let guest = Guest::with_swap(256);
    (0..200).for_each(|gfn| guest.fill(gfn, 1));
    assert_eq!(guest.host_pages(), 200);
    let outcomes = guest.tiers.evict(&[range(0, 256)]).unwrap();
    assert_eq!(outcomes, Outcomes { absent: 56, ..evicted(200) });
    assert_eq!(guest.host_pages(), 0);
    let status = guest.tiers.status();
    assert_eq!((status.swapped_pages, status.untouched_pages, status.resident_pages), (200, 56, 0));
    (0..200).rev().for_each(|gfn| guest.check(gfn, 1));
    // A handler counts and frees after it has woken the guest; once it has stopped, all is counted.
    guest.tiers.shutdown();
    let status = guest.tiers.status();
    assert_eq!((status.swapped_pages, status.resident_pages, status.counters.faults_major), (0, 200, 200));
    assert_eq!(
        status.limits.swap_total_pages - status.limits.swap_free_pages,
        200,
        "slots are kept while there are plenty"
    );
    assert_eq!(status.fault_latency.count, 200);
}

#[test]
fn zero_pages_leave_without_a_slot_and_read_as_zero() {
    let guest = Guest::new(64);
    (0..64).for_each(|gfn| guest.write(gfn, 7, 0));
    assert_eq!(guest.tiers.evict(&[range(0, 64)]).unwrap(), evicted(64));
    assert_eq!((guest.tiers.status().zero_pages, guest.host_pages()), (64, 0));
    assert!((0..64).all(|gfn| guest.read(gfn, 511) == 0));
    guest.tiers.shutdown();
    assert_eq!(guest.tiers.status().counters.faults_minor, 64);
}

#[test]
fn without_room_pages_stay_as_they_are() {
    let guest = Guest::new(64);
    (0..64).for_each(|gfn| guest.fill(gfn, 1));
    let outcomes = guest.tiers.evict(&[range(0, 64)]).unwrap();
    assert_eq!(outcomes, Outcomes { error: 64, ..Outcomes::default() });
    assert_eq!(guest.tiers.status().resident_pages, 64);
    (0..64).for_each(|gfn| guest.check(gfn, 1));
    guest.fill(3, 2);
    guest.check(3, 2);
    // A small area takes what fits.
    guest.swapon("small", 10);
    let outcomes = guest.tiers.evict(&[range(0, 64)]).unwrap();
    assert_eq!((outcomes.evicted, outcomes.error), (10, 54));
    guest.check(3, 2);
    (0..64).filter(|gfn| *gfn != 3).for_each(|gfn| guest.check(gfn, 1));
}

#[test]
fn a_written_page_leaves_again_with_its_new_contents() {
    let guest = Guest::with_swap(64);
    for version in 1..20 {
        (0..64).for_each(|gfn| guest.fill(gfn, version));
        assert_eq!(guest.tiers.evict(&[range(0, 64)]).unwrap(), evicted(64));
        (0..64).for_each(|gfn| guest.check(gfn, version));
    }
}

#[test]
fn memory_on_both_sides_of_a_hole_is_one_guest() {
    let guest = Guest::with_regions(&[(0, 100), (0x1000, 100)]);
    guest.swapon("swap", 400);
    (0..100).chain(0x1000..0x1064).for_each(|gfn| guest.fill(gfn, 5));
    let outcomes = guest.tiers.evict(&[range(0, 0x2000)]).unwrap();
    assert_eq!((outcomes.evicted, outcomes.absent), (200, 0x2000 - 200));
    (0..100).chain(0x1000..0x1064).for_each(|gfn| guest.check(gfn, 5));
}

#[test]
fn locked_pages_stay_and_are_brought_back() {
    let guest = Guest::with_swap(64);
    (0..64).for_each(|gfn| guest.fill(gfn, 1));
    guest.tiers.evict(&[range(0, 32)]).unwrap();
    guest.tiers.lock(&[range(16, 32)]).unwrap();
    let status = guest.tiers.status();
    assert_eq!((status.locked_pages, status.swapped_pages, status.counters.pages_fetched), (32, 16, 16));
    let outcomes = guest.tiers.evict(&[range(0, 64)]).unwrap();
    assert_eq!(outcomes, Outcomes { locked: 32, absent: 16, ..evicted(16) });
    guest.tiers.unlock(&[range(0, 20)]).unwrap();
    assert_eq!(guest.tiers.locks(), [range(20, 28)]);
    assert_eq!(guest.tiers.evict(&[range(16, 4)]).unwrap(), evicted(4));
    (0..64).for_each(|gfn| guest.check(gfn, 1));
    assert!(matches!(guest.tiers.lock(&[range(60, 10)]), Err(ControlError::NotMemory { .. })));
}

#[test]
fn pinned_pages_stay_and_are_brought_back() {
    let guest = Guest::with_swap(64);
    (0..8).for_each(|gfn| guest.fill(gfn, 1));
    guest.tiers.evict(&[range(0, 8)]).unwrap();
    let pin = guest.tiers.pin(memtier::status::GuestRange { start: 2 * 4096 + 100, len: 4096 }).unwrap();
    assert_eq!(guest.tiers.status().pinned_pages, 2);
    let again = guest.tiers.pin(range(3, 10)).unwrap();
    let outcomes = guest.tiers.evict(&[range(0, 64)]).unwrap();
    assert_eq!((outcomes.busy, outcomes.evicted), (11, 0), "frames 2 to 12 are pinned, {outcomes:?}");
    drop(again);
    assert_eq!(guest.tiers.status().pinned_pages, 2);
    drop(pin);
    assert_eq!(guest.tiers.status().pinned_pages, 0);
    (0..8).for_each(|gfn| guest.check(gfn, 1));
    assert!(guest.tiers.pin(range(63, 2)).is_err());
    assert_eq!(guest.tiers.status().pinned_pages, 0);
}

#[test]
fn the_idle_bitmap_is_the_set_of_pages_not_touched() {
    let guest = Guest::with_swap(200);
    (0..190).for_each(|gfn| guest.fill(gfn, 1));
    guest.tiers.evict(&[range(180, 10)]).unwrap();
    guest.tiers.lock(&[range(170, 1)]).unwrap();
    assert_eq!(guest.tiers.idle_len(), 32);
    assert_eq!(guest.tiers.write_idle(0, &[0xff; 64]).unwrap(), 32);
    for gfn in [0, 1, 63, 64, 100] {
        guest.read(gfn, 0);
    }
    for gfn in [2, 127, 128] {
        guest.write(gfn, 0, 9);
    }
    let mut bits = [0_u8; 64];
    assert_eq!(guest.tiers.read_idle(0, &mut bits).unwrap(), 32);
    let idle: Vec<usize> = (0..512).filter(|gfn| bits[gfn / 8] >> (gfn % 8) & 1 == 1).collect();
    let busy = [0, 1, 2, 63, 64, 100, 127, 128, 170];
    let expected: Vec<usize> = (0..180).filter(|gfn| !busy.contains(gfn)).collect();
    assert_eq!(idle, expected);
    // A 0 does nothing, a second write marks again.
    assert_eq!(guest.tiers.write_idle(0, &[0; 8]).unwrap(), 8);
    assert_eq!(guest.tiers.write_idle(8, &[0xff; 8]).unwrap(), 8);
    guest.tiers.read_idle(0, &mut bits).unwrap();
    assert_eq!(bits[0] & 7, 0);
    assert_eq!(bits[8..16], [0xff; 8]);
}

#[test]
fn the_idle_bitmap_refuses_as_page_idle_does() {
    let guest = Guest::new(128);
    let mut bits = [0_u8; 16];
    assert!(guest.tiers.read_idle(4, &mut bits).is_err());
    assert!(guest.tiers.read_idle(0, &mut bits[..7]).is_err());
    assert!(guest.tiers.write_idle(8, &bits[..9]).is_err());
    assert_eq!(guest.tiers.read_idle(16, &mut bits).unwrap(), 0);
    assert_eq!(guest.tiers.read_idle(8, &mut bits).unwrap(), 8);
    assert_eq!(guest.tiers.read_idle(u64::MAX - 7, &mut bits).unwrap(), 0);
    let error = guest.tiers.write_idle(16, &bits).unwrap_err().to_string();
    assert_eq!(error, "idle bitmap offset 16 is beyond the last frame, the bitmap has 16 bytes");
}

/// One scan, all through which these pages are read again and again: whenever it arms, they are accessed after that.
fn scan(guest: &Guest, busy: std::ops::Range<u64>) -> memtier::status::ScanLoop {
    let id = guest.tiers.start_scan(ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 50, backoff: None }).unwrap();
    loop {
        busy.clone().for_each(|gfn| _ = guest.read(gfn, 0));
        let report = guest.tiers.scan(id).unwrap();
        match report.state {
            ScanState::Running => std::thread::yield_now(),
            ScanState::Done => return report.loops[0],
            other => panic!("{other:?}: {report:?}"),
        }
    }
}

#[test]
fn reclaim_takes_the_coldest_first() {
    let guest = Guest::with_swap(100);
    (0..100).for_each(|gfn| guest.fill(gfn, 1));
    scan(&guest, 0..0);
    let seen = scan(&guest, 0..30);
    assert_eq!((seen.accessed, seen.idle), (30, 70));
    let seen = scan(&guest, 0..10);
    assert_eq!((seen.accessed, seen.idle), (10, 90));
    let request = |bytes, min_idle_scans| ReclaimRequest { bytes, min_idle_scans };
    let reclaimed = guest.tiers.reclaim(request(Some(50 * 4096 - 1), Some(1))).unwrap();
    assert_eq!((reclaimed.bytes, reclaimed.outcomes), (50 * 4096, evicted(50)));
    assert_eq!(guest.tiers.reclaim(request(None, Some(2))).unwrap().outcomes, evicted(20));
    assert_eq!(guest.tiers.reclaim(request(None, Some(1))).unwrap().outcomes, evicted(20));
    assert_eq!(guest.tiers.reclaim(request(None, Some(1))).unwrap().outcomes, evicted(0));
    assert_eq!(guest.tiers.status().resident_pages, 10);
    (0..10).for_each(|gfn| guest.check(gfn, 1));
    assert_eq!(guest.tiers.status().swapped_pages, 90, "the hot ten never left");
    assert_eq!(guest.tiers.reclaim(request(Some(u64::MAX), None)).unwrap().outcomes, evicted(10));
    assert!(matches!(guest.tiers.reclaim(request(None, None)), Err(ControlError::NothingAsked)));
    assert!(matches!(guest.tiers.reclaim(request(None, Some(u32::MAX))), Err(ControlError::Age(u32::MAX))));
    (0..100).for_each(|gfn| guest.check(gfn, 1));
}

#[test]
fn reclaim_takes_all_of_an_older_age_before_any_of_a_younger_one() {
    let guest = Guest::with_swap(100);
    (0..100).for_each(|gfn| guest.fill(gfn, 1));
    scan(&guest, 0..0);
    // The young ones come first in memory, so that frame order would take them first.
    scan(&guest, 0..30);
    scan(&guest, 0..0);
    let request = ReclaimRequest { bytes: Some(80 * 4096), min_idle_scans: Some(1) };
    assert_eq!(guest.tiers.reclaim(request).unwrap().outcomes, evicted(80));
    guest.tiers.evict(&[range(0, 30)]).unwrap();
    let counters = guest.tiers.status().counters;
    assert_eq!(counters.pages_out, 100);
    // 80 = the 70 that were idle twice, and ten of the 30 that were idle once: 20 of those were still there.
    assert_eq!(guest.tiers.evict(&[range(30, 70)]).unwrap(), Outcomes { absent: 70, ..Outcomes::default() });
}

#[test]
fn an_abandoned_scan_leaves_no_trace_in_the_next() {
    let guest = Guest::with_swap(100);
    (0..100).for_each(|gfn| guest.fill(gfn, 1));
    scan(&guest, 0..0);
    let id = guest.tiers.start_scan(ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 1_000_000, backoff: None }).unwrap();
    // Fetched while the scan watches: these carry its number whatever the tracker saw.
    guest.tiers.evict(&[range(0, 40)]).unwrap();
    (0..40).for_each(|gfn| guest.check(gfn, 1));
    guest.tiers.cancel_scan(id).unwrap();
    let seen = scan(&guest, 0..0);
    assert_eq!((seen.accessed, seen.idle), (0, 100));
}

#[test]
fn after_the_end_requests_are_refused() {
    let guest = Guest::with_swap(64);
    guest.fill(0, 1);
    guest.tiers.shutdown();
    assert!(matches!(guest.tiers.evict(&[range(0, 1)]), Err(ControlError::Closed)));
    assert!(matches!(guest.tiers.write_idle(0, &[0xff; 8]), Err(ControlError::Closed)));
    assert!(guest.tiers.start_scan(ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 0, backoff: None }).is_err());
    assert_eq!(guest.tiers.status().resident_pages, 1);
}

#[test]
fn a_scan_can_be_cancelled_in_its_sleep_and_another_waits_its_turn() {
    let guest = Guest::new(64);
    let plan = ScanPlan { loops: 5, interval_ms: 0, sleep_ms: 1_000_000, backoff: None };
    let id = guest.tiers.start_scan(plan).unwrap();
    assert_eq!(guest.tiers.start_scan(plan).unwrap_err().to_string(), format!("scan {id} is still running"));
    assert_eq!(guest.tiers.cancel_scan(id).unwrap().state, ScanState::Cancelled);
    assert!(guest.tiers.cancel_scan(id + 1).is_none());
    scan(&guest, 0..0);
    assert_eq!(guest.tiers.scan(id).unwrap().state, ScanState::Cancelled);
}

#[test]
fn swapoff_brings_everything_back() {
    let guest = Guest::new(300);
    let first = guest.swapon("first", 200);
    let second = guest.swapon("second", 200);
    (0..300).for_each(|gfn| guest.fill(gfn, 1));
    assert_eq!(guest.tiers.evict(&[range(0, 300)]).unwrap(), evicted(300));
    guest.tiers.swapoff(first).unwrap();
    assert_eq!(guest.tiers.swap_areas().len(), 1);
    let resident = guest.tiers.status().resident_pages;
    assert!((100..=200).contains(&resident), "the area that came first was filled first, {resident} came back");
    (0..300).for_each(|gfn| guest.check(gfn, 1));
    guest.tiers.swapoff(second).unwrap();
    assert!(guest.tiers.swapoff(second).is_err());
    assert!(guest.tiers.swap_areas().is_empty());
    // The file can be used again.
    guest.swapon("first", 200);
}

#[test]
fn swapoff_says_why_not_and_the_area_stays() {
    let guest = Guest::new(64);
    let area = guest.swapon("swap", 64);
    (0..64).for_each(|gfn| guest.fill(gfn, 1));
    guest.tiers.evict(&[range(0, 64)]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(guest.path("swap")).unwrap();
    file.write_all_at(&[0xaa; 4096], 5 * 4096).unwrap();
    let error = guest.tiers.swapoff(area).unwrap_err();
    assert_eq!(error.to_string(), "area 0 stays on: 1 of its pages can't be brought back");
    let status = guest.tiers.status();
    assert_eq!((status.swapped_pages, status.resident_pages, status.poisoned_pages), (1, 63, 0));
    assert_eq!(guest.tiers.swap_areas().len(), 1);
}

#[test]
fn a_corrupted_slot_poisons_its_page_and_no_other() {
    let guest = Guest::with_swap(64);
    (0..64).for_each(|gfn| guest.fill(gfn, 1));
    guest.tiers.evict(&[range(0, 64)]).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(guest.path("swap")).unwrap();
    let mut byte = [0_u8];
    file.read_exact_at(&mut byte, 9 * 4096 + 77).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 9 * 4096 + 77).unwrap();
    let lost: Vec<u64> = (0..64).filter(|gfn| guest.tiers.pin(range(*gfn, 1)).is_err()).collect();
    assert_eq!(lost.len(), 1);
    let status = guest.tiers.status();
    assert_eq!((status.poisoned_pages, status.counters.pages_poisoned, status.resident_pages), (1, 1, 63));
    assert!(guest.tiers.is_poisoned(Gfn(lost[0])));
    (0..64).filter(|gfn| *gfn != lost[0]).for_each(|gfn| guest.check(gfn, 1));
    // A system call on the page fails as on failed memory, also after a tracker's unmapping, which takes the kernel's mark away.
    assert_eq!(guest.send(lost[0]).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    guest.tiers.write_idle(0, &[0xff; 8]).unwrap();
    assert_eq!(guest.send(lost[0]).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    assert_eq!(guest.send((lost[0] + 1) % 64).unwrap(), 4096);
    let outcome = guest.tiers.evict(&[range(lost[0], 1)]).unwrap();
    assert_eq!(outcome.absent, 1);
    // Its slot is out of use for good and does not keep the area from going off.
    let area = &guest.tiers.swap_areas()[0];
    assert_eq!((area.used, area.bad_slots), (0, 1));
    guest.tiers.swapoff(memtier::units::AreaId(area.id)).unwrap();
}

#[test]
fn untouched_memory_never_asks_user_space() {
    let guest = Guest::with_swap(4096);
    (0..4096).for_each(|gfn| guest.write(gfn, 0, gfn));
    assert_eq!(guest.tiers.status().fault_latency.count, 0);
    // Also not in other chunks when a page has left from one.
    let guest = Guest::with_swap(4096);
    guest.fill(0, 1);
    guest.tiers.evict(&[range(0, 1)]).unwrap();
    (512..4096).for_each(|gfn| guest.write(gfn, 0, gfn));
    assert_eq!(guest.tiers.status().fault_latency.count, 0);
    (0..512).for_each(|gfn| guest.write(gfn, 1, gfn));
    guest.tiers.shutdown();
    let counters = guest.tiers.status().counters;
    assert_eq!((counters.faults_major, counters.faults_minor), (1, 511));
}

//! Guests on huge pages of the host's pool: each leaves and comes back as a whole, on real hugetlbfs, userfaultfd and swap files.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::huge::{PAGES, Pool};
use common::{Guest, WORDS, range};
use memtier::status::{GuestRange, HugePages, Outcomes};
use memtier::tier::faulty_store::{Fault, FaultyStore};
use memtier::tier::file_store::FileStore;
use memtier::units::{AreaId, Bytes, FrameSize, Gfn};

const HUGE: u64 = FrameSize::Huge.bytes();

/// A guest of so many huge pages, with as many in the pool. Fields drop in this order: the guest gives its pages back first.
struct HugeGuest {
    guest: Guest,
    pool: Pool,
}

impl std::ops::Deref for HugeGuest {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl HugeGuest {
    fn new(frames: u64) -> Self {
        let pool = Pool::with(frames);
        Self { guest: Guest::backed_by(&[(0, frames * PAGES)], HugePages::Hugetlb2M), pool }
    }

    /// With an area for as many pages as there are, and their header.
    fn with_swap(frames: u64) -> Self {
        let guest = Self::new(frames);
        guest.swapon_for("swap", frames);
        guest
    }

    /// The first cluster has the header in it and is of no use for huge pages.
    fn swapon_for(&self, name: &str, frames: u64) -> AreaId {
        self.swapon(name, (frames + 1) * PAGES - 1)
    }

    fn fill_frame(&self, frame: u64, version: u64) {
        (frame * PAGES..(frame + 1) * PAGES).for_each(|gfn| self.fill(gfn, version));
    }

    fn check_frame(&self, frame: u64, version: u64) {
        (frame * PAGES..(frame + 1) * PAGES).for_each(|gfn| self.check(gfn, version));
    }

    fn evict(&self, first: u64, frames: u64) -> Outcomes {
        self.tiers.evict(&[frames_range(first, frames)]).unwrap()
    }

    /// Bytes of the only area that are in use, in huge pages.
    fn used(&self) -> u64 {
        self.tiers.swap_areas()[0].used / HUGE
    }

    fn host_frames(&self) -> u64 {
        self.host_pages() / PAGES
    }
}

fn frames_range(first: u64, frames: u64) -> GuestRange {
    range(first * PAGES, frames * PAGES)
}

fn evicted(pages: u64) -> Outcomes {
    Outcomes { evicted: pages, ..Outcomes::default() }
}

#[test]
fn huge_pages_leave_for_the_hosts_pool_and_come_back_with_every_word() {
    let guest = HugeGuest::with_swap(8);
    (0..6).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!((guest.host_frames(), guest.pool.available()), (6, 0));
    assert_eq!(guest.evict(0, 8), Outcomes { absent: 2, ..evicted(6) });
    assert_eq!((guest.host_frames(), guest.pool.available()), (0, 6));
    let status = guest.tiers.status();
    assert_eq!((status.page_size, status.guest_pages), (HUGE, 8));
    assert_eq!((status.swapped_pages, status.untouched_pages, status.resident_pages), (6, 2, 0));
    assert_eq!((status.counters.bytes_written, status.limits.swap_free_pages), (6 * HUGE, 2));
    (0..6).rev().for_each(|frame| guest.check_frame(frame, 1));
    guest.tiers.shutdown();
    let status = guest.tiers.status();
    assert_eq!((status.resident_pages, status.counters.faults_major), (6, 6));
    assert_eq!((status.counters.bytes_read, guest.host_frames()), (6 * HUGE, 6));
}

#[test]
fn a_huge_page_is_zero_only_if_all_of_it_is() {
    let guest = HugeGuest::with_swap(4);
    (0..4).for_each(|frame| guest.write(frame * PAGES, 0, 0));
    guest.write(4 * PAGES - 1, WORDS - 1, 1 << 63);
    assert_eq!(guest.evict(0, 4), evicted(4));
    let status = guest.tiers.status();
    assert_eq!((status.zero_pages, status.swapped_pages, guest.host_frames()), (3, 1, 0));
    assert!((0..3).all(|frame| guest.read(frame * PAGES + 77, 5) == 0));
    assert_eq!(guest.read(4 * PAGES - 1, WORDS - 1), 1 << 63);
    // They are writable as before.
    guest.fill_frame(1, 3);
    guest.check_frame(1, 3);
    guest.tiers.shutdown();
    let counters = guest.tiers.status().counters;
    assert_eq!((counters.faults_minor, counters.faults_major), (3, 1));
}

#[test]
fn untouched_huge_pages_beside_one_that_left_are_answered_with_zeros() {
    let guest = HugeGuest::with_swap(4);
    guest.fill_frame(0, 1);
    guest.write(PAGES, 0, 1);
    assert_eq!(guest.evict(0, 1), evicted(1));
    // Chunks are one huge page long, so the others never trap.
    guest.fill_frame(2, 1);
    (0..3).for_each(|frame| assert_eq!(guest.read(frame * PAGES + 3, 0) != 0, frame != 1));
    guest.tiers.shutdown();
    let counters = guest.tiers.status().counters;
    assert_eq!((counters.faults_major, counters.faults_minor), (1, 0));
}

#[test]
fn a_huge_page_that_did_not_change_leaves_again_without_being_written() {
    let guest = HugeGuest::with_swap(8);
    (0..2).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!(guest.evict(0, 2), evicted(2));
    (0..2).for_each(|frame| guest.check_frame(frame, 1));
    guest.wait_for_clean(2);
    assert_eq!(guest.used(), 2);
    // One bit in 2 MiB.
    guest.write(PAGES + 300, 17, guest.read(PAGES + 300, 17) ^ 2);
    assert_eq!(guest.evict(0, 2), evicted(2));
    assert_eq!((guest.used(), guest.tiers.status().counters.bytes_written), (2, 3 * HUGE));
    guest.write(PAGES + 300, 17, guest.read(PAGES + 300, 17) ^ 2);
    (0..2).for_each(|frame| guest.check_frame(frame, 1));
}

#[test]
fn without_a_whole_cluster_huge_pages_stay_and_kept_ones_are_given_up_first() {
    let guest = HugeGuest::new(5);
    guest.swapon_for("swap", 3);
    (0..5).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!(guest.evict(0, 1), evicted(1));
    guest.check_frame(0, 1);
    guest.wait_for_clean(1);
    assert_eq!((guest.used(), guest.tiers.status().limits.swap_free_pages), (1, 2));
    assert_eq!(guest.evict(1, 4), Outcomes { error: 1, ..evicted(3) });
    assert_eq!((guest.used(), guest.host_frames()), (3, 2));
    (0..5).for_each(|frame| guest.check_frame(frame, 1));
    guest.fill_frame(4, 2);
    guest.check_frame(4, 2);
}

#[test]
fn ranges_are_whole_huge_pages_and_pins_take_all_that_they_touch() {
    let guest = HugeGuest::with_swap(4);
    (0..4).for_each(|frame| guest.fill_frame(frame, 1));
    let error = guest.tiers.evict(&[range(0, 513)]).unwrap_err().to_string();
    assert_eq!(error, "range len 0x201000 is not a multiple of 2097152");
    assert!(guest.tiers.lock(&[range(1, 512)]).is_err());
    assert_eq!(guest.evict(0, 4), evicted(4));
    // The last byte of one huge page and the first of the next.
    let pin = guest.tiers.pin(GuestRange { start: HUGE - 1, len: 2 }).unwrap();
    assert_eq!(guest.tiers.status().pinned_pages, 2);
    assert_eq!(guest.evict(0, 4), Outcomes { busy: 2, absent: 2, ..Outcomes::default() });
    drop(pin);
    guest.tiers.lock(&[frames_range(1, 2)]).unwrap();
    assert_eq!(guest.tiers.locks(), [frames_range(1, 2)]);
    let status = guest.tiers.status();
    assert_eq!((status.locked_pages, status.resident_pages), (2, 3));
    assert_eq!(guest.evict(0, 4), Outcomes { locked: 2, absent: 1, ..evicted(1) });
    guest.tiers.unlock(&[frames_range(0, 4)]).unwrap();
    (0..4).for_each(|frame| guest.check_frame(frame, 1));
}

#[test]
fn a_corrupted_part_poisons_its_huge_page_and_no_other() {
    let guest = HugeGuest::with_swap(4);
    (0..4).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!(guest.evict(0, 4), evicted(4));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(guest.path("swap")).unwrap();
    let at = 2 * HUGE + 400 * 4096 + 9;
    let mut byte = [0_u8];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let lost: Vec<u64> = (0..4).filter(|frame| guest.tiers.pin(frames_range(*frame, 1)).is_err()).collect();
    assert_eq!(lost.len(), 1);
    let status = guest.tiers.status();
    assert_eq!((status.poisoned_pages, status.resident_pages), (1, 3));
    assert!((0..PAGES).step_by(100).all(|page| guest.tiers.is_poisoned(Gfn(lost[0] * PAGES + page))));
    (0..4).filter(|frame| *frame != lost[0]).for_each(|frame| guest.check_frame(frame, 1));
    // Any part of it fails as failed memory does, also when a tracker has taken the kernel's mark away.
    assert_eq!(guest.send(lost[0] * PAGES + 511).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    guest.unmap();
    assert_eq!(guest.send(lost[0] * PAGES + 3).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    let area = &guest.tiers.swap_areas()[0];
    assert_eq!((area.used, area.bad_slots), (0, PAGES));
    guest.tiers.swapoff(AreaId(area.id)).unwrap();
}

#[test]
fn a_slot_that_can_not_be_written_takes_its_cluster_out_of_use() {
    let guest = HugeGuest::new(3);
    let store = FileStore::open(&guest.path("bad"), Some(Bytes(4 * HUGE))).unwrap();
    let (store, faults) = FaultyStore::new(Box::new(store));
    guest.tiers.swap().swapon_store(Box::new(store), None).unwrap();
    (0..3).for_each(|frame| guest.fill_frame(frame, 1));
    faults.set(|op| (op.is_write() && op.slot().0 == 700).then_some(Fault::Fail(libc::EIO)));
    assert_eq!(guest.evict(0, 1), Outcomes { error: 1, ..Outcomes::default() });
    let area = &guest.tiers.swap_areas()[0];
    assert_eq!((area.used, area.bad_slots, guest.tiers.swap().counters().write_errors), (0, 1, 1));
    // The next clusters are used, the one with the bad slot is not.
    assert_eq!(guest.evict(0, 3), Outcomes { error: 1, ..evicted(2) });
    assert_eq!(guest.tiers.status().limits.swap_free_pages, 0);
    (0..3).for_each(|frame| guest.check_frame(frame, 1));
}

#[test]
fn a_write_that_fails_once_is_made_good_part_by_part() {
    let guest = HugeGuest::new(1);
    let store = FileStore::open(&guest.path("flaky"), Some(Bytes(2 * HUGE))).unwrap();
    let (store, faults) = FaultyStore::new(Box::new(store));
    guest.tiers.swap().swapon_store(Box::new(store), None).unwrap();
    guest.fill_frame(0, 1);
    let failed = AtomicBool::new(false);
    faults.set(move |op| {
        let now = op.is_write() && op.slot().0 == 600 && !failed.swap(true, Ordering::Relaxed);
        now.then_some(Fault::Fail(libc::EIO))
    });
    assert_eq!(guest.evict(0, 1), evicted(1));
    assert_eq!((faults.injected(), guest.used()), (1, 1));
    guest.check_frame(0, 1);
}

#[test]
fn swapoff_brings_huge_pages_back() {
    let guest = HugeGuest::new(6);
    let first = guest.swapon_for("first", 4);
    let second = guest.swapon_for("second", 4);
    (0..6).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!(guest.evict(0, 6), evicted(6));
    guest.tiers.swapoff(first).unwrap();
    assert_eq!(guest.tiers.status().swapped_pages, 2);
    guest.tiers.swapoff(second).unwrap();
    assert_eq!((guest.tiers.status().resident_pages, guest.tiers.swap_areas().len()), (6, 0));
    (0..6).for_each(|frame| guest.check_frame(frame, 1));
}

#[test]
fn a_huge_page_touched_and_unmapped_before_anybody_looked_is_found() {
    let guest = HugeGuest::with_swap(8);
    for frame in [1, 4, 5] {
        guest.fill_frame(frame, 1);
    }
    guest.unmap();
    let status = guest.tiers.status();
    assert_eq!((status.resident_pages, status.untouched_pages), (3, 5));
    assert_eq!((guest.host_frames(), guest.pool.available()), (3, 0), "looking took no memory");
    assert_eq!(guest.evict(0, 8), Outcomes { absent: 5, ..evicted(3) });
    [1, 4, 5].into_iter().for_each(|frame| guest.check_frame(frame, 1));
}

#[test]
fn one_access_makes_all_of_a_huge_page_busy() {
    let guest = HugeGuest::with_swap(4);
    (0..3).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!(guest.evict(2, 1), evicted(1));
    let bytes = usize::try_from(PAGES / 8).unwrap();
    assert_eq!(guest.tiers.write_idle(0, &vec![0xff; 4 * bytes]).unwrap(), 4 * bytes);
    guest.read(PAGES + 501, 3);
    let mut bits = vec![0; 4 * bytes];
    assert_eq!(guest.tiers.read_idle(0, &mut bits).unwrap(), 4 * bytes);
    // Not touched, touched, out, never touched.
    assert_eq!(bits, [vec![0xff; bytes], vec![0; 3 * bytes]].concat());
}

#[test]
fn a_fault_waits_while_the_pool_has_no_page_for_it() {
    let guest = HugeGuest::with_swap(2);
    (0..2).for_each(|frame| guest.fill_frame(frame, 1));
    assert_eq!(guest.evict(0, 2), evicted(2));
    guest.pool.shrink_to(0);
    let back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            guest.check_frame(1, 1);
            back.store(true, Ordering::Relaxed);
        });
        // It was tried and put off when a request of our own meets the same.
        let began = Instant::now();
        while guest.tiers.lock(&[frames_range(0, 1)]).is_ok() || guest.tiers.status().fault_latency.count == 0 {
            assert!(began.elapsed() < Duration::from_secs(10), "no fault came");
        }
        assert!(!back.load(Ordering::Relaxed));
        guest.pool.shrink_to(2);
    });
    guest.check_frame(0, 1);
    let status = guest.tiers.status();
    assert_eq!((status.poisoned_pages, status.resident_pages, status.locked_pages), (0, 2, 0));
}

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

const STORM_FRAMES: u64 = 8;

/// Verifies and rewrites single pages of its own half, which are every other page of each huge page. Stays with one huge page for a while, so
/// that the others have time to leave; now and then it only reads.
fn vcpu(guest: &Guest, index: u64, progress: &AtomicU64, stop: &AtomicBool) {
    let mut dice = Dice(index + 1);
    let own = |n: u64| n * 2 + index;
    let count = STORM_FRAMES * PAGES / 2;
    let mut versions = vec![0_u64; usize::try_from(count).unwrap()];
    (0..count).for_each(|n| guest.fill(own(n), 0));
    while !stop.load(Ordering::Relaxed) {
        let (frame, writes) = (dice.roll(STORM_FRAMES), dice.roll(3) > 0);
        for _ in 0..1000 {
            let n = frame * PAGES / 2 + dice.roll(PAGES / 2);
            let version = &mut versions[usize::try_from(n).unwrap()];
            guest.check(own(n), *version);
            if writes {
                *version += 1;
                guest.fill(own(n), *version);
            }
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }
    (0..count).for_each(|n| guest.check(own(n), versions[usize::try_from(n).unwrap()]));
}

fn disturb(guest: &Guest, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice(seed);
    while !stop.load(Ordering::Relaxed) {
        let start = dice.roll(STORM_FRAMES);
        let part = frames_range(start, dice.roll(STORM_FRAMES - start) + 1);
        match dice.roll(6) {
            0..3 => _ = guest.tiers.evict(&[part]).unwrap(),
            3 => _ = guest.tiers.write_idle(0, &[0xff; 512]).unwrap(),
            4 => drop(guest.tiers.pin(part).unwrap()),
            _ => {
                guest.tiers.lock(&[part]).unwrap();
                guest.tiers.unlock(&[part]).unwrap();
                assert_eq!(guest.tiers.status().poisoned_pages, 0);
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
fn nothing_is_lost_in_a_storm_of_huge_pages() {
    let guest = HugeGuest::with_swap(STORM_FRAMES);
    let (stop, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(30);
    // Long enough when all of it has happened often.
    let seen = || {
        let counters = guest.tiers.status().counters;
        [counters.faults_major, counters.pages_fetched, counters.evictions_cancelled].into_iter().min() >= Some(50)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| watch_for_hangs(&progress, &stop));
        let workers = [
            scope.spawn(|| vcpu(&guest, 0, &progress, &stop)),
            scope.spawn(|| vcpu(&guest, 1, &progress, &stop)),
            scope.spawn(|| disturb(&guest, 7, &stop)),
        ];
        while !seen() && Instant::now() < until && workers.iter().all(|worker| !worker.is_finished()) {
            let area = guest.swapon_for("turn", STORM_FRAMES);
            std::thread::sleep(Duration::from_millis(50));
            guest.tiers.swapoff(area).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(seen(), "{:?}", guest.tiers.status().counters);
    guest.tiers.shutdown();
    let status = guest.tiers.status();
    assert_eq!(guest.used(), status.swapped_pages + status.clean_pages, "{status:?}");
}

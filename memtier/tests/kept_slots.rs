//! Pages that come back keep their slot: they leave again with no I/O if nobody wrote to them, and nobody is worse off if somebody did.

mod common;

use std::time::{Duration, Instant};

use common::{Guest, range};
use memtier::status::Outcomes;
use memtier::tier::faulty_store::{Fault, FaultyStore};
use memtier::tier::file_store::FileStore;
use memtier::units::{AreaId, Bytes, PAGE_SIZE};

const PAGE: u64 = PAGE_SIZE as u64;

fn evicted(pages: u64) -> Outcomes {
    Outcomes { evicted: pages, ..Outcomes::default() }
}

/// Pages of the only area that are in use.
fn used(guest: &Guest) -> u64 {
    guest.tiers.swap_areas()[0].used / PAGE
}

/// `pages` pages, the first `kept` of which left and came back; the area has `slots`.
fn guest_with_kept(pages: u64, kept: u64, slots: u64) -> Guest {
    let guest = Guest::new(pages);
    guest.swapon("swap", slots);
    (0..pages).for_each(|gfn| guest.fill(gfn, 1));
    assert_eq!(guest.tiers.evict(&[range(0, kept)]).unwrap(), evicted(kept));
    (0..kept).for_each(|gfn| guest.check(gfn, 1));
    guest.wait_for_clean(kept);
    assert_eq!(used(&guest), kept);
    guest
}

#[test]
fn a_page_that_did_not_change_leaves_again_without_being_written() {
    let guest = guest_with_kept(64, 64, 256);
    let before = guest.tiers.status().counters;
    for _ in 0..3 {
        assert_eq!(guest.tiers.evict(&[range(0, 64)]).unwrap(), evicted(64));
        assert_eq!((guest.host_pages(), used(&guest)), (0, 64));
        (0..64).for_each(|gfn| guest.check(gfn, 1));
        guest.wait_for_clean(64);
    }
    let after = guest.tiers.status().counters;
    assert_eq!((after.bytes_written, after.pages_out), (before.bytes_written, before.pages_out));
    assert_eq!(after.pages_out_clean, 3 * 64);
    assert_eq!(after.faults_major, 4 * 64);
}

#[test]
fn a_page_that_changed_is_stored_anew_and_its_old_slot_is_free() {
    let guest = guest_with_kept(64, 64, 256);
    // One bit of one word is a change; so is zero.
    (0..64).step_by(2).for_each(|gfn| guest.write(gfn, 511, guest.read(gfn, 511) ^ 1));
    (0..512).for_each(|word| guest.write(63, word, 0));
    let written = guest.tiers.status().counters.bytes_written;
    assert_eq!(guest.tiers.evict(&[range(0, 64)]).unwrap(), evicted(64));
    let status = guest.tiers.status();
    assert_eq!((status.zero_pages, status.swapped_pages, used(&guest)), (1, 63, 63));
    assert_eq!(status.counters.bytes_written - written, 32 * PAGE);
    (0..64).step_by(2).for_each(|gfn| guest.write(gfn, 511, guest.read(gfn, 511) ^ 1));
    (0..63).for_each(|gfn| guest.check(gfn, 1));
    assert_eq!(guest.read(63, 511), 0);
}

#[test]
fn no_slot_is_kept_once_half_of_the_area_is_in_use() {
    let guest = Guest::new(100);
    guest.swapon("swap", 100);
    (0..100).for_each(|gfn| guest.fill(gfn, 1));
    assert_eq!(guest.tiers.evict(&[range(0, 100)]).unwrap(), evicted(100));
    (0..100).for_each(|gfn| guest.check(gfn, 1));
    // A handler frees a slot after it has woken the guest.
    guest.tiers.shutdown();
    let kept = used(&guest);
    assert!((48..=50).contains(&kept), "{kept} of 100 slots are kept");
}

#[test]
fn a_full_tier_takes_kept_slots_back() {
    let guest = guest_with_kept(140, 40, 100);
    assert_eq!(guest.tiers.evict(&[range(40, 100)]).unwrap(), evicted(100));
    assert_eq!(used(&guest), 100);
    assert_eq!(guest.tiers.evict(&[range(0, 40)]).unwrap(), Outcomes { error: 40, ..Outcomes::default() });
    (0..140).for_each(|gfn| guest.check(gfn, 1));
}

#[test]
fn pins_and_locks_let_the_slot_go() {
    let guest = guest_with_kept(64, 64, 256);
    drop(guest.tiers.pin(range(0, 10)).unwrap());
    assert_eq!(used(&guest), 54);
    guest.tiers.lock(&[range(10, 10)]).unwrap();
    assert_eq!(used(&guest), 44);
    guest.tiers.unlock(&[range(10, 10)]).unwrap();
    assert_eq!(guest.tiers.evict(&[range(0, 64)]).unwrap(), evicted(64));
    // Brought back for a lock: not kept in the first place.
    guest.tiers.lock(&[range(20, 10)]).unwrap();
    assert_eq!(used(&guest), 54);
    (0..64).for_each(|gfn| guest.check(gfn, 1));
}

#[test]
fn swapoff_gives_up_the_slots_of_its_area_and_no_others() {
    let guest = guest_with_kept(64, 32, 256);
    let second = guest.swapon("second", 256);
    // Of equal standing with nobody: the first area is asked first, so this one stays empty until it is off.
    guest.tiers.swapoff(AreaId(0)).unwrap();
    assert_eq!(guest.tiers.evict(&[range(0, 64)]).unwrap(), evicted(64));
    (0..64).for_each(|gfn| guest.check(gfn, 1));
    assert_eq!(used(&guest), 64);
    let third = guest.swapon("third", 64);
    guest.tiers.swapoff(third).unwrap();
    assert_eq!(used(&guest), 64);
    guest.tiers.swapoff(second).unwrap();
    assert_eq!(guest.tiers.status().resident_pages, 64);
    (0..64).for_each(|gfn| guest.check(gfn, 1));
}

#[test]
fn a_write_while_an_unchanged_page_is_leaving_is_kept_and_its_slot_freed() {
    // Two shards, so that two of four pages make one batch.
    let guest = Guest::new(4);
    let store = FileStore::open(&guest.path("slow"), Some(Bytes::from_pages(200))).unwrap();
    let (store, faults) = FaultyStore::new(Box::new(store));
    guest.tiers.swap().swapon_store(Box::new(store), None).unwrap();
    (0..2).for_each(|gfn| guest.fill(gfn, 1));
    assert_eq!(guest.tiers.evict(&[range(0, 2)]).unwrap(), evicted(2));
    (0..2).for_each(|gfn| guest.check(gfn, 1));
    guest.wait_for_clean(2);
    guest.fill(1, 2);
    // The batch waits for page 1's write while page 0, which needs none, is claimed and compared already.
    faults.set(|op| op.is_write().then_some(Fault::Delay(Duration::from_millis(500))));
    let outcomes = std::thread::scope(|scope| {
        let evictor = scope.spawn(|| guest.tiers.evict(&[range(0, 2)]).unwrap());
        let began = Instant::now();
        while faults.injected() == 0 {
            assert!(began.elapsed() < Duration::from_secs(10), "nothing was written");
            std::thread::yield_now();
        }
        guest.fill(0, 2);
        evictor.join().unwrap()
    });
    assert_eq!(outcomes, Outcomes { cancelled: 1, ..evicted(1) });
    assert_eq!(used(&guest), 1);
    (0..2).for_each(|gfn| guest.check(gfn, 2));
}

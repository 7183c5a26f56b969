//! Memory leaves and comes back under a guest that uses it: every word is what the guest last wrote.

use std::time::{Duration, Instant};

use ebb_tests::payload::abi::{PAGE, WORK_BASE};
use ebb_tests::payload::pattern::{kind, kind_of, version_base, versioned_word, word};
use ebb_tests::payload::{Command, Pages, TieredVm, VersionedPages};
use memtier::status::{GuestRange, Outcomes};
use memtier::units::AreaId;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 64 * MIB;
const PAGES: u64 = (MEMORY - WORK_BASE) / PAGE;

fn guest(vcpus: u8) -> TieredVm {
    TieredVm::start(vcpus, MEMORY, Some(MEMORY + MIB))
}

fn all_pages(seed: u64) -> Pages {
    Pages { seed, start: WORK_BASE, pages: PAGES, kinds: kind::ALL }
}

/// How many of [`all_pages`] are all zeros.
fn zero_pages(seed: u64) -> u64 {
    let frames = WORK_BASE / PAGE..WORK_BASE / PAGE + PAGES;
    frames.filter(|frame| kind_of(seed, *frame, kind::ALL) == kind::ZERO).count() as u64
}

#[test]
fn everything_leaves_and_every_word_comes_back() {
    let guest = guest(2);
    guest.vcpu(0).fill(all_pages(11)).expect("filled");
    for round in 1..=2 {
        let outcomes = guest.evict(WORK_BASE, PAGES);
        assert_eq!(outcomes, Outcomes { evicted: PAGES, ..Outcomes::default() });
        let status = guest.status();
        let zeros = zero_pages(11);
        assert_eq!((status.zero_pages, status.swapped_pages), (zeros, PAGES - zeros));
        let verified = guest.vcpu(round - 1).verify(all_pages(11)).expect("verified");
        assert!(verified.is_clean(), "round {round}: {verified:?}");
        let status = guest.status();
        assert_eq!((status.zero_pages, status.swapped_pages), (0, 0));
    }
    assert_eq!(guest.status().counters.pages_poisoned, 0);
}

#[test]
fn all_of_memory_may_leave_with_the_image_in_it() {
    let guest = guest(2);
    guest.vcpu(1).fill(all_pages(12)).expect("filled");
    guest.evict(0, MEMORY / PAGE);
    for vcpu in guest.vcpus() {
        assert!(vcpu.verify(all_pages(12)).expect("verified").is_clean());
    }
}

#[test]
fn the_host_reads_the_guests_words_wherever_they_are() {
    let guest = guest(1);
    let pages = Pages { pages: 256, ..all_pages(13) };
    guest.vcpu(0).fill(pages).expect("filled");
    assert_eq!(guest.evict(WORK_BASE, 256).evicted, 256);
    for address in (WORK_BASE..WORK_BASE + 256 * PAGE).step_by(8) {
        let frame = address / PAGE;
        let expected = word(13, frame, kind_of(13, frame, kind::ALL), address % PAGE / 8);
        assert_eq!(guest.words().read(address).expect("guest memory"), expected, "at {address:#x}");
    }
}

#[test]
fn a_word_written_at_full_speed_never_loses_a_write() {
    let guest = guest(1);
    let address = WORK_BASE + 5 * PAGE + 8 * 77;
    let vcpu = guest.vcpu(0);
    vcpu.begin(Command::Hammer { address }).expect("begun");
    let mut outcomes = Outcomes::default();
    let begin = Instant::now();
    while outcomes.evicted + outcomes.cancelled < 3000 {
        outcomes.add(&guest.evict(WORK_BASE + 5 * PAGE, 1));
        assert!(begin.elapsed() < Duration::from_secs(120), "writer and evictor hardly meet: {outcomes:?}");
    }
    vcpu.ask_to_stop().expect("asked");
    let (results, mismatches) = vcpu.finish(Duration::from_secs(60)).expect("stopped");
    assert_eq!((results[1], mismatches.as_slice()), (0, [].as_slice()), "{outcomes:?}");
    assert_eq!(guest.words().read(address).expect("guest memory"), results[0]);
    println!("{} writes, {outcomes:?}", results[0]);
}

#[test]
fn pages_evicted_while_both_vcpus_write_them_hold_the_last_version() {
    let guest = guest(2);
    let pages = 2048;
    let versioned =
        VersionedPages { seed: 3, start: WORK_BASE, pages, table: WORK_BASE + pages * PAGE, hot: 32, vcpus: 2 };
    for vcpu in guest.vcpus() {
        vcpu.begin(Command::Soak(versioned)).expect("begun");
    }
    let mut outcomes = Outcomes::default();
    let mut rounds = 0;
    while outcomes.evicted < 20_000 || rounds < 20 {
        outcomes.add(&guest.evict(WORK_BASE, pages + pages * 16 / PAGE));
        guest.status();
        rounds += 1;
    }
    for vcpu in guest.vcpus() {
        vcpu.ask_to_stop().expect("asked");
    }
    for vcpu in guest.vcpus() {
        let verified = vcpu.finish_verified().expect("stopped");
        assert!(verified.is_clean(), "{verified:?}");
    }
    let audited = guest.vcpu(1).audit(versioned).expect("audited");
    assert!(audited.is_clean(), "{audited:?}");
    host_compares(&guest, versioned);
}

/// Compares every word with the version table, from the host's side.
fn host_compares(guest: &TieredVm, versioned: VersionedPages) {
    let read = |address: u64| guest.words().read(address).expect("guest memory");
    for page in 0..versioned.pages {
        let address = versioned.start + page * PAGE;
        let version = read(versioned.table + page * 16 + 8);
        let base = version_base(versioned.seed, address / PAGE);
        for index in 0..512 {
            let expected = versioned_word(base, version, index);
            assert_eq!(read(address + index * 8), expected, "page {page} word {index} version {version}");
        }
    }
}

#[test]
fn switching_the_area_off_brings_everything_back() {
    let guest = guest(1);
    guest.vcpu(0).fill(all_pages(14)).expect("filled");
    guest.evict(WORK_BASE, PAGES);
    let area = guest.memtier().swap_areas()[0].id;
    guest.memtier().swapoff(AreaId(area)).expect("switched off");
    assert_eq!(guest.status().swapped_pages, 0);
    assert!(guest.vcpu(0).verify(all_pages(14)).expect("verified").is_clean());
    let outcomes = guest.evict(WORK_BASE, PAGES);
    let zeros = zero_pages(14);
    assert_eq!(
        outcomes,
        Outcomes { evicted: zeros, error: PAGES - zeros, ..Outcomes::default() },
        "only zero pages need no area"
    );
}

#[test]
fn locked_and_pinned_pages_stay() {
    let guest = guest(1);
    guest.vcpu(0).fill(all_pages(15)).expect("filled");
    guest.evict(WORK_BASE, PAGES);
    let memtier = guest.memtier();
    let locked = GuestRange { start: WORK_BASE, len: 100 * PAGE };
    let pinned = GuestRange { start: WORK_BASE + 200 * PAGE, len: 50 * PAGE };
    memtier.lock(&[locked]).expect("locked");
    let pin = memtier.pin(pinned).expect("pinned");
    let outcomes = guest.evict(WORK_BASE, 300);
    assert_eq!(outcomes, Outcomes { locked: 100, busy: 50, absent: 150, ..Outcomes::default() });
    let status = guest.status();
    assert_eq!((status.locked_pages, status.pinned_pages), (100, 50));
    memtier.unlock(&[locked]).expect("unlocked");
    drop(pin);
    let outcomes = guest.evict(WORK_BASE, 300);
    assert_eq!(outcomes, Outcomes { evicted: 150, absent: 150, ..Outcomes::default() });
    assert!(guest.vcpu(0).verify(all_pages(15)).expect("verified").is_clean());
}

#[test]
fn untouched_memory_does_not_trap() {
    let guest = guest(1);
    let before = guest.status().counters;
    guest.vcpu(0).fill(all_pages(16)).expect("filled");
    let after = guest.status().counters;
    assert_eq!((after.faults_major, after.faults_minor), (before.faults_major, before.faults_minor));
}

//! Stores that fail: full, unwritable, unreadable, corrupted. A page that can't leave stays; a page that can't come back is poisoned and
//! reported, and no other page suffers.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ebb_tests::payload::abi::{PAGE, WORK_BASE};
use ebb_tests::payload::pattern::{kind, word};
use ebb_tests::payload::{Exception, Pages, PayloadError, TieredVm};
use memtier::status::{AreaSpec, Outcomes};
use memtier::tier::faulty_store::{Fault, Faults, FaultyStore, SlotOp};
use memtier::tier::file_store::FileStore;
use memtier::units::{AreaId, Bytes, Gfn, SlotOffset};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 32 * MIB;
const PAGES: u64 = (MEMORY - WORK_BASE) / PAGE;

/// No page is zero: every one of them needs a slot.
const KINDS: u64 = kind::RANDOM;

fn pages(start: u64, pages: u64) -> Pages {
    Pages { seed: 21, start, pages, kinds: KINDS }
}

/// A guest whose pages are filled, with a swap file of this many bytes.
fn filled_guest(swap: Option<u64>) -> TieredVm {
    let guest = TieredVm::start(2, MEMORY, swap);
    guest.vcpu(0).fill(pages(WORK_BASE, PAGES)).expect("filled");
    guest
}

/// As [`filled_guest`], with a store that can be made to fail.
fn guest_with_faulty_store() -> (TieredVm, Arc<Faults>) {
    let guest = filled_guest(None);
    let store = FileStore::open(&guest.swap_path(), Some(Bytes(MEMORY + MIB))).expect("a swap file");
    let (store, faults) = FaultyStore::new(Box::new(store));
    guest.memtier().swap().swapon_store(Box::new(store), None).expect("switched on");
    (guest, faults)
}

fn assert_every_word_is_right(guest: &TieredVm) {
    for vcpu in guest.vcpus() {
        let verified = vcpu.verify(pages(WORK_BASE, PAGES)).expect("verified");
        assert!(verified.is_clean(), "{verified:?}");
    }
    assert_eq!(guest.status().poisoned_pages, 0);
}

/// Lets the guest verify all of its pages. Those that are lost must be exactly as many as said; answers them.
fn lost_pages(guest: &TieredVm, count: usize) -> Vec<u64> {
    let end = WORK_BASE + PAGES * PAGE;
    let (mut lost, mut start) = (Vec::new(), WORK_BASE);
    while start < end {
        match guest.vcpu(0).verify(pages(start, (end - start) / PAGE)) {
            Ok(verified) => {
                assert!(verified.is_clean(), "only lost pages may suffer: {verified:?}");
                break;
            }
            Err(PayloadError::Exception { exception, .. }) if exception.vector == Exception::MACHINE_CHECK => {
                let page = exception.address & !(PAGE - 1);
                assert!(page >= start && page < end, "{exception}");
                lost.push(page);
                start = page + PAGE;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(lost.len() <= count, "more pages are lost than were broken: {lost:x?}");
    }
    assert_eq!(lost.len(), count, "{lost:x?}");
    let status = guest.status();
    assert_eq!((status.poisoned_pages, status.counters.pages_poisoned), (count as u64, count as u64));
    for page in (WORK_BASE..end).step_by(4096) {
        assert_eq!(guest.memtier().is_poisoned(Gfn::containing(page)), lost.contains(&page), "{page:#x}");
    }
    lost
}

/// The guest goes on with everything else.
fn assert_goes_on_without(guest: &TieredVm, lost: &[u64]) {
    let outcomes = guest.evict(WORK_BASE, PAGES);
    assert_eq!(
        outcomes,
        Outcomes { evicted: PAGES - lost.len() as u64, absent: lost.len() as u64, ..Outcomes::default() }
    );
    assert_eq!(lost_pages(guest, lost.len()), lost);
}

#[test]
fn what_a_full_area_does_not_take_stays_and_leaves_when_there_is_room() {
    let slots = 1024;
    let guest = filled_guest(Some(slots * PAGE));
    let outcomes = guest.evict(WORK_BASE, PAGES);
    let evicted = outcomes.evicted;
    assert_eq!(outcomes, Outcomes { evicted, error: PAGES - evicted, ..Outcomes::default() });
    assert_eq!(evicted, slots - 1, "all slots but the header's are used");
    assert_eq!(guest.status().swapped_pages, evicted);
    assert_every_word_is_right(&guest);

    let more = AreaSpec { path: guest.path("more"), size: Some(MEMORY), ..AreaSpec::default() };
    guest.memtier().swapon(&more).expect("switched on");
    assert_eq!(guest.evict(WORK_BASE, PAGES), Outcomes { evicted: PAGES, ..Outcomes::default() });
    assert_every_word_is_right(&guest);
}

#[test]
fn pages_stay_when_the_disk_behind_the_area_is_full() {
    let (guest, faults) = guest_with_faulty_store();
    faults.set(|op| (op.is_write() && op.slot().0 % 3 == 0).then_some(Fault::Fail(libc::ENOSPC)));
    let outcomes = guest.evict(WORK_BASE, PAGES);
    assert_eq!(outcomes.evicted + outcomes.error, PAGES, "{outcomes:?}");
    assert!(outcomes.error > 0 && outcomes.evicted > 0, "{outcomes:?}");
    assert_eq!(guest.status().counters.store_errors, outcomes.error);
    assert_every_word_is_right(&guest);
}

#[test]
fn a_failing_write_costs_a_slot_and_no_page() {
    let (guest, faults) = guest_with_faulty_store();
    for fault in [Fault::Fail(libc::EIO), Fault::Short] {
        faults.set(move |op| (op.is_write() && op.slot().0 % 50 == 7).then_some(fault));
        let outcomes = guest.evict(WORK_BASE, PAGES);
        assert_eq!(outcomes.evicted + outcomes.error, PAGES, "{outcomes:?}");
        assert!(outcomes.error > 0 && outcomes.evicted > PAGES / 2, "{outcomes:?}");
        assert_every_word_is_right(&guest);
    }
    assert!(guest.memtier().swap_areas()[0].bad_slots > 0);

    faults.clear();
    assert_eq!(guest.evict(WORK_BASE, PAGES).error, 0, "the slots that failed are not used again");
    assert_every_word_is_right(&guest);
}

/// A plan for reads only: what happens to the first, the second, and so on.
fn on_reads(
    nth: impl Fn(u64, SlotOffset) -> Option<Fault> + Send + Sync,
) -> impl Fn(SlotOp) -> Option<Fault> + Send + Sync {
    let reads = AtomicU64::new(0);
    move |op| match op {
        SlotOp::Read(slot) => nth(reads.fetch_add(1, Ordering::Relaxed), slot),
        SlotOp::Write(_) => None,
    }
}

#[test]
fn a_failing_read_loses_that_page_and_no_other() {
    let (guest, faults) = guest_with_faulty_store();
    guest.evict(WORK_BASE, PAGES);
    faults.set(on_reads(|nth, _| (nth == 1234).then_some(Fault::Fail(libc::EIO))));
    let lost = lost_pages(&guest, 1);
    faults.clear();
    assert_goes_on_without(&guest, &lost);
}

#[test]
fn bytes_that_are_not_the_ones_stored_never_reach_the_guest() {
    let (guest, faults) = guest_with_faulty_store();
    guest.evict(WORK_BASE, PAGES);
    faults.set(on_reads(|nth, slot| match nth {
        100 => Some(Fault::FlipBit(12_345)),
        200 => Some(Fault::Torn),
        300 => Some(Fault::Lost),
        400 => Some(Fault::Misdirect(SlotOffset(slot.0 - 1))),
        500 => Some(Fault::Short),
        _ => None,
    }));
    let lost = lost_pages(&guest, 5);
    faults.clear();
    assert_goes_on_without(&guest, &lost);
}

#[test]
fn a_write_that_never_happened_is_found_out_when_the_page_comes_back() {
    let (guest, faults) = guest_with_faulty_store();
    let writes = AtomicU64::new(0);
    faults.set(move |op| (op.is_write() && writes.fetch_add(1, Ordering::Relaxed) == 77).then_some(Fault::Lost));
    assert_eq!(guest.evict(WORK_BASE, PAGES).evicted, PAGES);
    let lost = lost_pages(&guest, 1);
    faults.clear();
    assert_goes_on_without(&guest, &lost);
}

/// Where in the swap file the guest's pages are: offset and guest physical address, by offset.
fn pages_in_file(file: &File) -> Vec<(u64, u64)> {
    let first_word = |page: u64| word(21, page / PAGE, KINDS, 0);
    let pages: HashMap<u64, u64> = (WORK_BASE..MEMORY).step_by(4096).map(|page| (first_word(page), page)).collect();
    let len = file.metadata().expect("metadata").len();
    let found = (0..len).step_by(4096).filter_map(|offset| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).expect("within the file");
        pages.get(&u64::from_le_bytes(bytes)).map(|page| (offset, *page))
    });
    found.collect()
}

#[test]
fn a_page_overwritten_in_the_swap_file_is_poisoned_and_the_others_are_not() {
    let guest = filled_guest(Some(MEMORY + MIB));
    guest.evict(WORK_BASE, PAGES);
    let victim = WORK_BASE + 1000 * PAGE;
    let file = File::options().read(true).write(true).open(guest.swap_path()).expect("the swap file");
    let (offset, _) = *pages_in_file(&file).iter().find(|(_, page)| *page == victim).expect("it is in the file");
    file.write_all_at(&[0xa5; 8], offset + 512).expect("overwritten");
    assert_eq!(lost_pages(&guest, 1), [victim]);
    assert_goes_on_without(&guest, &[victim]);
}

#[test]
fn pages_cut_off_with_the_end_of_the_swap_file_are_poisoned_and_the_others_are_not() {
    let guest = filled_guest(Some(MEMORY + MIB));
    guest.evict(WORK_BASE, PAGES);
    let file = File::options().read(true).write(true).open(guest.swap_path()).expect("the swap file");
    let by_offset = pages_in_file(&file);
    assert_eq!(by_offset.len() as u64, PAGES);
    let cut = &by_offset[by_offset.len() - 3..];
    file.set_len(cut[0].0).expect("cut off");
    let mut victims: Vec<u64> = cut.iter().map(|(_, page)| *page).collect();
    victims.sort_unstable();
    assert_eq!(lost_pages(&guest, 3), victims);
}

#[test]
fn an_area_with_an_unreadable_page_stays_on_and_says_so() {
    let (guest, faults) = guest_with_faulty_store();
    guest.evict(WORK_BASE, PAGES);
    // One slot fails, however often it is read.
    let broken = OnceLock::new();
    faults.set(on_reads(move |_, slot| (*broken.get_or_init(|| slot) == slot).then_some(Fault::Fail(libc::EIO))));
    let area = guest.memtier().swap_areas()[0].id;
    guest.memtier().swapoff(AreaId(area)).expect_err("one page can't be brought back");
    assert_eq!(guest.memtier().swap_areas().len(), 1);
    assert_eq!(guest.status().poisoned_pages, 0, "nobody has asked for that page yet");
    // The read works again: nothing was lost.
    faults.clear();
    guest.memtier().swapoff(AreaId(area)).expect("switched off");
    assert_every_word_is_right(&guest);
}

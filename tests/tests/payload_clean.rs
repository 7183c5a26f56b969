//! Pages that came back and were not written leave again without a write; those that were written leave as any other.

use ebb_tests::payload::abi::{PAGE, WORK_BASE};
use ebb_tests::payload::pattern::kind;
use ebb_tests::payload::{AccessLoop, AccessPattern, Pages, PayloadPlan, TieredVm};
use ebb_tests::tracking::cost::scan;
use memtier::status::{AreaSpec, ScanPlan, TrackerChoice};

const MIB: u64 = 1 << 20;
const PAGES: u64 = 16 * MIB / PAGE;
/// No zero pages among them: those have no slot to keep.
const FILLED: Pages = Pages { seed: 9, start: WORK_BASE, pages: PAGES, kinds: kind::ALL & !kind::ZERO };
const ONE_SCAN: ScanPlan = ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 20, backoff: Some(0) };

fn guest(tracker: TrackerChoice) -> TieredVm {
    let folder = tempfile::tempdir().expect("a folder");
    let area = AreaSpec { path: folder.path().join("swap"), size: Some(64 * MIB), ..AreaSpec::default() };
    let mut plan = PayloadPlan::with_areas(1, WORK_BASE + PAGES * PAGE, vec![area]);
    plan.tiering.as_mut().expect("tiered").tracker = tracker;
    let vm = TieredVm::of(&plan);
    vm.vcpu(0).fill(FILLED).expect("filled");
    assert_eq!(vm.evict(WORK_BASE, PAGES).evicted, PAGES);
    // All of it comes back by being read.
    assert!(vm.vcpu(0).verify(FILLED).expect("verified").is_clean());
    vm
}

/// Writes over the first pages.
fn write(vm: &TieredVm, pages: u64) {
    let writing = AccessLoop {
        pattern: AccessPattern::Sequential,
        write: true,
        start: WORK_BASE,
        pages,
        accesses: pages,
        seed: 1,
        histogram: None,
    };
    assert_eq!(vm.vcpu(0).access(writing).expect("written").accesses, pages);
}

fn leave_again(vm: &TieredVm, written: u64) {
    let before = vm.status().counters;
    assert_eq!(vm.evict(WORK_BASE, PAGES).evicted, PAGES);
    let after = vm.status().counters;
    assert_eq!(after.pages_out_clean - before.pages_out_clean, PAGES - written);
    assert_eq!(after.pages_out - before.pages_out, written);
    assert_eq!(after.bytes_written - before.bytes_written, written * PAGE, "only what was written costs I/O");
    let rest = Pages { start: WORK_BASE + written * PAGE, pages: PAGES - written, ..FILLED };
    assert!(vm.vcpu(0).verify(Pages { seed: FILLED.seed, ..rest }).expect("verified").is_clean());
}

#[test]
fn what_was_not_written_leaves_again_without_io_and_what_was_written_does_not() {
    let vm = guest(TrackerChoice::Unmap);
    assert_eq!(vm.status().clean_pages, PAGES);
    write(&vm, PAGES / 4);
    // Nobody has looked: that they were written is found out when they leave.
    assert_eq!(vm.status().clean_pages, PAGES);
    leave_again(&vm, PAGES / 4);
}

#[test]
fn the_dirty_log_tells_early_which_slots_are_of_no_use_any_more() {
    let vm = guest(TrackerChoice::DirtyLog);
    // Coming back looks like being written; from the next scan on it is certain.
    scan(&vm, ONE_SCAN);
    assert!(vm.vcpu(0).verify(FILLED).expect("verified").is_clean());
    assert_eq!(vm.status().clean_pages, PAGES);
    write(&vm, PAGES / 4);
    scan(&vm, ONE_SCAN);
    assert_eq!(vm.status().clean_pages, PAGES - PAGES / 4);
    leave_again(&vm, PAGES / 4);
}

//! The payload guest itself: it boots, runs what it is told on every vCPU, and finds what is wrong.

use std::time::Duration;

use ebb_tests::payload::abi::{HISTOGRAM_BUCKETS, PAGE, SCRATCH_BASE, WORK_BASE};
use ebb_tests::payload::pattern::{kind, kind_of, word};
use ebb_tests::payload::{
    AccessLoop, AccessPattern, Command, GuestWords, Pages, PayloadError, PayloadPlan, PayloadVm, Touch, VersionedPages,
    quantiles,
};

const MIB: u64 = 1 << 20;

fn plain(vcpus: u8, memory: u64) -> PayloadVm {
    PayloadVm::start(&PayloadPlan::plain(vcpus, memory)).expect("the guest starts")
}

#[test]
fn every_vcpu_fills_memory_and_finds_it_filled() {
    for vcpus in [1, 2] {
        let vm = plain(vcpus, 64 * MIB);
        for vcpu in vm.vcpus() {
            let pages = Pages { seed: 7, start: WORK_BASE, pages: 60 * MIB / PAGE, kinds: kind::ALL };
            vcpu.fill(pages).expect("filled");
        }
        let vcpu = vm.vcpu(vcpus - 1);
        let verified = vcpu.verify(Pages { seed: 7, start: WORK_BASE, pages: 60 * MIB / PAGE, kinds: kind::ALL });
        assert!(verified.expect("verified").is_clean());
    }
}

#[test]
fn the_host_sees_the_words_that_the_guest_wrote() {
    let vm = plain(1, 32 * MIB);
    let (seed, kinds) = (99, kind::ALL);
    vm.vcpu(0).fill(Pages { seed, start: WORK_BASE, pages: 512, kinds }).expect("filled");
    for frame in WORK_BASE / PAGE..WORK_BASE / PAGE + 512 {
        for index in 0..512 {
            let found = vm.words().read(frame * PAGE + index * 8).expect("guest memory");
            assert_eq!(found, word(seed, frame, kind_of(seed, frame, kinds), index), "frame {frame:#x} word {index}");
        }
    }
}

#[test]
fn one_wrong_word_is_found_where_it_is() {
    let vm = plain(1, 32 * MIB);
    let pages = Pages { seed: 3, start: WORK_BASE, pages: 1024, kinds: kind::RANDOM };
    vm.vcpu(0).fill(pages).expect("filled");
    let address = WORK_BASE + 700 * PAGE + 8 * 13;
    vm.words().write(address, 1).expect("guest memory");
    let verified = vm.vcpu(0).verify(pages).expect("verified");
    assert_eq!((verified.mismatches, verified.first[0].address, verified.first[0].found), (1, address, 1));
}

#[test]
fn memory_above_the_32_bit_hole_is_reachable() {
    let vm = plain(1, 5 << 30);
    let high = vm.work_ranges().pop().expect("there is memory");
    assert!(high.start >= 4 << 30, "the machine put {high:?} last");
    for start in [high.start, high.start + high.len - 16 * PAGE] {
        let pages = Pages { seed: 5, start, pages: 16, kinds: kind::RANDOM };
        vm.vcpu(0).fill(pages).expect("filled");
        assert!(vm.vcpu(0).verify(pages).expect("verified").is_clean());
    }
}

#[test]
fn an_access_outside_memory_is_reported_and_the_vcpu_goes_on() {
    let vm = plain(1, 32 * MIB);
    let outside = Pages { seed: 1, start: 48 * MIB, pages: 1, kinds: kind::RANDOM };
    match vm.vcpu(0).verify(outside) {
        Err(PayloadError::Exception { exception, .. }) => {
            assert_eq!((exception.vector, exception.address), (14, 48 * MIB))
        }
        other => panic!("{other:?}"),
    }
    let inside = Pages { start: WORK_BASE, ..outside };
    vm.vcpu(0).fill(inside).expect("filled");
    assert!(vm.vcpu(0).verify(inside).expect("verified").is_clean());
}

#[test]
fn touching_writes_the_pages_of_the_bitmap_and_no_others() {
    let vm = plain(1, 32 * MIB);
    vm.words().write_all(SCRATCH_BASE, [0b1010_0001, 0, 1 << 63]).expect("guest memory");
    let touch = Touch { bitmap: SCRATCH_BASE, start: WORK_BASE, pages: 192, write: Some(0x55) };
    assert_eq!(vm.vcpu(0).touch(touch).expect("touched"), 4);
    let touched: Vec<u64> = (0..192).filter(|page| page_holds(vm.words(), WORK_BASE + page * PAGE, 0x55)).collect();
    assert_eq!(touched, [0, 5, 7, 191]);
}

fn page_holds(words: GuestWords<'_>, page: u64, value: u64) -> bool {
    (0..512).any(|index| words.read(page + index * 8).expect("guest memory") == value)
}

#[test]
fn a_word_that_changes_under_a_soak_is_reported_at_once() {
    let vm = plain(2, 64 * MIB);
    let pages = VersionedPages { seed: 1, start: WORK_BASE, pages: 64, table: WORK_BASE + 32 * MIB, hot: 8, vcpus: 2 };
    for vcpu in vm.vcpus() {
        vcpu.begin(Command::Soak(pages)).expect("begun");
    }
    let quiet = vm.vcpu(0).mismatch_within(Duration::from_millis(500)).expect("no exception");
    assert_eq!(quiet, None);
    vm.words().write(WORK_BASE + 8 * 5, 0xdead_0000_dead).expect("guest memory");
    let reported = vm.vcpu(0).mismatch_within(Duration::from_secs(30)).expect("no exception").expect("a mismatch");
    assert_eq!(reported.address, WORK_BASE + 8 * 5);
    let mut operations = 0;
    for vcpu in vm.vcpus() {
        vcpu.ask_to_stop().expect("asked");
        vcpu.finish_verified().expect("stopped");
        operations += vcpu.counters().expect("counters").operations;
    }
    assert!(operations > 0);
    let audited = vm.vcpu(1).audit(pages).expect("audited");
    assert!(audited.mismatches <= 1, "only the word that was changed can still be wrong: {audited:?}");
}

#[test]
fn access_loops_count_what_they_do() {
    let vm = plain(1, 64 * MIB);
    let table = SCRATCH_BASE + 0x8000;
    let words = vm.words();
    let quantiles = quantiles(4096, 0.99);
    let pairs = quantiles.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32);
    words.write_all(table, pairs).expect("guest memory");
    let patterns = [
        AccessPattern::Sequential,
        AccessPattern::Random,
        AccessPattern::Zipf { table },
        AccessPattern::HotCold { hot: 400 },
    ];
    for (pattern, write) in patterns.into_iter().flat_map(|pattern| [(pattern, false), (pattern, true)]) {
        words.write_all(SCRATCH_BASE, (0..HISTOGRAM_BUCKETS / 2).map(|_| 0)).expect("guest memory");
        let access = AccessLoop {
            pattern,
            write,
            start: WORK_BASE,
            pages: 4096,
            accesses: 100_000,
            seed: 1,
            histogram: Some(SCRATCH_BASE),
        };
        let result = vm.vcpu(0).access(access).expect("ran");
        assert_eq!(result.accesses, 100_000);
        let measured: u64 = (0..HISTOGRAM_BUCKETS / 2)
            .map(|pair| words.read(SCRATCH_BASE + pair * 8).expect("guest memory"))
            .map(|pair| (pair & 0xffff_ffff) + (pair >> 32))
            .sum();
        assert_eq!(measured, 100_000, "{pattern:?}");
    }
}

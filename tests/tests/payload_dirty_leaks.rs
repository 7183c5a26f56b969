//! The dirty log is switched on and off under a guest at work, and leaves nothing behind: no thread, no descriptor, no mapping.
//!
//! Alone in its file: other tests in the same process would be counted too.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ebb_tests::payload::abi::{PAGE, WORK_BASE};
use ebb_tests::payload::{AccessLoop, AccessPattern, Command, PayloadPlan, PayloadVm};
use vmm::config::{DirtyLogMode, TieringConfig};

const PAGES: u64 = (16 << 20) / PAGE;
const WORDS: usize = ((WORK_BASE / PAGE + PAGES) / 64) as usize;

/// What this process holds: threads, descriptors, mappings of something.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    threads: usize,
    descriptors: Vec<String>,
    mappings: Vec<String>,
}

fn holdings() -> Holdings {
    let entries = |folder: &str| fs::read_dir(folder).expect("procfs").map(|entry| entry.expect("an entry").path());
    let target = |link: &Path| fs::read_link(link).map(|target| target.display().to_string()).unwrap_or_default();
    // The descriptor that lists them has another number each time.
    let mut descriptors: Vec<_> = entries("/proc/self/fd").map(|link| target(&link)).collect();
    descriptors.retain(|target| !target.starts_with("/proc/"));
    descriptors.sort();
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    // Without names are heaps and stacks, which come and go.
    let names = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|name| !name.starts_with('['));
    let mut mappings: Vec<_> = names.map(str::to_owned).collect();
    mappings.sort();
    Holdings { threads: entries("/proc/self/task").count(), descriptors, mappings }
}

fn is_of_kvm(name: &str) -> bool {
    ["kvm", "ebb-ram", "userfaultfd"].iter().any(|part| name.contains(part))
}

#[test]
fn a_hundred_starts_and_stops_under_load_leave_nothing_behind() {
    for dirty_log in [DirtyLogMode::Bitmap, DirtyLogMode::Ring { entries: 1024 }] {
        let before = holdings();
        let tiering = TieringConfig { dirty_log, ..TieringConfig::default() };
        let plan = PayloadPlan { tiering: Some(tiering), ..PayloadPlan::plain(2, WORK_BASE + PAGES * PAGE) };
        let vm = PayloadVm::start(&plan).expect("the guest starts");
        let log = vm.machine().dirty_log().expect("this KVM has a dirty log");
        for (seed, vcpu) in (1..).zip(vm.vcpus()) {
            let (start, accesses) = (WORK_BASE, u64::MAX);
            let pattern = AccessPattern::Random;
            let access = AccessLoop { pattern, write: true, start, pages: PAGES, accesses, seed, histogram: None };
            vcpu.begin(Command::Loop(access)).expect("begun");
        }
        let running = holdings();
        for round in 0..100 {
            log.start().expect("started");
            let mut bits = vec![0; WORDS];
            log.written(0, &mut bits).expect("read");
            assert!(bits.iter().all(|bits| *bits == u64::MAX), "{dirty_log:?}, start {round}: all count as written");
            log.clear(0, 0, &bits).expect("cleared");
            bits.fill(0);
            log.written(0, &mut bits).expect("read");
            log.stop().expect("stopped");
        }
        assert_eq!(holdings(), running, "{dirty_log:?}");
        for vcpu in vm.vcpus() {
            vcpu.ask_to_stop().expect("told to stop");
            vcpu.finish(Duration::from_secs(60)).expect("finished");
        }
        drop(vm);
        let after = holdings();
        assert_eq!((after.threads, &after.descriptors), (before.threads, &before.descriptors), "{dirty_log:?}");
        let left: Vec<_> = after.mappings.iter().filter(|name| is_of_kvm(name)).collect();
        assert!(left.is_empty(), "{dirty_log:?}: {left:?}");
        log.start().expect_err("the guest is gone");
    }
}

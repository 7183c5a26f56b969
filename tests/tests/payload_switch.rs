//! Trackers are changed while the guest runs: no access of a completed interval is lost, and nothing is left behind.

use std::time::Duration;

use ebb_tests::payload::abi::{PAGE, WORK_BASE};
use ebb_tests::payload::rng::Rng;
use ebb_tests::payload::{AccessLoop, AccessPattern, Command, PayloadPlan, TieredVm};
use ebb_tests::tracking::accuracy::Score;
use ebb_tests::tracking::sets::{PageSet, SetKind, draw};
use memtier::status::{ScanPlan, ScanState, TrackerChoice};

const MIB: u64 = 1 << 20;
/// Workload pages that are judged, and those that a second vCPU writes all the time.
const PAGES: u64 = 8 * MIB / PAGE;
const BUSY: u64 = 4 * MIB / PAGE;
const SWITCHES: u64 = 1000;
/// Where the bitmap of pages to touch is handed to the guest.
const BITMAP: u64 = ebb_tests::payload::abi::SCRATCH_BASE;

struct Guest(TieredVm);

impl Guest {
    fn start() -> Self {
        let memory = WORK_BASE + (PAGES + BUSY) * PAGE;
        let vm = TieredVm::of(&PayloadPlan::with_areas(2, memory, Vec::new()));
        let touched = AccessLoop {
            pattern: AccessPattern::Sequential,
            write: true,
            start: WORK_BASE,
            pages: PAGES + BUSY,
            accesses: PAGES + BUSY,
            seed: 1,
            histogram: None,
        };
        vm.vcpu(0).access(touched).expect("touched once");
        let load = AccessLoop { start: WORK_BASE + PAGES * PAGE, pages: BUSY, accesses: u64::MAX, ..touched };
        vm.vcpu(1).begin(Command::Loop(load)).expect("begun");
        Self(vm)
    }

    fn switch(&self, to: TrackerChoice) {
        let info = self.0.memtier().set_tracker(to).expect("switched");
        assert_eq!(Some(info.tracker), to.named());
    }

    fn touch(&self, set: &PageSet, write: Option<u64>) {
        self.0.words().write_all(BITMAP, set.words().iter().copied()).expect("guest memory");
        let touch = ebb_tests::payload::Touch { bitmap: BITMAP, start: WORK_BASE, pages: PAGES, write };
        self.0.vcpu(0).touch(touch).expect("touched");
    }

    fn mark_all_idle(&self) {
        let ones = vec![0xff; usize::try_from(PAGES / 8).expect("small")];
        self.0.memtier().write_idle(WORK_BASE / PAGE / 8, &ones).expect("marked");
    }

    fn seen(&self) -> PageSet {
        let mut bits = vec![0; usize::try_from(PAGES / 8).expect("small")];
        self.0.memtier().read_idle(WORK_BASE / PAGE / 8, &mut bits).expect("read");
        PageSet::from_words(bits.as_chunks::<8>().0.iter().map(|chunk| !u64::from_ne_bytes(*chunk)).collect())
    }
}

/// File descriptors, threads and mappings of this process.
fn possessions() -> [usize; 3] {
    let count = |folder: &str| std::fs::read_dir(folder).expect("readable").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("readable").lines().count();
    [count("/proc/self/fd"), count("/proc/self/task"), maps]
}

#[test]
fn a_thousand_switches_under_load_lose_no_access_and_leave_nothing_behind() {
    let guest = Guest::start();
    let mut rng = Rng::new(77);
    let mut score = Score::default();
    let mut before = None;
    for round in 0..SWITCHES / 2 {
        let set = draw(SetKind::ALL[usize::try_from(round % 5).expect("below five")], PAGES, round, &mut rng);
        let (early, late) = set.split(&mut rng);
        guest.mark_all_idle();
        // What the new tracker did not see, the old one has noted.
        guest.touch(&early, Some(round));
        guest.switch(TrackerChoice::DirtyLog);
        guest.touch(&late, Some(round));
        guest.switch(TrackerChoice::Unmap);
        score.add(&set, &guest.seen());
        if round == 20 {
            before = Some(possessions());
        }
    }
    let info = guest.0.memtier().tracker_info();
    assert_eq!(info.switches, SWITCHES, "{info:?}");
    assert_eq!((score.missed, score.invented), (0, 0), "{score:?}");
    let (before, after) = (before.expect("taken"), possessions());
    assert!(after.iter().zip(before).all(|(after, before)| *after <= before + 8), "{before:?} became {after:?}");
}

#[test]
fn a_scan_under_way_sees_what_was_touched_before_and_after_a_switch() {
    let guest = Guest::start();
    let mut rng = Rng::new(78);
    let tiers = guest.0.memtier();
    for round in 0..20 {
        let first = draw(SetKind::Random, PAGES, round, &mut rng);
        let second = draw(SetKind::Strided, PAGES, round, &mut rng);
        let scans = tiers.status().counters.scans;
        let id =
            tiers.start_scan(ScanPlan { loops: 1, interval_ms: 0, sleep_ms: 1500, backoff: Some(0) }).expect("begun");
        while tiers.scan(id).expect("kept").armed == 0 {
            std::thread::yield_now();
        }
        guest.touch(&first, Some(round));
        guest.switch(TrackerChoice::DirtyLog);
        guest.touch(&second, Some(round));
        guest.switch(TrackerChoice::Unmap);
        let report = loop {
            match tiers.scan(id).expect("kept") {
                report if report.state == ScanState::Running => std::thread::sleep(Duration::from_millis(2)),
                report => break report,
            }
        };
        assert_eq!((report.state, tiers.status().counters.scans), (ScanState::Done, scans + 1));
        let mut ages = vec![0; usize::try_from(PAGES).expect("small")];
        assert_eq!(tiers.read_ages(WORK_BASE / PAGE, &mut ages), ages.len());
        let touched = |set: &PageSet, page: usize| set.words()[page / 64] >> (page % 64) & 1 == 1;
        let missed: Vec<usize> = (0..ages.len())
            .filter(|page| (touched(&first, *page) || touched(&second, *page)) && ages[*page] != 0)
            .collect();
        assert!(missed.is_empty(), "round {round}: {} pages missed, {:?}..", missed.len(), missed.first());
    }
}

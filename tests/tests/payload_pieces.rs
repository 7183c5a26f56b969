//! Guest memory with transparent huge pages: whole pieces are collapsed when hot, split when part of them stays idle or is to leave, and no byte
//! changes on the way.

use std::time::Duration;

use ebb_tests::payload::abi::{PAGE, WORK_BASE};
use ebb_tests::payload::pattern::kind;
use ebb_tests::payload::{AccessLoop, AccessPattern, Command, Pages, PayloadPlan, TieredVm};
use ebb_tests::tracking::cost::scan;
use memtier::status::{AreaSpec, HugePages, PieceCounts, ReclaimRequest, ScanPlan};

const MIB: u64 = 1 << 20;
/// Workload memory, and the pages of one piece.
const PAGES: u64 = 28 * MIB / PAGE;
const PIECE: u64 = 512;
const FILLED: Pages = Pages { seed: 5, start: WORK_BASE, pages: PAGES, kinds: kind::ALL };

struct Guest(TieredVm);

fn guest() -> Guest {
    let folder = tempfile::tempdir().expect("a folder");
    let area = AreaSpec { path: folder.path().join("swap"), size: Some(64 * MIB), ..AreaSpec::default() };
    let plan = PayloadPlan {
        huge_pages: HugePages::Transparent,
        ..PayloadPlan::with_areas(2, WORK_BASE + PAGES * PAGE, vec![area])
    };
    let guest = Guest(TieredVm::of(&plan));
    guest.0.vcpu(0).fill(FILLED).expect("filled");
    guest
}

impl Guest {
    fn pieces(&self) -> PieceCounts {
        self.0.status().pieces.expect("a guest with huge pages")
    }

    /// Scans, while the guest reads pages over and over.
    fn scan_while_reading(&self, first: u64, pages: u64, scans: u32) {
        let reading = AccessLoop {
            pattern: AccessPattern::Sequential,
            write: false,
            start: WORK_BASE + first * PAGE,
            pages,
            accesses: u64::MAX,
            seed: 1,
            histogram: None,
        };
        self.0.vcpu(0).begin(Command::Loop(reading)).expect("begun");
        // Long enough for many walks over the pages, whatever a fault costs here.
        let sleep_ms = 50 + pages / 5;
        scan(&self.0, ScanPlan { loops: scans, interval_ms: 0, sleep_ms, backoff: Some(0) });
        self.0.vcpu(0).ask_to_stop().expect("guest memory");
        self.0.vcpu(0).finish(Duration::from_secs(60)).expect("ended");
    }

    fn verify(&self) {
        assert!(self.0.vcpu(1).verify(FILLED).expect("verified").is_clean());
    }

    /// Bytes of guest memory that this process has mapped by huge entries.
    fn mapped_huge(&self) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let start = self.0.words().host_range(0, PAGE).expect("guest memory") as u64;
        let mut inside = false;
        let mut kib = 0;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, _)) = first.split_once('-') {
                let from = u64::from_str_radix(from, 16).unwrap_or(0);
                inside = (start..start + WORK_BASE + PAGES * PAGE).contains(&from);
            } else if inside && first == "ShmemPmdMapped:" {
                kib += words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        kib << 10
    }
}

#[test]
fn hot_memory_is_collapsed_and_split_again_when_some_of_it_is_to_leave() {
    let guest = guest();
    guest.scan_while_reading(0, PAGES, 12);
    let hot = guest.pieces();
    assert!(hot.whole >= PAGES / PIECE, "{hot:?}");
    assert!(guest.mapped_huge() >= PAGES * PAGE, "{} bytes by huge entries", guest.mapped_huge());
    guest.verify();
    // 100 pages out of the middle of a piece.
    let outcomes = guest.0.evict(WORK_BASE + (3 * PIECE + 200) * PAGE, 100);
    assert_eq!(outcomes.evicted, 100, "{outcomes:?}");
    let split = guest.pieces();
    assert_eq!((split.splits, split.whole), (hot.splits + 1, hot.whole - 1), "{split:?}");
    assert_eq!(guest.0.status().resident_pages + 100, guest.0.status().guest_pages - guest.0.status().untouched_pages);
    let out = guest.0.status();
    assert_eq!(out.swapped_pages + out.zero_pages, 100, "{out:?}");
    guest.verify();
    let back = guest.0.status();
    assert_eq!(
        (back.counters.faults_major, back.counters.faults_minor),
        (out.swapped_pages, out.zero_pages),
        "{back:?}"
    );
}

#[test]
fn the_idle_part_of_a_hot_piece_is_split_off_and_leaves() {
    let guest = guest();
    guest.scan_while_reading(0, PAGES, 12);
    let before = guest.pieces();
    assert!(before.whole >= PAGES / PIECE, "{before:?}");
    // Half of the first piece stays in use, nothing else.
    guest.scan_while_reading(0, PIECE / 2, 12);
    let after = guest.pieces();
    assert_eq!((after.splits, after.whole), (before.splits + 1, before.whole - 1), "{after:?}");
    let request = ReclaimRequest { bytes: Some(PIECE / 2 * PAGE), min_idle_scans: Some(3) };
    // Only what is split leaves before other pieces have to be.
    let reclaimed = guest
        .0
        .memtier()
        .evict(&[memtier::status::GuestRange { start: WORK_BASE + PIECE / 2 * PAGE, len: PIECE / 2 * PAGE }]);
    assert_eq!(reclaimed.expect("evicted").evicted, PIECE / 2);
    assert_eq!(guest.pieces().splits, after.splits, "nothing else was split for that");
    let more = guest.0.memtier().reclaim(request).expect("reclaimed");
    assert_eq!(more.outcomes.evicted, PIECE / 2, "{more:?}");
    guest.verify();
}

#[test]
fn memory_that_is_written_while_its_pieces_are_split_and_collapsed_keeps_every_byte() {
    let guest = guest();
    for round in 0..6 {
        let (first, pages) = (round % 3 * 2 * PIECE, 6 * PIECE);
        guest.scan_while_reading(first, pages, 6);
        // One vCPU writes one word as fast as it can, in a piece that is split under it.
        let address = WORK_BASE + PAGES * PAGE - PAGE;
        guest.0.vcpu(1).begin(Command::Hammer { address }).expect("begun");
        let spared = PAGES - PIECE;
        let outcomes = guest.0.evict(WORK_BASE, spared);
        assert!(outcomes.evicted + outcomes.absent + outcomes.busy == spared && outcomes.error == 0, "{outcomes:?}");
        let last = guest.0.evict(WORK_BASE + spared * PAGE, PIECE);
        assert_eq!(last.error, 0, "{last:?}");
        guest.0.vcpu(1).ask_to_stop().expect("guest memory");
        let found = guest.0.vcpu(1).finish_verified().expect("ended");
        assert!(found.first.is_empty(), "{found:?}");
        let kept = Pages { pages: PAGES - 1, ..FILLED };
        assert!(guest.0.vcpu(1).verify(kept).expect("verified").is_clean(), "round {round}");
    }
}

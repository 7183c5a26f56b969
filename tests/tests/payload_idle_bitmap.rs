//! The idle bitmap says exactly which frames a guest touched.

use ebb_tests::payload::abi::{PAGE, SCRATCH_BASE, WORK_BASE};
use ebb_tests::payload::pattern::kind;
use ebb_tests::payload::rng::Rng;
use ebb_tests::payload::{Command, Pages, TieredVm, Touch};

const MIB: u64 = 1 << 20;

/// Frames of workload memory; the image's own come before them and are not looked at, since running it touches them.
const PAGES: u64 = 28 * MIB / PAGE;

/// Random sets to try.
const SETS: u64 = 1000;

/// Byte offset of the first workload frame in the bitmap.
const BITMAP_OFFSET: u64 = WORK_BASE / PAGE / 8;

/// A guest with all of its workload memory touched: untouched frames are not its own memory yet, and never idle.
struct Guest(TieredVm);

fn guest() -> Guest {
    let vm = TieredVm::start(2, WORK_BASE + PAGES * PAGE, Some(64 * MIB));
    vm.vcpu(0).fill(Pages { seed: 1, start: WORK_BASE, pages: PAGES, kinds: kind::ALL }).expect("filled");
    Guest(vm)
}

impl Guest {
    fn mark_all_idle(&self) {
        let ones = vec![0xff; bytes(PAGES)];
        assert_eq!(self.0.memtier().write_idle(BITMAP_OFFSET, &ones).expect("marked idle"), ones.len());
    }

    /// The workload frames that are not idle, 64 in a word.
    fn touched(&self) -> Vec<u64> {
        let mut bits = vec![0; bytes(PAGES)];
        assert_eq!(self.0.memtier().read_idle(BITMAP_OFFSET, &mut bits).expect("read"), bits.len());
        bits.chunks_exact(8).map(|chunk| !u64::from_le_bytes(chunk.try_into().expect("eight bytes"))).collect()
    }

    /// Lets each vCPU touch its part of the set, at the same time.
    fn touch(&self, parts: [&[u64]; 2], write: Option<u64>) {
        for (vcpu, (bitmap, part)) in self.0.vcpus().zip([SCRATCH_BASE, SCRATCH_BASE + 0x1_0000].into_iter().zip(parts))
        {
            self.0.words().write_all(bitmap, part.iter().copied()).expect("guest memory");
            vcpu.begin(Command::Touch(Touch { bitmap, start: WORK_BASE, pages: PAGES, write })).expect("begun");
        }
        for vcpu in self.0.vcpus() {
            vcpu.finish(std::time::Duration::from_secs(60)).expect("touched");
        }
    }
}

fn bytes(pages: u64) -> usize {
    usize::try_from(pages / 8).expect("a small bitmap")
}

/// A random set of frames: from a single one to nearly all, scattered or in runs.
fn random_set(rng: &mut Rng) -> Vec<u64> {
    let words = PAGES / 64;
    let mut set = vec![0; usize::try_from(words).expect("a small bitmap")];
    let rounds = [1, 16, 256, 1024, 2 * PAGES][usize::try_from(rng.below(5)).expect("below five")];
    let run = [1, 1, 2, 8][usize::try_from(rng.below(4)).expect("below four")];
    for _ in 0..=rng.below(rounds) {
        let first = rng.below(PAGES);
        for page in first..(first + run).min(PAGES) {
            set[usize::try_from(page / 64).expect("a small bitmap")] |= 1 << (page % 64);
        }
    }
    set
}

/// The frames that are in one set and not in the other.
fn frames_only_in(one: &[u64], other: &[u64]) -> Vec<u64> {
    let words = one.iter().zip(other).map(|(one, other)| one & !other);
    (0..)
        .zip(words)
        .flat_map(|(word, bits)| (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit))
        .collect()
}

#[test]
fn the_bitmap_is_the_set_of_frames_touched_by_reads_and_by_writes() {
    let guest = guest();
    let mut rng = Rng::new(20_241);
    for round in 0..SETS {
        let set = random_set(&mut rng);
        // Each vCPU takes the frames that a random mask gives it.
        let first: Vec<u64> = set.iter().map(|bits| bits & rng.draw()).collect();
        let second: Vec<u64> = set.iter().zip(&first).map(|(bits, first)| bits & !first).collect();
        let write = (rng.below(2) == 0).then_some(round);
        guest.mark_all_idle();
        guest.touch([&first, &second], write);
        let found = guest.touched();
        let (missed, invented) = (frames_only_in(&set, &found), frames_only_in(&found, &set));
        let counts = (missed.len(), invented.len());
        assert_eq!(
            counts,
            (0, 0),
            "set {round}, write {write:?}: missed {:?}.., invented {:?}..",
            missed.first(),
            invented.first()
        );
    }
}

#[test]
fn what_nobody_touches_stays_idle_and_reading_the_bitmap_is_no_touch() {
    let guest = guest();
    guest.mark_all_idle();
    for _ in 0..3 {
        assert!(guest.touched().iter().all(|bits| *bits == 0));
    }
}

#[test]
fn frames_that_are_out_or_never_touched_read_as_not_idle() {
    let guest = guest();
    assert_eq!(guest.0.evict(WORK_BASE, PAGES / 2).evicted, PAGES / 2);
    guest.mark_all_idle();
    let words = usize::try_from(PAGES / 128).expect("small");
    let not_idle = guest.touched();
    assert!(not_idle[..words].iter().all(|bits| *bits == u64::MAX), "frames that are out are not idle");
    assert!(not_idle[words..].iter().all(|bits| *bits == 0), "frames that are in are idle");
}

//! KVM's dirty log says exactly which pages were written, from a bitmap and from rings alike, whoever wrote them, and loses none.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use ebb_tests::payload::abi::{PAGE, SCRATCH_BASE, WORK_BASE};
use ebb_tests::payload::pattern::kind;
use ebb_tests::payload::rng::Rng;
use ebb_tests::payload::{AccessLoop, AccessPattern, Command, Pages, PayloadPlan, PayloadVm, Touch};
use memtier::DirtyLog;
use memtier::status::{TrackerChoice, TrackerKind};
use memtier::units::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};
use vmm::config::{DirtyLogMode, MIN_RING_ENTRIES, TieringConfig};

/// Pages of workload memory: many more than the smallest ring has entries. The image's own come before them and are not looked at.
const PAGES: u64 = WORDS as u64 * 64;
const WORDS: usize = 112;
/// The first workload word of a bitmap.
const FIRST: usize = (WORK_BASE / PAGE / 64) as usize;

/// The first of them are written by the host too, where a device is played.
const DEVICE_PAGES: u64 = PAGES / 16;

const MODES: [DirtyLogMode; 2] = [DirtyLogMode::Bitmap, DirtyLogMode::Ring { entries: MIN_RING_ENTRIES }];

/// A set of workload pages, 64 in a word.
type Set = Vec<u64>;

/// A guest with all of its workload memory written once, and its log.
struct Guest {
    vm: PayloadVm,
    log: Arc<dyn DirtyLog>,
}

impl Guest {
    fn start(dirty_log: DirtyLogMode) -> Self {
        Self::tracked(dirty_log, TrackerChoice::Unmap)
    }

    fn tracked(dirty_log: DirtyLogMode, tracker: TrackerChoice) -> Self {
        let tiering = TieringConfig { tracker, dirty_log, ..TieringConfig::default() };
        let plan = PayloadPlan { tiering: Some(tiering), ..PayloadPlan::plain(2, WORK_BASE + PAGES * PAGE) };
        let vm = PayloadVm::start(&plan).expect("the guest starts");
        let log = vm.machine().dirty_log().expect("this KVM has a dirty log");
        vm.vcpu(0).fill(Pages { seed: 1, start: WORK_BASE, pages: PAGES, kinds: kind::ALL }).expect("filled");
        Self { vm, log }
    }

    /// As [`Self::start`], with the log on and nothing in it.
    fn logged(dirty_log: DirtyLogMode) -> Self {
        let guest = Self::start(dirty_log);
        guest.log.start().expect("started");
        guest.clear(&vec![u64::MAX; WORDS]);
        guest
    }

    /// Workload pages written since they were cleared.
    fn written(&self) -> Set {
        let mut bits = vec![0; FIRST + WORDS];
        self.log.written(0, &mut bits).expect("read");
        bits.split_off(FIRST)
    }

    fn clear(&self, set: &[u64]) {
        self.log.clear(0, FIRST as u64 * 64, set).expect("cleared");
    }

    /// Lets each vCPU touch its part, at the same time.
    fn touch(&self, parts: [&[u64]; 2], write: Option<u64>) {
        for (vcpu, (bitmap, part)) in
            self.vm.vcpus().zip([SCRATCH_BASE, SCRATCH_BASE + 0x1_0000].into_iter().zip(parts))
        {
            self.vm.words().write_all(bitmap, part.iter().copied()).expect("guest memory");
            vcpu.begin(Command::Touch(Touch { bitmap, start: WORK_BASE, pages: PAGES, write })).expect("begun");
        }
        self.finish();
    }

    /// Begins random writes on both vCPUs.
    fn begin_writing(&self, accesses: u64) {
        for (seed, vcpu) in (1..).zip(self.vm.vcpus()) {
            let access = AccessLoop {
                pattern: AccessPattern::Random,
                write: true,
                start: WORK_BASE,
                pages: PAGES,
                accesses,
                seed,
                histogram: None,
            };
            vcpu.begin(Command::Loop(access)).expect("begun");
        }
    }

    fn stop(&self) {
        self.vm.vcpus().try_for_each(|vcpu| vcpu.ask_to_stop()).expect("asked");
        self.finish();
    }

    fn finish(&self) {
        for vcpu in self.vm.vcpus() {
            vcpu.finish(Duration::from_secs(120)).expect("finished");
        }
    }
}

/// The one test that measures is alone: others' threads have the same names.
static TURN: RwLock<()> = RwLock::new(());

fn among_others() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// A random set of pages: from a single one to nearly all, scattered or in runs.
fn random_set(rng: &mut Rng) -> Set {
    let mut set = vec![0; WORDS];
    let rounds = [1, 16, 256, 1024, 2 * PAGES][usize::try_from(rng.below(5)).expect("below five")];
    let run = [1, 1, 2, 8][usize::try_from(rng.below(4)).expect("below four")];
    for _ in 0..=rng.below(rounds) {
        let first = rng.below(PAGES);
        (first..(first + run).min(PAGES)).for_each(|page| set[word(page)] |= 1 << (page % 64));
    }
    set
}

fn word(page: u64) -> usize {
    usize::try_from(page / 64).expect("a small bitmap")
}

/// Splits a set at random.
fn split(set: &[u64], rng: &mut Rng) -> [Set; 2] {
    let first: Set = set.iter().map(|bits| bits & rng.draw()).collect();
    let second = set.iter().zip(&first).map(|(bits, first)| bits & !first).collect();
    [first, second]
}

fn pages_in(set: &[u64]) -> impl Iterator<Item = u64> {
    (0..)
        .zip(set)
        .flat_map(|(word, bits)| (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit))
}

fn count(set: &[u64]) -> u64 {
    set.iter().map(|bits| u64::from(bits.count_ones())).sum()
}

/// Compares two sets and says how they differ.
fn assert_same(found: &[u64], expected: &[u64], what: impl Debug) {
    let only_in = |one: &[u64], other: &[u64]| -> Vec<u64> {
        let rest: Set = one.iter().zip(other).map(|(one, other)| one & !other).collect();
        pages_in(&rest).collect()
    };
    let (missed, invented) = (only_in(expected, found), only_in(found, expected));
    let counts = (missed.len(), invented.len());
    assert_eq!(counts, (0, 0), "{what:?}: missed {:?}.., invented {:?}..", missed.first(), invented.first());
}

#[test]
fn what_vcpus_write_is_told_exactly() {
    let _turn = among_others();
    for mode in MODES {
        let guest = Guest::logged(mode);
        let mut rng = Rng::new(20_251);
        let mut last = vec![0; WORDS];
        for round in 0..150 {
            let set = random_set(&mut rng);
            let parts = split(&set, &mut rng);
            guest.touch([&parts[0], &parts[1]], Some(round));
            let found = guest.written();
            // What was not cleared in the round before is still there.
            let expected: Set = set.iter().zip(&last).map(|(set, last)| set | last).collect();
            assert_same(&found, &expected, (mode, round));
            assert_same(&guest.written(), &expected, (mode, round, "reading clears nothing"));
            let cleared: Set = found.iter().map(|bits| bits & (rng.draw() | rng.draw())).collect();
            guest.clear(&cleared);
            last = found.iter().zip(&cleared).map(|(found, cleared)| found & !cleared).collect();
        }
    }
}

#[test]
fn reads_of_pages_that_are_mapped_are_not_told() {
    let _turn = among_others();
    for mode in MODES {
        let guest = Guest::logged(mode);
        let mut rng = Rng::new(20_252);
        for round in 0..50 {
            let set = random_set(&mut rng);
            guest.touch([&set, &set], None);
            assert_same(&guest.written(), &[0; WORDS], (mode, round));
        }
    }
}

#[test]
fn what_this_process_writes_for_a_device_is_told_too() {
    let _turn = among_others();
    for mode in MODES {
        let guest = Guest::logged(mode);
        let mut rng = Rng::new(20_253);
        for round in 0..50 {
            let (by_host, by_guest) = (random_set(&mut rng), random_set(&mut rng));
            for page in pages_in(&by_host) {
                guest
                    .vm
                    .machine()
                    .memory()
                    .write_obj(round, GuestAddress(WORK_BASE + page * PAGE + 8))
                    .expect("memory");
            }
            guest.touch([&by_guest, &[]], Some(round));
            let expected: Set = by_host.iter().zip(&by_guest).map(|(host, guest)| host | guest).collect();
            let found = guest.written();
            assert_same(&found, &expected, (mode, round));
            guest.clear(&found);
            assert_same(&guest.written(), &[0; WORDS], (mode, round, "cleared"));
        }
    }
}

#[test]
fn a_ring_that_overflows_loses_nothing() {
    let _turn = among_others();
    let guest = Guest::logged(DirtyLogMode::Ring { entries: MIN_RING_ENTRIES });
    let halves = [0x5555_5555_5555_5555, !0x5555_5555_5555_5555].map(|half| vec![half; WORDS]);
    let everything = vec![u64::MAX; WORDS];
    for round in 0..20 {
        let before = guest.vm.machine().dirty_ring_stops();
        // Each vCPU writes more than three rings full, and nobody reads meanwhile. A stop of one makes room in both rings.
        guest.touch([&halves[round % 2], &halves[1 - round % 2]], Some(7));
        let stops = guest.vm.machine().dirty_ring_stops() - before;
        // The rings have room for this many at most, so they were emptied at least this often.
        let least = PAGES / (2 * u64::from(MIN_RING_ENTRIES));
        assert!(stops >= least, "{stops} stops, {least} at least are needed for {PAGES} pages");
        let found = guest.written();
        assert_same(&found, &everything, round);
        guest.clear(&found);
        assert_same(&guest.written(), &[0; WORDS], (round, "cleared"));
    }
}

/// A copy of workload memory, brought up to date by nothing but the log.
struct Copy {
    bytes: Vec<u8>,
    copied: u64,
}

impl Copy {
    fn update(&mut self, guest: &Guest) {
        let written = guest.written();
        // Cleared before it is copied: a write after the copy is told next time.
        guest.clear(&written);
        for page in pages_in(&written) {
            let into = &mut self.bytes[at(page)..][..PAGE_SIZE];
            guest.vm.machine().memory().read_slice(into, GuestAddress(WORK_BASE + page * PAGE)).expect("memory");
        }
        self.copied += count(&written);
    }
}

/// Where a page is in the copy.
fn at(page: u64) -> usize {
    usize::try_from(page * PAGE).expect("small")
}

/// Times that the guest is stopped and compared with its copy.
const ROUNDS: u64 = 5;

#[test]
fn a_copy_kept_by_the_log_alone_is_right_in_the_end() {
    let _turn = among_others();
    for mode in MODES {
        let guest = Guest::start(mode);
        guest.log.start().expect("started");
        let mut copy = Copy { bytes: vec![0; usize::try_from(PAGES * PAGE).expect("small")], copied: 0 };
        for round in 0..ROUNDS {
            let done = AtomicBool::new(false);
            guest.begin_writing(u64::MAX);
            std::thread::scope(|scope| {
                scope.spawn(|| play_device(&guest, round, &done));
                // Up to the end, so that what is right then is not so because everything was copied after it.
                while copy.copied < 2 * PAGES * (round + 1) {
                    copy.update(&guest);
                }
                guest.stop();
                done.store(true, Ordering::Relaxed);
            });
            copy.update(&guest);
            for page in 0..PAGES {
                let mut now = vec![0; PAGE_SIZE];
                guest
                    .vm
                    .machine()
                    .memory()
                    .read_slice(&mut now, GuestAddress(WORK_BASE + page * PAGE))
                    .expect("memory");
                assert!(now == copy.bytes[at(page)..][..PAGE_SIZE], "{mode:?}, {round}: page {page} was not told of");
            }
        }
    }
}

/// A device's writes, only to some pages: they must not cover up for what is not told of the guest's.
fn play_device(guest: &Guest, seed: u64, done: &AtomicBool) {
    let mut rng = Rng::new(seed);
    while !done.load(Ordering::Relaxed) {
        let address = WORK_BASE + rng.below(DEVICE_PAGES * PAGE / 8) * 8;
        guest.vm.machine().memory().write_obj(rng.draw(), GuestAddress(address)).expect("memory");
    }
}

#[test]
fn the_idle_bitmap_by_this_tracker_is_what_nobody_wrote() {
    let _turn = among_others();
    for mode in MODES {
        let guest = Guest::tracked(mode, TrackerChoice::DirtyLog);
        let (tiers, offset) = (guest.vm.memtier(), FIRST as u64 * 8);
        assert_eq!(tiers.tracker_info().tracker, TrackerKind::DirtyLog);
        let mut rng = Rng::new(20_254);
        for round in 0..50 {
            let set = random_set(&mut rng);
            let parts = split(&set, &mut rng);
            assert_eq!(tiers.write_idle(offset, &[0xff; WORDS * 8]).expect("marked idle"), WORDS * 8);
            guest.touch([&parts[0], &parts[1]], Some(round));
            let mut bits = [0; WORDS * 8];
            assert_eq!(tiers.read_idle(offset, &mut bits).expect("read"), bits.len());
            let (chunks, _) = bits.as_chunks::<8>();
            let found: Set = chunks.iter().map(|chunk| !u64::from_le_bytes(*chunk)).collect();
            assert_same(&found, &set, (mode, round));
        }
    }
}

#[test]
fn rings_tell_which_vcpu_wrote() {
    let _turn = among_others();
    let guest = Guest::logged(DirtyLogMode::Ring { entries: 1 << 16 });
    let before = guest.log.written_by_vcpu();
    let (few, many) = (vec![1; WORDS], vec![0xff00; WORDS]);
    guest.touch([&few, &many], Some(1));
    guest.touch([&few, &many], Some(2));
    guest.written();
    let by_vcpu: Vec<u64> = guest.log.written_by_vcpu().iter().zip(&before).map(|(now, before)| now - before).collect();
    // Each vCPU also writes its mailbox and its stack.
    for (found, expected) in by_vcpu.iter().zip([&few, &many].map(|set| count(set))) {
        assert!((expected..expected + 16).contains(found), "{by_vcpu:?}");
    }
    let bitmap = Guest::logged(DirtyLogMode::Bitmap);
    assert!(bitmap.log.written_by_vcpu().is_empty());
}

#[test]
fn a_log_that_is_off_or_asked_for_what_it_has_not_refuses() {
    let _turn = among_others();
    for mode in MODES {
        let guest = Guest::start(mode);
        let whole = FIRST + WORDS;
        let refused = |result: std::io::Result<()>| result.expect_err("refused").to_string();
        assert_eq!(refused(guest.log.written(0, &mut vec![0; whole])), "the dirty log is off");
        assert_eq!(refused(guest.log.clear(0, 0, &[1])), "the dirty log is off");
        guest.log.start().expect("started");
        guest.log.start().expect("nothing to do");
        assert_eq!(refused(guest.log.written(1, &mut [])), "the dirty log has no region 1, only 1");
        assert_eq!(
            refused(guest.log.written(0, &mut vec![0; whole - 1])),
            format!("a dirty bitmap of {} words for a region of {whole}", whole - 1)
        );
        for (first, words) in [(63, 1), (64, whole), (u64::MAX - 63, 1)] {
            let told = refused(guest.log.clear(0, first, &vec![0; words]));
            assert!(told.contains(&format!("from {first} on")), "{told}");
        }
        guest.log.stop().expect("stopped");
        guest.log.stop().expect("nothing to do");
        let log = Arc::clone(&guest.log);
        drop(guest);
        assert_eq!(refused(log.start()), "the guest is gone");
        log.stop().expect("what is gone logs nothing");
    }
}

/// Processor time of this process's threads whose name begins so: a busy machine makes everything take longer, but this only a little.
fn processor_time(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").map(|task| task.expect("a task").path());
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let of_this_name = tasks.filter(|task| read(task.join("comm")).starts_with(name));
    let nanos =
        of_this_name.map(|task| read(task.join("schedstat")).split(' ').next().map_or(0, |ns| ns.parse().unwrap_or(0)));
    Duration::from_nanos(nanos.sum())
}

/// This thread's processor time.
fn own_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec where the reference points.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(u64::try_from(time.tv_sec).expect("positive"), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// Prints what the log costs here, in processor time.
#[test]
fn what_it_costs_is_printed() {
    let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
    let everything = vec![u64::MAX; WORDS];
    for mode in [DirtyLogMode::Bitmap, MODES[1], DirtyLogMode::Ring { entries: 1 << 16 }] {
        let guest = Guest::logged(mode);
        let time = |clock: &dyn Fn() -> Duration, action: &dyn Fn()| {
            let before = clock();
            action();
            (clock() - before).as_secs_f64() * 1e9
        };
        let vcpu = || processor_time("vcpu0");
        let write_all = || guest.touch([&everything, &[]], Some(3));
        let mut least = [f64::MAX; 4];
        for _ in 0..5 {
            let first_write = time(&vcpu, &write_all);
            let read = time(&own_time, &|| drop(guest.written()));
            let write = time(&vcpu, &write_all);
            let clear = time(&own_time, &|| guest.clear(&everything));
            for (least, now) in least.iter_mut().zip([first_write, write, read, clear]) {
                *least = least.min(now / PAGES as f64);
            }
        }
        const TIMES: u32 = 200;
        let many = |action: &dyn Fn()| time(&own_time, &|| (0..TIMES).for_each(|_| action())) / f64::from(TIMES);
        let clean = many(&|| drop(guest.written()));
        let one = [&[1][..], &[0; WORDS - 1]].concat();
        let clear_one = many(&|| {
            guest.vm.machine().memory().write_obj(1, GuestAddress(WORK_BASE)).expect("memory");
            guest.clear(&one);
        });
        guest.clear(&everything);
        guest.begin_writing(200_000);
        // Not before they are at it.
        while count(&guest.written()) < 100 {}
        let begin = Instant::now();
        (0..50).for_each(|_| drop(guest.written()));
        let busy = begin.elapsed() / 50;
        let begin = Instant::now();
        (0..50).for_each(|_| guest.clear(&guest.written()));
        let busy_both = begin.elapsed() / 50;
        guest.finish();
        let [first_write, write, read, clear] = least;
        println!(
            "{mode:?}: {PAGES} pages; first write after clear {first_write:.0} ns/page, again {write:.0}; read {read:.1} ns/page, \
             of a clean log {:.2}, clear {clear:.1} ns/page, of one page {clear_one:.0} ns; while both vCPUs write a read takes {busy:?}, with a clear of what it found {busy_both:?}",
            clean / PAGES as f64
        );
    }
}

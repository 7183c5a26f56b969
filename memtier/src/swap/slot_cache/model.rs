//! Every interleaving of threads that take, give back, drain and switch off, within a bound on preemptions: no slot lost, none handed out twice,
//! none handed out once a swapoff began. Batches are of 2 slots and clusters of 4 here, so that few steps reach every corner.

use std::path::Path;

use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::thread;

use super::*;
use crate::page::Page;
use crate::tier::store::{PageStore, StoreKind, WriteRun};

/// A number of slots and nothing behind them: the caches never touch a store.
#[derive(Debug)]
struct NoStore(u64);

impl PageStore for NoStore {
    fn slots(&self) -> u64 {
        self.0
    }
    fn write(&self, _: &mut [WriteRun<'_>]) {
        unreachable!("slot caches do no I/O")
    }
    fn read(&self, _: SlotOffset, _: &mut Page) -> std::io::Result<()> {
        unreachable!("slot caches do no I/O")
    }
    fn read_run(&self, _: SlotOffset, _: &mut [Page]) -> std::io::Result<()> {
        unreachable!("slot caches do no I/O")
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn path(&self) -> &Path {
        Path::new("none")
    }
    fn kind(&self) -> StoreKind {
        StoreKind::File
    }
    fn direct_io(&self) -> bool {
        false
    }
}

const ONE: Shard = Shard(0);

/// Areas, their caches, and who holds which slot.
struct Bench {
    caches: SlotCaches,
    areas: Arc<Areas>,
    ids: Vec<AreaId>,
    /// By area, bit by slot: handed out. A slot handed out twice is found set.
    held: Vec<AtomicU64>,
}

impl Bench {
    /// Areas of equal priority that have so many slots to hand out.
    fn new(free: &[u64]) -> Arc<Self> {
        let areas = Arc::new(Areas::new(1));
        let ids = free.iter().map(|free| areas.swapon(Box::new(NoStore(free + 1)), Some(0)).unwrap()).collect();
        let held = free.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { caches: SlotCaches::new(Arc::clone(&areas), 1), areas, ids, held })
    }

    /// One area of `all` slots. Takes slots until `free` of them are left in it, an even number away: the caches are active then, and empty.
    fn with_free_left(all: u64, free: u64) -> (Arc<Self>, Vec<SwapEntry>) {
        let bench = Self::new(&[all]);
        let mut taken = Vec::new();
        while bench.areas.free_slots() > free {
            taken.extend(bench.take(2));
        }
        assert!(bench.caches.is_active() && bench.in_caches() == 0 && bench.areas.free_slots() == free);
        (bench, taken)
    }

    fn take(&self, count: usize) -> Vec<SwapEntry> {
        let mut out = [NO_ENTRY; 4];
        let taken = self.caches.take(ONE, &mut out[..count]);
        for entry in &out[..taken] {
            let bit = 1 << entry.slot().0;
            let before = self.held[usize::from(entry.area().0)].fetch_or(bit, Ordering::Relaxed);
            assert_eq!(before & bit, 0, "{entry} handed out twice");
        }
        out[..taken].to_vec()
    }

    fn give(&self, entries: Vec<SwapEntry>) {
        for entry in entries {
            let bit = 1 << entry.slot().0;
            let before = self.held[usize::from(entry.area().0)].fetch_and(!bit, Ordering::Relaxed);
            assert_ne!(before & bit, 0, "{entry} given back by nobody");
            self.caches.give_back(ONE, entry);
        }
    }

    fn in_caches(&self) -> u32 {
        self.caches.held().iter().sum()
    }

    /// When all threads are done and have given back what they had: every slot is there again.
    fn check(&self) {
        self.caches.drain();
        let mut free = 0;
        for (_, area) in self.areas.list() {
            area.slots.validate().unwrap();
            assert_eq!(area.slots.counts().used, 0, "slots lost");
            free += u64::from(area.slots.counts().free);
        }
        assert_eq!(self.areas.free_slots(), free);
    }
}

/// Small models, one race each: what they leave out the checker would leave out of a large one, too, since it has to bound the preemptions.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(6));
    builder.max_branches = 20_000;
    builder.check(run);
}

#[test]
fn two_takers_of_one_cache_get_different_slots() {
    for cached in [0, 1] {
        model(move || {
            let bench = Bench::new(&[12]);
            let first = bench.take(2 - cached);
            let other = Arc::clone(&bench);
            let worker = thread::spawn(move || other.take(2));
            let mine = bench.take(1);
            let theirs = worker.join().unwrap();
            assert_eq!((mine.len(), theirs.len()), (1, 2));
            bench.give([first, mine, theirs].concat());
            bench.check();
        });
    }
}

#[test]
fn slots_given_back_while_the_array_is_flushed_are_not_lost() {
    model(|| {
        let bench = Bench::new(&[16]);
        let mut held = [bench.take(2), bench.take(2)].concat();
        let theirs = held.split_off(3);
        // One place is left in the array of two: of what comes now, something flushes it.
        bench.give(held.split_off(2));
        let other = Arc::clone(&bench);
        let worker = thread::spawn(move || other.give(theirs));
        bench.give(held);
        worker.join().unwrap();
        bench.check();
    });
}

#[test]
fn a_drain_and_a_take_share_the_slots_between_them() {
    model(|| {
        let bench = Bench::new(&[12]);
        let first = bench.take(1);
        let other = Arc::clone(&bench);
        let worker = thread::spawn(move || other.take(2));
        bench.caches.drain();
        let theirs = worker.join().unwrap();
        assert_eq!(theirs.len(), 2);
        bench.give([first, theirs].concat());
        bench.check();
    });
}

#[test]
fn giving_back_while_the_caches_switch_off_leaves_nothing_in_them() {
    model(|| {
        // Three are free: the next take switches off.
        let (bench, mut held) = Bench::with_free_left(11, 3);
        let other = Arc::clone(&bench);
        let mine = held.split_off(7);
        let worker = thread::spawn(move || other.give(mine));
        let more = bench.take(1);
        worker.join().unwrap();
        assert!(!bench.caches.is_active());
        assert_eq!(bench.in_caches(), 0, "slots in caches that are off");
        bench.give([held, more].concat());
        bench.check();
    });
}

#[test]
fn refilling_while_the_caches_switch_off_leaves_nothing_in_them() {
    model(|| {
        // The first take leaves three, the second one switches off.
        let (bench, held) = Bench::with_free_left(11, 5);
        let other = Arc::clone(&bench);
        let worker = thread::spawn(move || other.take(1));
        let mine = [bench.take(2), bench.take(1)].concat();
        let theirs = worker.join().unwrap();
        if !bench.caches.is_active() {
            assert_eq!(bench.in_caches(), 0, "slots in caches that are off");
        }
        bench.give([held, mine, theirs].concat());
        bench.check();
    });
}

/// A swapoff of one of two areas; the other one has plenty, so that the caches stay active.
#[test]
fn nothing_is_handed_out_after_a_swapoff_began() {
    model(|| {
        let bench = Bench::new(&[4, 16]);
        let first = bench.take(1);
        let going = bench.ids[0];
        assert_eq!((first[0].area(), bench.in_caches()), (going, 1));
        let began = Arc::new(AtomicBool::new(false));
        let (other, flag) = (Arc::clone(&bench), Arc::clone(&began));
        let worker = thread::spawn(move || {
            let late = flag.load(Ordering::Acquire);
            let taken = other.take(2);
            assert!(!late || taken.iter().all(|entry| entry.area() != going), "handed out after the swapoff began");
            taken
        });
        bench.caches.begin_off(going).unwrap();
        began.store(true, Ordering::Release);
        let taken = worker.join().unwrap();
        assert!(bench.caches.is_active());
        bench.give([first, taken].concat());
        bench.caches.finish_off(going).unwrap();
        bench.check();
    });
}

/// As before, but the cache is empty at first, and it is the area's turn when the other thread refills it.
#[test]
fn what_a_refill_got_before_a_swapoff_began_is_drained() {
    model(|| {
        let bench = Bench::new(&[4, 16]);
        let first = bench.take(4);
        let going = bench.ids[0];
        assert_eq!((first[0].area(), first[2].area()), (going, bench.ids[1]));
        let began = Arc::new(AtomicBool::new(false));
        let (other, flag) = (Arc::clone(&bench), Arc::clone(&began));
        let worker = thread::spawn(move || {
            let mut taken = other.take(1);
            let late = flag.load(Ordering::Acquire);
            taken.extend(other.take(1));
            assert!(!late || taken[1].area() != going, "handed out after the swapoff began");
            taken
        });
        bench.caches.begin_off(going).unwrap();
        began.store(true, Ordering::Release);
        bench.give([first, worker.join().unwrap()].concat());
        bench.caches.finish_off(going).unwrap();
        bench.check();
    });
}

#[test]
fn a_swapoff_ends_only_when_every_slot_is_back() {
    model(|| {
        let bench = Bench::new(&[4, 16]);
        let first = bench.take(1);
        let going = bench.ids[0];
        bench.caches.begin_off(going).unwrap();
        let other = Arc::clone(&bench);
        let worker = thread::spawn(move || other.give(first));
        let early = bench.caches.finish_off(going);
        worker.join().unwrap();
        match early {
            Ok(()) => {}
            Err(SwapError::InUse { used: 1, .. }) => bench.caches.finish_off(going).unwrap(),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(bench.areas.list().len(), 1);
        bench.check();
    });
}

#[test]
fn a_swapoff_given_up_brings_every_slot_back() {
    model(|| {
        let bench = Bench::new(&[12]);
        let other = Arc::clone(&bench);
        let worker = thread::spawn(move || other.take(2));
        bench.caches.begin_off(bench.ids[0]).unwrap();
        bench.areas.abort_off(bench.ids[0]).unwrap();
        bench.give(worker.join().unwrap());
        bench.check();
        assert_eq!(bench.areas.free_slots(), 12);
    });
}

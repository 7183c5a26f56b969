//! Random sets of pages, touched and told.
//!
//! Promises: what is missed and what is invented are counted apart. Must never: touch a page that is not in a round's set while it counts.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ebb_tests::payload::rng::Rng;
use memtier::arena::Arena;
use memtier::memory::GuestMemory;
use memtier::track::AccessTracker;
use memtier::track::page_idle::PageIdle;

use crate::ground::Ground;
use crate::tell;

/// The whole of what is tried with pages of 4 KiB.
pub fn report(pages: u32, rounds: u32, seed: u64) -> Result<(), Box<dyn Error>> {
    let ground = Ground::new(pages)?;
    // Registered and locked as in the product.
    let arena = Arena::new(ground.memory()?, memtier::status::HugePages::Off)?;
    let tracker = PageIdle::open()?;
    let scene = Scene { ground: &ground, memory: &arena.memory, tracker: &tracker };
    let random = scene.random_sets(rounds, seed)?;
    tell("random.rounds", rounds);
    tell("random.touched", random.touched);
    tell("random.missed", random.missed);
    tell("random.invented", random.invented);
    tell("random.first_wrong", random.first_wrong);
    tell("untouched.told", scene.told_when_nothing_happens()?);
    tell("unmapped.told", scene.told_when_unmapped()?);
    tell("between.told", scene.told_when_touched_between_collecting_and_arming()?);
    tell("armed.told", scene.told_when_armed_without_collecting()?);
    let busy = scene.busy_thread(rounds, seed)?;
    tell("busy.missed", busy.missed);
    tell("busy.invented", busy.invented);
    tell("busy.passes", busy.touched);
    tell("churn.lost", scene.churn(rounds, seed)?);
    tracker.retire();
    Ok(())
}

/// Differences to the truth, over all rounds.
#[derive(Default)]
pub struct Tally {
    pub touched: u64,
    pub missed: u64,
    pub invented: u64,
    pub first_wrong: String,
}

impl Tally {
    pub fn compare(&mut self, what: &str, truth: &BTreeSet<u32>, told: &BTreeSet<u32>) {
        let missed: Vec<_> = truth.difference(told).collect();
        let invented: Vec<_> = told.difference(truth).collect();
        self.touched += truth.len() as u64;
        self.missed += missed.len() as u64;
        self.invented += invented.len() as u64;
        if self.first_wrong.is_empty() && !(missed.is_empty() && invented.is_empty()) {
            let some = |pages: Vec<&u32>| format!("{} {:?}", pages.len(), &pages[..pages.len().min(8)]);
            self.first_wrong = format!("{what}: missed {}, invented {}", some(missed), some(invented));
        }
    }
}

/// What is touched, and what watches it.
pub struct Scene<'a> {
    pub ground: &'a Ground,
    pub memory: &'a GuestMemory,
    pub tracker: &'a PageIdle,
}

impl Scene<'_> {
    /// As a scan does it: each batch is collected, and what was accessed of it is armed.
    pub fn arm(&self) -> std::io::Result<()> {
        for start in (0..self.ground.pages()).step_by(self.tracker.batch() as usize) {
            let batch = start..(start + self.tracker.batch()).min(self.ground.pages());
            let mut due = Vec::new();
            self.tracker.collect(self.memory, batch, &mut |run| due.push(run))?;
            due.into_iter().try_for_each(|run: Range<u32>| self.tracker.arm(self.memory, run))?;
        }
        Ok(())
    }

    pub fn told(&self) -> std::io::Result<BTreeSet<u32>> {
        let mut told = BTreeSet::new();
        self.tracker.collect(self.memory, 0..self.ground.pages(), &mut |run| told.extend(run))?;
        Ok(told)
    }

    /// Touches pages from a thread of its own, which ends with that.
    pub fn touch(&self, pages: &BTreeSet<u32>, write: bool) {
        std::thread::scope(|scope| {
            scope.spawn(|| pages.iter().for_each(|page| self.ground.touch(*page, write)));
        });
    }

    fn random_sets(&self, rounds: u32, seed: u64) -> std::io::Result<Tally> {
        let mut rng = Rng::new(seed);
        let mut tally = Tally::default();
        for round in 0..rounds {
            // The first rounds find most pages fresh.
            let set = random_set(&mut rng, self.ground.pages());
            let write = rng.below(2) == 1;
            self.arm()?;
            // Every other round from this thread, whose translations are as warm as can be.
            match round % 2 {
                0 => set.iter().for_each(|page| self.ground.touch(*page, write)),
                _ => self.touch(&set, write),
            }
            tally.compare(&format!("round {round}, write {write}"), &set, &self.told()?);
            // Collecting does not arm.
            tally.compare(&format!("round {round} again"), &set, &self.told()?);
        }
        Ok(tally)
    }

    fn told_when_nothing_happens(&self) -> std::io::Result<usize> {
        self.touch(&(0..self.ground.pages()).collect(), true);
        self.arm()?;
        let mut told = 0;
        for _ in 0..3 {
            told += self.told()?.len();
        }
        Ok(told)
    }

    /// Pages whose page tables were dropped have not been accessed since; those touched again have.
    fn told_when_unmapped(&self) -> std::io::Result<String> {
        self.arm()?;
        self.touch(&(0..64).collect(), false);
        self.ground.advise(0, 64, libc::MADV_DONTNEED_LOCKED)?;
        let gone = self.told()?.len();
        self.touch(&(8..12).collect(), false);
        let back: Vec<_> = self.told()?.into_iter().collect();
        Ok(format!("{gone} then {back:?}"))
    }

    /// Not lost, though it is told late.
    fn told_when_touched_between_collecting_and_arming(&self) -> std::io::Result<String> {
        self.arm()?;
        let before = self.told()?.len();
        self.touch(&[5].into(), true);
        self.tracker.arm(self.memory, 0..self.ground.pages())?;
        Ok(format!("{before} then {:?}", self.told()?))
    }

    fn told_when_armed_without_collecting(&self) -> std::io::Result<usize> {
        let all = 0..self.ground.pages();
        self.tracker.arm(self.memory, all.clone())?;
        self.touch(&[5].into(), true);
        self.tracker.arm(self.memory, all)?;
        Ok(self.told()?.len())
    }

    /// A thread goes round and round over a few pages all the time, while the tracker arms and collects: they are told in every round, and no
    /// others.
    fn busy_thread(&self, rounds: u32, seed: u64) -> std::io::Result<Tally> {
        let mut rng = Rng::new(seed);
        let hot: BTreeSet<u32> = (0..16).map(|_| page_below(&mut rng, self.ground.pages())).collect();
        let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Relaxed, both: nothing is handed over, the counts are only for seeing that it goes on.
                while !stop.load(Ordering::Relaxed) {
                    hot.iter().for_each(|page| self.ground.touch(*page, false));
                    passes.fetch_add(1, Ordering::Relaxed);
                }
            });
            let tally = self.watch_busy(rounds, &hot, &passes);
            stop.store(true, Ordering::Relaxed);
            tally
        })
    }

    fn watch_busy(&self, rounds: u32, hot: &BTreeSet<u32>, passes: &AtomicU64) -> std::io::Result<Tally> {
        let mut tally = Tally::default();
        // Until all of them have been touched at all, after whatever came before.
        wait_for_passes(passes);
        self.arm()?;
        for round in 0..rounds {
            self.arm()?;
            wait_for_passes(passes);
            tally.compare(&format!("busy {round}"), hot, &self.told()?);
        }
        tally.touched = passes.load(Ordering::Relaxed);
        Ok(tally)
    }

    /// A thread touches page after page, each once in a long while, counting what it has done; the tracker arms again and again. An access must
    /// be told by one of the collections around it. Answers how many were not.
    fn churn(&self, rounds: u32, seed: u64) -> std::io::Result<usize> {
        let mut rng = Rng::new(seed ^ 0xc4u64);
        let mut order: Vec<u32> = (0..self.ground.pages()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, usize::try_from(rng.below(at as u64 + 1)).unwrap_or(0));
        }
        self.arm()?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                order.iter().for_each(|page| self.ground.touch(*page, false));
                // Release: pairs with the load below, so that what was touched before is told by the collection after it.
                done.store(true, Ordering::Release);
            });
            let mut told = BTreeSet::new();
            for _ in 0..rounds {
                let last = done.load(Ordering::Acquire);
                let mut due = Vec::new();
                self.tracker.collect(self.memory, 0..self.ground.pages(), &mut |run| due.push(run))?;
                for run in due {
                    told.extend(run.clone());
                    self.tracker.arm(self.memory, run)?;
                }
                if last {
                    break;
                }
            }
            while !done.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            told.extend(self.told()?);
            Ok(order.len() - told.len())
        })
    }
}

fn wait_for_passes(passes: &AtomicU64) {
    let until = passes.load(Ordering::Relaxed) + 2;
    while passes.load(Ordering::Relaxed) < until {
        std::thread::yield_now();
    }
}

/// From a single page to nearly all, scattered or in runs.
fn random_set(rng: &mut Rng, pages: u32) -> BTreeSet<u32> {
    let most = [1, 16, 256, 1024, u64::from(pages)][usize::try_from(rng.below(5)).unwrap_or(0)];
    let run = [1, 1, 2, 8][usize::try_from(rng.below(4)).unwrap_or(0)];
    let starts: Vec<u32> = (0..=rng.below(most)).map(|_| page_below(rng, pages)).collect();
    starts.into_iter().flat_map(|first| first..(first + run).min(pages)).collect()
}

pub fn page_below(rng: &mut Rng, pages: u32) -> u32 {
    u32::try_from(rng.below(u64::from(pages))).unwrap_or(0)
}

//! Trackers against the truth, on payload guests: a guest touches exactly the pages of a set, and the idle bitmap says which ones it saw.
//!
//! Promises: the truth is what the guest was told to touch, each page once, by both vCPUs at the same time; frames of the image itself are not
//! judged. Must never: judge; whether a score is good is for the caller to say.

use std::time::Duration;

use crate::payload::abi::{PAGE, SCRATCH_BASE, WORK_BASE};
use crate::payload::pattern::kind;
use crate::payload::rng::Rng;
use crate::payload::{Command, Pages, TieredVm, Touch};
use crate::tracking::sets::{PageSet, SetKind, draw};

/// Byte offset of the first workload frame in the bitmap.
const BITMAP_OFFSET: u64 = WORK_BASE / PAGE / 8;
/// Where each vCPU finds the pages it is to touch: room for a million pages each.
const BITMAPS: [u64; 2] = [SCRATCH_BASE, SCRATCH_BASE + 0x2_0000];

/// What a tracker saw, summed over rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Frames touched and seen.
    pub seen: u64,
    /// Frames seen that nobody touched.
    pub invented: u64,
    /// Frames touched and not seen.
    pub missed: u64,
}

impl Score {
    /// Adds a round: what was touched against what was seen.
    pub fn add(&mut self, truth: &PageSet, found: &PageSet) {
        self.add_between(truth, truth, found);
    }

    /// Adds a round in which at least `must` had to be seen, and no more than `may`: inside a huge page, one access is all pages'.
    pub fn add_between(&mut self, must: &PageSet, may: &PageSet, found: &PageSet) {
        let (seen, _, invented) = may.compare(found);
        self.seen += seen;
        self.missed += must.compare(found).1;
        self.invented += invented;
    }

    /// Share of what was seen that was touched, in percent; 100 if nothing was seen.
    pub fn precision(&self) -> f64 {
        share(self.seen, self.invented)
    }

    /// Share of what was touched that was seen, in percent; 100 if nothing was touched.
    pub fn recall(&self) -> f64 {
        share(self.seen, self.missed)
    }
}

#[expect(clippy::cast_precision_loss, reason = "page counts are far below 2^52")]
fn share(right: u64, wrong: u64) -> f64 {
    if wrong == 0 { 100.0 } else { right as f64 * 100.0 / (right + wrong) as f64 }
}

/// Two vCPUs, and workload memory that was touched once: untouched frames are not the guest's own yet, and never idle.
pub struct Subject {
    vm: TieredVm,
    pages: u64,
}

impl Subject {
    /// Fills the workload memory of a guest with two vCPUs.
    ///
    /// # Panics
    /// If the guest does not do it.
    pub fn new(vm: TieredVm, pages: u64) -> Self {
        vm.vcpu(0).fill(Pages { seed: 1, start: WORK_BASE, pages, kinds: kind::ALL }).expect("filled");
        Self { vm, pages }
    }

    /// The guest.
    pub fn vm(&self) -> &TieredVm {
        &self.vm
    }

    /// Marks all workload frames idle.
    ///
    /// # Panics
    /// If they can't be.
    pub fn mark_all_idle(&self) {
        let ones = vec![0xff; self.bitmap_bytes()];
        assert_eq!(self.vm.memtier().write_idle(BITMAP_OFFSET, &ones).expect("marked idle"), ones.len());
    }

    /// The workload frames that are not idle.
    ///
    /// # Panics
    /// If the bitmap can't be read.
    pub fn seen(&self) -> PageSet {
        let mut bits = vec![0; self.bitmap_bytes()];
        assert_eq!(self.vm.memtier().read_idle(BITMAP_OFFSET, &mut bits).expect("read"), bits.len());
        let words = bits.as_chunks::<8>().0.iter().map(|chunk| !u64::from_ne_bytes(*chunk));
        PageSet::from_words(words.collect())
    }

    /// Lets each vCPU touch a random part of the set, at the same time.
    ///
    /// # Panics
    /// If the guest does not do it.
    pub fn touch(&self, set: &PageSet, write: Option<u64>, rng: &mut Rng) {
        let (first, second) = set.split(rng);
        for (vcpu, (bitmap, part)) in self.vm.vcpus().zip(BITMAPS.into_iter().zip([first, second])) {
            self.vm.words().write_all(bitmap, part.words().iter().copied()).expect("guest memory");
            let touch = Touch { bitmap, start: WORK_BASE, pages: self.pages, write };
            vcpu.begin(Command::Touch(touch)).expect("begun");
        }
        for vcpu in self.vm.vcpus() {
            vcpu.finish(Duration::from_secs(60)).expect("touched");
        }
    }

    fn bitmap_bytes(&self) -> usize {
        usize::try_from(self.pages / 8).expect("a small bitmap")
    }

    /// `rounds` sets of a kind: marked idle, touched, looked at. `expected` says what of a set has to be seen, and what may be.
    pub fn score(
        &self,
        sets: SetKind,
        write: bool,
        rounds: u64,
        rng: &mut Rng,
        expected: impl Fn(&PageSet) -> (PageSet, PageSet),
    ) -> Score {
        let mut score = Score::default();
        for round in 0..rounds {
            let set = draw(sets, self.pages, round, rng);
            self.mark_all_idle();
            self.touch(&set, write.then_some(round), rng);
            let (must, may) = expected(&set);
            score.add_between(&must, &may, &self.seen());
        }
        score
    }
}

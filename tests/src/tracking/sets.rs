//! Sets of pages for a guest to touch: what trackers are held against.
//!
//! Promises: the same set for the same kind, size and random numbers; pages are counted from the first page of workload memory. Must never: know
//! what is done with them.

use crate::payload::quantiles;
use crate::payload::rng::Rng;

/// Pages in 2 MiB.
const HUGE: u64 = 512;

/// How a set's pages are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// Any pages, from a few to most, scattered or in runs.
    Random,
    /// Every n-th page.
    Strided,
    /// As many draws from a zipf distribution (exponent 0.99) as a quarter of the pages.
    Zipf,
    /// A quarter of memory that moves on with every round, and a few pages elsewhere.
    Phases,
    /// Whole aligned pieces of 2 MiB.
    Aligned,
}

impl SetKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Random, Self::Strided, Self::Zipf, Self::Phases, Self::Aligned];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Strided => "strided",
            Self::Zipf => "zipf",
            Self::Phases => "phase-changing",
            Self::Aligned => "2 MiB-aligned",
        }
    }
}

/// A set of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// The empty set of `pages` pages, a multiple of 64.
    pub fn empty(pages: u64) -> Self {
        Self { words: vec![0; usize::try_from(pages / 64).expect("a small set")] }
    }

    /// From 64 pages to a word.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// 64 pages to a word.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn add(&mut self, page: u64) {
        self.words[usize::try_from(page / 64).expect("a small set")] |= 1 << (page % 64);
    }

    /// Pages in it.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Pages in both, only in this one, only in the other.
    pub fn compare(&self, other: &Self) -> (u64, u64, u64) {
        let count = |pick: fn(u64, u64) -> u64| {
            self.words.iter().zip(&other.words).map(|(a, b)| u64::from(pick(*a, *b).count_ones())).sum()
        };
        (count(|a, b| a & b), count(|a, b| a & !b), count(|a, b| !a & b))
    }

    /// The two parts of it that a random division gives.
    pub fn split(&self, rng: &mut Rng) -> (Self, Self) {
        let first: Vec<u64> = self.words.iter().map(|word| word & rng.draw()).collect();
        let second = self.words.iter().zip(&first).map(|(word, first)| word & !first).collect();
        (Self { words: first }, Self { words: second })
    }

    /// The pieces of 2 MiB that have a page in it, as wholes.
    pub fn whole_pieces(&self) -> Self {
        let mut whole = Self::empty(self.words.len() as u64 * 64);
        for (piece, words) in self.words.chunks(8).enumerate() {
            if words.iter().any(|word| *word != 0) {
                whole.words[piece * 8..piece * 8 + words.len()].fill(u64::MAX);
            }
        }
        whole
    }
}

/// The set of round `round`.
pub fn draw(kind: SetKind, pages: u64, round: u64, rng: &mut Rng) -> PageSet {
    let mut set = PageSet::empty(pages);
    match kind {
        SetKind::Random => {
            let rounds = [1, 16, 256, 1024, 2 * pages][usize::try_from(round % 5).expect("below five")];
            let run = [1, 1, 2, 8][usize::try_from(rng.below(4)).expect("below four")];
            for _ in 0..=rng.below(rounds) {
                let first = rng.below(pages);
                (first..(first + run).min(pages)).for_each(|page| set.add(page));
            }
        }
        SetKind::Strided => {
            let strides = [2, 3, 7, 16, 63, 64, 65, 511, 512, 1000];
            let stride = strides[usize::try_from(round % 10).expect("below ten")];
            (rng.below(stride)..pages).step_by(usize::try_from(stride).expect("small")).for_each(|page| set.add(page));
        }
        SetKind::Zipf => {
            let table = quantiles(u32::try_from(pages).expect("a small set"), 0.99);
            for _ in 0..pages / 4 {
                let entry = usize::try_from(rng.below(table.len() as u64 - 1)).expect("in the table");
                let (from, to) = (u64::from(table[entry]), u64::from(table[entry + 1]));
                set.add((from + rng.below((to - from).max(1))).min(pages - 1));
            }
        }
        SetKind::Phases => {
            let quarter = pages / 4;
            (quarter * (round % 4)..quarter * (round % 4 + 1)).for_each(|page| set.add(page));
            (0..pages / 100).for_each(|_| set.add(rng.below(pages)));
        }
        SetKind::Aligned => {
            for piece in 0..pages / HUGE {
                if rng.below(3) == 0 {
                    (piece * HUGE..(piece + 1) * HUGE).for_each(|page| set.add(page));
                }
            }
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_makes_sets_that_differ_from_round_to_round_and_are_not_everything() {
        const PAGES: u64 = 4096;
        for kind in SetKind::ALL {
            let mut rng = Rng::new(7);
            let sets: Vec<PageSet> = (0..8).map(|round| draw(kind, PAGES, round, &mut rng)).collect();
            assert!(sets.windows(2).all(|pair| pair[0] != pair[1]), "{kind:?}");
            assert!(sets.iter().any(|set| !set.is_empty() && set.len() < PAGES), "{kind:?}");
            let mut again = Rng::new(7);
            assert!(sets.iter().zip(0..).all(|(set, round)| *set == draw(kind, PAGES, round, &mut again)), "{kind:?}");
        }
    }

    #[test]
    fn sets_are_compared_split_and_rounded_to_pieces() {
        let (mut a, mut b) = (PageSet::empty(2048), PageSet::empty(2048));
        [1, 2, 600].into_iter().for_each(|page| a.add(page));
        [2, 3, 2047].into_iter().for_each(|page| b.add(page));
        assert_eq!(a.compare(&b), (1, 2, 2));
        let (one, two) = a.split(&mut Rng::new(3));
        assert_eq!((one.compare(&two).0, one.len() + two.len()), (0, a.len()));
        assert_eq!(a.whole_pieces().len(), 1024);
        assert_eq!(a.whole_pieces().compare(&a), (3, 1021, 0));
    }
}

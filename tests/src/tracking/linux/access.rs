//! What a Linux guest is told to touch: a set of its arena's pages, by reads or by writes, as one word of its console.
//!
//! Promises: the word and the access it stands for are the same on both ends; a set follows from the access and the arena's frames alone.
//! Must never: touch memory.

use std::fmt;
use std::str::FromStr;

use crate::payload::rng::Rng;
use crate::tracking::sets::{PageSet, SetKind, draw};

/// Pages in 2 MiB.
const HUGE: u64 = 512;

/// How an access's pages are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// None at all: what is seen then was invented.
    Nothing,
    /// As [`draw`] does, by position in the arena.
    Random,
    /// See `Random`.
    Strided,
    /// See `Random`.
    Zipf,
    /// See `Random`.
    Phases,
    /// Whole pieces of 2 MiB of the guest's physical memory, aligned there, of those that the arena has all of.
    Aligned,
}

impl Choice {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Nothing, Self::Random, Self::Strided, Self::Zipf, Self::Phases, Self::Aligned];

    /// A word for it, without space.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Random => "random",
            Self::Strided => "strided",
            Self::Zipf => "zipf",
            Self::Phases => "phases",
            Self::Aligned => "aligned",
        }
    }

    /// A name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Random => "random",
            Self::Strided => "strided",
            Self::Zipf => "zipf",
            Self::Phases => "phase-changing",
            Self::Aligned => "2 MiB-aligned",
        }
    }

    /// How many of the sets of this kind there are, when there are to be `rounds` of each: of nothing, one is enough.
    pub const fn rounds(self, rounds: u64) -> u64 {
        match self {
            Self::Nothing => 1,
            _ => rounds,
        }
    }

    /// What the result of an access is called.
    pub fn result_name(self, write: bool, round: u64) -> String {
        format!("{}.{}.{round}", self.word(), how(write))
    }
}

/// Every set of every kind, by reads and by writes, numbered from `first_number` on.
pub fn plan(first_number: u64, rounds: u64) -> impl Iterator<Item = Access> {
    let sets = Choice::ALL.into_iter().flat_map(move |choice| {
        (0..choice.rounds(rounds)).flat_map(move |round| [false, true].map(|write| (choice, round, write)))
    });
    (first_number..).zip(sets).map(|(number, (choice, round, write))| Access { choice, round, write, number })
}

const fn how(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

/// Why a word is no access.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no access: expected CHOICE:ROUND:read|write:NUMBER")]
pub struct AccessError(String);

/// One access to a set of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// How its pages are chosen.
    pub choice: Choice,
    /// Which of the sets of that kind.
    pub round: u64,
    /// By a write to each page, else by a read.
    pub write: bool,
    /// What tells it from all others of one guest; from 1.
    pub number: u64,
}

impl Access {
    /// The pages, counted in the order of `frames`, the ascending guest frame numbers of an arena of a multiple of 64 pages. Without a whole
    /// piece of 2 MiB in there, [`Choice::Aligned`] is empty.
    pub fn pages(&self, frames: &[u64]) -> PageSet {
        let pages = u64::try_from(frames.len()).expect("an arena is far smaller");
        let mut rng = Rng::new(self.round << 8 | self.choice as u64);
        let kind = match self.choice {
            Choice::Nothing => return PageSet::empty(pages),
            Choice::Aligned => return self.aligned(frames, &mut rng),
            Choice::Random => SetKind::Random,
            Choice::Strided => SetKind::Strided,
            Choice::Zipf => SetKind::Zipf,
            Choice::Phases => SetKind::Phases,
        };
        draw(kind, pages, self.round, &mut rng)
    }

    /// Half of the whole pieces, another half every time; one of them at least.
    fn aligned(&self, frames: &[u64], rng: &mut Rng) -> PageSet {
        let mut words = vec![0; frames.len() / 64];
        let pieces = whole_pieces(frames);
        for (at, first) in pieces.iter().enumerate() {
            let certain = (self.round % pieces.len() as u64) == at as u64;
            if rng.below(2) == 0 || certain {
                (*first..*first + usize_of(HUGE)).for_each(|page| words[page / 64] |= 1 << (page % 64));
            }
        }
        PageSet::from_words(words)
    }
}

/// Where in `frames`, which ascend, the whole aligned pieces of 2 MiB begin.
pub fn whole_pieces(frames: &[u64]) -> Vec<usize> {
    let len = usize_of(HUGE);
    let whole = |window: &[u64]| window[0].is_multiple_of(HUGE) && window[len - 1] == window[0] + HUGE - 1;
    frames.windows(len).enumerate().filter(|(_, window)| whole(window)).map(|(at, _)| at).collect()
}

fn usize_of(pages: u64) -> usize {
    usize::try_from(pages).expect("a small constant")
}

impl fmt::Display for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { choice, round, write, number } = *self;
        write!(out, "{}:{round}:{}:{number}", choice.word(), how(write))
    }
}

impl FromStr for Access {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        parse(text).ok_or_else(|| AccessError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Access> {
    let parts: Vec<&str> = text.split(':').collect();
    let [choice, round, how, number] = parts[..] else { return None };
    let choice = Choice::ALL.into_iter().find(|known| known.word() == choice)?;
    let write = match how {
        "read" => false,
        "write" => true,
        _ => return None,
    };
    Some(Access { choice, round: round.parse().ok()?, write, number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(choice: Choice, round: u64) -> Access {
        Access { choice, round, write: true, number: 1 }
    }

    /// Two stretches of frames: one from the middle of a piece over three whole ones, one over the most part of two pieces.
    fn frames() -> Vec<u64> {
        (0x1100..0x1800).chain(0x2001..0x2301).collect()
    }

    #[test]
    fn an_access_is_the_same_on_both_ends_of_the_console() {
        for choice in Choice::ALL {
            for write in [false, true] {
                let access = Access { choice, round: 3, write, number: 77 };
                assert_eq!(access.to_string().parse(), Ok(access));
            }
        }
        assert_eq!(access(Choice::Zipf, 4).to_string(), "zipf:4:write:1");
    }

    #[test]
    fn other_words_are_refused() {
        for word in ["", "zipf", "zipf:1:write", "zipf:1:write:1:1", "zap:1:read:1", "zipf:x:read:1", "zipf:1:reads:1"]
        {
            assert_eq!(word.parse::<Access>(), Err(AccessError(word.to_owned())));
        }
        assert_eq!(
            "zap".parse::<Access>().unwrap_err().to_string(),
            "\"zap\" is no access: expected CHOICE:ROUND:read|write:NUMBER"
        );
    }

    #[test]
    fn only_pieces_that_are_whole_and_aligned_count() {
        let frames = frames();
        let starts: Vec<u64> = whole_pieces(&frames).into_iter().map(|at| frames[at]).collect();
        assert_eq!(starts, [0x1200, 0x1400, 0x1600]);
    }

    #[test]
    fn aligned_sets_are_whole_pieces_and_change_from_round_to_round() {
        let frames = frames();
        let sets: Vec<PageSet> = (0..8).map(|round| access(Choice::Aligned, round).pages(&frames)).collect();
        for set in &sets {
            assert!(!set.is_empty() && set.len().is_multiple_of(HUGE), "{}", set.len());
        }
        assert!(sets.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_plan_reads_and_writes_every_kind_of_set_and_gives_each_access_its_own_number_and_name() {
        let all: Vec<Access> = plan(5, 3).collect();
        assert_eq!(all.len(), 2 + 5 * 3 * 2);
        assert!(all.iter().zip(5..).all(|(access, number)| access.number == number));
        assert_eq!(all.iter().filter(|access| access.write).count() * 2, all.len());
        let names = all.iter().map(|access| access.choice.result_name(access.write, access.round));
        assert_eq!(names.collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert_eq!(Choice::Zipf.result_name(true, 2), "zipf.write.2");
    }

    #[test]
    fn nothing_is_nothing_and_the_others_are_something() {
        let frames = frames();
        for choice in Choice::ALL {
            let touched: u64 = (0..5).map(|round| access(choice, round).pages(&frames).len()).sum();
            assert_eq!(touched == 0, choice == Choice::Nothing, "{choice:?}");
        }
    }
}

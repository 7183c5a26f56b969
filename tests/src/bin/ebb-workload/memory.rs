//! The memory part: fills pages, changes some, verifies all.
//!
//! Promises: between two calls nothing of the memory is touched; `verify` looks at every byte. Must never: report a page as good without having
//! read it.

use std::time::Instant;

use crate::pattern::{Page, WORDS, ZERO, fill, wrong_bytes};

/// Filled memory.
pub struct Memory {
    pages: Vec<Page>,
    seed: u64,
    /// Every `stride`-th page is of `generation`, the others of generation 0.
    stride: usize,
    generation: u32,
}

/// What a verification found.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Pages looked at.
    pub pages: usize,
    /// Bytes that are wrong.
    pub mismatches: usize,
    /// The first wrong pages: number, wrong bytes, first word found.
    pub examples: Vec<(usize, usize, u64)>,
}

impl Memory {
    /// Fills this many pages, touching each once.
    pub fn fill(pages: usize, seed: u64) -> Self {
        let mut filled = Vec::with_capacity(pages);
        for index in 0..pages {
            filled.push(ZERO);
            fill(&mut filled[index], seed, number(index), 0);
        }
        Self { pages: filled, seed, stride: 1, generation: 0 }
    }

    /// Pages held.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Gives every `stride`-th page new contents, and the others their first ones again if an earlier call changed them.
    pub fn rewrite(&mut self, stride: usize) {
        let previous = std::mem::replace(&mut self.stride, stride.max(1));
        let changed_before = self.generation > 0;
        self.generation += 1;
        for (index, page) in self.pages.iter_mut().enumerate() {
            if index % self.stride == 0 {
                fill(page, self.seed, number(index), self.generation);
            } else if changed_before && index % previous == 0 {
                fill(page, self.seed, number(index), 0);
            }
        }
    }

    /// Reads one word of every `stride`-th page and answers their sum, which keeps the reads from being optimised away.
    pub fn touch(&self, stride: usize) -> u64 {
        self.pages.iter().step_by(stride.max(1)).fold(0, |sum: u64, page| sum.wrapping_add(page.0[WORDS / 2]))
    }

    /// Looks at every byte.
    pub fn verify(&self) -> Verdict {
        let mut verdict = Verdict { pages: 0, mismatches: 0, examples: Vec::new() };
        for (index, page) in self.pages.iter().enumerate() {
            let generation = if index % self.stride == 0 { self.generation } else { 0 };
            let wrong = wrong_bytes(page, self.seed, number(index), generation);
            verdict.pages += 1;
            verdict.mismatches += wrong;
            if wrong > 0 && verdict.examples.len() < 8 {
                verdict.examples.push((index, wrong, page.0[0]));
            }
        }
        verdict
    }
}

/// A page count for a share of this machine's memory, from `/proc/meminfo`.
pub fn pages_for_percent(percent: u64) -> Result<usize, String> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|error| format!("/proc/meminfo: {error}"))?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).ok_or("/proc/meminfo has no MemTotal")?;
    let kib: u64 =
        total.trim().trim_end_matches(" kB").parse().map_err(|error| format!("MemTotal {total}: {error}"))?;
    usize::try_from(kib / 4 * percent / 100).map_err(|error| error.to_string())
}

/// Milliseconds since `start`.
pub fn ms_since(start: Instant) -> u128 {
    start.elapsed().as_millis()
}

fn number(index: usize) -> u64 {
    // A page number has at most 52 bits on this architecture.
    u64::try_from(index).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_and_rewritten_verifies_and_a_changed_byte_does_not() {
        let mut memory = Memory::fill(300, 11);
        assert_eq!(memory.verify(), Verdict { pages: 300, mismatches: 0, examples: vec![] });
        for stride in [7, 3, 1, 5] {
            memory.rewrite(stride);
            assert_eq!(memory.verify().mismatches, 0, "stride {stride}");
        }
        memory.pages[123].0[17] ^= 0xff00;
        let verdict = memory.verify();
        assert_eq!((verdict.pages, verdict.mismatches), (300, 1));
        assert_eq!((verdict.examples[0].0, verdict.examples[0].1), (123, 1));
    }

    #[test]
    fn a_page_that_missed_its_rewrite_is_found() {
        let mut memory = Memory::fill(64, 5);
        let old = memory.pages[8];
        memory.rewrite(8);
        memory.pages[8] = old;
        assert!(memory.verify().mismatches > 1000 || crate::pattern::Kind::of(5, 8) == crate::pattern::Kind::Zero);
    }

    #[test]
    fn percent_is_of_this_machines_memory() {
        let all = pages_for_percent(100).expect("meminfo");
        let half = pages_for_percent(50).expect("meminfo");
        assert!(all > 1000 && half.abs_diff(all / 2) <= 1, "{all} {half}");
    }
}

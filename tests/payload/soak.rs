//! The soak: every vCPU writes versions of its own pages and checks all of them, for ever.
//!
//! Page `p` of the range belongs to vCPU `p % vcpus`; only the owner writes it. The version table, in guest memory like everything else,
//! has two words per page: the version being written, and the version that is complete. The owner announces, writes, completes. A reader
//! notes the completed version, reads the words, then notes the announced version: each word must hold a version in between (x86 keeps
//! stores in order, and loads too). A lost write, an old copy that comes back, a foreign page: all of them fall outside.
//!
//! Promises: a word that holds what nobody wrote is reported at once. Must never: write another vCPU's pages.

pub mod hammer;
mod owned;

use crate::abi::{PAGE, counter};
use crate::fill::Mismatches;
use crate::mailbox::{Args, Mailbox};
use crate::memory;
use crate::pattern::{WORDS, version_base, versioned_word, word_is_between};
use crate::port::Ports;
use crate::rng::Rng;

/// One vCPU's part of a soak.
pub struct Soak<'a> {
    mailbox: &'a Mailbox,
    mismatches: Mismatches<'a>,
    rng: Rng,
    seed: u64,
    vcpu: u64,
    vcpus: u64,
    start: u64,
    pages: u64,
    hot: u64,
    table: u64,
}

impl<'a> Soak<'a> {
    /// See [`crate::abi::command::SOAK`].
    pub fn new(vcpu: u64, mailbox: &'a Mailbox, ports: &'a Ports, args: &Args) -> Self {
        let &[seed, start, pages, table, hot, vcpus, ..] = args;
        let rng = Rng::new(seed ^ vcpu ^ memory::cycles());
        Self {
            mailbox,
            mismatches: Mismatches::new(ports),
            rng,
            seed,
            vcpu,
            vcpus: vcpus.max(1),
            start,
            pages,
            hot,
            table,
        }
    }

    /// Runs until the host says stop.
    pub fn run(mut self) {
        while !self.mailbox.stop() {
            let page = self.pick();
            let before = self.mismatches.count();
            match (page % self.vcpus == self.vcpu, self.rng.below(8)) {
                (true, 0..4) => self.rewrite(page),
                (true, 4..6) => self.rewrite_in_place(page),
                (true, _) => self.verify(page),
                (false, _) => self.verify_foreign(page),
            }
            self.mailbox.count(counter::OPS, 1);
            self.mailbox.count(counter::MISMATCHES, self.mismatches.count() - before);
        }
        self.mailbox.results(&self.mismatches.results());
    }

    /// See [`crate::abi::command::AUDIT`]: every page, nobody writing.
    pub fn audit(mut self) {
        for page in 0..self.pages {
            self.check(page, self.completed(page), self.announced(page));
        }
        self.mailbox.results(&self.mismatches.results());
    }

    /// A page; every other time one of the hot ones, on which evictor and writers meet most often.
    fn pick(&mut self) -> u64 {
        let limit = if self.rng.draw() >> 63 == 0 { self.hot.clamp(1, self.pages) } else { self.pages };
        self.rng.below(limit)
    }

    /// Another vCPU's page: words may be of any version that was there while they were read.
    fn verify_foreign(&mut self, page: u64) {
        let least = self.completed(page);
        let (base, address) = (self.base(page), self.address(page));
        let mut words = [0; WORDS as usize];
        for (index, word) in (0..).zip(&mut words) {
            *word = memory::read(address + index * 8);
        }
        let most = self.announced(page);
        for (index, found) in (0..).zip(words) {
            if !word_is_between(base, least, most, index, found) {
                self.mismatches.report(address + index * 8, least, most, found);
            }
        }
        self.mailbox.count(counter::FOREIGN, 1);
    }

    /// Checks all words of a page that nobody writes meanwhile.
    fn check(&mut self, page: u64, least: u64, most: u64) {
        let (base, address) = (self.base(page), self.address(page));
        for index in 0..WORDS {
            let found = memory::read(address + index * 8);
            let right = if least == most {
                found == versioned_word(base, least, index)
            } else {
                word_is_between(base, least, most, index, found)
            };
            if !right {
                self.mismatches.report(address + index * 8, least, most, found);
            }
        }
    }

    fn address(&self, page: u64) -> u64 {
        self.start + page * PAGE
    }

    fn base(&self, page: u64) -> u64 {
        version_base(self.seed, self.address(page) / PAGE)
    }

    fn announced(&self, page: u64) -> u64 {
        memory::read(self.table + page * 16)
    }

    fn completed(&self, page: u64) -> u64 {
        memory::read(self.table + page * 16 + 8)
    }

    fn announce(&self, page: u64, version: u64) {
        memory::write(self.table + page * 16, version);
    }

    fn complete(&self, page: u64, version: u64) {
        memory::write(self.table + page * 16 + 8, version);
    }
}

//! What a vCPU does to the pages it owns: verify, rewrite, rewrite in place in a tight loop.
//!
//! Promises: the version table says what a page holds before and after. Must never: leave a page half-written and called complete.

use super::Soak;
use crate::abi::counter;
use crate::memory;
use crate::pattern::{WORDS, versioned_word};

/// The most passes of one tight loop; a fraction of a millisecond.
const MAX_PASSES: u64 = 256;

impl Soak<'_> {
    /// Verifies every word, writes nothing.
    pub(super) fn verify(&mut self, page: u64) {
        let version = self.own_version(page);
        self.check(page, version, version);
        self.mailbox.count(counter::VERIFIED, 1);
    }

    /// Verifies every word, then writes the next version at full speed.
    pub(super) fn rewrite(&mut self, page: u64) {
        self.verify(page);
        let version = self.completed(page) + 1;
        let (base, address) = (self.base(page), self.address(page));
        self.announce(page, version);
        for index in 0..WORDS {
            memory::write(address + index * 8, versioned_word(base, version, index));
        }
        self.complete(page, version);
        self.mailbox.count(counter::WRITTEN, 1);
    }

    /// Many versions in a row, word by word: each word is checked in the moment before it is written. Wherever an eviction falls into
    /// this, the next pass sees a write that was lost.
    pub(super) fn rewrite_in_place(&mut self, page: u64) {
        let from = self.own_version(page);
        let passes = 1 + self.rng.below(MAX_PASSES);
        let (base, address) = (self.base(page), self.address(page));
        self.announce(page, from + passes);
        for version in from..from + passes {
            for index in 0..WORDS {
                let expected = versioned_word(base, version, index);
                let found = memory::read(address + index * 8);
                if found != expected {
                    self.mismatches.report(address + index * 8, version, version, found);
                }
                memory::write(address + index * 8, versioned_word(base, version + 1, index));
            }
        }
        self.complete(page, from + passes);
        self.mailbox.count(counter::PASSES, passes);
    }

    /// The version an own page has. Announced and completed are the same, since only this vCPU changes them and is not in between.
    fn own_version(&mut self, page: u64) -> u64 {
        let (announced, completed) = (self.announced(page), self.completed(page));
        if announced != completed {
            self.mismatches.report(self.table + page * 16, announced, announced, completed);
        }
        completed
    }
}

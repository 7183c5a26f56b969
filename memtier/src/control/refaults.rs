//! What is known of pages that were wanted back: how far they had got, and who waited for them.
//!
//! Promises: a moment's picture, counted without locks. Must never: walk frames.

use crate::control::Memtier;
use crate::refault::Refaults;

impl Memtier {
    /// Pages that have left so far, and how many others had left meanwhile when one was wanted back.
    pub fn refaults(&self) -> Refaults {
        self.arena.refaults.snapshot()
    }

    /// Faults of each vCPU that read a page from a tier. Other threads' are in [`crate::status::Counters::faults_major`] only.
    pub fn major_faults_by_vcpu(&self) -> Vec<u64> {
        self.threads.major_faults()
    }
}

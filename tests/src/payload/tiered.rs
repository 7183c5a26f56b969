//! A payload guest with a swap file of its own: what most tests start from.
//!
//! Promises: its files go with it; whoever asks for the status gets one that adds up. Must never: be used where a failure is an answer; it
//! panics instead.

use std::ops::Deref;
use std::path::PathBuf;

use memtier::status::{GuestRange, Outcomes, Status};
use tempfile::TempDir;

use super::abi::PAGE;
use super::{PayloadPlan, PayloadVm};

/// The guest and its files. Dereferences to the guest.
pub struct TieredVm {
    vm: PayloadVm,
    folder: TempDir,
}

impl TieredVm {
    /// Starts a guest with a swap file of `swap` bytes, header included, or with none at all.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(vcpus: u8, memory: u64, swap: Option<u64>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let path = folder.path().join("swap");
        let plan = match swap {
            Some(size) => PayloadPlan::tiered(vcpus, memory, path, size),
            None => PayloadPlan::with_areas(vcpus, memory, Vec::new()),
        };
        Self { vm: PayloadVm::start(&plan).expect("the guest starts"), folder }
    }

    /// Starts any guest.
    ///
    /// # Panics
    /// If it does not start.
    pub fn of(plan: &PayloadPlan) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        Self { vm: PayloadVm::start(plan).expect("the guest starts"), folder }
    }

    /// A path beside the swap file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The swap file.
    pub fn swap_path(&self) -> PathBuf {
        self.path("swap")
    }

    /// Evicts pages and answers what became of each.
    ///
    /// # Panics
    /// If the request is refused, or a page is not accounted for.
    pub fn evict(&self, start: u64, pages: u64) -> Outcomes {
        let outcomes =
            self.vm.memtier().evict(&[GuestRange { start, len: pages * PAGE }]).expect("an eviction is not refused");
        let Outcomes { evicted, absent, locked, shared, busy, cancelled, error } = outcomes;
        assert_eq!(evicted + absent + locked + shared + busy + cancelled + error, pages, "{outcomes:?}");
        outcomes
    }

    /// The status.
    ///
    /// # Panics
    /// If its sizes do not add up.
    pub fn status(&self) -> Status {
        let status = self.vm.memtier().status();
        let out = status.swapped_pages + status.zero_pages + status.discarded_pages;
        let sum = status.resident_pages + status.untouched_pages + out + status.poisoned_pages;
        assert_eq!(sum, status.guest_pages, "{status:?}");
        status
    }
}

impl Deref for TieredVm {
    type Target = PayloadVm;

    fn deref(&self) -> &PayloadVm {
        &self.vm
    }
}

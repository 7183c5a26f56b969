//! The memory slots whose writes are logged, and the record of what this process writes to them.
//!
//! A slot is a region of guest memory, numbered alike. Logging costs nothing while it is off: the slots have no flag then, and KVM keeps no
//! bitmap.
//!
//! Promises: switching on is for all slots or for none; what devices write is recorded for as long as what vCPUs write is. Must never: know
//! how KVM tells what was written.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::calls::{WORD_PAGES, words};
use crate::kvm::Vm;
use devices::DeviceWrites;

/// All slots of a machine.
pub struct Slots {
    vm: Arc<Vm>,
    /// Pages of each.
    pages: Vec<u64>,
}

impl Slots {
    /// The slots of `vm`.
    pub fn new(vm: Arc<Vm>) -> Self {
        let pages = vm.ram().slots().map(|(range, _)| memtier::units::Bytes(range.len).pages()).collect();
        Self { vm, pages }
    }

    /// The machine.
    pub fn vm(&self) -> &VmFd {
        self.vm.fd()
    }

    /// Pages of each slot, in order.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// Switches logging on. After an error it is off.
    pub fn start(&self) -> io::Result<()> {
        // The record first, so that from the moment this returns nothing is missed.
        self.each_record(DeviceWrites::start);
        let started = (0..self.pages.len()).try_for_each(|slot| self.vm.log_writes(slot, true));
        if started.is_err()
            && let Err(error) = self.stop()
        {
            tracing::warn!(%error, "the dirty log could not be switched off again");
        }
        started
    }

    /// Switches logging off for every slot; answers the first error.
    pub fn stop(&self) -> io::Result<()> {
        let stopped = (0..self.pages.len()).map(|slot| self.vm.log_writes(slot, false));
        let result = stopped.fold(Ok(()), io::Result::and);
        self.each_record(DeviceWrites::stop);
        result
    }

    /// The slot behind region number `region`: its number, its pages, its record. An error if there is none.
    pub fn region(&self, region: usize) -> io::Result<Slot<'_>> {
        let missing = || invalid(format!("the dirty log has no region {region}, only {}", self.pages.len()));
        let writes = self.vm.ram().device_writes(region).ok_or_else(missing)?;
        let (pages, number) = (self.pages.get(region), u32::try_from(region));
        Ok(Slot { number: number.map_err(|_| missing())?, pages: *pages.ok_or_else(missing)?, writes })
    }

    fn each_record(&self, action: impl Fn(&DeviceWrites)) {
        (0..self.pages.len()).filter_map(|region| self.vm.ram().device_writes(region)).for_each(action);
    }
}

/// One slot.
pub struct Slot<'a> {
    /// KVM's number for it.
    pub number: u32,
    /// Its length.
    pub pages: u64,
    /// What devices wrote to it.
    pub writes: &'a DeviceWrites,
}

impl Slot<'_> {
    /// An error unless a bitmap of `bits` words is the slot's.
    pub fn check_whole(&self, bits: usize) -> io::Result<()> {
        match words(self.pages) {
            words if words == bits => Ok(()),
            words => Err(invalid(format!("a dirty bitmap of {bits} words for a region of {words}"))),
        }
    }

    /// The word in which page `first` is; an error unless `bits` words from there on are the slot's.
    pub fn check_part(&self, first: u64, bits: usize) -> io::Result<usize> {
        let word = words(first);
        if !first.is_multiple_of(WORD_PAGES) || bits > words(self.pages).saturating_sub(word) {
            let pages = self.pages;
            return Err(invalid(format!("dirty pages from {first} on, {bits} words, are not in a region of {pages}")));
        }
        Ok(word)
    }
}

/// The log was asked before it was started.
pub fn off() -> io::Error {
    io::Error::other("the dirty log is off")
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

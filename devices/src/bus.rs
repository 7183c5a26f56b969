//! A bus: which device answers at which address. One for port I/O, one for memory-mapped I/O.
//!
//! Promises: ranges never overlap; an access reaches a device only when all of its bytes lie in that device's range; what nobody answers
//! reads as all ones, is dropped when written, and is counted. Must never: hold one device's lock while another
//! works.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A device that a guest reads and writes at offsets from where it was put.
pub trait BusDevice: Send {
    /// Fills `data` from `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device's name and addresses, as errors show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// The device's name.
    pub name: String,
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
}

impl BusRange {
    fn last(&self) -> u64 {
        // `insert` refused ranges that are empty or wrap around.
        self.base + (self.len - 1)
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x}, {:#x} long)", self.name, self.base, self.len)
    }
}

/// Why a device was not put on a bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range holds no address, or reaches past the last one.
    #[error("{range} is not a range of addresses")]
    BadRange {
        /// The range asked for.
        range: BusRange,
    },
    /// Another device is there.
    #[error("{range} overlaps {taken}")]
    Overlap {
        /// The range asked for.
        range: BusRange,
        /// The device that has been there before.
        taken: BusRange,
    },
}

/// Accesses that no device answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

struct Slot {
    range: BusRange,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Devices by address. Filled while the machine is built, then shared by all vCPU threads.
#[derive(Default)]
pub struct Bus {
    /// By first address.
    slots: BTreeMap<u64, Slot>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + len`.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let range = BusRange { name: name.into(), base, len };
        if len == 0 || base.checked_add(len - 1).is_none() {
            return Err(BusError::BadRange { range });
        }
        // Ranges do not overlap each other, so only the last one that starts at or before our end can reach into ours.
        if let Some((_, below)) = self.slots.range(..=range.last()).next_back()
            && below.range.last() >= base
        {
            return Err(BusError::Overlap { range, taken: below.range.clone() });
        }
        self.slots.insert(base, Slot { range, device });
        Ok(())
    }

    /// The devices' ranges in address order.
    pub fn ranges(&self) -> impl Iterator<Item = &BusRange> {
        self.slots.values().map(|slot| &slot.range)
    }

    /// Reads `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((slot, offset)) => {
                // A device whose thread panicked is still the guest's device; the release build aborts before it comes to this.
                slot.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => {
                data.fill(0xff);
                // Relaxed: a count for people, it orders nothing.
                self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes `data` at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some((slot, offset)) => {
                slot.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
            }
            None => {
                // Relaxed: as in `read`.
                self.unclaimed_writes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many accesses nobody answered so far.
    pub fn unclaimed(&self) -> Unclaimed {
        Unclaimed {
            // Relaxed: see `read`.
            reads: self.unclaimed_reads.load(Ordering::Relaxed),
            writes: self.unclaimed_writes.load(Ordering::Relaxed),
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Slot, u64)> {
        let bytes = u64::try_from(len).ok()?;
        let last = address.checked_add(bytes.checked_sub(1)?)?;
        let (_, slot) = self.slots.range(..=address).next_back()?;
        (last <= slot.range.last()).then(|| (slot, address - slot.range.base))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the last write, reads back its offset.
    #[derive(Default)]
    struct Probe {
        written: Option<(u64, Vec<u8>)>,
    }

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written = Some((offset, data.to_vec()));
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        Arc::default()
    }

    fn read_u8(bus: &Bus, address: u64) -> u8 {
        let mut byte = [0];
        bus.read(address, &mut byte);
        byte[0]
    }

    #[test]
    fn an_access_reaches_the_device_at_its_address_with_the_offset() {
        let (low, high) = (probe(), probe());
        let mut bus = Bus::new();
        bus.insert("high", 0x3f8, 8, high.clone()).unwrap();
        bus.insert("low", 0x60, 5, low.clone()).unwrap();
        assert_eq!(read_u8(&bus, 0x3f8), 0);
        assert_eq!(read_u8(&bus, 0x3ff), 7);
        assert_eq!(read_u8(&bus, 0x64), 4);
        bus.write(0x61, &[9, 8]);
        assert_eq!(low.lock().unwrap().written, Some((1, vec![9, 8])));
        assert_eq!(high.lock().unwrap().written, None);
        assert_eq!(bus.unclaimed(), Unclaimed::default());
    }

    #[test]
    fn what_nobody_answers_reads_as_ones_and_is_counted() {
        let device = probe();
        let mut bus = Bus::new();
        bus.insert("device", 0x10, 4, device.clone()).unwrap();
        assert_eq!(read_u8(&bus, 0xf), 0xff);
        assert_eq!(read_u8(&bus, 0x14), 0xff);
        let mut word = [0; 4];
        bus.read(0x12, &mut word);
        assert_eq!(word, [0xff; 4], "an access over the end of a range is nobody's");
        bus.write(u64::MAX, &[1, 2]);
        bus.write(0x13, &[1, 2]);
        assert_eq!(device.lock().unwrap().written, None);
        assert_eq!(bus.unclaimed(), Unclaimed { reads: 3, writes: 2 });
    }

    #[test]
    fn an_access_of_no_bytes_reaches_nobody() {
        let device = probe();
        let mut bus = Bus::new();
        bus.insert("device", 0, 4, device.clone()).unwrap();
        bus.read(0, &mut []);
        bus.write(0, &[]);
        assert_eq!(device.lock().unwrap().written, None);
    }

    #[test]
    fn an_overlap_is_refused_and_names_both_devices() {
        let mut bus = Bus::new();
        bus.insert("serial", 0x3f8, 8, probe()).unwrap();
        for (base, len) in [(0x3f8, 8), (0x3f0, 9), (0x3ff, 1), (0x3fa, 2), (0x300, 0x200)] {
            let error = bus.insert("extra", base, len, probe()).unwrap_err();
            assert!(
                matches!(&error, BusError::Overlap { range, taken } if range.base == base && taken.name == "serial")
            );
        }
        let error = bus.insert("extra", 0x3ff, 1, probe()).unwrap_err();
        assert_eq!(error.to_string(), "extra (0x3ff, 0x1 long) overlaps serial (0x3f8, 0x8 long)");
        bus.insert("below", 0x3f7, 1, probe()).unwrap();
        bus.insert("above", 0x400, 1, probe()).unwrap();
        assert_eq!(bus.ranges().map(|range| range.base).collect::<Vec<_>>(), [0x3f7, 0x3f8, 0x400]);
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::new();
        let error = bus.insert("none", 0x10, 0, probe()).unwrap_err();
        assert_eq!(error.to_string(), "none (0x10, 0x0 long) is not a range of addresses");
        assert!(matches!(bus.insert("wraps", u64::MAX, 2, probe()), Err(BusError::BadRange { .. })));
        bus.insert("last", u64::MAX, 1, probe()).unwrap();
        assert_eq!(read_u8(&bus, u64::MAX), 0);
    }
}

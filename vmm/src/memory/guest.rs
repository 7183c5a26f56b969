//! All RAM of one guest.
//!
//! Promises: regions ascend and never overlap; each is a memfd of its own, from offset 0, with nothing else in it. Must never: be dropped
//! before the virtual machine whose slots point into it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use devices::{DeviceMemory, DeviceWrites};
use memtier::RegionSpec;
use memtier::status::HugePages;
use memtier::units::{Bytes, FrameSize, Gfn, Hva};

use super::hugetlb;
use super::layout::{RamRange, ram_ranges};
use super::mapping::{MapError, Mapping, Reserve};

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No memfd.
    #[error("cannot make a memory file of {}", Bytes(*.len))]
    Memfd {
        /// Its size.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not mapped.
    #[error("cannot map {} of guest memory", Bytes(*.len))]
    Map {
        /// How much.
        len: u64,
        /// Why.
        #[source]
        source: MapError,
    },
    /// Not made of whole huge pages.
    #[error("{} of guest memory is not a multiple of {}, the size of a huge page", Bytes(*.len), FrameSize::Huge)]
    NotHuge {
        /// How much was asked for.
        len: u64,
    },
    /// The host's pool of huge pages is too small.
    #[error(
        "guest memory needs {needed} huge pages of {}, {available} of the host's {total} are free; vm.nr_hugepages sets how many there are",
        FrameSize::Huge
    )]
    TooFewHugePages {
        /// Pages that the guest needs.
        needed: u64,
        /// Pages that nobody uses or has reserved.
        available: u64,
        /// Pages in the pool.
        total: u64,
    },
    /// The regions make no guest memory. The layout's ranges always do.
    #[error("guest memory regions do not fit together: {0}")]
    Regions(String),
    /// No second descriptor for the tiers.
    #[error("cannot duplicate a memory file's descriptor")]
    Duplicate(#[source] io::Error),
}

/// One region: a range of guest physical memory, its file and its mapping.
#[derive(Debug)]
struct Region {
    range: RamRange,
    file: File,
    mapping: Mapping,
}

/// All RAM of one guest.
#[derive(Debug)]
pub struct GuestRam {
    // Dropped before the mappings, so that the last handle is theirs.
    handle: DeviceMemory,
    regions: Vec<Region>,
}

impl GuestRam {
    /// `memory` bytes around the hole, all zero, none of it touched. From hugetlbfs all of it is reserved at once.
    pub fn new(memory: u64, huge_pages: HugePages) -> Result<Self, MemoryError> {
        let size = FrameSize::from(huge_pages);
        if !memory.is_multiple_of(size.bytes()) && size == FrameSize::Huge {
            return Err(MemoryError::NotHuge { len: memory });
        }
        let regions =
            ram_ranges(memory).into_iter().map(|range| Region::new(range, size)).collect::<Result<Vec<_>, _>>();
        // What was reserved before one failed is given back by now, so the pool's numbers are those that this guest met.
        let regions = regions.map_err(|error| hugetlb::explain(error, memory, size))?;
        let handles = regions
            .iter()
            .map(|region| region.mapping.guest_region(region.range.start))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| MemoryError::Regions("a region ends beyond the address space".into()))?;
        let handle = DeviceMemory::from_regions(handles).map_err(|source| MemoryError::Regions(source.to_string()))?;
        Ok(Self { handle, regions })
    }

    /// The memory as devices and the loader use it.
    pub fn handle(&self) -> &DeviceMemory {
        &self.handle
    }

    /// The ranges and where each is mapped, in guest address order: what KVM's memory slots are made from.
    pub fn slots(&self) -> impl Iterator<Item = (RamRange, Hva)> {
        self.regions.iter().map(|region| (region.range, Hva(region.mapping.host_address())))
    }

    /// The record of what this process writes to region number `region`, counted as [`Self::slots`] and [`Self::region_specs`] do.
    pub fn device_writes(&self, region: usize) -> Option<&DeviceWrites> {
        self.regions.get(region).map(|region| region.mapping.device_writes())
    }

    /// The same memory as the tiers want to hear of it.
    pub fn region_specs(&self) -> Result<Vec<RegionSpec>, MemoryError> {
        self.regions.iter().map(Region::spec).collect()
    }

    /// The guest physical address that is mapped at `address`, if guest memory is.
    pub fn guest_address(&self, address: u64) -> Option<u64> {
        self.slots().find_map(|(range, start)| {
            let offset = address.checked_sub(start.0)?;
            (offset < range.len).then(|| range.start + offset)
        })
    }

    /// Whether `gpa` is RAM.
    pub fn contains(&self, gpa: u64) -> bool {
        self.regions.iter().any(|region| (region.range.start..region.range.end()).contains(&gpa))
    }
}

impl Region {
    fn new(range: RamRange, size: FrameSize) -> Result<Self, MemoryError> {
        let len = range.len;
        let file = memfd(range, size).map_err(|source| MemoryError::Memfd { len, source })?;
        let mapped_file = file.try_clone().map_err(MemoryError::Duplicate)?;
        let too_large = || MemoryError::Map { len, source: MapError::Mmap(io::Error::from_raw_os_error(libc::ENOMEM)) };
        let reserve = match size {
            FrameSize::Small => Reserve::Never,
            FrameSize::Huge => Reserve::AtOnce,
        };
        let mapping = Mapping::new(mapped_file, usize::try_from(len).map_err(|_| too_large())?, reserve)
            .map_err(|source| MemoryError::Map { len, source })?;
        Ok(Self { range, file, mapping })
    }

    fn spec(&self) -> Result<RegionSpec, MemoryError> {
        Ok(RegionSpec {
            first: Gfn::containing(self.range.start),
            pages: Bytes(self.range.len).pages(),
            file: self.file.try_clone().map_err(MemoryError::Duplicate)?.into(),
            guest_map: Hva(self.mapping.host_address()),
        })
    }
}

/// A memory file of the range's size, with pages of `size`. Its name shows in `/proc/PID/maps` and tells which region a mapping is.
fn memfd(range: RamRange, size: FrameSize) -> io::Result<File> {
    let name = CString::new(format!("ebb-ram-{:x}", range.start)).expect("no NUL in a number");
    let flags = match size {
        FrameSize::Small => libc::MFD_CLOEXEC,
        FrameSize::Huge => libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
    };
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and that nobody else knows.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(range.len)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::{HOLE_END, HOLE_START};
    use vm_memory::{Bytes as _, GuestAddress};

    #[test]
    fn memory_around_the_hole_is_two_regions() {
        let ram = GuestRam::new(HOLE_START + (8 << 20), HugePages::Off).expect("made");
        let starts: Vec<_> = ram.slots().map(|(range, _)| (range.start, range.len)).collect();
        assert_eq!(starts, [(0, HOLE_START), (HOLE_END, 8 << 20)]);
        assert!(ram.contains(HOLE_END) && !ram.contains(HOLE_START) && !ram.contains(HOLE_END + (8 << 20)));
        ram.handle().write_obj(0x55u8, GuestAddress(HOLE_END)).expect("RAM");
        ram.handle().write_obj(0x55u8, GuestAddress(HOLE_START)).expect_err("hole");
        let specs = ram.region_specs().expect("specs");
        assert_eq!((specs[1].first, specs[1].pages), (Gfn(0x10_0000), 2048));
    }

    #[test]
    fn writes_of_this_process_are_recorded_in_their_region() {
        let ram = GuestRam::new(HOLE_START + (8 << 20), HugePages::Off).expect("made");
        let written = |region: usize| {
            let mut bits = [0; 32];
            ram.device_writes(region).expect("a region").add_to(&mut bits);
            bits
        };
        (0..2).for_each(|region| ram.device_writes(region).expect("a region").start());
        ram.handle().write_obj(1u64, GuestAddress(0x5000)).expect("RAM");
        ram.handle().write_obj(1u64, GuestAddress(HOLE_END + (8 << 20) - 8)).expect("RAM");
        assert_eq!((written(0)[0], written(1)[31]), (1 << 5, 1 << 63));
        assert!(ram.device_writes(2).is_none());
    }

    #[test]
    fn host_addresses_lead_back_to_guest_addresses() {
        let ram = GuestRam::new(HOLE_START + 4096, HugePages::Off).expect("made");
        for (range, start) in ram.slots().collect::<Vec<_>>() {
            assert_eq!(ram.guest_address(start.0), Some(range.start));
            assert_eq!(ram.guest_address(start.0 + range.len - 1), Some(range.end() - 1));
            assert_eq!(ram.guest_address(start.0 + range.len), None);
        }
    }

    #[test]
    fn fresh_memory_costs_nothing() {
        use std::os::unix::fs::MetadataExt;
        let ram = GuestRam::new(512 << 20, HugePages::Off).expect("made");
        assert_eq!(ram.regions[0].file.metadata().expect("metadata").blocks(), 0);
    }
}

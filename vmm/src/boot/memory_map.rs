//! The memory map that the guest is told: as e820 in `boot_params`, as a list in PVH's start info.
//!
//! Promises: every byte of RAM is told once, the hole never. Must never: tell RAM where boot structures of the machine itself stay in use.

use crate::memory::layout::{self, RamRange, ram_ranges};

/// What a range is, with e820's numbers, which PVH shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Free to use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// Tables that can be reused once they are read.
    Acpi = 3,
}

/// The map for `memory` bytes, ascending.
pub fn memory_map(memory: u64) -> Vec<(RamRange, Kind)> {
    let between = |start: u64, end: u64| RamRange { start, len: end - start };
    let mut map = vec![
        (between(0, layout::LOW_RAM_END), Kind::Ram),
        (between(layout::LOW_RAM_END, layout::ACPI_START), Kind::Reserved),
        (between(layout::ACPI_START, layout::ACPI_END), Kind::Acpi),
        (between(layout::RESET_PAGE, layout::HIGH_RAM_START), Kind::Reserved),
    ];
    for range in ram_ranges(memory) {
        let start = range.start.max(layout::HIGH_RAM_START);
        if start < range.end() {
            map.push((between(start, range.end()), Kind::Ram));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::{HOLE_END, HOLE_START, MIN_MEMORY};

    #[test]
    fn the_map_is_memory_without_gaps_and_without_the_hole() {
        for memory in [MIN_MEMORY, 64 << 20, HOLE_START, HOLE_START + (1 << 30)] {
            let map = memory_map(memory);
            for pair in map.windows(2) {
                let (end, next) = (pair[0].0.end(), pair[1].0.start);
                assert!(end == next || (end, next) == (HOLE_START, HOLE_END), "{end:#x} {next:#x}");
            }
            let bytes: u64 = map.iter().map(|(range, _)| range.len).sum();
            assert_eq!(bytes, memory);
        }
    }
}

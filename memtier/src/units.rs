//! Numbers with their units in the type, so that a frame can't be taken for a byte address or a slot for a frame.
//!
//! Promises: conversions between units are explicit and checked; `Display` carries a prefix (`g1f`, `0x1f000`, `s1f`), so that logs can't
//! confuse them. Must never: offer arithmetic between different units.

use std::fmt;

use serde::Serialize;

/// Bytes in a page: x86-64's base page, the unit of guest frame numbers and of swap slots.
pub const PAGE_SIZE: usize = 4096;

/// `log2(PAGE_SIZE)`.
pub const PAGE_SHIFT: u32 = 12;

/// `log2` of the bytes in a huge page: one entry of a page directory on x86-64.
const HUGE_SHIFT: u32 = 21;

/// How large the frames are in which one guest's memory is tracked, leaves and comes back. All of a guest's are alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameSize {
    /// One page of 4 KiB.
    #[default]
    Small,
    /// 512 of them: a huge page of 2 MiB.
    Huge,
}

impl FrameSize {
    /// `log2` of [`Self::bytes`].
    pub const fn shift(self) -> u32 {
        match self {
            Self::Small => PAGE_SHIFT,
            Self::Huge => HUGE_SHIFT,
        }
    }

    /// Bytes in a frame.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Pages in a frame.
    pub const fn pages(self) -> usize {
        1 << (self.shift() - PAGE_SHIFT)
    }
}

impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.bytes()).fmt(f)
    }
}

/// A guest frame number: a guest physical address divided by [`PAGE_SIZE`], whatever the size of the guest's frames here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The frame that holds this guest physical address.
    pub const fn containing(gpa: u64) -> Self {
        Self(gpa >> PAGE_SHIFT)
    }

    /// The guest physical address of the frame's first byte.
    pub const fn gpa(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The frame `pages` further on.
    pub const fn offset(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{:x}", self.0)
    }
}

/// A host virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(pub u64);

impl Hva {
    /// The address `bytes` further on.
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl fmt::Display for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A frame's place in the dense frame table: guest memory without its holes, in address order, counted in frames of its [`FrameSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameIndex(pub u32);

impl FrameIndex {
    /// As an index into a slice.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for FrameIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{:x}", self.0)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The bytes in `pages` pages.
    pub const fn from_pages(pages: u64) -> Self {
        Self(pages << PAGE_SHIFT)
    }

    /// The whole pages in this many bytes, a started page not counted.
    pub const fn pages(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 1 << 30 && n % (1 << 30) == 0 => write!(f, "{} GiB", n >> 30),
            n if n >= 1 << 20 && n % (1 << 20) == 0 => write!(f, "{} MiB", n >> 20),
            n if n >= 1 << 10 && n % (1 << 10) == 0 => write!(f, "{} KiB", n >> 10),
            n => write!(f, "{n} B"),
        }
    }
}

/// A slot's number within its swap area. Slot 0 is the area's header and never handed out (as in `include/linux/swap.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotOffset(pub u32);

impl fmt::Display for SlotOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{:x}", self.0)
    }
}

/// The most swap areas that can be on at once. The kernel's `MAX_SWAPFILES` is about 23-32; an entry has room for this many.
pub const MAX_AREAS: usize = 64;

/// A swap area's number, below [`MAX_AREAS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AreaId(pub u8);

impl fmt::Display for AreaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "area {}", self.0)
    }
}

/// Where a page is when it is out: area in the high bits, slot in the low 32, one word (like the kernel's `swp_entry_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwapEntry(u64);

impl SwapEntry {
    /// Bits that an entry takes: 32 of slot, 6 of area.
    pub const BITS: u32 = 38;

    /// Packs an area and a slot.
    pub const fn new(area: AreaId, slot: SlotOffset) -> Self {
        assert!((area.0 as usize) < MAX_AREAS, "area number beyond MAX_AREAS");
        Self((area.0 as u64) << 32 | slot.0 as u64)
    }

    /// The area part.
    pub const fn area(self) -> AreaId {
        AreaId((self.0 >> 32 & 0x3f) as u8)
    }

    /// The slot part.
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are the slot")]
    pub const fn slot(self) -> SlotOffset {
        SlotOffset(self.0 as u32)
    }

    /// The packed word, below `1 << BITS`.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The entry in the low [`Self::BITS`] bits of `bits`; higher bits are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }
}

impl fmt::Display for SwapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.area().0, self.slot())
    }
}

impl fmt::Debug for SwapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwapEntry({self})")
    }
}

/// Which of the per-vCPU shards (slot cache, part of guest memory) a piece of work belongs to; below the number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(pub u16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_entry_gives_back_what_was_packed() {
        for area in [0, 1, 63] {
            for slot in [0, 1, u32::MAX] {
                let entry = SwapEntry::new(AreaId(area), SlotOffset(slot));
                assert_eq!((entry.area(), entry.slot()), (AreaId(area), SlotOffset(slot)));
                assert!(entry.to_bits() < 1 << SwapEntry::BITS);
                assert_eq!(SwapEntry::from_bits(entry.to_bits()), entry);
            }
        }
    }

    #[test]
    fn units_show_themselves() {
        assert_eq!(Gfn(0x1f).to_string(), "g1f");
        assert_eq!(FrameIndex(0x1f).to_string(), "f1f");
        assert_eq!(Hva(0x1f000).to_string(), "0x1f000");
        assert_eq!(SwapEntry::new(AreaId(2), SlotOffset(0x10)).to_string(), "2:s10");
        assert_eq!(Bytes(3 << 20).to_string(), "3 MiB");
        assert_eq!((FrameSize::Small.to_string(), FrameSize::Huge.to_string()), ("4 KiB".into(), "2 MiB".into()));
        assert_eq!(Bytes(4097).to_string(), "4097 B");
    }
}

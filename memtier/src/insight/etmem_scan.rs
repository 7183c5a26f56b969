//! The run-length encoding of openEuler's etmem_scan (`fs/proc/etmem_scan.c`, read from `/proc/PID/idle_pages`), so that its readers work.
//!
//! A byte is `type << 4 | count`: so many pages of that type follow each other. `0xA0` and eight bytes, the most significant first, set the
//! address; that stands at the start and wherever the next page is not the one after the last. Neighbours of one type share a byte up to a
//! count of 15. Holes right behind a page are counted like pages, but a hole begins nothing: at the start, or behind a jump, it is left out.
//! What was left out at the end shows in a last address record: a reader goes on where decoding ends.
//!
//! Promises: what is decoded is what was encoded, as far as the buffer went; any buffer of [`MIN_BUFFER`] bytes takes at least one page. Must
//! never: write more than the buffer has, or end in half a record.

/// The smallest buffer: an address, a page, an address.
pub const MIN_BUFFER: usize = 19;
/// Pages that a byte of buffer asks for.
pub const PAGES_PER_BYTE: u64 = 8;

/// The record that sets the address.
const SET_ADDRESS: u8 = 0xa0;
/// Bytes of such a record.
const ADDRESS_BYTES: usize = 9;
/// The most pages in one byte.
const MAX_COUNT: u8 = 15;

/// What a page is (`enum ProcIdlePageType`; the kernel's 1 GiB pages do not occur in a guest's memory).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageType {
    /// 4 KiB, accessed.
    Accessed = 0,
    /// 2 MiB, accessed.
    HugeAccessed = 1,
    /// 4 KiB, written.
    Dirty = 3,
    /// 2 MiB, written.
    HugeDirty = 4,
    /// 4 KiB, not accessed.
    Idle = 5,
    /// 2 MiB, not accessed.
    HugeIdle = 6,
    /// 2 MiB of small pages, none of them accessed.
    HugeAllIdle = 7,
    /// 4 KiB without memory.
    Hole = 8,
    /// 2 MiB without memory.
    HugeHole = 9,
}

impl PageType {
    /// Bytes that one page of this type spans.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Accessed | Self::Dirty | Self::Idle | Self::Hole => 4096,
            Self::HugeAccessed | Self::HugeDirty | Self::HugeIdle | Self::HugeAllIdle | Self::HugeHole => 2 << 20,
        }
    }

    const fn is_hole(self) -> bool {
        matches!(self, Self::Hole | Self::HugeHole)
    }
}

/// The buffer has no room for a page; encoding ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// See the module.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    /// What pages may take; room for the last address is kept.
    limit: usize,
    /// The address that a reader is at; `None` before the first record.
    next: Option<u64>,
}

impl Encoder {
    /// An encoder into a buffer of so many bytes; `None` if that is less than [`MIN_BUFFER`].
    pub fn new(buffer: usize) -> Option<Self> {
        (buffer >= MIN_BUFFER).then(|| Self { bytes: Vec::new(), limit: buffer - ADDRESS_BYTES, next: None })
    }

    /// Adds the page at `address`, behind all pages added before. `Err` if it has no room; then nothing was added.
    pub fn page(&mut self, address: u64, kind: PageType) -> Result<(), Full> {
        let follows = self.next == Some(address);
        if !follows && kind.is_hole() {
            return Ok(());
        }
        match self.bytes.last_mut() {
            Some(last) if follows && *last >> 4 == kind as u8 && *last & 0xf < MAX_COUNT => *last += 1,
            _ => {
                let needed = if follows { 1 } else { ADDRESS_BYTES + 1 };
                if self.bytes.len() + needed > self.limit {
                    return Err(Full);
                }
                if !follows {
                    self.set_address(address);
                }
                self.bytes.push((kind as u8) << 4 | 1);
            }
        }
        self.next = Some(address + kind.bytes());
        Ok(())
    }

    /// The encoding, for a walk that came as far as `end`.
    pub fn finish(mut self, end: u64) -> Vec<u8> {
        if self.next.is_none_or(|next| next < end) {
            self.set_address(end);
        }
        self.bytes
    }

    fn set_address(&mut self, address: u64) {
        self.bytes.push(SET_ADDRESS);
        self.bytes.extend(address.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "etmem_scan_test.rs"]
mod tests;

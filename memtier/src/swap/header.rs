//! The first page of a swap area: whose it is, how long it is, which slots are bad.
//!
//! The fields sit where the kernel's `union swap_header` has them (version at 1024, bad slots from 1536, ten bytes of magic at the page's
//! end), in the space it leaves unused there are two more: the page size and a checksum. The magic is our own: an area that may be overwritten
//! by Ebb is not an area that may be overwritten by the kernel, and the other way round.
//!
//! Promises: what [`SwapHeader::decode`] accepts is valid in every field, and encodes to the very page it came from. Must never: trust a length,
//! a count or a slot number before it was checked.

use std::fmt;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::page::Page;
use crate::units::{Bytes, PAGE_SIZE, SlotOffset};

/// The most bad slots a header has room for: the kernel's `MAX_SWAP_BADPAGES` for 4 KiB pages.
pub const MAX_BAD_SLOTS: usize = (MAGIC_AT - BAD_AT) / 4;

/// The last ten bytes of an area's first page.
pub const MAGIC: &[u8; 10] = b"EBB-SWAP-1";

/// The format written here.
pub const VERSION: u32 = 1;

/// Bytes of a label, as in the kernel's header.
pub const LABEL_BYTES: usize = 16;

const VERSION_AT: usize = 1024;
const LAST_SLOT_AT: usize = 1028;
const BAD_COUNT_AT: usize = 1032;
const UUID_AT: usize = 1036;
const LABEL_AT: usize = 1052;
const PAGE_SIZE_AT: usize = 1068;
const CHECKSUM_AT: usize = 1072;
const BAD_AT: usize = 1536;
const MAGIC_AT: usize = PAGE_SIZE - MAGIC.len();

#[expect(clippy::cast_possible_truncation, reason = "4096 fits")]
const PAGE_SIZE_FIELD: u32 = PAGE_SIZE as u32;

const _: () = assert!(MAGIC_AT == 4086 && MAX_BAD_SLOTS == 637, "offsets as in the kernel's header");

/// Why a page is not a header, or not one that fits its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The magic is missing.
    #[error("no Ebb swap header")]
    Magic,
    /// The kernel's own swap signature is there instead.
    #[error("the header is the kernel's swap header")]
    KernelSwap,
    /// The page was damaged or half written.
    #[error("header checksum is {found:#018x}, its fields give {computed:#018x}")]
    Checksum {
        /// What the page says.
        found: u64,
        /// What it should say.
        computed: u64,
    },
    /// A format that this version does not know.
    #[error("header version is {found}, only {VERSION} is known")]
    Version {
        /// What the page says.
        found: u32,
    },
    /// Slots of another size.
    #[error("header has pages of {found} bytes, only {PAGE_SIZE} are supported")]
    PageSize {
        /// What the page says.
        found: u32,
    },
    /// No slot beside the header.
    #[error("header says that its last slot is 0")]
    NoSlots,
    /// More bad slots than the page has room for.
    #[error("header lists {found} bad slots, at most {MAX_BAD_SLOTS} fit")]
    BadCount {
        /// What the page says.
        found: u32,
    },
    /// A bad slot that does not exist.
    #[error("header lists bad slot {slot}, the last one is {last}")]
    BadSlot {
        /// The slot listed.
        slot: SlotOffset,
        /// The area's last slot.
        last: SlotOffset,
    },
    /// A label that is not text.
    #[error("header label is not UTF-8")]
    Label,
    /// Something where nothing may be: unused bytes not zero, or bad slots out of order.
    #[error("header has bytes set that version {VERSION} leaves unused, or bad slots out of order")]
    NotCanonical,
    /// The area is longer than its file.
    #[error("header claims {claimed}, the file has {len}")]
    Truncated {
        /// Bytes that the header's last slot needs.
        claimed: Bytes,
        /// Bytes that are there.
        len: Bytes,
    },
}

/// A name for an area: at most [`LABEL_BYTES`] bytes of text without NUL.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Label([u8; LABEL_BYTES]);

impl Label {
    /// The label, or `None` when the text is too long or contains a NUL.
    pub fn new(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut label = [0; LABEL_BYTES];
        label.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (!bytes.contains(&0)).then_some(Self(label))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(LABEL_BYTES);
        std::str::from_utf8(&self.0[..end]).expect("a label is made only from text")
    }

    fn from_field(field: [u8; LABEL_BYTES]) -> Option<Self> {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(LABEL_BYTES);
        Self::new(std::str::from_utf8(&field[..end]).ok()?)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What an area's first page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapHeader {
    last_slot: SlotOffset,
    uuid: Uuid,
    label: Label,
    bad: Vec<SlotOffset>,
}

impl SwapHeader {
    /// A header for slots up to and including `last_slot`, none of them bad, with a new random uuid.
    pub fn new(last_slot: SlotOffset) -> Result<Self, HeaderError> {
        Self::with(last_slot, Uuid::new_v4(), Label::default(), Vec::new())
    }

    /// A header with everything named. The bad slots may come in any order.
    pub fn with(
        last_slot: SlotOffset,
        uuid: Uuid,
        label: Label,
        mut bad: Vec<SlotOffset>,
    ) -> Result<Self, HeaderError> {
        bad.sort_unstable();
        bad.dedup();
        let header = Self { last_slot, uuid, label, bad };
        header.check()?;
        Ok(header)
    }

    /// The area's last slot; its slots are `1..=last_slot`.
    pub const fn last_slot(&self) -> SlotOffset {
        self.last_slot
    }

    /// The area's identity.
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The area's name.
    pub const fn label(&self) -> Label {
        self.label
    }

    /// The bad slots, ascending.
    pub fn bad_slots(&self) -> &[SlotOffset] {
        &self.bad
    }

    /// Bytes from the file's start to the end of the last slot.
    pub const fn bytes(&self) -> Bytes {
        Bytes::from_pages(self.last_slot.0 as u64 + 1)
    }

    /// The same area with another last slot; bad slots beyond it are forgotten.
    pub fn resized(&self, last_slot: SlotOffset) -> Result<Self, HeaderError> {
        let bad = self.bad.iter().copied().filter(|slot| *slot <= last_slot).collect();
        Self::with(last_slot, self.uuid, self.label, bad)
    }

    /// Refuses a file of `len` bytes that is shorter than the header claims.
    pub fn check_len(&self, len: Bytes) -> Result<(), HeaderError> {
        if len < self.bytes() { Err(HeaderError::Truncated { claimed: self.bytes(), len }) } else { Ok(()) }
    }

    /// Reads a header from an area's first page.
    pub fn decode(page: &Page) -> Result<Self, HeaderError> {
        check_magic(page)?;
        let (found, computed) = (u64_at(page, CHECKSUM_AT), checksum(page));
        if found != computed {
            return Err(HeaderError::Checksum { found, computed });
        }
        match u32_at(page, VERSION_AT) {
            VERSION => {}
            found => return Err(HeaderError::Version { found }),
        }
        match u32_at(page, PAGE_SIZE_AT) {
            PAGE_SIZE_FIELD => {}
            found => return Err(HeaderError::PageSize { found }),
        }
        let found = u32_at(page, BAD_COUNT_AT);
        let count = usize::try_from(found).unwrap_or(usize::MAX);
        if count > MAX_BAD_SLOTS {
            return Err(HeaderError::BadCount { found });
        }
        let header = Self {
            last_slot: SlotOffset(u32_at(page, LAST_SLOT_AT)),
            uuid: Uuid::from_bytes(bytes_at(page, UUID_AT)),
            label: Label::from_field(bytes_at(page, LABEL_AT)).ok_or(HeaderError::Label)?,
            bad: (0..count).map(|i| SlotOffset(u32_at(page, BAD_AT + 4 * i))).collect(),
        };
        header.check()?;
        if header.encode() == *page { Ok(header) } else { Err(HeaderError::NotCanonical) }
    }

    /// The page to write.
    pub fn encode(&self) -> Page {
        let mut page = [0; PAGE_SIZE];
        put(&mut page, VERSION_AT, &VERSION.to_le_bytes());
        put(&mut page, LAST_SLOT_AT, &self.last_slot.0.to_le_bytes());
        let count = u32::try_from(self.bad.len()).expect("checked: at most MAX_BAD_SLOTS");
        put(&mut page, BAD_COUNT_AT, &count.to_le_bytes());
        put(&mut page, UUID_AT, self.uuid.as_bytes());
        put(&mut page, LABEL_AT, &self.label.0);
        put(&mut page, PAGE_SIZE_AT, &PAGE_SIZE_FIELD.to_le_bytes());
        for (i, slot) in self.bad.iter().enumerate() {
            put(&mut page, BAD_AT + 4 * i, &slot.0.to_le_bytes());
        }
        seal(&mut page);
        page
    }

    fn check(&self) -> Result<(), HeaderError> {
        if self.last_slot.0 == 0 {
            return Err(HeaderError::NoSlots);
        }
        if self.bad.len() > MAX_BAD_SLOTS {
            return Err(HeaderError::BadCount { found: u32::try_from(self.bad.len()).unwrap_or(u32::MAX) });
        }
        if let Some(slot) = self.bad.iter().find(|slot| slot.0 == 0 || **slot > self.last_slot) {
            return Err(HeaderError::BadSlot { slot: *slot, last: self.last_slot });
        }
        if self.bad.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(HeaderError::NotCanonical) }
    }
}

/// Puts magic and checksum on a page whose fields are filled in, right or wrong: the last step of encoding, and what a forger would do.
pub fn seal(page: &mut Page) {
    put(page, MAGIC_AT, MAGIC);
    let sum = checksum(page);
    put(page, CHECKSUM_AT, &sum.to_le_bytes());
}

fn check_magic(page: &Page) -> Result<(), HeaderError> {
    match &bytes_at::<10>(page, MAGIC_AT) {
        MAGIC => Ok(()),
        b"SWAPSPACE2" | b"SWAP-SPACE" => Err(HeaderError::KernelSwap),
        _ => Err(HeaderError::Magic),
    }
}

/// Over the whole page, the checksum's own field taken as zero.
fn checksum(page: &Page) -> u64 {
    let mut page = *page;
    put(&mut page, CHECKSUM_AT, &[0; 8]);
    xxh3_64(&page)
}

fn bytes_at<const N: usize>(page: &Page, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&page[at..at + N]);
    bytes
}

fn u32_at(page: &Page, at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(page, at))
}

fn u64_at(page: &Page, at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(page, at))
}

fn put(page: &mut Page, at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests;

//! What a driver asks of a disk: parsing a chain into a request that can be done (virtio 1.2, section 5.2.6).
//!
//! Promises: a [`Request`] lies inside the disk, has its memory in the right direction, and does not write to a read-only disk; what does not
//! is refused with the status the driver gets. Bytes are taken by position, not by descriptor: a header may be split in any way. Must never:
//! read the header or the ranges twice.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryError;

use crate::DeviceMemory;
use crate::virtio::block::disk::ID_LEN;
use crate::virtio::buffers::Buffers;
use crate::virtio::chain::Chain;

/// Bytes in a sector, whatever the disk's block size.
pub const SECTOR_SIZE: u64 = 512;

/// Sectors per range of a discard request: 2 GiB.
pub const DISCARD_SECTORS: u32 = 1 << 22;
/// Ranges per discard request.
pub const DISCARD_RANGES: u32 = 64;
/// Sectors per range of a write-zeroes request: 128 MiB, because some filesystems want every byte written.
pub const WRITE_ZEROES_SECTORS: u32 = 1 << 18;
/// Ranges per write-zeroes request.
pub const WRITE_ZEROES_RANGES: u32 = 1;

const HEADER: usize = 16;
const RANGE: usize = 16;

/// Sectors inside the disk, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    sector: u64,
    count: u64,
}

impl SectorRange {
    /// `count` sectors from `sector` on, if a disk of `capacity` sectors has them all.
    pub fn within(sector: u64, count: u64, capacity: u64) -> Result<Self, Refusal> {
        match sector.checked_add(count) {
            Some(end) if end <= capacity => Ok(Self { sector, count }),
            _ => Err(Refusal::BeyondEnd { sector, count, capacity }),
        }
    }

    /// Offset of the first byte.
    pub fn start(self) -> u64 {
        self.sector * SECTOR_SIZE
    }

    /// Bytes.
    pub fn bytes(self) -> u64 {
        self.count * SECTOR_SIZE
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read into the guest's memory.
    Read {
        /// From here on.
        sector: u64,
        /// To here.
        into: Buffers,
    },
    /// Write from the guest's memory.
    Write {
        /// From here on.
        sector: u64,
        /// These bytes.
        from: Buffers,
    },
    /// Make what was written durable.
    Flush,
    /// Say who the disk is.
    GetId {
        /// Where to say it; at least as long as the identity.
        into: Buffers,
    },
    /// Give the space of these ranges back.
    Discard(Vec<SectorRange>),
    /// Make these ranges zeros.
    WriteZeroes {
        /// Which.
        ranges: Vec<SectorRange>,
        /// Their space may be given back.
        unmap: bool,
    },
}

/// Why a request is not done. Each reason has a status for the driver.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A type that the device does not know.
    #[error("request type {0} is not known")]
    UnknownType(u32),
    /// Flags that are not known, or not allowed for this type.
    #[error("flags {0:#x} of a range are not known")]
    UnknownFlags(u32),
    /// A request that writes, on a disk that is not written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Not a whole number of sectors, or none at all.
    #[error("{0} bytes of data are not a whole number of sectors")]
    BadLength(u32),
    /// Data to read where there is only data to write, or the other way round.
    #[error("{0} bytes of data in the wrong direction")]
    WrongDirection(u32),
    /// Beyond the disk's end.
    #[error("{count} sectors at {sector} of {capacity}")]
    BeyondEnd {
        /// The first.
        sector: u64,
        /// How many.
        count: u64,
        /// How many there are.
        capacity: u64,
    },
    /// Ranges that are too many, too long, empty, or not whole.
    #[error("{bytes} bytes are no list of up to {most} ranges")]
    BadRanges {
        /// Bytes of the list.
        bytes: u32,
        /// Ranges it may have.
        most: u32,
    },
    /// A range of no sectors, or of too many.
    #[error("a range of {count} sectors, of at most {most}")]
    BadRange {
        /// Its length.
        count: u32,
        /// The most allowed.
        most: u32,
    },
    /// The header or the ranges can't be read.
    #[error("the request can't be read")]
    Memory(#[from] GuestMemoryError),
}

impl Refusal {
    /// What the driver reads in the status byte.
    pub fn status(&self) -> u32 {
        match self {
            Self::UnknownType(_) | Self::UnknownFlags(_) => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        }
    }
}

/// A chain, taken apart. What it says is still unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    header: Buffers,
    /// What the driver sends behind the header.
    sent: Buffers,
    /// What the driver expects before the status.
    pub expected: Buffers,
    /// The byte for the status.
    pub status: Buffers,
}

impl Envelope {
    /// Takes a chain apart; `None` if there is no room for a header or for an answer.
    pub fn open(chain: &Chain) -> Option<Self> {
        let mut header = chain.readable.clone();
        let mut expected = chain.writable.clone();
        let status = expected.split_off(expected.len().checked_sub(1)?)?;
        let sent = header.split_off(u32::try_from(HEADER).ok()?)?;
        Some(Self { header, sent, expected, status })
    }

    /// Reads what the driver wants. The memory must be pinned.
    pub fn read(&self, memory: &DeviceMemory, limits: Limits) -> Result<Request, Refusal> {
        let mut header = [0; HEADER];
        self.header.copy_to(memory, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        match kind {
            VIRTIO_BLK_T_IN => {
                self.expect_nothing_sent()?;
                limits.check_data(sector, self.expected.len())?;
                Ok(Request::Read { sector, into: self.expected.clone() })
            }
            VIRTIO_BLK_T_OUT => {
                self.expect_nothing_expected()?;
                limits.check_writable()?;
                limits.check_data(sector, self.sent.len())?;
                Ok(Request::Write { sector, from: self.sent.clone() })
            }
            VIRTIO_BLK_T_FLUSH => {
                self.expect_nothing_sent()?;
                self.expect_nothing_expected()?;
                Ok(Request::Flush)
            }
            VIRTIO_BLK_T_GET_ID => {
                self.expect_nothing_sent()?;
                let len = self.expected.len();
                if usize::try_from(len).is_ok_and(|len| len < ID_LEN) {
                    return Err(Refusal::BadLength(len));
                }
                Ok(Request::GetId { into: self.expected.clone() })
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.expect_nothing_expected()?;
                limits.check_writable()?;
                self.read_ranges(memory, limits, kind)
            }
            other => Err(Refusal::UnknownType(other)),
        }
    }

    fn expect_nothing_sent(&self) -> Result<(), Refusal> {
        if self.sent.is_empty() { Ok(()) } else { Err(Refusal::WrongDirection(self.sent.len())) }
    }

    fn expect_nothing_expected(&self) -> Result<(), Refusal> {
        if self.expected.is_empty() { Ok(()) } else { Err(Refusal::WrongDirection(self.expected.len())) }
    }

    /// The ranges of a discard or write-zeroes request: all of them are good, or none is done.
    fn read_ranges(&self, memory: &DeviceMemory, limits: Limits, kind: u32) -> Result<Request, Refusal> {
        let discards = kind == VIRTIO_BLK_T_DISCARD;
        let (most, longest, allowed) = if discards {
            (DISCARD_RANGES, DISCARD_SECTORS, 0)
        } else {
            (WRITE_ZEROES_RANGES, WRITE_ZEROES_SECTORS, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
        };
        let bytes = self.sent.len();
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let count = u32::try_from(len / RANGE).unwrap_or(u32::MAX);
        if len % RANGE != 0 || count == 0 || count > most {
            return Err(Refusal::BadRanges { bytes, most });
        }
        let mut list = vec![0; len];
        self.sent.copy_to(memory, &mut list)?;
        let mut unmap = true;
        let mut ranges = Vec::with_capacity(len / RANGE);
        for entry in list.as_chunks::<RANGE>().0 {
            let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = *entry;
            let flags = u32::from_le_bytes(flags);
            if flags & !allowed != 0 {
                return Err(Refusal::UnknownFlags(flags));
            }
            // With one range per write-zeroes request this is that range's flag; were there more, it would be the careful choice.
            unmap &= flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            let count = u32::from_le_bytes([c0, c1, c2, c3]);
            if count == 0 || count > longest {
                return Err(Refusal::BadRange { count, most: longest });
            }
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            ranges.push(SectorRange::within(sector, u64::from(count), limits.capacity)?);
        }
        Ok(if discards { Request::Discard(ranges) } else { Request::WriteZeroes { ranges, unmap } })
    }
}

/// What bounds a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Limits {
    fn check_writable(self) -> Result<(), Refusal> {
        if self.read_only { Err(Refusal::ReadOnly) } else { Ok(()) }
    }

    fn check_data(self, sector: u64, bytes: u32) -> Result<(), Refusal> {
        let len = u64::from(bytes);
        if len == 0 || len % SECTOR_SIZE != 0 {
            return Err(Refusal::BadLength(bytes));
        }
        SectorRange::within(sector, len / SECTOR_SIZE, self.capacity).map(drop)
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;

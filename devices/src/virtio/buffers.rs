//! Guest memory that a driver lent to a device for one request, in pieces.
//!
//! Promises: every piece lies in guest memory whole and is not empty; lengths add up without overflow. Must never: make a reference to guest
//! memory; bytes are copied out and in, or handed to the kernel by address.

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::DeviceMemory;
use crate::pin::{PinError, Pinned, Pinner};

/// The unit in which pages are pinned.
const PAGE_SIZE: u64 = 4096;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address of its first byte.
    pub gpa: u64,
    /// Bytes, more than 0.
    pub len: u32,
}

impl Segment {
    /// The address behind the last byte. Guest memory ends long before the address space does.
    const fn end(self) -> u64 {
        self.gpa + self.len as u64
    }
}

/// Why a piece of memory was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// Not all of it is guest memory.
    #[error("{len:#x} bytes at {gpa:#x} are not all guest memory")]
    NotMemory {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        len: u32,
    },
    /// All pieces together have more bytes than one request may have.
    #[error("a request of more than 4 GiB")]
    TooLong,
}

/// Pieces in the order in which the driver listed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    segments: Vec<Segment>,
    len: u32,
}

impl Buffers {
    /// Adds a piece. Empty ones are left out: they hold nothing that could be read or written.
    pub fn push(&mut self, memory: &DeviceMemory, gpa: u64, len: u32) -> Result<(), BufferError> {
        if len == 0 {
            return Ok(());
        }
        let total = self.len.checked_add(len).ok_or(BufferError::TooLong)?;
        if !is_memory(memory, gpa, u64::from(len)) {
            return Err(BufferError::NotMemory { gpa, len });
        }
        self.segments.push(Segment { gpa, len });
        self.len = total;
        Ok(())
    }

    /// Bytes in all.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Splits at byte `at`: keeps what is before it, answers what is behind. `None`, and nothing changed, if there are fewer bytes.
    pub fn split_off(&mut self, at: u32) -> Option<Self> {
        let behind = self.len.checked_sub(at)?;
        let mut left = at;
        let mut index = 0;
        while let Some(segment) = self.segments.get(index)
            && segment.len <= left
        {
            left -= segment.len;
            index += 1;
        }
        let mut segments = self.segments.split_off(index);
        if left > 0
            && let Some(cut) = segments.first_mut()
        {
            self.segments.push(Segment { gpa: cut.gpa, len: left });
            *cut = Segment { gpa: cut.gpa + u64::from(left), len: cut.len - left };
        }
        self.len = at;
        Some(Self { segments, len: behind })
    }

    /// Copies the first bytes out, as many as fit; answers how many.
    pub fn copy_to(&self, memory: &DeviceMemory, into: &mut [u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for segment in &self.segments {
            let count = into.len().saturating_sub(done).min(as_usize(segment.len));
            if count == 0 {
                break;
            }
            memory.read_slice(&mut into[done..done + count], GuestAddress(segment.gpa))?;
            done += count;
        }
        Ok(done)
    }

    /// Copies bytes in from the beginning, as many as fit; answers how many.
    pub fn copy_from(&self, memory: &DeviceMemory, from: &[u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for segment in &self.segments {
            let count = from.len().saturating_sub(done).min(as_usize(segment.len));
            if count == 0 {
                break;
            }
            memory.write_slice(&from[done..done + count], GuestAddress(segment.gpa))?;
            done += count;
        }
        Ok(done)
    }

    /// Writes zeros everywhere.
    pub fn zero(&self, memory: &DeviceMemory) -> Result<(), GuestMemoryError> {
        static ZEROS: [u8; 4096] = [0; 4096];
        for segment in &self.segments {
            let mut gpa = segment.gpa;
            while gpa < segment.end() {
                let left = usize::try_from(segment.end() - gpa).unwrap_or(usize::MAX);
                let count = left.min(ZEROS.len());
                memory.write_slice(&ZEROS[..count], GuestAddress(gpa))?;
                gpa += count as u64;
            }
        }
        Ok(())
    }
}

/// Pages that stay until this drops.
#[derive(Default)]
pub struct Pins(Vec<Box<dyn Pinned>>);

impl Pins {
    /// Pins every page that one of `segments` touches. Neighbours in the list that share a page, or whose pages follow each other, are one
    /// pin.
    pub fn take<'a>(pinner: &dyn Pinner, segments: impl IntoIterator<Item = &'a Segment>) -> Result<Self, PinError> {
        let mut pins = Self::default();
        let mut run: Option<(u64, u64)> = None;
        for segment in segments {
            let (start, end) = (segment.gpa & !(PAGE_SIZE - 1), segment.end().next_multiple_of(PAGE_SIZE));
            match &mut run {
                Some((first, last)) if *first <= start && start <= *last => *last = end.max(*last),
                _ => {
                    pins.add(pinner, run)?;
                    run = Some((start, end));
                }
            }
        }
        pins.add(pinner, run)?;
        Ok(pins)
    }

    fn add(&mut self, pinner: &dyn Pinner, run: Option<(u64, u64)>) -> Result<(), PinError> {
        if let Some((start, end)) = run {
            self.0.push(pinner.pin(start, end - start)?);
        }
        Ok(())
    }
}

/// Whether `len` bytes at `gpa` are all guest memory. No region reaches the end of the address space, so what wraps around is not.
pub(crate) fn is_memory(memory: &DeviceMemory, gpa: u64, len: u64) -> bool {
    usize::try_from(len).is_ok_and(|len| memory.check_range(GuestAddress(gpa), len, Permissions::ReadWrite))
}

/// Widens; this program runs on 64-bit hosts only.
pub(crate) const fn as_usize(bytes: u32) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::{Ledger, buffers, memory};

    #[test]
    fn memory_outside_the_guests_is_refused() {
        let memory = memory(0x10000);
        let mut buffers = Buffers::default();
        for (gpa, len) in [(0x10000, 1), (0xfff0, 0x11), (u64::MAX, 1), (u64::MAX - 3, 8), (0, u32::MAX)] {
            assert_eq!(buffers.push(&memory, gpa, len), Err(BufferError::NotMemory { gpa, len }));
        }
        assert!(buffers.is_empty());
        buffers.push(&memory, 0xfff0, 0x10).unwrap();
        assert_eq!(
            BufferError::NotMemory { gpa: 16, len: 3 }.to_string(),
            "0x3 bytes at 0x10 are not all guest memory"
        );
    }

    #[test]
    fn more_than_4_gib_in_all_is_refused() {
        let memory = memory(0x10000);
        let mut buffers = Buffers { segments: vec![], len: u32::MAX - 5 };
        buffers.push(&memory, 0, 5).unwrap();
        assert_eq!(buffers.push(&memory, 0, 1), Err(BufferError::TooLong));
        assert_eq!(BufferError::TooLong.to_string(), "a request of more than 4 GiB");
    }

    #[test]
    fn empty_pieces_vanish() {
        let memory = memory(0x10000);
        let buffers = buffers(&memory, &[(0x1000, 0), (u64::MAX, 0), (0x2000, 4)]);
        assert_eq!(buffers.segments(), [Segment { gpa: 0x2000, len: 4 }]);
    }

    #[test]
    fn pages_that_follow_each_other_are_one_pin() {
        let memory = memory(0x10000);
        let ledger = Ledger::default();
        let buffers = buffers(&memory, &[(0x1ff0, 0x10), (0x2000, 0x1000), (0x2800, 8), (0x5001, 1), (0x1000, 1)]);
        let pins = Pins::take(&ledger, buffers.segments()).unwrap();
        assert_eq!(ledger.taken(), [(0x1000, 0x2000), (0x5000, 0x1000), (0x1000, 0x1000)]);
        assert_eq!(ledger.live(), 3);
        drop(pins);
        assert_eq!(ledger.live(), 0);
    }

    #[test]
    fn when_one_pin_fails_the_others_are_undone() {
        let memory = memory(0x10000);
        let ledger = Ledger::default();
        ledger.poison(0x5000);
        let buffers = buffers(&memory, &[(0x1000, 16), (0x4fff, 2), (0x8000, 1)]);
        let result = Pins::take(&ledger, buffers.segments());
        assert!(matches!(result, Err(PinError::Unreadable { gpa: 0x5000 })));
        drop(result);
        assert_eq!(ledger.live(), 0);
    }

    #[test]
    fn zeroing_covers_every_byte_and_no_other() {
        let memory = memory(0x10000);
        memory.write_slice(&[7; 0x10000], GuestAddress(0)).unwrap();
        buffers(&memory, &[(0x0ff9, 0x2345), (0x8000, 1)]).zero(&memory).unwrap();
        let mut bytes = vec![0; 0x10000];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let zeroed = (0x0ff9..0x0ff9 + 0x2345).contains(&at) || at == 0x8000;
            assert_eq!(*byte == 0, zeroed, "at {at:#x}");
        }
    }

    proptest! {
        #[test]
        fn splitting_loses_no_byte(lens in prop::collection::vec(0u32..40, 0..8), at in 0u32..200) {
            let memory = memory(0x10000);
            let pieces: Vec<(u64, u32)> = lens.iter().zip(0u64..).map(|(len, i)| (0x1000 + i * 0x100, *len)).collect();
            let whole = buffers(&memory, &pieces);
            let text: Vec<u8> = (0..=255).cycle().take(as_usize(whole.len())).collect();
            prop_assert_eq!(whole.copy_from(&memory, &text).unwrap(), text.len());

            let mut front = whole.clone();
            match front.split_off(at) {
                None => {
                    prop_assert!(at > whole.len());
                    prop_assert_eq!(front, whole);
                }
                Some(back) => {
                    prop_assert_eq!((front.len(), back.len()), (at, whole.len() - at));
                    prop_assert!(front.segments().iter().chain(back.segments()).all(|segment| segment.len > 0));
                    let mut bytes = vec![0; text.len() + 3];
                    let first = front.copy_to(&memory, &mut bytes).unwrap();
                    let second = back.copy_to(&memory, &mut bytes[first..]).unwrap();
                    prop_assert_eq!(&bytes[..first + second], &text[..]);
                }
            }
        }
    }
}

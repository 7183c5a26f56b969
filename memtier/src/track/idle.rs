//! The idle bitmap, with page_idle's contract (`Documentation/admin-guide/mm/idle_page_tracking.rst`, `mm/page_idle.c`) over guest frame
//! numbers.
//!
//! Promises: a bit read as set means: not accessed since it was last marked, checked at the moment of reading. Offsets and lengths are whole
//! 64-bit chunks; reading past the end gives no bytes, writing there is an error; frames that are not resident, or just on their way in or
//! out, and locked ones, read 0 and ignore marks. Inside a huge page all frames read alike, and a mark on any of them marks the page (the kernel's bitmap keeps both to the
//! page's first frame). Must never: move a page.

use std::io;
use std::ops::Range;

use crate::track::runs::Runs;
use crate::track::watcher::{Watcher, is_eligible};
use crate::units::FrameIndex;

/// Bytes of one chunk of the bitmap, and the frames in it.
const CHUNK_BYTES: u64 = 8;
const CHUNK_FRAMES: u64 = 64;
/// Frames marked by one call at most.
const MARK_RUN: u32 = 8192;

/// Why the idle bitmap refuses a request.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    /// Offset or length is not a multiple of 8 bytes (EINVAL's meaning).
    #[error("idle bitmap {what} {value} is not a multiple of 8 bytes")]
    Unaligned {
        /// `offset` or `length`.
        what: &'static str,
        /// What was given.
        value: u64,
    },
    /// A write beyond the last frame (ENXIO's meaning).
    #[error("idle bitmap offset {offset} is beyond the last frame, the bitmap has {len} bytes")]
    BeyondEnd {
        /// What was given.
        offset: u64,
        /// The bitmap's length in bytes.
        len: u64,
    },
    /// The tracker failed.
    #[error("reading or clearing references failed")]
    Tracker(#[from] io::Error),
}

impl Watcher {
    /// page_idle's read. Fills `out` from byte `offset` of the bitmap; answers how many bytes, 0 at or beyond the end.
    pub fn read_idle(&self, offset: u64, out: &mut [u8]) -> Result<usize, IdleError> {
        let gfns = self.bits(offset, out.len())?;
        let out = &mut out[..bytes(&gfns)];
        out.fill(0);
        let mut seeing = self.lock();
        for part in self.arena.memory.indices(gfns.clone()).0 {
            self.look(&mut seeing, part.clone())?;
            for frame in part.map(FrameIndex) {
                if seeing.idle.get(frame) && is_eligible(self.arena.frames.get(frame)) {
                    let bits = self.gfns_of(frame, &gfns);
                    bits.for_each(|bit| out[place(bit).0] |= place(bit).1);
                }
            }
        }
        Ok(out.len())
    }

    /// page_idle's write: a 1 clears the frame's references, then marks it idle; a 0 does nothing. Answers how many bytes were taken.
    pub fn write_idle(&self, offset: u64, bits: &[u8]) -> Result<usize, IdleError> {
        let gfns = self.bits(offset, bits.len())?;
        if gfns.is_empty() && !bits.is_empty() {
            return Err(IdleError::BeyondEnd { offset, len: self.bitmap_len() });
        }
        let bits = &bits[..bytes(&gfns)];
        let mut seeing = self.lock();
        let mut marked = Runs::exact(MARK_RUN);
        for part in self.arena.memory.indices(gfns.clone()).0 {
            self.refresh_untouched(part.clone())?;
            for frame in part.map(FrameIndex) {
                let wanted = self.gfns_of(frame, &gfns).any(|bit| bits[place(bit).0] & place(bit).1 != 0);
                if wanted && is_eligible(self.arena.frames.get(frame)) {
                    marked.push(frame.0..frame.0 + 1, |run| self.mark(&mut seeing, run))?;
                }
            }
            // Frames of two regions follow each other only in the table.
            marked.flush(|run| self.mark(&mut seeing, run))?;
        }
        Ok(bits.len())
    }

    /// The bits of a request, counted from its first one, that stand for a frame.
    fn gfns_of(&self, frame: FrameIndex, request: &Range<u64>) -> Range<u64> {
        let gfn = self.arena.memory.gfn(frame).0;
        let end = gfn + self.arena.memory.frame_size().pages() as u64;
        gfn.max(request.start) - request.start..end.min(request.end) - request.start
    }

    /// The frame numbers that a request covers, shortened at the end.
    fn bits(&self, offset: u64, len: usize) -> Result<Range<u64>, IdleError> {
        let len = len as u64;
        for (what, value) in [("offset", offset), ("length", len)] {
            if !value.is_multiple_of(CHUNK_BYTES) {
                return Err(IdleError::Unaligned { what, value });
            }
        }
        let total = self.bitmap_len();
        let start = offset.min(total);
        let end = offset.saturating_add(len).min(total);
        Ok(start * 8..end * 8)
    }

    /// Bytes in the bitmap: whole chunks up to the last frame.
    pub fn bitmap_len(&self) -> u64 {
        self.arena.memory.end().0.div_ceil(CHUNK_FRAMES) * CHUNK_BYTES
    }
}

/// The bytes of a request for these frame numbers.
fn bytes(gfns: &Range<u64>) -> usize {
    usize::try_from((gfns.end - gfns.start) / 8).expect("no more than the caller's buffer")
}

/// Byte and mask of a bit. Chunks are native words; on x86-64, bit i of a chunk is bit i % 8 of its byte i / 8.
fn place(bit: u64) -> (usize, u8) {
    (usize::try_from(bit / 8).expect("a bit of the caller's buffer"), 1 << (bit % 8))
}

//! Guest memory with transparent huge pages: in pieces of 2 MiB (more in large guests), each whole or split.
//!
//! A whole piece may be made of huge pages: it is mapped by one entry, seen as one, and nothing of it leaves. A split piece is made of 4 KiB
//! pages, as all memory of other guests is. The reason for the distinction: a hole punched into part of a huge page that can't be split right
//! then leaves the page there, zeroed, and answers success. So a piece is split before anything of it leaves, by [`split`], which does not depend
//! on the kernel's being able to; and collapsed by the kernel when all of it is hot ([`collapse`]). [`policy`] decides when.
//!
//! Promises: while a batch of the evictor holds [`Pieces::hold`], no piece changes; what is split then has no huge page in it. Must never: be in
//! the fault path's way for longer than it takes to copy 2 MiB.
//!
//! Locks: `shape`, read by the evictor's batches, written while a piece changes; under it a piece's buffer. Nothing on the fault path takes it.

mod collapse;
mod policy;
mod split;

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::arena::Arena;
use crate::page::PageSlab;
use crate::status::PieceCounts;
use crate::sys::thp;
use crate::units::FrameIndex;

use policy::Watch;

/// Frames in a huge page.
pub const HUGE_FRAMES: u32 = 512;

/// How a piece is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shape {
    /// Perhaps of huge pages; seen and kept as one.
    Whole = 0,
    /// As `Whole`, but mapped by small entries for some scans, so that its parts are seen.
    Watched = 1,
    /// Of 4 KiB pages.
    Split = 2,
}

/// Why a piece can't be changed now.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    /// A frame is pinned or in another transition.
    #[error("a page of the piece is in use")]
    Busy,
    /// Not all of it is in memory.
    #[error("part of the piece is out")]
    Out,
    /// The kernel refused.
    #[error("{call} of a piece failed")]
    System {
        /// What.
        call: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// userfaultfd refused.
    #[error(transparent)]
    Uffd(#[from] crate::sys::uffd::UffdError),
}

impl PieceError {
    /// Whether the kernel may think otherwise in a moment: pages on their way between its lists, or held for an instant.
    fn is_temporary(&self) -> bool {
        let Self::System { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
    }
}

/// How many pieces there are of each kind, and what was done to them. Relaxed counters, for people.
#[derive(Debug, Default)]
struct PieceCounters {
    /// Pieces split.
    splits: AtomicU64,
    /// Pieces collapsed.
    collapses: AtomicU64,
    /// Tries that the kernel or the guest was against.
    refused: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub struct Pieces {
    arena: Arc<Arena>,
    shape: RwLock<()>,
    /// Changed only under `shape` written; read under it, or as a hint.
    shapes: Box<[AtomicU8]>,
    watches: Mutex<Box<[Watch]>>,
    /// Holds what a piece has while it is between two makes.
    buffer: Mutex<PageSlab>,
    counters: PieceCounters,
}

impl Pieces {
    /// The pieces of `arena`: whole where the host makes huge pages on touch, else split until they are hot.
    pub fn new(arena: Arc<Arena>) -> Self {
        let count = (arena.memory.frames() >> arena.piece_shift()) as usize + 1;
        let first = if thp::are_made_on_touch() { Shape::Whole } else { Shape::Split };
        let shapes = (0..count).map(|_| AtomicU8::new(first as u8)).collect();
        let watches = Mutex::new(vec![Watch::default(); count].into_boxed_slice());
        let buffer = Mutex::new(PageSlab::new(HUGE_FRAMES as usize));
        let pieces =
            Self { arena, shape: RwLock::new(()), shapes, watches, buffer, counters: PieceCounters::default() };
        for piece in 0..count {
            if first == Shape::Split || !pieces.can_be_huge(piece) {
                pieces.set(piece, Shape::Split);
            }
        }
        pieces
    }

    /// Which piece a frame is in.
    pub fn piece(&self, frame: FrameIndex) -> usize {
        (frame.0 >> self.arena.piece_shift()) as usize
    }

    /// How a piece is made.
    pub fn shape_of(&self, piece: usize) -> Shape {
        // Acquire: who finds a piece split finds its memory so. Pairs with `set`.
        match self.shapes[piece].load(Ordering::Acquire) {
            0 => Shape::Whole,
            1 => Shape::Watched,
            _ => Shape::Split,
        }
    }

    fn set(&self, piece: usize, shape: Shape) {
        self.shapes[piece].store(shape as u8, Ordering::Release);
    }

    /// Whether a frame may leave: only if its piece is split. Under [`Pieces::hold`] the answer stays true.
    pub fn may_leave(&self, frame: FrameIndex) -> bool {
        self.shape_of(self.piece(frame)) == Shape::Split
    }

    /// Keeps pieces as they are.
    pub fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.shape.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pieces by shape, and what was done. Watched ones count as whole.
    pub fn counts(&self) -> PieceCounts {
        let pieces = (0..self.shapes.len()).filter(|piece| !self.frames(*piece).is_empty());
        let (split, whole): (Vec<_>, Vec<_>) = pieces.partition(|piece| self.shape_of(*piece) == Shape::Split);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PieceCounts {
            whole: whole.len() as u64,
            split: split.len() as u64,
            splits: get(&self.counters.splits),
            collapses: get(&self.counters.collapses),
            refused: get(&self.counters.refused),
        }
    }

    fn frames(&self, piece: usize) -> Range<u32> {
        let shift = self.arena.piece_shift();
        let start = u32::try_from(piece).expect("pieces are fewer than frames") << shift;
        start.min(self.arena.memory.frames())..start.saturating_add(1 << shift).min(self.arena.memory.frames())
    }

    /// Only pieces that lie in one region from one 2 MiB boundary to another.
    fn can_be_huge(&self, piece: usize) -> bool {
        let frames = self.frames(piece);
        let len = frames.end - frames.start;
        let mut parts = self.arena.memory.parts(frames.clone());
        len > 0
            && len.is_multiple_of(HUGE_FRAMES)
            && parts.next().is_some_and(|(region, part)| {
                part == frames && region.hva(FrameIndex(part.start)).0.is_multiple_of(u64::from(HUGE_FRAMES) << 12)
            })
    }

    fn huge_parts(&self, piece: usize) -> impl Iterator<Item = Range<u32>> + use<> {
        self.frames(piece).step_by(HUGE_FRAMES as usize).map(|start| start..start + HUGE_FRAMES)
    }
}

//! Which bits of the host's bitmap are asked for: frames in host order, and the spans of chunks that hold them.
//!
//! Promises: every place is in exactly one span, and a span is no longer than the kernel takes at once. Must never: call the kernel.

use std::ops::Range;

use crate::sys::kpageflags::Pfn;
use crate::sys::page_idle::{CHUNK_FRAMES, CHUNKS_AT_ONCE};

/// Guest frames of one batch: as many as [`Place`] can number.
pub const MOST: u32 = 1 << OFFSET_BITS;
const OFFSET_BITS: u32 = 13;

/// A host frame, and the guest frame of a batch for which it is asked. Sorts by host frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

// Physical addresses have at most 52 bits, host frame numbers 40.
const _: () = assert!(OFFSET_BITS + 52 - crate::units::PAGE_SHIFT <= u64::BITS);

impl Place {
    /// Guest frame number `offset` of the batch is judged by this host frame.
    pub fn new(pfn: Pfn, offset: u32) -> Self {
        debug_assert!(offset < MOST, "a batch has no frame {offset}");
        Self(pfn.0 << OFFSET_BITS | u64::from(offset))
    }

    /// The host frame.
    pub fn pfn(self) -> Pfn {
        Pfn(self.0 >> OFFSET_BITS)
    }

    /// The guest frame, counted from the batch's first.
    #[expect(clippy::cast_possible_truncation, reason = "the low bits, 13 of them")]
    pub fn offset(self) -> u32 {
        self.0 as u32 & (MOST - 1)
    }

    /// The chunk of the bitmap that holds the host frame's bit.
    pub fn chunk(self) -> u64 {
        self.pfn().0 / CHUNK_FRAMES
    }

    /// The bit in that chunk.
    pub fn bit(self) -> u64 {
        1 << (self.pfn().0 % CHUNK_FRAMES)
    }
}

/// Neighbouring chunks, and the places whose bits are in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The chunks.
    pub chunks: Range<u64>,
    /// The places, as indices.
    pub places: Range<usize>,
}

impl Span {
    /// How many chunks.
    pub fn len(&self) -> usize {
        usize::try_from(self.chunks.end - self.chunks.start).expect("no more chunks than CHUNKS_AT_ONCE")
    }

    /// Where a place's chunk is in the span.
    pub fn index(&self, place: Place) -> usize {
        usize::try_from(place.chunk() - self.chunks.start).expect("a chunk of this span")
    }
}

/// The spans of sorted places. Up to `gap` chunks that hold none are taken along between two that do.
pub fn spans(places: &[Place], gap: u64) -> impl Iterator<Item = Span> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = places.get(at)?.chunk();
        let (from, mut end) = (at, first + 1);
        while let Some(chunk) = places.get(at).map(|place| place.chunk()) {
            if chunk > end + gap || chunk >= first + CHUNKS_AT_ONCE {
                break;
            }
            end = chunk + 1;
            at += 1;
        }
        Some(Span { chunks: first..end, places: from..at })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(pfn: u64) -> Place {
        Place::new(Pfn(pfn), 0)
    }

    #[test]
    fn a_place_gives_back_what_it_was_made_from_and_sorts_by_host_frame() {
        for (pfn, offset) in [(1, 0), (64, MOST - 1), ((1 << 40) - 1, 4097)] {
            let place = Place::new(Pfn(pfn), offset);
            assert_eq!((place.pfn(), place.offset()), (Pfn(pfn), offset));
            assert_eq!((place.chunk(), place.bit()), (pfn / 64, 1 << (pfn % 64)));
        }
        assert!(Place::new(Pfn(1), MOST - 1) < Place::new(Pfn(2), 0));
    }

    #[test]
    fn neighbouring_chunks_are_one_span_and_gaps_are_bridged_as_allowed() {
        let places: Vec<_> = [0, 63, 64, 200, 64 * 10].map(place).to_vec();
        let chunks = |gap| spans(&places, gap).map(|span| span.chunks).collect::<Vec<_>>();
        assert_eq!(chunks(0), [0..2, 3..4, 10..11]);
        assert_eq!(chunks(1), [0..4, 10..11]);
        assert_eq!(chunks(6), vec![0..11; 1]);
        assert_eq!(spans(&[], 0).next(), None);
    }

    proptest! {
        #[test]
        fn spans_hold_every_place_once_and_stay_short(
            mut pfns in prop::collection::vec(0_u64..200_000, 0..300), gap in 0_u64..5,
        ) {
            pfns.sort_unstable();
            let places: Vec<_> = pfns.into_iter().map(place).collect();
            let mut next = 0;
            for span in spans(&places, gap) {
                prop_assert_eq!(span.places.start, next);
                prop_assert!(!span.places.is_empty() && span.len() as u64 <= CHUNKS_AT_ONCE);
                next = span.places.end;
                prop_assert!(places[span.places.clone()].iter().all(|place| span.chunks.contains(&place.chunk())));
            }
            prop_assert_eq!(next, places.len());
        }
    }
}

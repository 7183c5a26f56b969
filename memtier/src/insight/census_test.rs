use std::os::fd::OwnedFd;

use super::*;
use crate::frame::word::{FrameWord, Ticket};
use crate::memory::RegionSpec;
use crate::units::{AreaId, Gfn, Hva, SlotOffset, SwapEntry};
use proptest::prelude::*;

/// Guest memory of which nothing is mapped: a census looks at words only.
pub(crate) fn memory(regions: &[(u64, u64)]) -> GuestMemory {
    let spec = |&(first, pages): &(u64, u64)| RegionSpec {
        first: Gfn(first),
        pages,
        file: OwnedFd::from(tempfile::tempfile().unwrap()),
        guest_map: Hva(0x7000_0000_0000 + (first << 12)),
    };
    GuestMemory::new(regions.iter().map(spec).collect()).unwrap()
}

/// The word of a frame last seen used in a scan, moved on to a state by the steps that lead there.
pub(crate) fn word(seen: u32, state: State) -> Option<FrameWord> {
    let ticket = Ticket::new(7);
    let entry = SwapEntry::new(AreaId(1), SlotOffset(9));
    let resident = FrameWord::UNTOUCHED.seen(Generation(seen))?;
    let evicting = || resident.claim(ticket);
    let leaving = |entry| evicting()?.begin_leave(ticket, entry, crate::frame::word::EvictionStamp::default());
    match state {
        State::Untouched => Some(FrameWord::UNTOUCHED),
        State::Resident => Some(resident),
        State::Evicting => evicting(),
        State::Leaving => leaving(Some(entry)),
        State::Swapped => leaving(Some(entry))?.left(),
        State::Zero => leaving(None)?.left(),
        State::Filling => leaving(Some(entry))?.left()?.begin_fill(),
        State::Opening => resident.open(),
        State::Clean => leaving(Some(entry))?.left()?.begin_fill()?.filled_keeping_slot(Generation(seen)),
        State::Poisoned => leaving(Some(entry))?.left()?.begin_fill()?.poison(),
        _ => None,
    }
}

/// The states that a guest gets into so far, and whether they count as memory (true) or tier (false).
const COUNTED: [(State, Option<bool>); 10] = [
    (State::Untouched, None),
    (State::Poisoned, None),
    (State::Swapped, Some(false)),
    (State::Zero, Some(false)),
    (State::Resident, Some(true)),
    (State::Clean, Some(true)),
    (State::Evicting, Some(true)),
    (State::Leaving, Some(true)),
    (State::Filling, Some(true)),
    (State::Opening, Some(true)),
];

pub(crate) fn set(table: &FrameTable, frame: usize, word: FrameWord) {
    table.update(FrameIndex(u32::try_from(frame).unwrap()), |_| Some(word)).unwrap();
}

proptest! {
    #[test]
    fn a_census_is_a_plain_count(
        frames in prop::collection::vec((0_u32..200, 0..COUNTED.len()), 700), split in 1_u64..699, finished in 200_u32..300,
    ) {
        let memory = memory(&[(16, split), (4096, 700 - split)]);
        let table = FrameTable::new(700);
        for (frame, (seen, state)) in frames.iter().enumerate() {
            set(&table, frame, word(*seen, COUNTED[*state].0).unwrap());
        }
        let census = Census::of(&memory, &table, Generation(finished));
        let split = usize::try_from(split).unwrap();
        for (region, part) in census.regions.iter().zip([&frames[..split], &frames[split..]]) {
            for (counted, histogram) in [(true, &region.resident), (false, &region.out)] {
                let mut naive = AgeHistogram::default();
                let ages = part.iter().filter(|(_, state)| COUNTED[*state].1 == Some(counted)).map(|(seen, _)| finished - seen);
                ages.for_each(|age| naive.add(age, 1));
                prop_assert_eq!(histogram, &naive);
            }
        }
        prop_assert_eq!((census.regions[0].start, census.regions[1].start), (16 << 12, 4096 << 12));
        let counted = |within: u32| frames.iter().filter(|(seen, s)| COUNTED[*s].1.is_some() && finished - seen < within).count() as u64;
        for within in [1, 2, 64] {
            prop_assert_eq!(census.touched_within(within), counted(within));
        }
        prop_assert_eq!(census.accessed() + census.idle(), census.resident());
        prop_assert_eq!(census.touched_by_bucket.iter().map(|n| u64::from(*n)).sum::<u64>(), counted(1));
    }
}

#[test]
fn buckets_count_what_is_in_them() {
    let memory = memory(&[(0, 1024), (1 << 20, 100)]);
    let buckets = Buckets::of(&memory);
    assert_eq!((buckets.bucket_bytes(), buckets.columns().len()), (8 * 4096, 128 + 13));
    let table = FrameTable::new(1124);
    for frame in [8, 9, 15, 1024 + 99] {
        set(&table, frame, word(5, State::Resident).unwrap());
    }
    let census = Census::of(&memory, &table, Generation(5));
    assert_eq!((census.touched_by_bucket[1], census.touched_by_bucket[128 + 12]), (3, 1));
    assert_eq!(census.touched_by_bucket.iter().sum::<u32>(), 4);
    let last = buckets.columns().last().unwrap();
    assert_eq!((last.frames.clone(), last.start), (1024 + 96..1124, (1 << 32) + 96 * 4096));
}

//! What the host's bitmap says of one batch of guest frames.
//!
//! Promises: a frame told as idle was mapped at the same host frame before and after its bit was read, and that bit was set; all frames of a
//! compound page are judged by its head, by one reading, also those of them that are not mapped while others are. Its buffers are made once
//! (about 150 KiB). Must never: tell a frame as idle that it could not see: one that moved, is on no list, or is of hugetlbfs counts as
//! accessed.

use std::io;
use std::ops::Range;

use crate::memory::{GuestMemory, Region};
use crate::sys::kpageflags::{FlagReader, Mapped, Pfn};
use crate::track::page_idle::host::Host;
use crate::track::page_idle::judge::Judge;
use crate::track::page_idle::places::{MOST, Place, spans};
use crate::units::{FrameIndex, FrameSize, Hva, PAGE_SHIFT};

/// A chunk without frames of ours costs the kernel, when it is read, several times what a call costs: never read along.
const READ_GAP: u64 = 0;
/// When it is written, it holds only zeros, which cost next to nothing.
const MARK_GAP: u64 = 8;
/// Page table entries read at once.
const ENTRIES: usize = 512;
/// How many of the frames that were marked are told at most.
const SAMPLES: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Sight {
    /// What it tells of: where guest memory's region is mapped, and which frames.
    of: Option<(Hva, Range<u32>)>,
    /// Frames below this one were armed since they were looked at.
    armed: u32,
    /// By frame.
    judges: Vec<Judge>,
    /// By frame, a bit each: its judge was idle.
    idle: Vec<u64>,
    /// The frames whose judge is a host frame.
    places: Vec<Place>,
    /// Chunks on their way in or out.
    chunks: Vec<[u8; 8]>,
}

impl Sight {
    /// Tells of nothing yet.
    pub fn new() -> Self {
        Self {
            of: None,
            armed: 0,
            judges: Vec::with_capacity(MOST as usize),
            idle: vec![0; MOST as usize / 64],
            places: Vec::with_capacity(MOST as usize),
            chunks: Vec::new(),
        }
    }

    /// Whether it tells of all these frames, and none of them was armed since.
    pub fn covers(&self, region: &Region, frames: &Range<u32>) -> bool {
        let within = |known: &Range<u32>| self.armed.max(known.start) <= frames.start && frames.end <= known.end;
        self.of.as_ref().is_some_and(|(map, known)| *map == region.map && within(known))
    }

    /// Looks at a batch of frames, at most [`MOST`].
    pub fn look(&mut self, host: &Host, memory: &GuestMemory, region: &Region, frames: Range<u32>) -> io::Result<()> {
        self.of = None;
        let read = reading(memory.frame_size());
        self.judges.clear();
        self.places.clear();
        read(host, region, &frames, &mut |offset, mapped| {
            let judge = Judge::of(mapped);
            self.judges.push(judge);
            self.places.extend(judge.pfn().map(|pfn| Place::new(pfn, offset)));
        })?;
        self.places.sort_unstable();
        self.read_idle(host)?;
        let seen = self.look_closer(host)?;
        if seen.tails {
            self.add_absent(&mut host.flags.reader())?;
        }
        if seen.unlisted {
            host.drain()?;
        }
        if seen.tails || seen.unlisted {
            self.places.sort_unstable();
            self.read_idle(host)?;
        }
        self.recheck(host, read, region, &frames)?;
        self.armed = frames.start;
        self.of = Some((region.map, frames));
        Ok(())
    }

    /// Reads the idle bits of all places.
    fn read_idle(&mut self, host: &Host) -> io::Result<()> {
        self.idle.fill(0);
        for span in spans(&self.places, READ_GAP) {
            self.chunks.clear();
            self.chunks.resize(span.len(), [0; 8]);
            let got = host.bitmap.read(span.chunks.start, &mut self.chunks)?;
            let mut flags = host.flags.reader();
            for place in &self.places[span.places.clone()] {
                let is_idle = match self.chunks[..got].get(span.index(*place)) {
                    Some(chunk) => u64::from_ne_bytes(*chunk) & place.bit() != 0,
                    None => flags.flags(place.pfn())?.is_idle(),
                };
                if is_idle {
                    set(&mut self.idle, place.offset());
                }
            }
        }
        Ok(())
    }

    /// Looks into why places are not idle. Tails of compound pages never are: from now on their heads judge them. Pages that are on no list
    /// aren't either.
    fn look_closer(&mut self, host: &Host) -> io::Result<Closer> {
        let mut reader = host.flags.reader();
        let mut seen = Closer { tails: false, unlisted: false };
        for place in &mut self.places {
            if !is_set(&self.idle, place.offset()) {
                let (head, flags) = reader.head(place.pfn())?;
                seen.tails |= head != place.pfn();
                seen.unlisted |= !flags.is_on_lru() && !flags.is_hugetlb();
                *place = Place::new(head, place.offset());
            }
        }
        Ok(seen)
    }

    /// A compound page holds consecutive pages of guest memory. Where only some of them are mapped, their neighbours are still its frames.
    fn add_absent(&mut self, flags: &mut FlagReader<'_>) -> io::Result<()> {
        let count = u32::try_from(self.judges.len()).unwrap_or(MOST);
        let mut last = None;
        for offset in 0..count {
            last = self.follow(flags, offset, last, 1)?;
        }
        let mut last = None;
        for offset in (0..count).rev() {
            last = self.follow(flags, offset, last, -1)?;
        }
        Ok(())
    }

    /// Finds the frame at `offset` to be the next one, or the one before, of its neighbour's compound page. `last` and the answer: a frame
    /// of such a page, and the page's head.
    fn follow(
        &mut self,
        flags: &mut FlagReader<'_>,
        offset: u32,
        last: Option<(Pfn, Pfn)>,
        step: i64,
    ) -> io::Result<Option<(Pfn, Pfn)>> {
        let judge = &mut self.judges[offset as usize];
        if let Some(pfn) = judge.pfn() {
            let (head, flags) = flags.head(pfn)?;
            return Ok(flags.is_compound_head().then_some((pfn, head)));
        }
        let Some((neighbour, head)) = last.filter(|_| !judge.is_mapped()) else { return Ok(None) };
        let pfn = Pfn(neighbour.0.saturating_add_signed(step));
        if flags.head(pfn)?.0 != head {
            return Ok(None);
        }
        *judge = Judge::absent(pfn);
        self.places.push(Place::new(head, offset));
        Ok(Some((pfn, head)))
    }

    /// Notes which frames have moved while their bits were read, and by which host frames the others were judged.
    fn recheck(&mut self, host: &Host, read: Read, region: &Region, frames: &Range<u32>) -> io::Result<()> {
        read(host, region, frames, &mut |offset, mapped| {
            let judge = &mut self.judges[offset as usize];
            if !judge.still_holds(mapped) {
                clear(&mut self.idle, offset);
                *judge = if mapped == Mapped::No { Judge::NOBODY } else { Judge::UNKNOWN };
            }
        })?;
        for place in &self.places {
            let judge = &mut self.judges[place.offset() as usize];
            if judge.pfn().is_some() {
                *judge = judge.asking(place.pfn());
            }
        }
        Ok(())
    }

    /// Calls `accessed` with the runs of frames that are not idle, of those that are mapped or belong to a page that is.
    pub fn tell(&self, accessed: &mut dyn FnMut(Range<u32>)) {
        let Some((_, frames)) = &self.of else { return };
        let mut run: Option<Range<u32>> = None;
        for (offset, judge) in (0..).zip(&self.judges) {
            let frame = frames.start + offset;
            if *judge != Judge::NOBODY && !is_set(&self.idle, offset) {
                run.get_or_insert(frame..frame).end = frame + 1;
            } else if let Some(run) = run.take() {
                accessed(run);
            }
        }
        run.into_iter().for_each(accessed);
    }

    /// Marks those of these frames that were not idle; answers a few of them from all over, or none if there was nothing to mark. The frames
    /// must be covered.
    pub fn mark(&mut self, host: &Host, frames: &Range<u32>) -> io::Result<Vec<FrameIndex>> {
        let Some((_, known)) = &self.of else { return Ok(Vec::new()) };
        self.places.clear();
        for offset in frames.start - known.start..frames.end - known.start {
            let judge = self.judges[offset as usize].pfn().filter(|_| !is_set(&self.idle, offset));
            self.places.extend(judge.map(|pfn| Place::new(pfn, offset)));
        }
        self.places.sort_unstable();
        for span in spans(&self.places, MARK_GAP) {
            self.chunks.clear();
            self.chunks.resize(span.len(), [0; 8]);
            for place in &self.places[span.places.clone()] {
                let chunk = &mut self.chunks[span.index(*place)];
                *chunk = (u64::from_ne_bytes(*chunk) | place.bit()).to_ne_bytes();
            }
            host.bitmap.mark(span.chunks.start, &self.chunks)?;
        }
        self.armed = frames.end;
        let apart = self.places.len().div_ceil(SAMPLES).max(1);
        let mapped = self.places.iter().filter(|place| self.judges[place.offset() as usize].is_mapped());
        Ok(mapped.step_by(apart).map(|place| FrameIndex(known.start + place.offset())).collect())
    }
}

/// What was found about frames that are not idle.
struct Closer {
    /// Some are judged by another frame.
    tails: bool,
    /// Some are on no list, and could be.
    unlisted: bool,
}

/// Calls the last argument with every frame's place in the batch and where it is.
type Read = fn(&Host, &Region, &Range<u32>, &mut dyn FnMut(u32, Mapped)) -> io::Result<()>;

fn reading(size: FrameSize) -> Read {
    match size {
        FrameSize::Small => read_entries,
        FrameSize::Huge => read_huge,
    }
}

/// Huge pages of hugetlbfs are on no list: all that can be said is whether they are mapped.
fn read_huge(host: &Host, region: &Region, frames: &Range<u32>, each: &mut dyn FnMut(u32, Mapped)) -> io::Result<()> {
    for (offset, frame) in (0..).zip(frames.clone()) {
        let mapped = host.frames.at(region.hva(FrameIndex(frame)))?;
        each(offset, if mapped == Mapped::No { Mapped::No } else { Mapped::Hidden });
    }
    Ok(())
}

fn read_entries(
    host: &Host,
    region: &Region,
    frames: &Range<u32>,
    each: &mut dyn FnMut(u32, Mapped),
) -> io::Result<()> {
    let first = region.hva(FrameIndex(frames.start));
    let total = frames.end - frames.start;
    let mut entries = [[0; 8]; ENTRIES];
    let mut offset = 0;
    while offset < total {
        let some = &mut entries[..ENTRIES.min((total - offset) as usize)];
        host.frames.read(first.offset(u64::from(offset) << PAGE_SHIFT), some)?;
        for entry in some {
            each(offset, Mapped::from_entry(*entry));
            offset += 1;
        }
    }
    Ok(())
}

fn is_set(bits: &[u64], offset: u32) -> bool {
    bits[offset as usize / 64] >> (offset % 64) & 1 == 1
}

fn set(bits: &mut [u64], offset: u32) {
    bits[offset as usize / 64] |= 1 << (offset % 64);
}

fn clear(bits: &mut [u64], offset: u32) {
    bits[offset as usize / 64] &= !(1 << (offset % 64));
}

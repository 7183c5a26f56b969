//! Pages one by one, as etmem's scan tells them (`/proc/PID/idle_pages`): accessed, idle, hole, run-length encoded.
//!
//! Promises: what is told as idle was not accessed since it was last told or marked, checked at the moment of reading. With `clear`, references
//! of exactly the pages that were told are cleared, so that the next reader sees what was accessed since. Must never: take references away
//! from scans: they are noted before they are cleared.

use std::ops::Range;

use crate::control::{ControlError, Memtier};
use crate::frame::word::State;
use crate::insight::etmem_scan::{Encoder, Full, MIN_BUFFER, PAGES_PER_BYTE, PageType};
use crate::memory::Region;
use crate::status::TrackerKind;
use crate::units::{Gfn, PAGE_SHIFT, PAGE_SIZE};

const PAGE: u64 = PAGE_SIZE as u64;
/// Small pages in 2 MiB.
const BLOCK: usize = 512;
/// Pages read and marked in one go: whole chunks of the idle bitmap, whole huge pages.
const STEP: u64 = 4 * 512;
/// Bytes of idle bitmap for that.
const STEP_BYTES: usize = 4 * BLOCK / 8;

/// Which addresses a request and its answer speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressSpace {
    /// Guest physical addresses.
    #[default]
    Guest,
    /// Addresses of the guest mapping in this process, which is what etmem's tools find in `/proc/PID/maps`.
    Host,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdlePages {
    /// The first address, etmem's file position: a multiple of the page size.
    pub start: u64,
    /// Bytes of buffer; each asks for eight pages.
    pub buffer: u64,
    /// Which addresses are meant.
    pub space: AddressSpace,
    /// Whether references are cleared, as etmem's scan does.
    pub clear: bool,
    /// Whether 2 MiB of small pages, none of them accessed, are told as one. (etmem's SCAN_HUGE_PAGE tells all small pages so, accessed or
    /// not; that would be no news here.)
    pub huge: bool,
    /// Whether accesses known to be writes are told as such: etmem's SCAN_DIRTY_PAGE. Only the dirty log knows.
    pub dirty: bool,
}

/// Why pages are not told.
#[derive(Debug, thiserror::Error)]
pub enum IdlePagesError {
    /// The start is not a page's (EINVAL's meaning).
    #[error("idle pages offset {0:#x} is not a multiple of {PAGE_SIZE}")]
    Unaligned(u64),
    /// The buffer is too small (EINVAL's meaning).
    #[error("idle pages buffer of {0} bytes is below {MIN_BUFFER}")]
    Buffer(u64),
    /// The tiers refuse.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A region's place in the address space that is spoken of.
struct Segment {
    address: u64,
    gfn: u64,
    pages: u64,
}

impl Segment {
    fn new(region: &Region, space: AddressSpace) -> Self {
        let address = match space {
            AddressSpace::Guest => region.first.gpa(),
            AddressSpace::Host => region.map.0,
        };
        Self { address, gfn: region.first.0, pages: region.bytes() >> PAGE_SHIFT }
    }

    fn end(&self) -> u64 {
        self.address + self.pages * PAGE
    }

    fn address_of(&self, gfn: u64) -> u64 {
        self.address + (gfn - self.gfn) * PAGE
    }
}

impl Memtier {
    /// Tells pages from `start` on, eight for each byte of buffer, as far as the buffer goes; nothing at or beyond the end of memory. A
    /// reader goes on at the address where decoding ends.
    pub fn idle_pages(&self, request: IdlePages) -> Result<Vec<u8>, IdlePagesError> {
        if !request.start.is_multiple_of(PAGE) {
            return Err(IdlePagesError::Unaligned(request.start));
        }
        let buffer = usize::try_from(request.buffer).unwrap_or(usize::MAX);
        let mut encoder = Encoder::new(buffer).ok_or(IdlePagesError::Buffer(request.buffer))?;
        let mut segments: Vec<Segment> =
            self.arena.memory.regions().iter().map(|region| Segment::new(region, request.space)).collect();
        segments.sort_by_key(|segment| segment.address);
        let last = segments.last().map_or(0, Segment::end);
        if request.start >= last {
            return Ok(Vec::new());
        }
        let wanted = request.buffer.saturating_mul(PAGES_PER_BYTE * PAGE);
        let mut end = request.start.saturating_add(wanted).min(last);
        for segment in &segments {
            let (from, to) = (request.start.max(segment.address), end.min(segment.end()));
            if from >= to {
                continue;
            }
            let gfns = |address: u64| segment.gfn + (address - segment.address) / PAGE;
            if let Some(stopped) = self.tell(segment, gfns(from)..gfns(to), request, &mut encoder)? {
                end = segment.address_of(stopped);
                break;
            }
        }
        Ok(encoder.finish(end))
    }

    /// Tells a segment's frame numbers; answers the first one for which there was no room, if so.
    fn tell(
        &self,
        segment: &Segment,
        gfns: Range<u64>,
        request: IdlePages,
        encoder: &mut Encoder,
    ) -> Result<Option<u64>, ControlError> {
        let mut next = gfns.start;
        while next < gfns.end {
            let step = Step { start: next / STEP * STEP, gfns: next..gfns.end.min((next / STEP + 1) * STEP) };
            next = step.gfns.end;
            let stopped = self.tell_step(segment, &step, request, encoder)?;
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    fn tell_step(
        &self,
        segment: &Segment,
        step: &Step,
        request: IdlePages,
        encoder: &mut Encoder,
    ) -> Result<Option<u64>, ControlError> {
        let mut idle = Bits::default();
        self.read_idle(step.start / 8, &mut idle.0)?;
        let mut pages = self.pages(step, &idle, request);
        if request.huge {
            pages = merged(&pages, segment);
        }
        let (mut told, mut stopped) = (Bits::default(), None);
        for page in pages {
            if let Err(Full) = encoder.page(segment.address_of(page.gfn), page.kind) {
                stopped = Some(page.gfn);
                break;
            }
            (page.gfn..page.gfn + page.kind.bytes() / PAGE).for_each(|gfn| told.set(gfn - step.start));
        }
        if request.clear {
            // An access since the bits were read is noted for scans, but not told to this reader: as small a gap as that of etmem's own.
            self.write_idle(step.start / 8, &told.0)?;
        }
        Ok(stopped)
    }

    fn pages(&self, step: &Step, idle: &Bits, request: IdlePages) -> Vec<Page> {
        let memory = &self.arena.memory;
        let count = memory.frame_size().bytes() / PAGE;
        let kinds = if count == 1 { &SMALL } else { &HUGE };
        let used =
            if request.dirty && self.watcher.tracker() == TrackerKind::DirtyLog { kinds.dirty } else { kinds.used };
        let kind = |gfn: u64| {
            let state = memory.index(Gfn(gfn)).map_or(State::Untouched, |frame| self.arena.frames.get(frame).state());
            match state {
                State::Untouched | State::Swapped | State::Zero | State::Discarded | State::Poisoned => kinds.hole,
                _ if idle.get(gfn - step.start) => kinds.idle,
                _ => used,
            }
        };
        let first = step.gfns.start / count * count;
        let gfns = (first..step.gfns.end).step_by(usize::try_from(count).unwrap_or(1));
        gfns.map(|gfn| Page { gfn, kind: kind(gfn) }).collect()
    }
}

/// The types of pages of one size.
struct Kinds {
    hole: PageType,
    idle: PageType,
    used: PageType,
    dirty: PageType,
}

const SMALL: Kinds =
    Kinds { hole: PageType::Hole, idle: PageType::Idle, used: PageType::Accessed, dirty: PageType::Dirty };
const HUGE: Kinds = Kinds {
    hole: PageType::HugeHole,
    idle: PageType::HugeIdle,
    used: PageType::HugeAccessed,
    dirty: PageType::HugeDirty,
};

/// Pages that are read and marked together.
struct Step {
    /// The first frame number of the bits, a multiple of [`STEP`].
    start: u64,
    /// Those of them that are asked for.
    gfns: Range<u64>,
}

/// A piece of the idle bitmap; bits are counted from the step's start.
struct Bits([u8; STEP_BYTES]);

impl Default for Bits {
    fn default() -> Self {
        Self([0; STEP_BYTES])
    }
}

impl Bits {
    fn get(&self, bit: u64) -> bool {
        let byte = usize::try_from(bit / 8).ok().and_then(|byte| self.0.get(byte));
        byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }

    fn set(&mut self, bit: u64) {
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|byte| self.0.get_mut(byte)) {
            *byte |= 1 << (bit % 8);
        }
    }
}

/// A page to tell.
#[derive(Clone, Copy)]
struct Page {
    gfn: u64,
    kind: PageType,
}

/// The same pages, with 2 MiB of idle small pages as one.
fn merged(pages: &[Page], segment: &Segment) -> Vec<Page> {
    let mut told = Vec::with_capacity(pages.len());
    let mut rest = pages;
    while let [first, others @ ..] = rest {
        let aligned = segment.address_of(first.gfn).is_multiple_of(PageType::HugeAllIdle.bytes());
        let block =
            rest.split_at_checked(BLOCK).filter(|(block, _)| block.iter().all(|page| page.kind == PageType::Idle));
        match block {
            Some((_, after)) if aligned => {
                told.push(Page { gfn: first.gfn, kind: PageType::HugeAllIdle });
                rest = after;
            }
            _ => {
                told.push(*first);
                rest = others;
            }
        }
    }
    told
}

//! Turns what a tracker sees into generations on frame words and into the idle bitmap, with page_idle's contract
//! (`Documentation/admin-guide/mm/idle_page_tracking.rst`) over guest frame numbers.
//!
//! Promises: before references are cleared, they are noted, so that the bitmap's users do not blind a scan; an idle bit is set only on a frame
//! that was armed before it; a bit read as set means: not accessed since it was last marked, checked at the moment of reading. A scan marks
//! everything, as users of the kernel's bitmap mark for each other. Must never: report a frame that is not resident as idle.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::arena::Arena;
use crate::frame::word::{FrameWord, Generation, State};
use crate::status::ScanLoop;
use crate::track::AccessTracker;
use crate::units::FrameIndex;

/// Frames harvested and armed in one go; small, so that little time passes between noting a reference and clearing it.
const BATCH: u32 = 8192;
/// How often ages are kept from wrapping, in scans.
const AGING_INTERVAL: u32 = 1024;
/// Frames per 64-bit chunk of the bitmap, for stepping and for counting.
const CHUNK: usize = 64;
const CHUNK_FRAMES: u64 = 64;

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

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    arena: Arc<Arena>,
    tracker: Box<dyn AccessTracker>,
    /// Held while references are read or cleared.
    idle: Mutex<IdleBits>,
}

impl Watcher {
    /// Watches `arena` by `tracker`.
    pub fn new(arena: Arc<Arena>, tracker: Box<dyn AccessTracker>) -> Self {
        let idle = Mutex::new(IdleBits::new(arena.memory.frames()));
        Self { arena, tracker, idle }
    }

    /// One scan: arms everything, lets `wait` pass the time, notes what was accessed. `None` if `wait` answers false: cancelled.
    pub fn scan(&self, wait: impl FnOnce() -> bool) -> io::Result<Option<ScanLoop>> {
        let seen = self.try_scan(wait);
        if !matches!(seen, Ok(Some(_))) {
            self.abandon();
        }
        seen
    }

    /// Takes the marks of an unfinished scan back, so that the next one can use its number.
    fn abandon(&self) {
        let (abandoned, finished) = self.arena.clock.abandon();
        if abandoned != finished {
            for frame in self.frames() {
                // A refusal means that it has no such mark.
                let _ = self.arena.frames.update(frame, |word| word.relabelled(abandoned, finished));
            }
        }
    }

    fn try_scan(&self, wait: impl FnOnce() -> bool) -> io::Result<Option<ScanLoop>> {
        let began = Instant::now();
        let all = 0..self.arena.memory.frames();
        let generation = self.arm_all(all.clone())?;
        let armed = began.elapsed();
        if !wait() {
            return Ok(None);
        }
        let collecting = Instant::now();
        self.harvest_all(all)?;
        self.arena.clock.finish();
        if generation.0.is_multiple_of(AGING_INTERVAL) {
            self.keep_ages_from_wrapping();
        }
        let (accessed, idle) = self.count(generation);
        let scan_us = micros(armed + collecting.elapsed());
        Ok(Some(ScanLoop { accessed, idle, scan_us, duration_us: micros(began.elapsed()) }))
    }

    fn arm_all(&self, frames: Range<u32>) -> io::Result<Generation> {
        let mut idle = self.lock();
        // What is seen while arming belongs to the time before, so the clock moves on afterwards.
        for batch in batches(frames.clone()) {
            self.arena.refresh(batch.clone())?;
            self.arm(&mut idle, batch)?;
        }
        for frame in frames.map(FrameIndex) {
            if is_eligible(self.arena.frames.get(frame)) {
                idle.set(frame);
            }
        }
        Ok(self.arena.clock.begin())
    }

    fn harvest_all(&self, frames: Range<u32>) -> io::Result<()> {
        let mut idle = self.lock();
        for batch in batches(frames) {
            self.harvest(&mut idle, batch.clone())?;
            // First touches that were unmapped again by somebody else's arming.
            self.arena.refresh(batch)?;
        }
        Ok(())
    }

    /// Resident frames that `generation` saw used, and those it did not.
    fn count(&self, generation: Generation) -> (u64, u64) {
        let (mut accessed, mut idle) = (0, 0);
        for frame in self.frames() {
            let word = self.arena.frames.get(frame);
            if word.state() == State::Resident {
                if word.age(generation) == 0 { accessed += 1 } else { idle += 1 }
            }
        }
        (accessed, idle)
    }

    fn keep_ages_from_wrapping(&self) {
        let finished = self.arena.clock.finished();
        for frame in self.frames() {
            // A refusal means that the age is small.
            let _ = self.arena.frames.update(frame, |word| word.aged(finished));
        }
    }

    /// Notes the accesses of a range: labels the frames, takes their idle bits.
    fn harvest(&self, idle: &mut IdleBits, frames: Range<u32>) -> io::Result<()> {
        let now = self.arena.clock.now();
        self.tracker.collect(&self.arena.memory, frames, &mut |run| {
            for frame in run.map(FrameIndex) {
                idle.clear(frame);
                // A refusal means that it is out, or marked already.
                let _ = self.arena.frames.update(frame, |word| word.seen(now).filter(|seen| *seen != word));
            }
        })
    }

    /// Notes the accesses of a range, then clears them.
    fn arm(&self, idle: &mut IdleBits, frames: Range<u32>) -> io::Result<()> {
        self.harvest(idle, frames.clone())?;
        self.tracker.arm(&self.arena.memory, frames)
    }

    /// page_idle's read. Fills `out` from byte `offset` of the bitmap; answers how many bytes, 0 at or beyond the end.
    pub fn read_idle(&self, offset: u64, out: &mut [u8]) -> Result<usize, IdleError> {
        let gfns = self.bits(offset, out.len())?;
        let mut idle = self.lock();
        for part in self.arena.memory.indices(gfns.clone()).0 {
            batches(part).try_for_each(|batch| self.harvest(&mut idle, batch))?;
        }
        let mut done = 0;
        for (chunk, start) in out.as_chunks_mut::<8>().0.iter_mut().zip(gfns.step_by(CHUNK)) {
            let mut bits = 0_u64;
            for frame in self.arena.memory.indices(start..start + CHUNK_FRAMES).0.into_iter().flatten().map(FrameIndex)
            {
                if idle.get(frame) && is_eligible(self.arena.frames.get(frame)) {
                    bits |= 1 << (self.arena.memory.gfn(frame).0 - start);
                }
            }
            *chunk = bits.to_ne_bytes();
            done += chunk.len();
        }
        Ok(done)
    }

    /// page_idle's write: a 1 clears the frame's references, then marks it idle; a 0 does nothing. Answers how many bytes were taken.
    pub fn write_idle(&self, offset: u64, bits: &[u8]) -> Result<usize, IdleError> {
        let gfns = self.bits(offset, bits.len())?;
        if gfns.is_empty() && !bits.is_empty() {
            return Err(IdleError::BeyondEnd { offset, len: self.bitmap_len() });
        }
        let mut idle = self.lock();
        let mut marked = Runs::default();
        let mut done = 0;
        for (chunk, start) in bits.as_chunks::<8>().0.iter().zip(gfns.step_by(CHUNK)) {
            let chunk = u64::from_ne_bytes(*chunk);
            done += 8;
            if chunk == 0 {
                continue;
            }
            for part in self.arena.memory.indices(start..start + CHUNK_FRAMES).0 {
                self.arena.refresh(part.clone())?;
                for frame in part.map(FrameIndex) {
                    let bit = self.arena.memory.gfn(frame).0 - start;
                    if chunk >> bit & 1 == 1 && is_eligible(self.arena.frames.get(frame)) {
                        marked.push(frame.0, |run| self.mark(&mut idle, run))?;
                    }
                }
            }
        }
        marked.flush(|run| self.mark(&mut idle, run))?;
        Ok(done)
    }

    fn mark(&self, idle: &mut IdleBits, run: Range<u32>) -> io::Result<()> {
        self.arm(idle, run.clone())?;
        run.for_each(|frame| idle.set(FrameIndex(frame)));
        Ok(())
    }

    /// The frame numbers that a request covers, shortened at the end.
    fn bits(&self, offset: u64, len: usize) -> Result<Range<u64>, IdleError> {
        let len = len as u64;
        for (what, value) in [("offset", offset), ("length", len)] {
            if !value.is_multiple_of(8) {
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
        self.arena.memory.end().0.div_ceil(CHUNK_FRAMES) * 8
    }

    fn frames(&self) -> impl Iterator<Item = FrameIndex> + use<> {
        (0..self.arena.memory.frames()).map(FrameIndex)
    }

    fn lock(&self) -> MutexGuard<'_, IdleBits> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only frames that are in memory and free to go can be idle; all others read 0 and ignore writes.
fn is_eligible(word: FrameWord) -> bool {
    word.state() == State::Resident && !word.is_locked()
}

fn batches(frames: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let end = frames.end;
    frames.step_by(BATCH as usize).map(move |start| start..start.saturating_add(BATCH).min(end))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// One bit per frame index.
#[derive(Debug)]
struct IdleBits {
    words: Vec<u64>,
}

impl IdleBits {
    fn new(frames: u32) -> Self {
        Self { words: vec![0; frames.div_ceil(64) as usize] }
    }

    fn get(&self, frame: FrameIndex) -> bool {
        self.words[frame.get() / 64] >> (frame.0 % 64) & 1 == 1
    }

    fn set(&mut self, frame: FrameIndex) {
        self.words[frame.get() / 64] |= 1 << (frame.0 % 64);
    }

    fn clear(&mut self, frame: FrameIndex) {
        self.words[frame.get() / 64] &= !(1 << (frame.0 % 64));
    }
}

/// Gathers ascending frames into runs, so that neighbours cost one call.
#[derive(Debug, Default)]
struct Runs {
    run: Option<Range<u32>>,
}

impl Runs {
    fn push(&mut self, frame: u32, mut each: impl FnMut(Range<u32>) -> io::Result<()>) -> io::Result<()> {
        match &mut self.run {
            Some(run) if run.end == frame && run.end - run.start < BATCH => run.end += 1,
            other => {
                if let Some(run) = other.replace(frame..frame + 1) {
                    each(run)?;
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, mut each: impl FnMut(Range<u32>) -> io::Result<()>) -> io::Result<()> {
        self.run.take().map_or(Ok(()), &mut each)
    }
}

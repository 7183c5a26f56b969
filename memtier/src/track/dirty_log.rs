//! The `dirty_log` tracker: the hypervisor's log of pages written. Sees writes only, by vCPUs and by devices alike.
//!
//! Collecting reads the log of whole regions, which clears nothing. Arming clears what collecting has told of, and nothing else: a page first
//! written between the two stays in the log and is told next time. So no write of a page that counts as idle is lost.
//!
//! A frame is written if any of its pages is.
//!
//! Promises: the hypervisor logs only as long as the tracker is used. Must never: be taken as proof that a frame has memory: at first the log
//! counts every page as written; nor as proof that a page was not read.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hypervisor::DirtyLog;
use crate::memory::{GuestMemory, Region};
use crate::status::TrackerKind;
use crate::track::AccessTracker;

const WORD_BITS: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct DirtyTracker {
    log: Arc<dyn DirtyLog>,
    told: Mutex<Told>,
    /// Relaxed: set by the one who has the tracker, before it drops.
    retired: AtomicBool,
}

/// What the log has told of and what was not cleared since.
#[derive(Debug)]
struct Told {
    /// A bit per page, for each region. At first every page: an arming without collecting before clears all.
    pages: Vec<Vec<u64>>,
    /// Where the log puts what it tells; kept, because regions can be large.
    read: Vec<u64>,
}

impl DirtyTracker {
    /// Starts the log, whose regions are `memory`'s.
    pub fn new(log: Arc<dyn DirtyLog>, memory: &GuestMemory) -> io::Result<Self> {
        let pages = memory.regions().iter().map(|region| vec![u64::MAX; words(region)]).collect();
        log.start()?;
        Ok(Self { log, told: Mutex::new(Told { pages, read: Vec::new() }), retired: AtomicBool::new(false) })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // A page told of and not noted as told is told again: nothing is lost by a panic.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessTracker for DirtyTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::DirtyLog
    }

    fn batch(&self) -> u32 {
        // Each collecting reads whole regions, so the fewer the better; and nothing is lost between collecting and arming.
        u32::MAX
    }

    fn slows_the_guest(&self) -> bool {
        true
    }

    fn proves_memory(&self) -> bool {
        false
    }

    fn arm(&self, memory: &GuestMemory, frames: Range<u32>) -> io::Result<()> {
        let mut told = self.told();
        for (region, part) in parts(memory, frames) {
            let pages = &mut told.pages[region];
            let first = part.start / WORD_BITS;
            let mut bits = pages[first..part.end.div_ceil(WORD_BITS)].to_vec();
            keep_only(&mut bits, part.start % WORD_BITS..part.end - first * WORD_BITS);
            if bits.iter().any(|bits| *bits != 0) {
                self.log.clear(region, (first * WORD_BITS) as u64, &bits)?;
                pages[first..].iter_mut().zip(&bits).for_each(|(pages, cleared)| *pages &= !cleared);
            }
        }
        Ok(())
    }

    fn collect(
        &self,
        memory: &GuestMemory,
        frames: Range<u32>,
        accessed: &mut dyn FnMut(Range<u32>),
    ) -> io::Result<()> {
        let mut told = self.told();
        let Told { pages, read } = &mut *told;
        for (region, part) in parts(memory, frames) {
            read.clear();
            read.resize(pages[region].len(), 0);
            self.log.written(region, read)?;
            keep_only(read, part);
            pages[region].iter_mut().zip(&*read).for_each(|(pages, read)| *pages |= read);
            let base = memory.regions()[region].base.0;
            for_each_frames(read, memory.frame_size().pages(), |run| {
                accessed(base + index(run.start)..base + index(run.end))
            });
        }
        Ok(())
    }

    fn retire(&self) {
        if !self.retired.swap(true, Ordering::Relaxed)
            && let Err(error) = self.log.stop()
        {
            tracing::warn!(%error, "the dirty log can't be stopped");
        }
    }
}

impl Drop for DirtyTracker {
    fn drop(&mut self) {
        self.retire();
    }
}

/// The pages of a range of frames, region by region: the region's number, and the pages within it.
fn parts(memory: &GuestMemory, frames: Range<u32>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let pages = memory.frame_size().pages();
    memory.regions().iter().enumerate().filter_map(move |(number, region)| {
        let own = region.frames();
        let (start, end) = (frames.start.max(own.start), frames.end.min(own.end));
        (start < end).then(|| (number, (start - own.start) as usize * pages..(end - own.start) as usize * pages))
    })
}

fn words(region: &Region) -> usize {
    (region.pages as usize).div_ceil(WORD_BITS)
}

fn index(frame: usize) -> u32 {
    u32::try_from(frame).expect("a frame of a region")
}

/// Takes the bits outside `range` away.
fn keep_only(bits: &mut [u64], range: Range<usize>) {
    for (word, bits) in bits.iter_mut().enumerate() {
        let first = range.start.saturating_sub(word * WORD_BITS).min(WORD_BITS);
        let last = range.end.saturating_sub(word * WORD_BITS).min(WORD_BITS);
        *bits &= ones(last) & !ones(first);
    }
}

/// A word whose lowest `count` bits are set, 64 at most.
const fn ones(count: usize) -> u64 {
    if count < WORD_BITS { (1 << count) - 1 } else { u64::MAX }
}

/// Calls `found` with each run of frames of `pages` pages that have a bit set, ascending, as long as they come.
fn for_each_frames(bits: &[u64], pages: usize, mut found: impl FnMut(Range<usize>)) {
    let mut open: Option<Range<usize>> = None;
    for_each_run(bits, |run| {
        let frames = run.start / pages..run.end.div_ceil(pages);
        match &mut open {
            // Runs of pages never touch, those of frames may.
            Some(open) if frames.start <= open.end => open.end = frames.end,
            open => {
                if let Some(ended) = open.replace(frames) {
                    found(ended);
                }
            }
        }
    });
    if let Some(last) = open {
        found(last);
    }
}

/// Calls `found` with each run of set bits, ascending, as long as they come.
fn for_each_run(bits: &[u64], mut found: impl FnMut(Range<usize>)) {
    let mut open = None;
    for (word, bits) in bits.iter().enumerate() {
        let mut at = 0;
        while at < WORD_BITS {
            let left = bits >> at;
            // How many bits are as the next one is; shifted-in zeros do not count.
            let same = if left & 1 == 1 { left.trailing_ones() } else { left.trailing_zeros() } as usize;
            let end = (at + same).min(WORD_BITS);
            if left & 1 == 1 {
                open.get_or_insert(word * WORD_BITS + at);
            } else if let Some(start) = open.take() {
                found(start..word * WORD_BITS + at);
            }
            at = end;
        }
    }
    if let Some(start) = open {
        found(start..bits.len() * WORD_BITS);
    }
}

#[cfg(test)]
#[path = "dirty_log_test.rs"]
mod tests;

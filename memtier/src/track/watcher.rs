//! Turns what a tracker sees into generations on frame words and into idle bits.
//!
//! Promises: before references are cleared they are noted, so that neither scans, nor the bitmap's users, nor a change of tracker blind each
//! other; an idle bit is set only on a frame that was armed before it. A scan marks everything, as users of the kernel's bitmap mark for each
//! other; only frames known to be hot are left out by turns ([`Backoff`]) and count as accessed then. Must never: report a frame that is
//! not resident as idle.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::arena::Arena;
use crate::evict::Evictor;
use crate::frame::word::{FrameWord, Generation, State};
use crate::insight::{Census, FinishedScan, Insight};
use crate::pieces::{HUGE_FRAMES, Pieces};
use crate::status::{ScanLoop, TrackerKind};
use crate::track::AccessTracker;
use crate::track::backoff::Backoff;
use crate::track::idle_bits::IdleBits;
use crate::track::runs::Runs;
use crate::units::FrameIndex;

/// The most frames handled in one go, whatever a tracker would like: what is noted about them meanwhile takes at most 1 MiB.
const MAX_BATCH: u32 = 1 << 18;
/// Idle frames between two accessed ones that are armed along with them: walking over their empty entries costs less than another call.
const ARM_GAP: u32 = 32;
/// How often ages are kept from wrapping, in scans.
const AGING_INTERVAL: u32 = 1024;

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    pub(super) arena: Arc<Arena>,
    pieces: Option<Arc<Pieces>>,
    evictor: Arc<Evictor>,
    insight: Arc<Insight>,
    /// Held while references are read or cleared.
    seeing: Mutex<Seeing>,
}

/// What belongs to whoever reads or clears references.
#[derive(Debug)]
pub(super) struct Seeing {
    tracker: Box<dyn AccessTracker>,
    pub(super) idle: IdleBits,
    backoff: Backoff,
    /// Runs to arm, kept between batches.
    due: Vec<Range<u32>>,
}

/// What an access found by [`Watcher::harvest`] means for the frame's back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing: it was looked at outside a scan.
    Aside,
    /// It counts, if this scan looks at the frame.
    Scan { generation: Generation, limit: u32 },
}

/// What it means that a tracker calls a frame accessed.
#[derive(Clone, Copy, Debug)]
struct Accesses {
    prove_memory: bool,
    are_writes: bool,
}

impl Accesses {
    fn of(tracker: &dyn AccessTracker) -> Self {
        Self { prove_memory: tracker.proves_memory(), are_writes: tracker.kind() == TrackerKind::DirtyLog }
    }
}

impl Watcher {
    /// Watches `arena` by `tracker`; pieces of huge pages are decided about after each scan.
    pub fn new(
        arena: Arc<Arena>,
        tracker: Box<dyn AccessTracker>,
        pieces: Option<Arc<Pieces>>,
        evictor: Arc<Evictor>,
        insight: Arc<Insight>,
    ) -> Self {
        let frames = arena.memory.frames();
        let (idle, backoff) = (IdleBits::new(frames), Backoff::new(frames));
        Self { arena, pieces, evictor, insight, seeing: Mutex::new(Seeing { tracker, idle, backoff, due: Vec::new() }) }
    }

    /// The tracker in use.
    pub fn tracker(&self) -> TrackerKind {
        self.lock().tracker.kind()
    }

    /// Goes on with another tracker. Marks, ages and a scan under way stay: the new one is armed first, then what the old one saw is noted, so
    /// an access is seen by one of them at least. On an error the old one stays.
    pub fn switch(&self, tracker: Box<dyn AccessTracker>) -> io::Result<()> {
        let mut seeing = self.lock();
        let frames = 0..self.arena.memory.frames();
        for batch in batches(frames.clone(), tracker.batch()) {
            // Some trackers arm what they have told of, some lose what the other has seen when they arm.
            self.harvest(&mut seeing, batch.clone(), Look::Aside)?;
            tracker.collect(&self.arena.memory, batch.clone(), &mut |_| ())?;
            tracker.arm(&self.arena.memory, batch)?;
        }
        self.harvest_all(&mut seeing, frames, Look::Aside)?;
        let old = std::mem::replace(&mut seeing.tracker, tracker);
        old.retire();
        Ok(())
    }

    /// One scan: arms everything, lets `wait` pass the time, notes what was accessed. Hot frames are looked at every 2^`limit` scans at least.
    /// `None` if `wait` answers false: cancelled.
    pub fn scan(&self, limit: u32, wait: impl FnOnce() -> bool) -> io::Result<Option<ScanLoop>> {
        let seen = self.try_scan(limit, wait);
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

    fn try_scan(&self, limit: u32, wait: impl FnOnce() -> bool) -> io::Result<Option<ScanLoop>> {
        let began = Instant::now();
        let all = 0..self.arena.memory.frames();
        let generation = self.arm_all(limit)?;
        let watching = Instant::now();
        if !wait() {
            return Ok(None);
        }
        let collecting = Instant::now();
        let mut seeing = self.lock();
        let assumed = self.harvest_all(&mut seeing, all, Look::Scan { generation, limit })?;
        seeing.backoff.end();
        let longest_call_us = micros(seeing.tracker.take_longest_call());
        let tracker = seeing.tracker.kind();
        drop(seeing);
        self.arena.clock.finish();
        let ended = Instant::now();
        if generation.0.is_multiple_of(AGING_INTERVAL) {
            self.keep_ages_from_wrapping();
        }
        self.decide_about_pieces(generation);
        let census = Census::take(&self.arena, generation);
        self.insight.record(&census, &FinishedScan { tracker, assumed, began: watching, ended });
        Ok(Some(ScanLoop {
            accessed: census.accessed(),
            assumed,
            idle: census.idle(),
            scan_us: micros((watching - began) + collecting.elapsed()),
            longest_call_us,
            duration_us: micros(began.elapsed()),
        }))
    }

    /// Arms what was accessed since it was armed last; the rest is armed still.
    fn arm_all(&self, limit: u32) -> io::Result<Generation> {
        let mut seeing = self.lock();
        let limit = if seeing.tracker.slows_the_guest() { limit } else { 0 };
        let next = self.arena.clock.next();
        seeing.backoff.begin();
        // What is seen while arming belongs to the time before, so the clock moves on afterwards.
        for batch in batches(0..self.arena.memory.frames(), seeing.tracker.batch()) {
            self.refresh_untouched(batch.clone())?;
            self.arm_due(&mut seeing, batch.clone(), next, limit)?;
            for frame in batch.map(FrameIndex) {
                if is_eligible(self.arena.frames.get(frame)) {
                    seeing.idle.set(frame);
                }
            }
        }
        Ok(self.arena.clock.begin())
    }

    fn arm_due(&self, seeing: &mut Seeing, frames: Range<u32>, next: Generation, limit: u32) -> io::Result<()> {
        let mut due = std::mem::take(&mut seeing.due);
        due.clear();
        let Seeing { tracker, idle, backoff, .. } = seeing;
        let now = self.arena.clock.now();
        let accesses = Accesses::of(tracker.as_ref());
        // The last hot frame that must keep its mapping: no run reaches over it.
        let mut spared = None;
        tracker.collect(&self.arena.memory, frames, &mut |run| {
            idle.clear(run.clone());
            for frame in run {
                if self.label(FrameIndex(frame), now, accesses).is_none() {
                    continue;
                }
                if !backoff.is_due(FrameIndex(frame), next, limit) {
                    spared = Some(frame);
                    continue;
                }
                backoff.armed(FrameIndex(frame));
                match due.last_mut() {
                    Some(last) if frame - last.end <= ARM_GAP && spared.is_none_or(|spared| spared < last.end) => {
                        last.end = frame + 1;
                    }
                    _ => due.push(frame..frame + 1),
                }
            }
        })?;
        let armed = due.iter().try_for_each(|run| tracker.arm(&self.arena.memory, run.clone()));
        seeing.due = due;
        armed
    }

    /// Notes the accesses of everything; answers how many were assumed, because the frame is hot and this scan did not look at it.
    fn harvest_all(&self, seeing: &mut Seeing, frames: Range<u32>, look: Look) -> io::Result<u64> {
        let mut assumed = 0;
        for batch in batches(frames, seeing.tracker.batch()) {
            assumed += self.harvest(seeing, batch.clone(), look)?;
            // First touches that were unmapped again by somebody else's arming, or that the tracker does not vouch for.
            self.refresh_untouched(batch)?;
        }
        Ok(assumed)
    }

    /// Notes the accesses of a range: labels the frames, takes their idle bits.
    fn harvest(&self, seeing: &mut Seeing, frames: Range<u32>, look: Look) -> io::Result<u64> {
        let Seeing { tracker, idle, backoff, .. } = seeing;
        let look = match look {
            Look::Scan { generation, .. } if !tracker.slows_the_guest() => Look::Scan { generation, limit: 0 },
            look => look,
        };
        let (now, finished) = (self.arena.clock.now(), self.arena.clock.finished());
        let accesses = Accesses::of(tracker.as_ref());
        let mut assumed = 0;
        tracker.collect(&self.arena.memory, frames, &mut |run| {
            idle.clear(run.clone());
            for frame in run.map(FrameIndex) {
                let Some(before) = self.label(frame, now, accesses) else { continue };
                let Look::Scan { generation, limit } = look else { continue };
                if before.age(finished) > 0 {
                    backoff.reset(frame);
                }
                if backoff.is_due(frame, generation, limit) {
                    backoff.found_accessed(frame);
                } else {
                    assumed += 1;
                }
            }
        })?;
        Ok(assumed)
    }

    /// Labels a frame as accessed in `now`; answers its word before, or `None` if that access proves nothing.
    fn label(&self, frame: FrameIndex, now: Generation, accesses: Accesses) -> Option<FrameWord> {
        let before = self.arena.frames.get(frame);
        if before.state() == State::Untouched && !accesses.prove_memory {
            return None;
        }
        // A refusal means that it is out, or marked already.
        let marked = self.arena.frames.update(frame, |word| word.seen(now).filter(|seen| *seen != word));
        // The slot that it came back from holds other bytes now. In the interval in which it came back that is not certain: KVM calls a page
        // written when it maps it, though it was only read.
        if accesses.are_writes && before.state() == State::Clean && marked.is_ok() {
            self.evictor.forget_slot(frame);
        }
        Some(before)
    }

    /// Notes the accesses of a range outside a scan.
    pub(super) fn look(&self, seeing: &mut Seeing, frames: Range<u32>) -> io::Result<()> {
        for batch in batches(frames, seeing.tracker.batch()) {
            self.harvest(seeing, batch, Look::Aside)?;
        }
        Ok(())
    }

    /// Notes the accesses of a run, clears them, and marks the run idle.
    pub(super) fn mark(&self, seeing: &mut Seeing, run: Range<u32>) -> io::Result<()> {
        self.look(seeing, self.around(run.clone()))?;
        seeing.tracker.arm(&self.arena.memory, run.clone())?;
        run.for_each(|frame| seeing.idle.set(FrameIndex(frame)));
        Ok(())
    }

    /// The frames that lose their references with those of `run`: inside a huge page, all.
    fn around(&self, run: Range<u32>) -> Range<u32> {
        match &self.pieces {
            None => run,
            Some(_) => {
                run.start / HUGE_FRAMES * HUGE_FRAMES
                    ..self.arena.memory.frames().min(run.end.next_multiple_of(HUGE_FRAMES))
            }
        }
    }

    /// Notices first touches. Frames that were touched before are not looked at: finding memory costs more than reading a word.
    pub(super) fn refresh_untouched(&self, frames: Range<u32>) -> io::Result<()> {
        let mut untouched = Runs::exact(u32::MAX);
        for frame in frames {
            if self.arena.frames.get(FrameIndex(frame)).state() == State::Untouched {
                untouched.push(frame..frame + 1, |run| self.arena.refresh(run))?;
            }
        }
        untouched.flush(|run| self.arena.refresh(run))
    }

    fn decide_about_pieces(&self, finished: Generation) {
        if let Some(pieces) = &self.pieces {
            let look_anew = |frames: Range<u32>| self.lock().backoff.start_over(frames);
            pieces.after_scan(finished, look_anew, |frame| _ = self.evictor.forget_slot(frame));
        }
    }

    fn keep_ages_from_wrapping(&self) {
        let finished = self.arena.clock.finished();
        for frame in self.frames() {
            // A refusal means that the age is small.
            let _ = self.arena.frames.update(frame, |word| word.aged(finished));
        }
    }

    fn frames(&self) -> impl Iterator<Item = FrameIndex> + use<> {
        (0..self.arena.memory.frames()).map(FrameIndex)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Seeing> {
        self.seeing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only frames that are in memory and free to go can be idle; all others read 0 and ignore writes.
pub(super) fn is_eligible(word: FrameWord) -> bool {
    word.is_resident() && !word.is_locked()
}

fn batches(frames: Range<u32>, batch: u32) -> impl Iterator<Item = Range<u32>> {
    let (end, batch) = (frames.end, batch.clamp(1, MAX_BATCH));
    frames.step_by(batch as usize).map(move |start| start..start.saturating_add(batch).min(end))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

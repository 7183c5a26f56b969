//! Which tracker is in use, chosen at the start and changed while the guest runs.
//!
//! Promises: a change keeps ages, idle bits and a scan under way; one that fails leaves the tracker in use as it was. Must never: change the
//! tracker unasked, once the guest runs.

use std::sync::{Arc, Mutex};

use crate::arena::Arena;
use crate::control::{ControlError, Memtier, lock};
use crate::hypervisor::DirtyLog;
use crate::status::{TrackerChoice, TrackerInfo, TrackerKind};
use crate::track::AccessTracker;
use crate::track::choose::{self, Choice, Circumstances};
use crate::track::dirty_log::DirtyTracker;
use crate::track::page_idle::PageIdle;
use crate::track::unmap::Unmap;

/// What is known about trackers here, and how often they changed.
#[derive(Debug)]
pub(super) struct Trackers {
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    wanted: TrackerChoice,
    reason: String,
    switches: u64,
    dirty_log: Option<Arc<dyn DirtyLog>>,
}

impl Trackers {
    /// The tracker to begin with: the one wanted, or, where that is the dirty log, which comes later, `unmap` until it is there.
    pub(super) fn first(wanted: TrackerChoice, arena: &Arena) -> Result<(Self, Box<dyn AccessTracker>), ControlError> {
        let here = circumstances(arena, None);
        let choice = match wanted {
            TrackerChoice::DirtyLog => {
                Choice { tracker: TrackerKind::Unmap, reason: "until the dirty log is there".to_owned() }
            }
            _ => choose::choose(wanted, &choose::offers(here), here),
        };
        let tracker = open(choice.tracker, arena, None)?;
        let book = Book { wanted, reason: choice.reason, switches: 0, dirty_log: None };
        Ok((Self { book: Mutex::new(book) }, tracker))
    }
}

fn circumstances(arena: &Arena, dirty_log: Option<&Arc<dyn DirtyLog>>) -> Circumstances {
    Circumstances { locked: arena.locked, dirty_log: dirty_log.is_some() }
}

fn open(
    kind: TrackerKind,
    arena: &Arena,
    dirty_log: Option<&Arc<dyn DirtyLog>>,
) -> Result<Box<dyn AccessTracker>, ControlError> {
    let failed = |source| ControlError::Tracker { kind, source };
    Ok(match kind {
        TrackerKind::Unmap => Box::new(Unmap::new().map_err(failed)?),
        TrackerKind::PageIdle => Box::new(PageIdle::open().map_err(ControlError::PageIdle)?),
        TrackerKind::DirtyLog => {
            let log = dirty_log.ok_or(ControlError::NoDirtyLog)?;
            Box::new(DirtyTracker::new(Arc::clone(log), &arena.memory).map_err(failed)?)
        }
    })
}

impl Memtier {
    /// The hypervisor's log of written pages, once the hypervisor is there. If the dirty log was asked for, it is used from now on.
    pub fn connect_dirty_log(&self, log: Arc<dyn DirtyLog>) -> Result<(), ControlError> {
        let wanted = {
            let mut book = lock(&self.trackers.book);
            book.dirty_log = Some(log);
            book.wanted
        };
        if wanted == TrackerChoice::DirtyLog { self.set_tracker(wanted).map(|_| ()) } else { Ok(()) }
    }

    /// The tracker in use, why, and what else there is.
    pub fn tracker_info(&self) -> TrackerInfo {
        self.info(&lock(&self.trackers.book))
    }

    /// Goes on with another tracker, or with the best one. Ages and idle bits stay.
    pub fn set_tracker(&self, wanted: TrackerChoice) -> Result<TrackerInfo, ControlError> {
        let _open = self.enter()?;
        let mut book = lock(&self.trackers.book);
        let here = circumstances(&self.arena, book.dirty_log.as_ref());
        let choice = choose::choose(wanted, &choose::offers(here), here);
        if choice.tracker != self.watcher.tracker() {
            let tracker = open(choice.tracker, &self.arena, book.dirty_log.as_ref())?;
            let failed = |source| ControlError::Tracker { kind: choice.tracker, source };
            self.watcher.switch(tracker).map_err(failed)?;
            book.switches += 1;
        }
        book.wanted = wanted;
        book.reason = choice.reason;
        Ok(self.info(&book))
    }

    fn info(&self, book: &Book) -> TrackerInfo {
        let tracker = self.watcher.tracker();
        TrackerInfo {
            wanted: book.wanted,
            tracker,
            reason: book.reason.clone(),
            sees: if tracker == TrackerKind::DirtyLog { "writes" } else { "accesses" }.to_owned(),
            switches: book.switches,
            trackers: choose::offers(circumstances(&self.arena, book.dirty_log.as_ref())),
        }
    }

    /// Pages that each vCPU was seen writing so far, where the dirty log tells vCPUs apart; empty elsewhere.
    pub fn written_by_vcpu(&self) -> Vec<u64> {
        lock(&self.trackers.book).dirty_log.as_ref().map_or_else(Vec::new, |log| log.written_by_vcpu())
    }
}

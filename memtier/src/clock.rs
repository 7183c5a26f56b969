//! The scan clock: which scan is watching, and which was the last to finish. Ages are counted in it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::frame::word::Generation;

/// Scans are numbered from 1; 0 is the time before the first.
#[derive(Debug, Default)]
pub struct ScanClock {
    watching: AtomicU32,
    finished: AtomicU32,
}

// Relaxed throughout: a generation is a label on an access. That an access near a scan's edge gets the neighbouring label is in the nature
// of sampling, and no memory is handed over by these numbers.
impl ScanClock {
    /// The label for an access now.
    pub fn now(&self) -> Generation {
        Generation(self.watching.load(Ordering::Relaxed))
    }

    /// The last scan that finished; ages count from it.
    pub fn finished(&self) -> Generation {
        Generation(self.finished.load(Ordering::Relaxed))
    }

    /// The number of the scan that is to begin.
    pub fn next(&self) -> Generation {
        Generation(self.finished.load(Ordering::Relaxed).wrapping_add(1))
    }

    /// A scan begins to watch. One at a time.
    pub fn begin(&self) -> Generation {
        let next = self.next();
        self.watching.store(next.0, Ordering::Relaxed);
        next
    }

    /// The scan that watches is given up; its number comes again. Answers (its number, the one that counts instead).
    pub fn abandon(&self) -> (Generation, Generation) {
        let finished = self.finished.load(Ordering::Relaxed);
        (Generation(self.watching.swap(finished, Ordering::Relaxed)), Generation(finished))
    }

    /// The scan that watches has finished.
    pub fn finish(&self) {
        self.finished.store(self.watching.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

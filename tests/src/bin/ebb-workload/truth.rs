//! The arena at work: touches the sets that the console names, and leaves on the disk what the truth is.
//!
//! Promises: the record of an access is on the disk before its end is told, and nothing touches the arena between the access and the next one.
//! Must never: keep the record, or anything it is made of, in the arena.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use ebb_tests::tracking::linux::access::{Access, whole_pieces};
use ebb_tests::tracking::linux::record::{self, Header, RecordError};

use crate::arena::Arena;

/// An arena and the disk that its records go to.
pub struct Truth {
    arena: Arena,
    frames: Vec<u64>,
    disk: File,
}

impl Truth {
    /// Makes the arena and writes its first record.
    pub fn new(pages: usize, disk: &str) -> Result<Self, String> {
        // Writes end when the disk has the data, so that the host's file has them too.
        let opened = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(disk);
        let disk = opened.map_err(|error| format!("{disk}: {error}"))?;
        let arena = Arena::new(pages).map_err(|error| format!("arena: {error}"))?;
        let frames = arena.frames();
        let truth = Self { arena, frames, disk };
        record::write_frames(&truth.disk, &truth.frames).map_err(said)?;
        truth.finish(0)?;
        Ok(truth)
    }

    /// Pages of the arena, and whole aligned pieces of 2 MiB among them.
    pub fn size(&self) -> (usize, usize) {
        (self.frames.len(), whole_pieces(&self.frames).len())
    }

    /// Touches a set and writes down which. Answers the number of pages touched and the sum of what was read.
    pub fn access(&self, access: Access) -> Result<(u64, u64), String> {
        let set = access.pages(&self.frames);
        let sum = self.arena.touch(&set, access.write.then_some(access.number));
        record::write_set(&self.disk, self.pages(), &set).map_err(said)?;
        self.finish(access.number)?;
        Ok((set.len(), sum))
    }

    fn finish(&self, number: u64) -> Result<(), String> {
        let moved = self.arena.moved().map_err(|error| format!("arena: {error}"))?;
        Header { pages: self.pages(), number, moved }.write(&self.disk).map_err(said)
    }

    fn pages(&self) -> u64 {
        u64::try_from(self.frames.len()).unwrap_or(u64::MAX)
    }
}

fn said(error: RecordError) -> String {
    match error {
        RecordError::Disk(source) => format!("disk: {source}"),
        other => other.to_string(),
    }
}

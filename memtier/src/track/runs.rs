//! Gathers ascending frames into runs, so that neighbours cost one call.
//!
//! Promises: every frame that went in is in exactly one run that comes out; a run is at most as long as asked. Frames between two that went in
//! are taken along only where a gap is allowed. Must never: keep a frame back after [`Runs::flush`].

use std::io;
use std::ops::Range;

/// See the module.
#[derive(Debug)]
pub struct Runs {
    run: Option<Range<u32>>,
    longest: u32,
    gap: u32,
}

impl Runs {
    /// Runs of exactly what goes in, at most `longest` frames each.
    pub fn exact(longest: u32) -> Self {
        Self::with_gaps(longest, 0)
    }

    /// Runs that may take up to `gap` frames along between two that went in.
    pub fn with_gaps(longest: u32, gap: u32) -> Self {
        Self { run: None, longest, gap }
    }

    /// Takes frames in; calls `each` for a run that can't be continued by them.
    pub fn push(&mut self, frames: Range<u32>, mut each: impl FnMut(Range<u32>) -> io::Result<()>) -> io::Result<()> {
        match &mut self.run {
            Some(run) if frames.start <= run.end + self.gap && frames.end - run.start <= self.longest => {
                run.end = frames.end;
            }
            other => {
                if let Some(run) = other.replace(frames) {
                    each(run)?;
                }
            }
        }
        Ok(())
    }

    /// Calls `each` for what is left.
    pub fn flush(&mut self, mut each: impl FnMut(Range<u32>) -> io::Result<()>) -> io::Result<()> {
        self.run.take().map_or(Ok(()), &mut each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(mut runs: Runs, frames: &[Range<u32>]) -> Vec<Range<u32>> {
        let mut out = Vec::new();
        let mut each = |run| {
            out.push(run);
            Ok(())
        };
        for range in frames {
            runs.push(range.clone(), &mut each).unwrap();
        }
        runs.flush(&mut each).unwrap();
        out
    }

    #[test]
    fn neighbours_become_one_run_up_to_the_longest() {
        assert_eq!(gathered(Runs::exact(4), &[1..2, 2..3, 4..5, 5..8, 8..9]), [1..3, 4..8, 8..9]);
        assert_eq!(gathered(Runs::exact(4), &[]), []);
    }

    #[test]
    fn small_gaps_are_bridged_only_where_allowed() {
        assert_eq!(gathered(Runs::with_gaps(100, 2), &[1..2, 4..5, 8..9]), [1..5, 8..9]);
    }
}

//! Swap areas on and off while the guest runs.
//!
//! Promises: an area goes off only when nothing is in it; if a page can't be brought back, the area stays on and nothing is lost. Must never:
//! poison a page that the guest has not asked for.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::control::{ControlError, Memtier};
use crate::fault::fill::{FillError, Unreadable, Waits};
use crate::status::{AreaInfo, AreaSpec};
use crate::swap::SwapError;
use crate::units::{AreaId, FrameIndex, Shard};

/// How long a slot may take to be freed after its page is back: far more than a handler needs that was pushed off its processor.
const PATIENCE: Duration = Duration::from_secs(2);

impl Memtier {
    /// Switches a swap area on.
    pub fn swapon(&self, spec: &AreaSpec) -> Result<AreaId, ControlError> {
        Ok(self.swap.swapon(spec)?)
    }

    /// Brings everything back from the area, then closes it; on an error the area stays on.
    pub fn swapoff(&self, id: AreaId) -> Result<(), ControlError> {
        let _open = self.enter()?;
        let _one = self.swapoff.lock().unwrap_or_else(PoisonError::into_inner);
        self.swap.begin_swapoff(id)?;
        // Batches that took slots of the area before it stopped handing them out.
        self.evictor.quiesce();
        self.empty_area(id).and_then(|()| self.finish_swapoff(id)).inspect_err(|_| {
            if let Err(error) = self.swap.abort_swapoff(id) {
                tracing::error!(%error, "{id} stays half off");
            }
        })
    }

    fn empty_area(&self, id: AreaId) -> Result<(), ControlError> {
        let mut buffer = self.arena.memory.frame_buffer();
        let mut failed: Option<(u64, FillError)> = None;
        for frame in (0..self.arena.memory.frames()).map(FrameIndex) {
            if self.arena.frames.get(frame).entry().is_none_or(|entry| entry.area() != id) {
                continue;
            }
            match self.filler.bring_back(frame, Shard(0), &mut buffer, Unreadable::Leave) {
                Ok(_) | Err(FillError::NotOut(_)) => {}
                Err(error) => {
                    let (count, first) = failed.take().unwrap_or((0, error));
                    failed = Some((count + 1, first));
                }
            }
        }
        match failed {
            None => Ok(()),
            Some((pages, source)) => Err(ControlError::NotEmptied { id, pages, source }),
        }
    }

    /// A handler frees a slot just after its page is in memory, so the last of them may be a moment late.
    fn finish_swapoff(&self, id: AreaId) -> Result<(), ControlError> {
        let until = Instant::now() + PATIENCE;
        let mut waits = Waits::default();
        loop {
            match self.swap.finish_swapoff(id) {
                Err(SwapError::InUse { .. }) if Instant::now() < until => waits.once(),
                other => return Ok(other?),
            }
        }
    }

    /// The areas that are on.
    pub fn swap_areas(&self) -> Vec<AreaInfo> {
        self.swap.list()
    }
}

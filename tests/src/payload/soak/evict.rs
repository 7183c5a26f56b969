//! Evictions of all kinds.
//!
//! Promises: every answer is checked to account for every page. Must never: choose pages by what the guest does; collisions are the point.

use memtier::status::{GuestRange, Outcomes, ReclaimRequest};

use super::SoakError;
use super::scene::{Scene, part_of};
use crate::payload::abi::PAGE;
use crate::payload::rng::Rng;

/// Evicts a range and checks that every page has an outcome.
pub(super) fn evict(scene: &Scene<'_>, range: GuestRange) -> Result<Outcomes, SoakError> {
    let outcomes = scene.memtier.evict(&[range]).map_err(SoakError::refused("an eviction"))?;
    let Outcomes { evicted, absent, locked, shared, busy, cancelled, error } = outcomes;
    if evicted + absent + locked + shared + busy + cancelled + error != range.len / PAGE {
        return Err(SoakError::Unaccounted { range, outcomes });
    }
    scene.tally.count(|totals| totals.outcomes.add(&outcomes));
    Ok(outcomes)
}

/// The pages that vCPUs write most.
pub(super) fn hot_pages(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    evict(scene, part_of(scene.layout.hot, 16, rng)).map(|_| ())
}

/// The pages that the kernel reads into.
pub(super) fn direct_io_pages(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    let outcomes = evict(scene, part_of(scene.layout.direct_io, 64, rng))?;
    scene.tally.count(|totals| totals.direct_io_outcomes.add(&outcomes));
    Ok(())
}

/// Random ranges, the coldest pages, everything at once.
pub(super) fn anything(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    match rng.below(64) {
        0 => all(scene)?,
        1..8 => reclaim(scene, rng)?,
        _ => drop(evict(scene, part_of(scene.layout.work, 512, rng))?),
    }
    scene.end.pass(std::time::Duration::from_micros(rng.below(20_000)));
    Ok(())
}

/// All of guest memory, the image's own pages too.
pub(super) fn all(scene: &Scene<'_>) -> Result<(), SoakError> {
    evict(scene, GuestRange { start: 0, len: scene.layout.work.start })?;
    evict(scene, scene.layout.work).map(|_| ())
}

fn reclaim(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    let bytes = Some(rng.below(1024) * PAGE);
    let min_idle_scans = (rng.below(2) == 0).then(|| u32::from(rng.below(2) == 0) + 1);
    let request = ReclaimRequest { bytes, min_idle_scans };
    let reclaimed = scene.memtier.reclaim(request).map_err(SoakError::refused("a reclaim"))?;
    scene.tally.count(|totals| {
        totals.outcomes.add(&reclaimed.outcomes);
        totals.reclaims += 1;
    });
    Ok(())
}

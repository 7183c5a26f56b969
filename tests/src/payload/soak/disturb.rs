//! Everything else that can happen to a guest's memory: scans, areas coming and going, locks, pins, pauses, and somebody who looks.
//!
//! Promises: what locks and pins promise is tried out while they hold. Must never: leave a range locked or the guest paused.

use std::time::Duration;

use memtier::status::{GuestRange, Outcomes, ScanPlan, ScanState};
use memtier::units::AreaId;

use super::SoakError;
use super::evict::evict;
use super::scene::{Scene, part_of};
use crate::payload::abi::PAGE;
use crate::payload::rng::Rng;

/// Bitmap bytes that cover this many pages, in whole 64-bit chunks.
const fn bitmap_bytes(pages: u64) -> u64 {
    pages.div_ceil(64) * 8
}

/// Series of scans, and the idle bitmap read and written.
pub(super) fn scan(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    match rng.below(8) {
        0 => scan_series(scene, rng)?,
        choice => idle_bitmap(scene, rng, choice % 2 == 0)?,
    }
    scene.tally.count(|totals| totals.scans += 1);
    scene.end.pass(Duration::from_micros(rng.below(20_000)));
    Ok(())
}

fn scan_series(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    let loops = 1 + u32::from(rng.below(2) == 0);
    let plan = ScanPlan { loops, interval_ms: rng.below(5), sleep_ms: rng.below(50), backoff: None };
    let id = scene.memtier.start_scan(plan).map_err(SoakError::refused("a scan"))?;
    if rng.below(4) == 0 {
        scene.end.pass(Duration::from_millis(rng.below(50)));
        scene.memtier.cancel_scan(id);
    }
    // One series at a time: the next one can only start when this one has ended.
    while scene.memtier.scan(id).is_some_and(|report| report.state == ScanState::Running) && !scene.end.is_over() {
        scene.end.pass(Duration::from_millis(1));
    }
    Ok(())
}

fn idle_bitmap(scene: &Scene<'_>, rng: &mut Rng, write: bool) -> Result<(), SoakError> {
    let chunks = bitmap_bytes((scene.layout.work.start + scene.layout.work.len) / PAGE) / 8;
    let count = 1 + rng.below(chunks.min(256));
    let offset = rng.below(chunks - count + 1) * 8;
    let mut bits: Vec<u8> = (0..count).flat_map(|_| rng.draw().to_le_bytes()).collect();
    if write {
        scene.memtier.write_idle(offset, &bits).map_err(SoakError::refused("writing the idle bitmap"))?;
    } else {
        scene.memtier.read_idle(offset, &mut bits).map_err(SoakError::refused("reading the idle bitmap"))?;
    }
    Ok(())
}

/// Areas come and go; now and then there is none, and nothing but zero pages can leave.
pub(super) fn swap_areas(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    let on = scene.memtier.swap_areas();
    let off: Vec<_> = scene.areas.iter().filter(|spec| on.iter().all(|info| info.path != spec.path)).collect();
    let switch_on = match on.len() {
        0 => true,
        1 => rng.below(4) != 0,
        _ => false,
    };
    if switch_on {
        let mut spec = off[pick(rng, off.len())].clone();
        spec.priority = (rng.below(2) == 0).then_some(5);
        scene.memtier.swapon(&spec).map_err(SoakError::refused("switching an area on"))?;
    } else {
        let area = &on[pick(rng, on.len())];
        scene.memtier.swapoff(AreaId(area.id)).map_err(SoakError::refused("switching an area off"))?;
    }
    scene.memtier.set_swap_enable(rng.below(2) == 0);
    scene.tally.count(|totals| totals.area_switches += 1);
    scene.end.pass(Duration::from_millis(rng.below(if on.is_empty() { 20 } else { 500 })));
    Ok(())
}

/// Switches every area off; then nothing may be swapped any more.
pub(super) fn switch_off_all_areas(scene: &Scene<'_>) -> Result<(), SoakError> {
    for area in scene.memtier.swap_areas() {
        scene.memtier.swapoff(AreaId(area.id)).map_err(SoakError::refused("switching the last areas off"))?;
    }
    match scene.memtier.status().swapped_pages {
        0 => Ok(()),
        swapped => Err(SoakError::StillSwapped { swapped }),
    }
}

/// Locks a range, tries to evict it, unlocks it.
pub(super) fn lock(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    let range = part_of(scene.layout.pages, 64, rng);
    scene.memtier.lock(&[range]).map_err(SoakError::refused("a lock"))?;
    let stayed = evict(scene, range).and_then(|outcomes| must_stay("locked", range, outcomes));
    scene.memtier.unlock(&[range]).map_err(SoakError::refused("an unlock"))?;
    scene.tally.count(|totals| totals.locks += 1);
    scene.end.pass(Duration::from_micros(rng.below(50_000)));
    stayed
}

/// Pins a range, tries to evict it, unpins it.
pub(super) fn pin(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    let area = if rng.below(2) == 0 { scene.layout.hot } else { scene.layout.pages };
    let range = part_of(area, 16, rng);
    let guard = scene.memtier.pin(range).map_err(SoakError::refused("a pin"))?;
    let outcomes = evict(scene, range)?;
    drop(guard);
    scene.tally.count(|totals| totals.pins += 1);
    scene.end.pass(Duration::from_micros(rng.below(20_000)));
    must_stay("pinned", range, outcomes)
}

fn must_stay(why: &'static str, range: GuestRange, outcomes: Outcomes) -> Result<(), SoakError> {
    if outcomes.evicted == 0 { Ok(()) } else { Err(SoakError::Left { why, range, outcomes }) }
}

/// Stops all vCPUs for a moment.
pub(super) fn pause_guest(scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
    scene.end.pass(Duration::from_millis(500 + rng.below(1000)));
    scene.vm.machine().pause()?;
    scene.end.pass(Duration::from_millis(rng.below(20)));
    scene.vm.machine().resume()?;
    scene.tally.count(|totals| totals.pauses += 1);
    Ok(())
}

/// Looks at the sizes by state: they add up at every moment.
pub(super) fn sample(scene: &Scene<'_>) -> Result<(), SoakError> {
    let status = scene.memtier.status();
    let out = status.swapped_pages + status.zero_pages + status.discarded_pages;
    let sum = status.resident_pages + status.untouched_pages + out + status.poisoned_pages;
    if sum != status.guest_pages {
        return Err(SoakError::Sum { sum, status: Box::new(status) });
    }
    if status.poisoned_pages != 0 || status.counters.pages_poisoned != 0 {
        return Err(SoakError::Poisoned { pages: status.poisoned_pages.max(status.counters.pages_poisoned) });
    }
    scene.tally.count(|totals| totals.samples += 1);
    scene.end.pass(Duration::from_millis(2));
    Ok(())
}

fn pick(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).expect("below a usize")
}

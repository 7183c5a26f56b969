//! The soak: a payload guest writes and verifies for as long as wanted, while everything that tiers can do to its memory is done to it.
//!
//! Promises: ends with the first thing that is wrong, and says what; what a part of it relies on is checked where it happens (every page of
//! an eviction accounted for, locked and pinned pages still there, sizes that add up). Must never: slow the guest down for its own comfort.

mod direct_io;
mod disturb;
mod error;
mod evict;
mod layout;
mod scene;
mod tally;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use memtier::status::{AreaSpec, Latency, Status};

use super::{Command, Counters, PayloadPlan, PayloadVm};
use direct_io::DirectIo;
pub use error::SoakError;
use layout::Layout;
use scene::Scene;
pub use tally::Totals;

/// How often `progress` hears how far a soak is.
const PROGRESS: Duration = Duration::from_secs(5);

/// What to soak.
#[derive(Clone, Debug)]
pub struct SoakPlan {
    /// For how long.
    pub time: Duration,
    /// vCPUs of the guest.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Where swap files and the file for direct I/O go; it must be on a filesystem with direct I/O.
    pub folder: PathBuf,
    /// What random choices depend on.
    pub seed: u64,
}

/// How a soak went, when nothing was wrong.
#[derive(Clone, Copy, Debug)]
pub struct SoakReport {
    /// For how long the guest ran.
    pub time: Duration,
    /// What the vCPUs did, all of them together.
    pub guest: Counters,
    /// What was done to the guest's memory.
    pub totals: Totals,
    /// What the tiers counted.
    pub tiers: memtier::status::Counters,
    /// Fault latency.
    pub latency: Latency,
}

/// Runs a soak. `progress` gets a line every five seconds.
pub fn run(plan: &SoakPlan, progress: impl FnMut(&str)) -> Result<SoakReport, SoakError> {
    let swap = |name: &str| AreaSpec {
        path: plan.folder.join(name),
        size: Some(plan.memory + (1 << 20)),
        ..AreaSpec::default()
    };
    let areas = [swap("soak-1.swap"), swap("soak-2.swap")];
    let vm = PayloadVm::start(&PayloadPlan::with_areas(plan.vcpus, plan.memory, areas[..1].to_vec()))?;
    let scene = Scene::new(&vm, Layout::of(&vm, plan.seed)?, areas, plan.seed);
    let mut direct_io = DirectIo::new(&scene, &plan.folder)?;

    let begin = Instant::now();
    for vcpu in vm.vcpus() {
        vcpu.begin(Command::Soak(scene.layout.versioned))?;
    }
    disturb_until(&scene, &mut direct_io, begin + plan.time, progress)?;
    for vcpu in vm.vcpus() {
        vcpu.ask_to_stop()?;
    }
    for (index, vcpu) in (0..).zip(vm.vcpus()) {
        SoakError::unless_clean(index, &vcpu.finish_verified()?)?;
    }
    let time = begin.elapsed();

    verify_all(&scene, &direct_io)?;
    let Status { counters: tiers, fault_latency: latency, .. } = scene.memtier.status();
    Ok(SoakReport { time, guest: guest_counters(&vm)?, totals: scene.tally.totals(), tiers, latency })
}

/// Does everything to the running guest at once, until `end` or until something is wrong.
fn disturb_until(
    scene: &Scene<'_>,
    direct_io: &mut DirectIo,
    end: Instant,
    mut progress: impl FnMut(&str),
) -> Result<(), SoakError> {
    std::thread::scope(|threads| {
        threads.spawn(|| scene.repeat(1, |rng| evict::hot_pages(scene, rng)));
        threads.spawn(|| scene.repeat(2, |rng| evict::anything(scene, rng)));
        threads.spawn(|| scene.repeat(3, |rng| evict::direct_io_pages(scene, rng)));
        threads.spawn(|| scene.repeat(4, |rng| disturb::scan(scene, rng)));
        threads.spawn(|| scene.repeat(5, |rng| disturb::swap_areas(scene, rng)));
        threads.spawn(|| scene.repeat(6, |rng| disturb::lock(scene, rng)));
        threads.spawn(|| scene.repeat(7, |rng| disturb::pin(scene, rng)));
        threads.spawn(|| scene.repeat(8, |rng| disturb::pause_guest(scene, rng)));
        threads.spawn(|| scene.repeat(9, |_| disturb::sample(scene)));
        threads.spawn(|| scene.repeat(10, |rng| direct_io.step(scene, rng)));
        let begin = Instant::now();
        let mut next_progress = begin + PROGRESS;
        while Instant::now() < end && !scene.end.is_over() {
            if let Err(error) = watch_guest(scene) {
                scene.end.fail(error);
            }
            if Instant::now() >= next_progress {
                next_progress += PROGRESS;
                progress(&progress_line(scene, begin.elapsed()));
            }
        }
        scene.end.finish();
    });
    scene.end.failure().map_or(Ok(()), Err)
}

/// Looks whether a vCPU has reported something.
fn watch_guest(scene: &Scene<'_>) -> Result<(), SoakError> {
    for (index, vcpu) in (0..).zip(scene.vm.vcpus()) {
        if let Some(mismatch) = vcpu.mismatch_within(Duration::from_millis(50))? {
            return Err(SoakError::Mismatch { vcpu: index, mismatch });
        }
    }
    if scene.vm.machine().state() == vmm::MachineState::Exited {
        return Err(SoakError::GuestEnded);
    }
    Ok(())
}

/// With the workload over: everything out, everything verified; every area off, everything verified again.
fn verify_all(scene: &Scene<'_>, direct_io: &DirectIo) -> Result<(), SoakError> {
    evict::all(scene)?;
    verify_guest(scene, direct_io)?;
    evict::all(scene)?;
    disturb::switch_off_all_areas(scene)?;
    disturb::sample(scene)?;
    verify_guest(scene, direct_io)
}

fn verify_guest(scene: &Scene<'_>, direct_io: &DirectIo) -> Result<(), SoakError> {
    for (index, vcpu) in (0..).zip(scene.vm.vcpus()) {
        SoakError::unless_clean(index, &vcpu.audit(scene.layout.versioned)?)?;
    }
    direct_io.verify_in_guest(scene)
}

fn guest_counters(vm: &PayloadVm) -> Result<Counters, SoakError> {
    let mut sum = Counters::default();
    for vcpu in vm.vcpus() {
        sum.add(&vcpu.counters()?);
    }
    Ok(sum)
}

fn progress_line(scene: &Scene<'_>, elapsed: Duration) -> String {
    let guest = guest_counters(scene.vm).unwrap_or_default();
    let tiers = scene.memtier.status().counters;
    let totals = scene.tally.totals();
    format!(
        "{:>5.0} s: {} operations, {} pages out, {} faults, {} cancelled, {} direct reads, {} mismatches",
        elapsed.as_secs_f64(),
        guest.operations,
        tiers.pages_out + tiers.pages_out_zero,
        tiers.faults_major + tiers.faults_minor,
        tiers.evictions_cancelled,
        totals.direct_reads,
        guest.mismatches,
    )
}

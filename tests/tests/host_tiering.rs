//! Linux guests' cold memory leaves and comes back, on the emulated host, driven through the REST interface.

use std::time::Duration;

use ebb_tests::host::artifacts::{Kernel, our_kernel, stock_kernel};
use ebb_tests::host::guest::{Snapshot, TieringResult, TieringRun, guest_job};
use ebb_tests::host::job::Place;
use ebb_tests::report::{self, Budget, Row};

fn run(name: &str, kernel: Kernel, cpus: u8, memory_mib: u64, rounds: u32) -> TieringResult {
    let run = TieringRun { kernel, cpus, memory_mib, percent: 60, rounds, seed: 7 };
    run.run(name, Place::Emulated, |_, _| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// What `ebb` counts as resident is what the host's kernel counts in the guest's memory files. The two are asked one after the other while the
/// guest runs, so they may differ by what it touches in between.
fn assert_counts_agree(what: &str, snapshot: Snapshot) {
    let Snapshot { resident, held } = snapshot;
    assert!(
        resident.abs_diff(held) <= 64 + resident / 50,
        "{what}: ebb counts {resident} resident pages, the host holds {held}"
    );
}

fn assert_leaves_and_comes_back(result: &TieringResult) {
    assert_counts_agree("before", result.before);
    assert_eq!(result.faults_before, 0, "memory that never left must not cost a fault");
    assert!(result.before.resident >= result.filled, "{result:?}");
    for round in &result.rounds {
        assert!(round.idle * 10 >= (round.idle + round.accessed) * 8, "an idle guest: {round:?}");
        assert!(round.evicted * 10 >= result.filled * 8, "at least 80 % leaves: {round:?}");
        assert!(
            round.after.resident * 4 <= result.before.resident,
            "a quarter stays at most: {round:?} of {:?}",
            result.before
        );
        assert_counts_agree("after", round.after);
        assert_eq!((round.pages_verified, round.mismatches), (result.filled, 0), "memory: {round:?}");
        assert_eq!(round.disk_mismatches, 0, "disk: {round:?}");
        assert!(round.disk_bytes >= 2 << 20, "disk: {round:?}");
    }
    let last = result.rounds.last().expect("a round");
    assert!(last.faults_major + last.faults_minor >= result.filled / 2, "{last:?}");
    assert_eq!((result.status, result.work_status), (0, 0));
}

#[test]
fn memory_of_a_guest_with_our_kernel_leaves_twice_and_comes_back_with_every_byte_right() {
    let result = run("tiering-ours", our_kernel().expect("our kernel"), 1, 256, 2);
    assert_leaves_and_comes_back(&result);
}

#[test]
fn memory_of_a_guest_with_two_vcpus_leaves_and_comes_back_with_every_byte_right() {
    let result = run("tiering-ours-2", our_kernel().expect("our kernel"), 2, 192, 1);
    assert_leaves_and_comes_back(&result);
}

#[test]
fn memory_of_a_guest_with_debians_stock_kernel_leaves_and_comes_back_with_every_byte_right() {
    let result = run("tiering-stock", stock_kernel().expect("the stock kernel"), 1, 256, 1);
    assert_leaves_and_comes_back(&result);
}

/// How long a boot takes on the emulated host depends on what else this machine does. So the emulator's processor time is compared: the work
/// that a boot costs the emulated host, guest, `ebb` and fault handling alike. Boots with and without tiering take turns.
#[test]
fn boot_with_tiering_costs_at_most_a_tenth_more_than_without() {
    const TIMES: usize = 5;
    let kernel = our_kernel().expect("our kernel");
    let job = guest_job("boot-time", include_str!("../src/host/scripts/boot_time.sh"), &kernel, &kernel.bz_image);
    let job = job.unwrap_or_else(|error| panic!("{error}")).variable("TIMES", TIMES).limit(Duration::from_secs(400));
    let outcome = job.run(Place::Emulated, |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    let median = |tracker: &str| {
        let steps = outcome.steps.iter().zip(outcome.work.windows(2));
        let mut boots: Vec<f64> = steps
            .filter(|((_, step), _)| step.starts_with(tracker))
            .map(|(_, work)| (work[1] - work[0]).as_secs_f64())
            .collect();
        assert_eq!(boots.len(), TIMES + 1, "{:?}", outcome.steps);
        // The first of each kind reads files and fills caches.
        boots.remove(0);
        boots.sort_by(f64::total_cmp);
        boots[TIMES / 2]
    };
    let (with, without) = (median("unmap"), median("off"));
    let rows = [
        Row::new("guest boot to power-off without tiering", without, "processor s", Budget::None, "emulated"),
        Row::new("guest boot to power-off with tiering", with, "processor s", Budget::None, "emulated"),
        Row::new("boot with tiering / without", with / without, "", Budget::AtMost(1.1), "emulated"),
    ];
    report::contribute("test", "boot_time", &rows).expect("report");
    assert!(rows.iter().all(|row| row.ok), "{}", report::table(&rows));
}

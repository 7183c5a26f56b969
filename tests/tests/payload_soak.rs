//! A minute of everything at once.

use std::time::Duration;

use ebb_tests::host::artifacts;
use ebb_tests::payload::soak::{self, SoakPlan};

#[test]
fn a_minute_of_evictions_scans_locks_pins_and_areas_leaves_every_word_right() {
    let folder = artifacts::output_folder("soak").expect("the folder for reports is there");
    let folder = tempfile::tempdir_in(folder).expect("a folder on a disk");
    let seed = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let plan =
        SoakPlan { time: Duration::from_secs(60), vcpus: 2, memory: 96 << 20, folder: folder.path().to_owned(), seed };
    println!("seed {seed}");
    let report = soak::run(&plan, |line| println!("{line}")).expect("nothing is wrong");

    // A soak that did not do these things has shown nothing.
    assert_eq!(report.guest.mismatches, 0);
    assert!(report.guest.written > 1000 && report.guest.foreign > 1000, "{:?}", report.guest);
    assert!(report.tiers.pages_out > 10_000 && report.tiers.faults_major > 1000, "{:?}", report.tiers);
    assert!(report.tiers.pages_out_zero > 0 && report.tiers.evictions_cancelled > 0, "{:?}", report.tiers);
    assert!(report.totals.direct_reads > 100 && report.totals.direct_io_outcomes.busy > 0, "{:?}", report.totals);
    assert!(report.totals.samples > 100 && report.totals.area_switches > 10, "{:?}", report.totals);
}

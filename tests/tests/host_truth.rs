//! Trackers say exactly which frames a Linux guest touched, on the emulated host.

use std::sync::LazyLock;

use ebb_tests::tracking::linux::access::Choice;
use ebb_tests::tracking::linux::{Finding, TruthRun};
use memtier::status::TrackerKind;

/// One guest serves all tests: the trackers are changed while it runs.
static FINDINGS: LazyLock<Result<(TruthRun, Vec<Finding>), String>> = LazyLock::new(|| {
    let run = TruthRun::of_all_trackers().map_err(|error| error.to_string())?;
    let findings = run.run("truth", |_, _| {}).map_err(|error| error.to_string())?;
    Ok((run, findings))
});

/// What one tracker saw of each kind of set, by reads and by writes: all frames of all rounds were compared, and there was something to see.
fn findings(tracker: TrackerKind) -> Vec<&'static Finding> {
    let (run, all) = FINDINGS.as_ref().unwrap_or_else(|error| panic!("{error}"));
    let found: Vec<&Finding> = all.iter().filter(|finding| finding.tracker == tracker).collect();
    assert_eq!(found.len(), Choice::ALL.len() * 2);
    for finding in &found {
        let score = finding.touched;
        assert_eq!(finding.frames, finding.choice.rounds(run.rounds) * run.pages, "{finding:?}");
        assert_eq!(score.seen + score.missed > 0, finding.choice != Choice::Nothing, "{finding:?}");
    }
    found
}

fn assert_exact(findings: &[&Finding]) {
    let wrong: Vec<String> = findings
        .iter()
        .filter(|finding| !finding.is_exact())
        .map(|finding| format!("{:?}\n  {}", finding.score(), finding.differing.join("\n  ")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unmap_sees_every_frame_that_a_linux_guest_reads_or_writes_and_no_other() {
    assert_exact(&findings(TrackerKind::Unmap));
}

#[test]
fn page_idle_sees_every_frame_that_a_linux_guest_reads_or_writes_and_no_other() {
    assert_exact(&findings(TrackerKind::PageIdle));
}

#[test]
fn the_dirty_log_sees_every_frame_that_a_linux_guest_writes_and_no_other_and_none_that_it_reads() {
    assert_exact(&findings(TrackerKind::DirtyLog));
}

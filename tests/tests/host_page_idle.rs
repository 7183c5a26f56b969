//! The `page_idle` tracker on a kernel that has the idle page bitmap.

use std::time::Duration;

use ebb_tests::host::artifacts::{output_folder, program, stripped};
use ebb_tests::host::job::{Job, JobError, Place};
use ebb_tests::host::outcome::Outcome;

/// Runs `ebb-page-idle` on the emulated host.
fn run(name: &str, rounds: u32, pages: u32) -> Result<Outcome, JobError> {
    let scratch = output_folder("tmp")?.join(name);
    std::fs::create_dir_all(&scratch)
        .map_err(|source| JobError::System { what: scratch.display().to_string(), source })?;
    let tool = stripped(&program("ebb-page-idle")?, &scratch)?;
    let job = Job::new(name, include_str!("../src/host/scripts/page_idle.sh")).file("TOOL", &tool);
    let job = job.variable("ROUNDS", rounds).variable("PAGES", pages).variable("SEED", 1);
    job.limit(Duration::from_secs(300)).run(Place::Emulated, |_, _| {})
}

/// A number that the program told.
fn number(outcome: &Outcome, name: &str) -> u64 {
    outcome.number(name).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn page_idle_tells_exactly_what_was_touched() {
    let outcome = run("page-idle", 100, 4096).unwrap_or_else(|error| panic!("{error}"));
    let text = |name: &str| outcome.text(name).expect("told").to_owned();
    assert_eq!(text("usable"), "yes");

    // The kernel by itself: without draining, some fresh pages can't be marked at all.
    assert!(number(&outcome, "fresh.unlisted") > 0, "no page waited, so that draining is not shown to help");
    assert!(number(&outcome, "fresh.not_markable") > 0);
    assert_eq!((number(&outcome, "drained.unlisted"), number(&outcome, "drained.not_markable")), (0, 0));
    assert_eq!(number(&outcome, "flushed.missed"), 0, "of {} that stale translations hide", text("stale.missed"));

    for name in ["random", "huge", "split", "broken"] {
        let wrong = (number(&outcome, &format!("{name}.missed")), number(&outcome, &format!("{name}.invented")));
        assert_eq!(wrong, (0, 0), "{}", text(&format!("{name}.first_wrong")));
        assert!(number(&outcome, &format!("{name}.touched")) > 0);
    }
    assert_eq!(text("untouched.told"), "0");
    assert_eq!(text("unmapped.told"), "0 then [8, 9, 10, 11]");
    assert_eq!((text("between.told"), text("armed.told")), ("0 then {5}".to_owned(), "0".to_owned()));
    assert_eq!((number(&outcome, "busy.missed"), number(&outcome, "busy.invented")), (0, 0));
    assert_eq!(text("churn.lost"), "0", "accesses while marks are set are told by one collection or the next");

    // Four huge pages have 511 tails each, however they are mapped, until they are broken up.
    let tails = ["huge.tails", "split.tails", "broken.tails"].map(|name| number(&outcome, name));
    assert_eq!(tails, [4 * 511, 4 * 511, 0]);

    assert_eq!(text("without_admin"), "/proc/self/pagemap hides host frame numbers: CAP_SYS_ADMIN is needed");
    let bitmap = "/sys/kernel/mm/page_idle/bitmap";
    assert_eq!(text("without_files"), format!("{bitmap} can't be opened: it is root's alone (CAP_DAC_OVERRIDE)"));
}

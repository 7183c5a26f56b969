//! Trackers against the truth, on a Linux guest of the emulated host: a program in the guest touches sets of pages whose frames it knows, and the
//! idle bitmap says which ones were seen.
//!
//! The guest's program is `ebb-workload`, whose arena's frame numbers come from its own `/proc/self/pagemap`; what it touched it writes to its
//! disk ([`record`]). `ebb-truth`, beside `ebb` on the host, gives the orders ([`access`]) and compares. One guest serves all trackers, changed
//! while it runs.
//!
//! Promises: every frame of the arena is compared, for every set; what is reported are counts. Must never: judge; whether a score is good is for
//! the caller to say.

pub mod access;
pub mod record;

use std::time::Duration;

use memtier::status::TrackerKind;

use crate::host::artifacts::{self, ArtifactError, Kernel, output_folder};
use crate::host::guest::guest_job;
use crate::host::job::{Job, JobError, Place};
use crate::host::outcome::{Line, Outcome, ValueError};
use crate::report::{Budget, Row};
use crate::tracking::accuracy::Score;
use access::Choice;
use record::Header;

const SCRIPT: &str = include_str!("../host/scripts/truth.sh");

/// One guest whose accesses are compared with what trackers say.
#[derive(Clone, Debug)]
pub struct TruthRun {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The guest's memory.
    pub memory_mib: u64,
    /// Pages of it that are touched and compared, a multiple of 64.
    pub pages: u64,
    /// The trackers, one after the other.
    pub trackers: Vec<TrackerKind>,
    /// Sets of each kind; each is touched by reads and by writes.
    pub rounds: u64,
}

/// What a tracker saw of the sets of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The tracker.
    pub tracker: TrackerKind,
    /// The kind of sets.
    pub choice: Choice,
    /// They were written, else read.
    pub write: bool,
    /// Frames compared, summed over rounds.
    pub frames: u64,
    /// Frames touched and seen, seen only, touched only; held against what the guest touched, whatever the tracker can see.
    pub touched: Score,
    /// The rounds in which seen and touched were not the same, with the first frames of each as the host printed them.
    pub differing: Vec<String>,
}

impl Finding {
    /// Whether the truth is the empty set: nothing was touched, or pages were only read and the tracker sees writes only.
    pub fn has_nothing_to_see(&self) -> bool {
        self.choice == Choice::Nothing || self.tracker == TrackerKind::DirtyLog && !self.write
    }

    /// The score against what such a tracker can see.
    pub fn score(&self) -> Score {
        let Score { seen, invented, .. } = self.touched;
        if self.has_nothing_to_see() { Score { seen: 0, invented: seen + invented, missed: 0 } } else { self.touched }
    }

    /// Neither missed nor invented a frame.
    pub fn is_exact(&self) -> bool {
        let Score { invented, missed, .. } = self.score();
        (invented, missed) == (0, 0)
    }

    fn new(tracker: TrackerKind, choice: Choice, write: bool) -> Self {
        Self { tracker, choice, write, frames: 0, touched: Score::default(), differing: Vec::new() }
    }

    fn add(&mut self, round: &str, line: &str) -> Result<(), ValueError> {
        let count = |word: &str| {
            let found = line.split(' ').find_map(|part| part.strip_prefix(word)?.strip_prefix('=')?.parse().ok());
            found.ok_or_else(|| ValueError::Form {
                name: round.to_owned(),
                value: line.to_owned(),
                wanted: "line of counts",
            })
        };
        let (missed, invented): (u64, u64) = (count("missed")?, count("invented")?);
        self.frames += count("pages")?;
        self.touched.seen += count("seen")?;
        self.touched.missed += missed;
        self.touched.invented += invented;
        if missed + invented > 0 {
            self.differing.push(format!("{round}: {line}"));
        }
        Ok(())
    }
}

impl TruthRun {
    /// All trackers on a guest with our kernel: 32 MiB of its 128 MiB, ten sets of each kind.
    pub fn of_all_trackers() -> Result<Self, ArtifactError> {
        let kernel = artifacts::our_kernel()?;
        Ok(Self { kernel, memory_mib: 128, pages: 8192, trackers: TrackerKind::ALL.to_vec(), rounds: 10 })
    }

    /// Runs it on the emulated host, calling `seen` for each line as it comes. Findings are in the order of trackers and kinds.
    pub fn run(&self, name: &str, seen: impl FnMut(Duration, &Line)) -> Result<Vec<Finding>, JobError> {
        let outcome = self.job(name)?.run(Place::Emulated, seen)?;
        self.read(&outcome).map_err(JobError::Value)
    }

    fn job(&self, name: &str) -> Result<Job, JobError> {
        let job = guest_job(name, SCRIPT, &self.kernel, &self.kernel.bz_image)?;
        let scratch = output_folder("tmp")?.join(name);
        let program = |name: &str| artifacts::stripped(&artifacts::program(name)?, &scratch);
        let trackers: Vec<&str> = self.trackers.iter().map(|tracker| tracker.name()).collect();
        let job = job.file("HTTP", &program("ebb-http")?).file("TRUTH", &program("ebb-truth")?);
        let job = job.variable("MEMORY_MIB", self.memory_mib).variable("PAGES", self.pages);
        let job = job.variable("DISK_BYTES", Header::disk_bytes(self.pages));
        Ok(job.variable("TRACKERS", trackers.join(" ")).variable("ROUNDS", self.rounds).limit(Duration::from_secs(400)))
    }

    /// Every finding that there must be, or the value that is missing.
    fn read(&self, outcome: &Outcome) -> Result<Vec<Finding>, ValueError> {
        let mut findings = Vec::new();
        for tracker in &self.trackers {
            for choice in Choice::ALL {
                for write in [false, true] {
                    findings.push(self.finding(outcome, *tracker, choice, write)?);
                }
            }
        }
        Ok(findings)
    }

    fn finding(
        &self,
        outcome: &Outcome,
        tracker: TrackerKind,
        choice: Choice,
        write: bool,
    ) -> Result<Finding, ValueError> {
        let mut finding = Finding::new(tracker, choice, write);
        for round in 0..choice.rounds(self.rounds) {
            let name = format!("{}.{}", tracker.name(), choice.result_name(write, round));
            finding.add(&name, outcome.text(&name)?)?;
        }
        Ok(finding)
    }
}

/// The findings as rows of a report: for each kind of set, reads and writes by themselves, precision and recall of each tracker, held to 100 %.
/// Where a tracker can see nothing, the frames it saw nevertheless.
pub fn rows(findings: &[Finding]) -> Vec<Row> {
    findings.iter().flat_map(finding_rows).collect()
}

fn finding_rows(finding: &Finding) -> Vec<Row> {
    let how = if finding.write { "writes" } else { "reads" };
    let name = format!("{}, Linux guest, {} {how}", finding.tracker.name(), finding.choice.name());
    let score = finding.score();
    let row = |what: &str, value, unit, budget| Row::new(&format!("{name}: {what}"), value, unit, budget, "emulated");
    if finding.has_nothing_to_see() {
        #[expect(clippy::cast_precision_loss, reason = "frame counts are far below 2^52")]
        return vec![row("seen", score.invented as f64, "frames", Budget::Exactly(0.0))];
    }
    let percent = |what, value| row(what, value, "%", Budget::Exactly(100.0));
    vec![percent("precision", score.precision()), percent("recall", score.recall())]
}

#[cfg(test)]
mod tests {
    use super::access::Access;
    use super::*;

    fn run(trackers: &[TrackerKind]) -> TruthRun {
        let kernel = Kernel { bz_image: "none".into(), vmlinux: None, modules: None };
        TruthRun { kernel, memory_mib: 1, pages: 64, trackers: trackers.to_vec(), rounds: 2 }
    }

    /// What the host reports when every round of a kind has these counts, and nothing is seen where nothing is touched.
    fn outcome(tracker: TrackerKind, counts: impl Fn(Choice, bool) -> &'static str) -> Outcome {
        let mut outcome = Outcome::default();
        for Access { choice, round, write, .. } in access::plan(1, 2) {
            let name = format!("{}.{}", tracker.name(), choice.result_name(write, round));
            let line =
                if choice == Choice::Nothing { "pages=64 seen=0 missed=0 invented=0" } else { counts(choice, write) };
            outcome.values.insert(name, line.to_owned());
        }
        outcome
    }

    #[test]
    fn rounds_are_summed_and_those_that_differ_are_kept_with_their_frames() {
        let outcome = outcome(TrackerKind::Unmap, |choice, write| match (choice, write) {
            (Choice::Zipf, true) => "pages=64 seen=5 missed=1 invented=2 first_missed=0x9",
            _ => "pages=64 seen=6 missed=0 invented=0",
        });
        let findings = run(&[TrackerKind::Unmap]).read(&outcome).expect("all there");
        assert_eq!(findings.len(), Choice::ALL.len() * 2);
        for finding in &findings {
            let odd = finding.choice == Choice::Zipf && finding.write;
            assert_eq!(finding.is_exact(), !odd, "{finding:?}");
            if odd {
                assert_eq!((finding.frames, finding.touched), (128, Score { seen: 10, invented: 4, missed: 2 }));
                assert!(finding.differing[1].starts_with("unmap.zipf.write.1: pages=64 seen=5"), "{finding:?}");
            }
        }
    }

    #[test]
    fn a_round_that_was_not_reported_is_named() {
        let mut outcome = outcome(TrackerKind::PageIdle, |_, _| "pages=64 seen=6 missed=0 invented=0");
        outcome.values.insert("page_idle.zipf.read.0".into(), "pages=64 seen=6 missed=0".into());
        let error = run(&[TrackerKind::PageIdle]).read(&outcome).expect_err("not all there");
        assert!(error.to_string().contains("page_idle.zipf.read.0"), "{error}");
        outcome.values.remove("page_idle.zipf.read.0");
        let error = run(&[TrackerKind::PageIdle]).read(&outcome).expect_err("not all there");
        assert_eq!(error.to_string(), "the host reported no page_idle.zipf.read.0");
    }

    #[test]
    fn the_dirty_log_is_right_when_it_sees_nothing_of_reads() {
        let counts = |seen| {
            move |_: Choice, write: bool| match (write, seen) {
                (true, _) => "pages=64 seen=6 missed=0 invented=0",
                (false, false) => "pages=64 seen=0 missed=6 invented=0",
                (false, true) => "pages=64 seen=1 missed=5 invented=0",
            }
        };
        let run = run(&[TrackerKind::DirtyLog]);
        let blind = run.read(&outcome(TrackerKind::DirtyLog, counts(false))).expect("all there");
        assert!(blind.iter().all(Finding::is_exact) && rows(&blind).iter().all(|row| row.ok));
        let seeing = run.read(&outcome(TrackerKind::DirtyLog, counts(true))).expect("all there");
        let right = |finding: &Finding| finding.write || finding.choice == Choice::Nothing;
        assert!(seeing.iter().all(|finding| finding.is_exact() == right(finding)));
        let missed: Vec<Row> = rows(&seeing).into_iter().filter(|row| !row.ok).collect();
        assert!(missed.iter().any(|row| row.name == "dirty_log, Linux guest, zipf reads: seen" && row.value == 2.0));
    }
}

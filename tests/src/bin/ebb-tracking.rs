//! `make tracking`: how well trackers see what a guest does, and what that costs, as tables and as `target/reports/tracking.json`.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ebb_tests::host::artifacts;
use ebb_tests::host::job::{Job, JobError, Place};
use ebb_tests::huge_pool::Pool;
use ebb_tests::payload::rng::Rng;
use ebb_tests::payload::{PayloadPlan, TieredVm};
use ebb_tests::report::{self, Budget, Row};
use ebb_tests::tracking::accuracy::Subject;
use ebb_tests::tracking::cost::{Walker, memory_for, per_page};
use ebb_tests::tracking::linux::{self, TruthRun};
use ebb_tests::tracking::sets::{PageSet, SetKind};
use memtier::status::{HugePages, ScanPlan, TrackerChoice};
use vmm::config::{DirtyLogMode, TieringConfig};

/// Measures trackers' accuracy and cost.
#[derive(Debug, Parser)]
struct Args {
    /// Which part.
    #[arg(long, value_parser = ["all", "accuracy", "cost", "growth", "linux", "page_idle"], default_value = "all")]
    part: String,
    /// Sets of each kind.
    #[arg(long, default_value_t = 40)]
    rounds: u64,
    /// Only trackers whose name begins so.
    #[arg(long, default_value = "")]
    tracker: String,
    /// Guest memory for costs, in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Run as a job of the emulated host: rows come out as JSON, and nothing else.
    #[arg(long)]
    emulated: bool,
    /// Largest guest for the growth of scan time, in MiB.
    #[arg(long, default_value_t = 16 << 10)]
    largest: u64,
}

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = 256;

/// A tracker to look at, with what it needs from the machine.
struct Kind {
    name: &'static str,
    tracker: TrackerChoice,
    dirty_log: DirtyLogMode,
    huge_pages: HugePages,
}

const RING: DirtyLogMode = DirtyLogMode::Ring { entries: 4096 };

const PAGE_IDLE: Kind = Kind {
    name: "page_idle",
    tracker: TrackerChoice::PageIdle,
    dirty_log: DirtyLogMode::Bitmap,
    huge_pages: HugePages::Off,
};

const KINDS: [Kind; 5] = [
    Kind { name: "unmap", tracker: TrackerChoice::Unmap, dirty_log: DirtyLogMode::Bitmap, huge_pages: HugePages::Off },
    Kind {
        name: "unmap, THP",
        tracker: TrackerChoice::Unmap,
        dirty_log: DirtyLogMode::Bitmap,
        huge_pages: HugePages::Transparent,
    },
    Kind {
        name: "unmap, 2M",
        tracker: TrackerChoice::Unmap,
        dirty_log: DirtyLogMode::Bitmap,
        huge_pages: HugePages::Hugetlb2M,
    },
    Kind {
        name: "dirty_log",
        tracker: TrackerChoice::DirtyLog,
        dirty_log: DirtyLogMode::Bitmap,
        huge_pages: HugePages::Off,
    },
    Kind { name: "dirty_log, ring", tracker: TrackerChoice::DirtyLog, dirty_log: RING, huge_pages: HugePages::Off },
];

/// A guest and the huge pages it is made of; the guest goes first.
struct Guest {
    vm: TieredVm,
    _pool: Option<Pool>,
}

impl Kind {
    /// A guest; none if it needs huge pages that we may not take from the host.
    fn guest(&self, pages: u64) -> Option<Guest> {
        let pool = (self.huge_pages == HugePages::Hugetlb2M).then(|| Pool::if_allowed(memory_for(pages) >> 21));
        if matches!(pool, Some(None)) {
            println!("  {}: left out, the host's pool of huge pages can't be changed", self.name);
            return None;
        }
        let tiering = TieringConfig { tracker: self.tracker, dirty_log: self.dirty_log, areas: Vec::new() };
        let memory = memory_for(pages);
        let huge_pages = self.huge_pages;
        let vm = TieredVm::of(&PayloadPlan { vcpus: 2, memory, huge_pages, tiering: Some(tiering) });
        Some(Guest { vm, _pool: pool.flatten() })
    }

    /// What it can see of a set.
    fn expected(&self, set: &PageSet, write: bool) -> (PageSet, PageSet) {
        let nothing = || PageSet::empty(set.words().len() as u64 * 64);
        match (self.tracker, self.huge_pages) {
            (TrackerChoice::DirtyLog, _) if !write => (nothing(), nothing()),
            (_, HugePages::Off) => (set.clone(), set.clone()),
            // Which pieces are huge at the moment is the kernel's choice.
            (_, HugePages::Transparent) => (set.clone(), set.whole_pieces()),
            (_, HugePages::Hugetlb2M) => (set.whole_pieces(), set.whole_pieces()),
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ebb-tracking: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    if args.emulated {
        // This host's own kernel has the idle page bitmap; what is fast here and what is slow is the emulator's doing.
        let mut rows = accuracy(&[&PAGE_IDLE], args.rounds, "emulated");
        rows.extend(cost(&[&KINDS[0], &PAGE_IDLE], args.memory, "emulated"));
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(true);
    }
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| kind.name.starts_with(&args.tracker)).collect();
    let mut rows = Vec::new();
    let mut part = |name: &str, title: &str, measure: &mut dyn FnMut() -> Result<Vec<Row>, Box<dyn Error>>| {
        if args.part == "all" || args.part == name {
            println!("{title}");
            let measured = measure()?;
            print!("{}", report::table(&measured));
            rows.extend(measured);
        }
        Ok::<_, Box<dyn Error>>(())
    };
    part("accuracy", "accuracy against the truth, payload guests on this host's KVM", &mut || {
        Ok(accuracy(&kinds, args.rounds, "native"))
    })?;
    part("cost", "cost, a guest that walks over its memory all the time", &mut || {
        Ok(cost(&kinds, args.memory, "native"))
    })?;
    part("growth", "scan time by guest size", &mut || Ok(growth(args.largest)))?;
    part(
        "page_idle",
        "page_idle and unmap on the emulated host, payload guests (times are the emulator's)",
        &mut || on_emulated_host(args),
    )?;
    part("linux", "accuracy against the truth, a Linux guest on the emulated host", &mut || Ok(linux_guest()?))?;
    println!("  also in {}", report::write("tracking", &rows)?.display());
    Ok(rows.iter().all(|row| row.ok))
}

/// Precision and recall for every tracker, kind of set, reads and writes.
fn accuracy(kinds: &[&Kind], rounds: u64, host: &str) -> Vec<Row> {
    let pages = if host == "native" { 128 } else { 16 } * PAGES_PER_MIB;
    let mut rows = Vec::new();
    for kind in kinds {
        let Some(Guest { vm, _pool }) = kind.guest(pages) else { continue };
        let subject = Subject::new(vm, pages);
        if kind.huge_pages == HugePages::Transparent {
            // All of it is made huge, by being hot.
            let walker = Walker::new(subject.vm(), pages, false);
            let plan = ScanPlan { loops: 8, interval_ms: 0, sleep_ms: pages * 30 / 1000, backoff: Some(0) };
            walker.walk(pages, || drop(walker.scan(plan)));
            let whole = as_f64(subject.vm().status().pieces.map_or(0, |pieces| pieces.whole));
            rows.push(Row::new(&format!("{}: pieces made of huge pages", kind.name), whole, "", Budget::None, host));
        }
        let mut rng = Rng::new(2026);
        for sets in SetKind::ALL {
            for write in [false, true] {
                let score = subject.score(sets, write, rounds, &mut rng, |set| kind.expected(set, write));
                let what = if write { "writes" } else { "reads" };
                let name = |figure: &str| format!("{}: {}, {what}, {figure}", kind.name, sets.name());
                rows.push(Row::new(&name("precision"), score.precision(), "%", Budget::Exactly(100.0), host));
                rows.push(Row::new(&name("recall"), score.recall(), "%", Budget::Exactly(100.0), host));
            }
        }
    }
    rows
}

/// This program again, on the emulated host.
fn on_emulated_host(args: &Args) -> Result<Vec<Row>, Box<dyn Error>> {
    let scratch = artifacts::output_folder("tmp")?.join("tracking-emulated");
    std::fs::create_dir_all(&scratch)?;
    let tool = artifacts::stripped(&std::env::current_exe()?, &scratch)?;
    let job = Job::new("tracking-emulated", include_str!("../host/scripts/tracking.sh")).file("TRACKING", &tool);
    let job = job.variable("ROUNDS", args.rounds.min(5)).variable("MEMORY", 32);
    let outcome = job.limit(Duration::from_secs(900)).run(Place::Emulated, |_, _| {})?;
    Ok(serde_json::from_str(outcome.text("rows")?)?)
}

/// Precision and recall of all three trackers for a program in a Linux guest.
fn linux_guest() -> Result<Vec<Row>, JobError> {
    Ok(linux::rows(&TruthRun::of_all_trackers()?.run("truth", |_, _| {})?))
}

/// What a scan takes from a guest at work, and what the scan itself takes.
fn cost(kinds: &[&Kind], mib: u64, host: &str) -> Vec<Row> {
    const TEN_SECONDS: f64 = 10.0;
    let pages = mib * PAGES_PER_MIB;
    let mut rows = Vec::new();
    // Frames of 2 MiB are too few in this guest for a time per frame to mean anything.
    for kind in kinds.iter().filter(|kind| kind.huge_pages != HugePages::Hugetlb2M) {
        let Some(Guest { vm, _pool }) = kind.guest(pages) else { continue };
        let walker = Walker::new(&vm, pages, kind.tracker == TrackerChoice::DirtyLog);
        let each = per_page(&walker, pages);
        let held = |limit| if kind.name == "unmap" && host == "native" { Budget::AtMost(limit) } else { Budget::None };
        rows.push(Row::new(&format!("{}: scan, per page touched", kind.name), each.touched, "ns", held(250.0), host));
        rows.push(Row::new(&format!("{}: scan, per page idle", kind.name), each.idle, "ns", held(10.0), host));
        let longest = as_f64(each.longest_call_us);
        rows.push(Row::new(&format!("{}: longest call", kind.name), longest, "us", held(1000.0), host));
        for percent in [10, 50, 100] {
            for (backoff, note) in [(6, ""), (0, ", every page in every scan")] {
                let part = pages * percent / 100;
                let lost = walker.lost_per_scan(part, backoff, 5);
                let name =
                    format!("{}: slowdown, {percent} % of {mib} MiB touched, a scan every 10 s{note}", kind.name);
                let budget = if backoff == 0 || host != "native" { Budget::None } else { Budget::AtMost(1.0) };
                rows.push(Row::new(&name, lost * 100.0 / TEN_SECONDS, "%", budget, host));
            }
        }
    }
    rows
}

/// Scan time from 256 MiB up.
fn growth(largest: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut first = None;
    for mib in [256, 1024, 4096, 16384].into_iter().filter(|mib| *mib <= largest) {
        // The image's own memory comes out of the same size.
        let pages = mib * PAGES_PER_MIB - 4 * PAGES_PER_MIB;
        let Guest { vm, .. } = KINDS[0].guest(pages).expect("it needs no huge pages");
        let walker = Walker::new(&vm, pages, true);
        let each = per_page(&walker, pages);
        let per_gib = |ns: f64| ns * 262_144.0 / 1e6;
        let name = |what: &str| format!("unmap: scan of a guest of {mib} MiB, {what}");
        rows.push(Row::new(&name("all touched, per GiB"), per_gib(each.touched), "ms", Budget::None, "native"));
        rows.push(Row::new(&name("all idle, per GiB"), per_gib(each.idle), "ms", Budget::None, "native"));
        rows.push(Row::new(
            &name("longest call"),
            as_f64(each.longest_call_us),
            "us",
            Budget::AtMost(1000.0),
            "native",
        ));
        let (touched, idle) = *first.get_or_insert((each.touched, each.idle));
        rows.push(Row::new(&name("touched, against 256 MiB"), each.touched / touched, "x", Budget::None, "native"));
        rows.push(Row::new(&name("idle, against 256 MiB"), each.idle / idle, "x", Budget::None, "native"));
    }
    rows
}

#[expect(clippy::cast_precision_loss, reason = "microseconds, far below 2^52")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

const _: () = assert!(MIB / 4096 == PAGES_PER_MIB);

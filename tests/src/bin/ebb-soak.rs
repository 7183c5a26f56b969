//! `ebb-soak`: a payload guest under everything that tiers can do to it, for as long as wanted.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ebb_tests::host::artifacts;
use ebb_tests::payload::soak::{self, SoakPlan, SoakReport};
use ebb_tests::report::{self, Budget, Row};

/// Runs a guest that writes and verifies its memory at full speed while it is evicted, scanned, locked, pinned and swapped.
#[derive(Debug, Parser)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// vCPUs of the guest.
    #[arg(long, default_value_t = 2)]
    vcpus: u8,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// What random choices depend on; the time of day if not given.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprint!("ebb-soak: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let folder = tempfile::tempdir_in(artifacts::output_folder("soak")?)?;
    let plan = SoakPlan {
        time: Duration::from_secs(args.seconds),
        vcpus: args.vcpus,
        memory: args.memory << 20,
        folder: folder.path().to_owned(),
        seed: args.seed.unwrap_or_else(now),
    };
    println!("soak: {} s, {} vCPUs, {} MiB, seed {}", args.seconds, plan.vcpus, args.memory, plan.seed);
    let outcome = soak::run(&plan, |line| println!("{line}"));
    let rows = rows(outcome.as_ref().ok());
    print!("{}", report::table(&rows));
    report::write("soak", &rows)?;
    outcome?;
    Ok(rows.iter().all(|row| row.ok))
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

/// The report; without a soak that went well there is nothing to tell but that.
fn rows(report: Option<&SoakReport>) -> Vec<Row> {
    let row = |name: &str, value: f64, unit: &str, budget| Row::new(name, value, unit, budget, "native");
    let passed = row("soak without a wrong word", f64::from(u8::from(report.is_some())), "", Budget::Exactly(1.0));
    let Some(report) = report else { return vec![passed] };
    let count = |name: &str, value: u64| row(name, value as f64, "", Budget::None);
    let at_least_one = |name: &str, value: u64| row(name, value as f64, "", Budget::AtLeast(1.0));
    let SoakReport { guest, totals, tiers, latency, .. } = report;
    vec![
        passed,
        row("time", report.time.as_secs_f64(), "s", Budget::None),
        row("mismatching words", guest.mismatches as f64, "", Budget::Exactly(0.0)),
        count("guest operations", guest.operations),
        count("pages verified by their owner", guest.verified),
        count("pages verified by another vCPU", guest.foreign),
        count("pages rewritten", guest.written),
        count("rewrites in place", guest.passes),
        at_least_one("pages out to swap", tiers.pages_out),
        at_least_one("pages out as zeros", tiers.pages_out_zero),
        at_least_one("faults with a read", tiers.faults_major),
        count("faults without a read", tiers.faults_minor),
        at_least_one("evictions cancelled by a write", tiers.evictions_cancelled),
        at_least_one("direct reads into guest memory", totals.direct_reads),
        at_least_one("pinned pages that evictions met", totals.direct_io_outcomes.busy),
        at_least_one("scans and bitmap accesses", totals.scans),
        at_least_one("areas switched on or off", totals.area_switches),
        at_least_one("locks", totals.locks),
        at_least_one("pins", totals.pins),
        at_least_one("pauses", totals.pauses),
        at_least_one("status samples that added up", totals.samples),
        row("fault latency, median", latency.p50_us as f64, "us", Budget::None),
        row("fault latency, 99th percentile", latency.p99_us as f64, "us", Budget::None),
    ]
}

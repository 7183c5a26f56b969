//! `make demo`: the main job on one guest, as it happens and then as a table, held to its budgets.
//!
//! Promises: ends by itself; exit status 0 only when every budget was met; the same figures go to `target/reports/demo.json`. Must never: use a
//! host that cannot run Linux guests, or leave out that it was not this machine.

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ebb_tests::host::artifacts;
use ebb_tests::host::guest::{TieringResult, TieringRun};
use ebb_tests::host::job::Place;
use ebb_tests::host::outcome::Line;
use ebb_tests::report::{self, Budget, Row};

const PAGE_BYTES: u32 = 4096;

/// Whether this machine's KVM runs the kernel mode of guests natively, by `ebb check`.
fn place() -> Result<Place, Box<dyn Error>> {
    let output = Command::new(artifacts::program("ebb")?).args(["check", "--json"]).output()?;
    let check: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(if native_guests(&check) { Place::Native } else { Place::Emulated })
}

/// `ebb check` tells it in the row about KVM's kernel mode, which is there when a probe could run.
fn native_guests(check: &serde_json::Value) -> bool {
    let rows = check.as_array().into_iter().flatten();
    rows.into_iter().any(|row| row["what"] == "KVM kernel mode" && row["state"] == "ok")
}

fn rows(result: &TieringResult, run: &TieringRun, place: Place) -> Vec<Row> {
    let host = match place {
        Place::Native => "native",
        Place::Emulated => "emulated",
    };
    let round = result.rounds[result.rounds.len() - 1];
    let mib = |pages: u64| megabytes(pages);
    let percent = |part: u64, whole: u64| 100.0 * float(part) / float(whole.max(1));
    let row = |name: &str, value, unit: &str, budget| Row::new(name, value, unit, budget, host);
    let filled = float(result.filled);
    vec![
        row("guest booted", result.boot_s, "s", Budget::None),
        row("guest memory", float(run.memory_mib), "MiB", Budget::None),
        row("filled by the guest", mib(result.filled), "MiB", Budget::None),
        row("faults seen by ebb until then", float(result.faults_before), "", Budget::Exactly(0.0)),
        row("resident before", mib(result.before.resident), "MiB", Budget::None),
        row("idle after the scan", percent(round.idle, round.idle + round.accessed), "%", Budget::AtLeast(80.0)),
        row("resident after eviction", mib(round.after.resident), "MiB", Budget::None),
        row(
            "resident after / before",
            percent(round.after.resident, result.before.resident),
            "%",
            Budget::AtMost(25.0),
        ),
        row(
            "held after / before, by the host",
            percent(round.after.held, result.before.held),
            "%",
            Budget::AtMost(25.0),
        ),
        row(
            "bytes verified",
            float(round.pages_verified * u64::from(PAGE_BYTES)),
            "B",
            Budget::AtLeast(filled * f64::from(PAGE_BYTES)),
        ),
        row("bytes wrong", float(round.mismatches), "B", Budget::Exactly(0.0)),
        row("disk bytes verified", float(round.disk_bytes), "B", Budget::AtLeast(1.0)),
        row("disk bytes wrong", float(round.disk_mismatches), "B", Budget::Exactly(0.0)),
        row("faults served", float(round.faults_major + round.faults_minor), "", Budget::AtLeast(1.0)),
        row("fault latency, median", float(result.fault_p50_us), "us", Budget::None),
        row("fault latency, 99th percentile", float(result.fault_p99_us), "us", Budget::None),
        row("exit status of ebb", f64::from(result.status), "", Budget::Exactly(0.0)),
        row("exit status of the workload", f64::from(result.work_status), "", Budget::Exactly(0.0)),
    ]
}

fn megabytes(pages: u64) -> f64 {
    float(pages) / 256.0
}

#[expect(clippy::cast_precision_loss, reason = "counts of pages and bytes of small guests, far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

fn demo() -> Result<bool, Box<dyn Error>> {
    let place = place()?;
    if place == Place::Emulated {
        println!(
            "This machine's KVM does not run guest kernels natively: the guest runs on an emulated host, where time means little."
        );
    }
    let run = TieringRun {
        kernel: artifacts::our_kernel()?,
        cpus: 1,
        memory_mib: 128,
        percent: 60,
        rounds: 1,
        seed: 20_240_229,
    };
    let start = Instant::now();
    let result = run.run("demo", place, progress)?;
    println!("{} done\n", stamp(start.elapsed()));
    let rows = rows(&result, &run, place);
    print!("{}", report::table(&rows));
    println!("\n  also in {}", report::write("demo", &rows)?.display());
    Ok(rows.iter().all(|row| row.ok))
}

fn progress(at: Duration, line: &Line) {
    match line {
        Line::Step(text) => println!("{} {text}", stamp(at)),
        Line::Fail(text) => println!("{} FAILED {text}", stamp(at)),
        _ => {}
    }
}

fn stamp(at: Duration) -> String {
    format!("[{:5.1} s]", at.as_secs_f64())
}

fn main() -> ExitCode {
    match demo() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("demo: a budget was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_mode_that_was_found_native_makes_this_machine_the_host() {
        let check = |state: &str| serde_json::json!([{"what": "KVM", "state": "ok"}, {"what": "KVM kernel mode", "state": state}]);
        assert!(native_guests(&check("ok")));
        assert!(!native_guests(&check("warn")));
        assert!(!native_guests(&serde_json::json!([{"what": "KVM", "state": "ok"}])));
        assert!(!native_guests(&serde_json::json!({"error": "x"})));
    }
}

//! `make test`: runs cargo's tests, shows them as they come, and ends with one line per test program.
//!
//! Promises: every test program counts, a model-checking run included; an ignored test is a failure, since it tests nothing; the same lines go to
//! `target/reports/test.json`, with the figures that tests measured themselves. Must never: end with status 0 when anything failed or
//! nothing ran.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode};
use std::time::Instant;

use ebb_tests::host::artifacts;
use ebb_tests::report::{self, Budget, Row};

/// One run of cargo.
struct Phase {
    label: &'static str,
    arguments: Vec<&'static str>,
    environment: Vec<(&'static str, String)>,
}

/// What one test program said at its end.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    label: String,
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Summary {
    fn row(&self) -> Row {
        let ok = self.failed == 0 && self.ignored == 0;
        let (unit, budget) = ("passed".to_owned(), Some("0 failed, 0 ignored".to_owned()));
        Row { name: self.label.clone(), value: f64::from(self.passed), unit, budget, ok, host: "build".to_owned() }
    }
}

fn phases() -> Vec<Phase> {
    let workspace =
        Phase { label: "tests", arguments: vec!["test", "--workspace", "--no-fail-fast"], environment: vec![] };
    // Another configuration of the same sources: with its own folder neither build throws the other's work away. Optimised, since it tries
    // millions of interleavings; what makes optimised builds slow to link brings nothing here.
    let environment = [
        ("RUSTFLAGS", "--cfg loom"),
        ("CARGO_TARGET_DIR", "target/loom"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ];
    let environment = environment.map(|(name, value)| (name, value.to_owned())).to_vec();
    let arguments = vec!["test", "--release", "-p", "memtier", "--lib", "--", "model::"];
    vec![workspace, Phase { label: "loom", arguments, environment }]
}

/// Runs one phase and answers its summaries, and whether cargo was content.
fn run(phase: &Phase) -> Result<(Vec<Summary>, bool), Box<dyn Error>> {
    // One pipe for both streams: what cargo says and what tests say belong together.
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new("cargo");
    command.args(&phase.arguments).current_dir(artifacts::source_root());
    command.envs(phase.environment.iter().map(|(name, value)| (*name, value.as_str())));
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // It holds the writing ends of the pipe, which would keep us reading for ever.
    drop(command);
    let mut summaries = Vec::new();
    let mut program = phase.label.to_owned();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(std::io::stdout(), "{line}")?;
        if let Some(name) = program_name(&line) {
            program = format!("{}: {name}", phase.label);
        } else if let Some(summary) = summary(&program, &line) {
            summaries.push(summary);
        }
    }
    let content = child.wait()?.success();
    Ok((summaries, content))
}

/// The test program that cargo says it starts now: its source file and its own name.
fn program_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (source, program) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let file = program.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _hash)| name);
    Some(if source.starts_with("unittests") { format!("{name} (unit)") } else { name.to_owned() })
}

/// Reads `test result: ok. 7 passed; 0 failed; 0 ignored; ...`.
fn summary(label: &str, line: &str) -> Option<Summary> {
    let counts = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let before = counts.split(&format!(" {word}")).next()?;
        before.rsplit(' ').next()?.parse().ok()
    };
    Some(Summary {
        label: label.to_owned(),
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

fn suite(target: &str, phases: &[Phase]) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let mut rows = Vec::new();
    drop(report::collect(target)?);
    for phase in phases {
        let (summaries, content) = run(phase)?;
        let counted: u32 = summaries.iter().map(|summary| summary.passed + summary.failed).sum();
        rows.extend(
            summaries.iter().filter(|summary| summary.passed + summary.failed + summary.ignored > 0).map(Summary::row),
        );
        // Also says so when nothing could be built, or when a filter matched no test.
        let failed = f64::from(u8::from(!content || counted == 0));
        rows.push(Row::new(&format!("{}: cargo", phase.label), failed, "failed", Budget::Exactly(0.0), "build"));
    }
    rows.extend(report::collect(target)?);
    rows.push(Row::new("all of it", start.elapsed().as_secs_f64(), "s", Budget::None, "build"));
    println!("\n{}\n  also in {}", report::table(&rows), report::write(target, &rows)?.display());
    Ok(rows.iter().all(|row| row.ok))
}

fn main() -> ExitCode {
    match suite("test", &phases()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("test: failed, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ebb-suite: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_by_what_cargo_says() {
        let name = |line: &str| program_name(line);
        let unit = "     Running unittests src/bin/ebb-workload/main.rs (target/x86_64/debug/deps/ebb_workload-23a85172e5ccfa35)";
        assert_eq!(name(unit).as_deref(), Some("ebb_workload (unit)"));
        assert_eq!(
            name("     Running tests/host_boot.rs (t/deps/host_boot-5d2c02c524d7a7c7)").as_deref(),
            Some("host_boot")
        );
        assert_eq!(name("   Doc-tests memtier").as_deref(), Some("memtier (documentation)"));
        assert_eq!(name("running 5 tests"), None);
    }

    #[test]
    fn counts_are_read_and_ignored_tests_are_not_ok() {
        let line = "test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let read = summary("x", line).expect("a summary");
        assert_eq!(read, Summary { label: "x".into(), passed: 7, failed: 2, ignored: 1 });
        assert!(!read.row().ok);
        assert!(!Summary { failed: 0, ..read }.row().ok);
        assert_eq!(summary("x", "test a ... ok"), None);
    }
}

//! The guest's workload: fills memory with known bytes, waits untouching, and verifies every byte; the same for a disk at the same time. Also
//! touches known sets of an arena whose frame numbers it knows, and leaves the truth about it on a disk.
//!
//! It is a list of steps, done in order, each answered by one line that a script can wait for. The exit status is 0 when nothing was wrong, 1
//! when bytes were, 2 when a step could not be done.
//!
//! Promises: between steps memory is not touched. Must never: end with status 0 when a byte was wrong.

mod arena;
mod disk;
mod memory;
mod pattern;
mod truth;

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use disk::DiskWork;
use ebb_tests::tracking::linux::access::Access;
use memory::{Memory, ms_since, pages_for_percent};
use truth::Truth;

const USAGE: &str = "usage: ebb-workload STEP...
  seed:N           seed of everything that follows (1)
  fill:PERCENT     fills that share of this machine's memory    -> FILLED pages=N ms=T
  pages:N          fills N pages                                -> FILLED pages=N ms=T
  hold:SECONDS     sleeps                                       -> HELD
  touch:N          reads a word of every N-th page              -> TOUCHED ms=T
  rewrite:N        new contents for every N-th page             -> REWRITTEN ms=T
  verify           checks every byte                            -> VERIFIED pages=N mismatches=BYTES ms=T
  disk:PATH:MIB    starts to write and verify a disk            -> DISK started
  disk-stop        ends that after the pass under way           -> DISK passes=N bytes=N mismatches=BYTES ms=T
  arena:N:DISK     N pages of known frames, recorded on DISK    -> ARENA pages=N whole_pieces=N ms=T
  access:SET       touches a set of them, and records which     -> ACCESSED SET pages=N sum=N ms=T
                   (SET is CHOICE:ROUND:read|write:NUMBER)
  console          takes further steps from standard input, one a line, until `end`";

/// What the steps work on.
struct Workload {
    seed: u64,
    memory: Option<Memory>,
    disk: Option<(DiskWork, Instant)>,
    truth: Option<Truth>,
    wrong: bool,
}

impl Workload {
    /// Does one step; the error is a sentence.
    fn step(&mut self, step: &str) -> Result<(), String> {
        let start = Instant::now();
        let (name, argument) = step.split_once(':').unwrap_or((step, ""));
        match name {
            "seed" => self.seed = parse(step, argument)?,
            "fill" => self.fill(pages_for_percent(parse(step, argument)?)?, start),
            "pages" => self.fill(parse(step, argument)?, start),
            "hold" => {
                std::thread::sleep(Duration::from_secs(parse(step, argument)?));
                println!("HELD");
            }
            "touch" => {
                let sum = self.memory()?.touch(parse(step, argument)?);
                println!("TOUCHED sum={sum} ms={}", ms_since(start));
            }
            "rewrite" => {
                self.memory()?.rewrite(parse(step, argument)?);
                println!("REWRITTEN ms={}", ms_since(start));
            }
            "verify" => self.verify(start)?,
            "disk" => {
                let (path, mib) = argument.rsplit_once(':').ok_or_else(|| format!("{step}: expected disk:PATH:MIB"))?;
                let mib: usize = parse(step, mib)?;
                self.disk = Some((DiskWork::start(Path::new(path), mib << 20, self.seed), start));
                println!("DISK started");
            }
            "disk-stop" => self.stop_disk()?,
            "arena" => self.arena(step, argument, start)?,
            "access" => self.access(step, argument, start)?,
            "console" => self.console()?,
            _ => return Err(format!("unknown step {step:?}\n{USAGE}")),
        }
        std::io::stdout().flush().map_err(|error| error.to_string())
    }

    fn fill(&mut self, pages: usize, start: Instant) {
        self.memory = None;
        let memory = Memory::fill(pages, self.seed);
        println!("FILLED pages={} ms={}", memory.pages(), ms_since(start));
        self.memory = Some(memory);
    }

    fn verify(&mut self, start: Instant) -> Result<(), String> {
        let verdict = self.memory()?.verify();
        for (page, wrong, first) in &verdict.examples {
            println!("WRONG page={page} bytes={wrong} first_word={first:#018x}");
        }
        println!("VERIFIED pages={} mismatches={} ms={}", verdict.pages, verdict.mismatches, ms_since(start));
        self.wrong |= verdict.mismatches > 0;
        Ok(())
    }

    fn stop_disk(&mut self) -> Result<(), String> {
        let (work, start) = self.disk.take().ok_or("disk-stop without disk")?;
        let report = work.finish().map_err(|error| format!("disk: {error}"))?;
        println!(
            "DISK passes={} bytes={} mismatches={} ms={}",
            report.passes,
            report.bytes,
            report.mismatches,
            ms_since(start)
        );
        self.wrong |= report.mismatches > 0;
        Ok(())
    }

    fn arena(&mut self, step: &str, argument: &str, start: Instant) -> Result<(), String> {
        let (pages, disk) = argument.split_once(':').ok_or_else(|| format!("{step}: expected arena:N:DISK"))?;
        let truth = Truth::new(parse(step, pages)?, disk)?;
        let (pages, whole_pieces) = truth.size();
        println!("ARENA pages={pages} whole_pieces={whole_pieces} ms={}", ms_since(start));
        self.truth = Some(truth);
        Ok(())
    }

    fn access(&self, step: &str, argument: &str, start: Instant) -> Result<(), String> {
        let access: Access = argument.parse().map_err(|error| format!("{step}: {error}"))?;
        let (pages, sum) = self.truth.as_ref().ok_or("access without arena")?.access(access)?;
        println!("ACCESSED {access} pages={pages} sum={sum} ms={}", ms_since(start));
        Ok(())
    }

    fn console(&mut self) -> Result<(), String> {
        println!("READY");
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|error| format!("standard input: {error}"))?;
            match line.trim() {
                "" => {}
                "end" => return Ok(()),
                "console" => return Err("console within console".to_owned()),
                step => self.step(step)?,
            }
        }
        Ok(())
    }

    fn memory(&mut self) -> Result<&mut Memory, String> {
        self.memory.as_mut().ok_or_else(|| "no memory was filled yet".to_owned())
    }
}

fn parse<T: std::str::FromStr>(step: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{step}: {text:?} is not a number"))
}

fn main() -> ExitCode {
    let steps: Vec<String> = std::env::args().skip(1).collect();
    if steps.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let mut workload = Workload { seed: 1, memory: None, disk: None, truth: None, wrong: false };
    for step in &steps {
        if let Err(reason) = workload.step(step) {
            println!("FAILED {reason}");
            return ExitCode::from(2);
        }
    }
    ExitCode::from(u8::from(workload.wrong))
}

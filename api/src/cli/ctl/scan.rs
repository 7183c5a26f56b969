//! `ebb ctl scan`: starts a series of scans, and with --wait stays until it has ended.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use hyper::Method;
use memtier::status::{ScanPlan, ScanReport, ScanState};
use serde::Deserialize;

use super::args::ScanArgs;
use super::{CtlError, Session, body, parse, show};
use crate::cli::{CliError, print};

/// Between two looks at a running series.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct Started {
    id: u64,
}

pub(super) fn scan(session: &Session, args: &ScanArgs) -> Result<(), CliError> {
    let plan = ScanPlan { loops: args.loops, interval_ms: args.interval, sleep_ms: args.sleep, backoff: args.backoff };
    let target = "/memtier/scans";
    let bytes = session.send(Method::POST, target, body(&plan)?)?;
    let Started { id } = parse(target, &bytes)?;
    if args.wait {
        return wait(session, id);
    }
    if session.json { session.print_json(&bytes) } else { print(&format!("scan {id} started\n")) }
}

fn wait(session: &Session, id: u64) -> Result<(), CliError> {
    let target = format!("/memtier/scans/{id}");
    let mut progress = Progress::new();
    loop {
        let bytes = session.get(&target)?;
        let report: ScanReport = parse(&target, &bytes)?;
        progress.show(&report);
        let how = match report.state {
            ScanState::Running => {
                thread::sleep(LOOK);
                continue;
            }
            ScanState::Done => None,
            ScanState::Cancelled => Some("was cancelled".to_owned()),
            ScanState::Failed => Some(format!("failed: {}", report.error.as_deref().unwrap_or("no reason given"))),
        };
        progress.end();
        if session.json {
            session.print_json(&bytes)?;
        } else {
            print(&show::scan(&report))?;
        }
        return how.map_or(Ok(()), |how| Err(CtlError::Scan { id, how }.into()));
    }
}

/// One line on stderr that is rewritten on a terminal, a line per finished loop elsewhere.
struct Progress {
    terminal: bool,
    shown: Option<usize>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, report: &ScanReport) {
        let done = report.loops.len();
        if self.shown == Some(done) {
            return;
        }
        self.shown = Some(done);
        let line = format!("scan {}: {done} of {} loops done", report.id, report.plan.loops);
        // Progress that can't be shown is no reason to stop.
        let _ = if self.terminal { write!(io::stderr(), "\r{line}") } else { writeln!(io::stderr(), "{line}") };
    }

    fn end(&self) {
        if self.terminal {
            let _ = writeln!(io::stderr());
        }
    }
}

//! `ebb ctl`: a running guest's tiers from the command line.
//!
//! Promises: tables for people, or with --json exactly what the server said; the server's refusal becomes the error line. Must never: hide
//! part of an answer that a person would want to know.

mod args;
mod heat;
mod idle;
mod insight;
mod scan;
mod show;

use std::path::{Path, PathBuf};

use hyper::Method;
use hyper::body::Bytes;
use memtier::status::{AreaSpec, GuestRange, Outcomes, ReclaimRequest, Reclaimed, Report, Status};
use serde::de::DeserializeOwned;
use serde_json::json;

pub use args::CtlArgs;
use args::{CtlCommand, EvictArgs, SwaponArgs};

use super::{CliError, print};
use crate::client::{Body, Client, ClientError};

/// Why a request to a running ebb did not work out.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// A socket is always needed; clap can't want a flag that may stand before or after the command.
    #[error("ctl needs --sock PATH, the socket that the running ebb has as its --api-sock")]
    NoSock,
    /// No answer, or a refusal.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An answer of another shape than this version of ebb knows.
    #[error("ebb's answer to {target} was not understood")]
    Answer {
        /// What was asked.
        target: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A request that can't be sent as JSON: a path that isn't UTF-8.
    #[error("the request can't be written as JSON")]
    Request(#[source] serde_json::Error),
    /// A path that can't be made absolute.
    #[error("cannot tell the place of {}", path.display())]
    Place {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file that can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing to draw yet.
    #[error("no scan has finished yet, so there is no heat to draw: see ebb ctl scan")]
    NoHeat,
    /// A series of scans ended early.
    #[error("scan {id} {how}")]
    Scan {
        /// Its number.
        id: u64,
        /// How it ended.
        how: String,
    },
}

/// Carries out one command.
pub fn ctl(args: CtlArgs) -> Result<(), CliError> {
    let sock = args.sock.ok_or(CtlError::NoSock)?;
    let session = Session { client: Client::new(&sock).map_err(CtlError::from)?, json: args.json };
    match args.command {
        CtlCommand::Status => session.status(),
        CtlCommand::Scan(args) => scan::scan(&session, &args),
        CtlCommand::Idle(args) => idle::idle(&session, &args),
        CtlCommand::Reclaim(args) => {
            session.reclaim(&ReclaimRequest { bytes: args.bytes, min_idle_scans: args.min_idle_scans })
        }
        CtlCommand::Evict(args) => session.evict(args),
        CtlCommand::Swapon(args) => session.swapon(args),
        CtlCommand::Swapoff(args) => session.swapoff(args.id),
        CtlCommand::SwapEnable(args) => session.swap_enable(args.state.as_deref()),
        CtlCommand::Report => session.report(),
        CtlCommand::Heat(args) => heat::heat(&session, &args),
        CtlCommand::Curve => insight::curve(&session),
        CtlCommand::Ws(args) => insight::working_set(&session, &args),
        CtlCommand::Tracker(args) => insight::tracker(&session, &args),
    }
}

/// A connection's worth of context: whom to ask, and how to show the answer.
struct Session {
    client: Client,
    json: bool,
}

impl Session {
    fn send(&self, method: Method, target: &str, body: Body) -> Result<Bytes, CtlError> {
        Ok(self.client.request(method, target, body)?)
    }

    fn get(&self, target: &str) -> Result<Bytes, CtlError> {
        self.send(Method::GET, target, Body::Empty)
    }

    fn get_as<T: DeserializeOwned>(&self, target: &str) -> Result<T, CtlError> {
        parse(target, &self.get(target)?)
    }

    /// The server's JSON as it is.
    fn print_json(&self, bytes: &Bytes) -> Result<(), CliError> {
        print(&format!("{}\n", String::from_utf8_lossy(bytes)))
    }

    fn status(&self) -> Result<(), CliError> {
        let target = "/memtier";
        let bytes = self.get(target)?;
        if self.json {
            return self.print_json(&bytes);
        }
        let status: Status = parse(target, &bytes)?;
        let areas = self.get_as("/memtier/swap_areas")?;
        print(&show::status(&status, areas))
    }

    fn report(&self) -> Result<(), CliError> {
        let target = "/memtier/report";
        let bytes = self.get(target)?;
        if self.json {
            return self.print_json(&bytes);
        }
        let report: Report = parse(target, &bytes)?;
        print(&show::report(&report))
    }

    fn reclaim(&self, request: &ReclaimRequest) -> Result<(), CliError> {
        let target = "/memtier/reclaim";
        let bytes = self.send(Method::POST, target, body(request)?)?;
        if self.json {
            return self.print_json(&bytes);
        }
        let reclaimed: Reclaimed = parse(target, &bytes)?;
        print(&show::reclaimed(&reclaimed))
    }

    fn evict(&self, args: EvictArgs) -> Result<(), CliError> {
        if args.all {
            // Coldest first, until as much as the whole guest has left: every resident page is tried once.
            let status: Status = self.get_as("/memtier")?;
            let bytes = status.guest_pages.saturating_mul(status.page_size);
            return self.reclaim(&ReclaimRequest { bytes: Some(bytes), min_idle_scans: None });
        }
        let target = "/memtier/swap_pages";
        let ranges: Vec<GuestRange> = args.ranges;
        let bytes = self.send(Method::POST, target, body(&json!({ "ranges": ranges }))?)?;
        if self.json {
            return self.print_json(&bytes);
        }
        let outcomes: Outcomes = parse(target, &bytes)?;
        print(&show::outcomes(&outcomes))
    }

    fn swapon(&self, args: SwaponArgs) -> Result<(), CliError> {
        let target = "/memtier/swap_areas";
        // Relative to the person who types, not to the directory in which the guest was started.
        let spec =
            AreaSpec { path: absolute(&args.path)?, size: args.size, priority: args.priority, ..AreaSpec::default() };
        let bytes = self.send(Method::PUT, target, body(&spec)?)?;
        if self.json {
            return self.print_json(&bytes);
        }
        let taken: show::AreaTaken = parse(target, &bytes)?;
        print(&format!("swap area {} is {}\n", taken.id, spec.path.display()))
    }

    fn swapoff(&self, id: u64) -> Result<(), CliError> {
        self.send(Method::DELETE, &format!("/memtier/swap_areas/{id}"), Body::Empty)?;
        if self.json { Ok(()) } else { print(&format!("swap area {id} is off\n")) }
    }

    fn swap_enable(&self, state: Option<&str>) -> Result<(), CliError> {
        let target = "/memtier/swap_enable";
        if let Some(word) = state {
            self.send(Method::PUT, target, Body::Text(word.to_owned()))?;
            return Ok(());
        }
        // The word is JSON as it is.
        let word = self.get(target)?;
        print(&format!("{}\n", String::from_utf8_lossy(&word).trim_end()))
    }
}

fn parse<T: DeserializeOwned>(target: &str, bytes: &[u8]) -> Result<T, CtlError> {
    serde_json::from_slice(bytes).map_err(|source| CtlError::Answer { target: target.to_owned(), source })
}

fn body<T: serde::Serialize>(value: &T) -> Result<Body, CtlError> {
    serde_json::to_string(value).map(Body::Json).map_err(CtlError::Request)
}

fn absolute(path: &Path) -> Result<PathBuf, CtlError> {
    std::path::absolute(path).map_err(|source| CtlError::Place { path: path.to_owned(), source })
}

//! Tries the `page_idle` tracker against the truth, on a host whose kernel has the idle page bitmap: memory of this process, registered and
//! locked as guest memory is, pages touched by threads, and what the tracker tells compared with that.
//!
//! Prints `name=value` lines. Promises: counts, judges nothing. Must never: run on a host whose other memory matters; it gives up its own
//! rights at the end.

mod exact;
mod ground;
mod huge;
mod kernel;
mod rights;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use memtier::track::page_idle;

/// Compares what the page_idle tracker tells with what was touched.
#[derive(Debug, Parser)]
struct Args {
    /// Random sets to try.
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Pages of memory.
    #[arg(long, default_value_t = 4096)]
    pages: u32,
    /// What random choices depend on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("ebb-page-idle: {error}");
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

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    tell("usable", shown(page_idle::usable()));
    kernel::report()?;
    exact::report(args.pages, args.rounds, args.seed)?;
    huge::report()?;
    rights::give_up_admin()?;
    tell("without_admin", shown(page_idle::usable()));
    rights::give_up_files()?;
    tell("without_files", shown(page_idle::usable()));
    Ok(())
}

fn shown(result: Result<(), page_idle::PageIdleError>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "yes".to_owned())
}

fn tell(name: &str, value: impl std::fmt::Display) {
    println!("{name}={value}");
}

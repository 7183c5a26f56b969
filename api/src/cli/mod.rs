//! The command line: what `ebb` understands, and how it ends.
//!
//! Promises: exit status 0 for success, 1 with one line on stderr for everything else. Must never: panic when stdout or stderr is closed.

pub mod check;
pub mod ctl;
pub mod run;
mod table;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Runs a guest whose cold memory leaves to swap files and comes back when it is touched.
///
/// Exit status: 0 for success, which for `run` means that the guest powered off or rebooted; 1 with one line on standard error otherwise.
#[derive(Debug, Parser)]
#[command(name = "ebb", version, max_term_width = 110)]
pub struct Cli {
    /// What is logged to standard error: off, error, warn, info, debug or trace, or a filter such as memtier=debug
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    log_level: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a guest, or wait for a client that configures and starts one
    Run(Box<run::RunArgs>),
    /// Say what this host can do, and what to do about what is missing
    Check(check::CheckArgs),
    /// Talk to a running ebb through its socket
    Ctl(ctl::CtlArgs),
}

/// Why the program ends with status 1. The message and the chain behind it become the line on stderr.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line itself.
    #[error("{0}")]
    Usage(String),
    /// `--log-level`.
    #[error("'{0}' is not a log level or filter: off, error, warn, info, debug and trace are")]
    LogLevel(String),
    /// `ebb run`.
    #[error(transparent)]
    Run(#[from] run::RunError),
    /// `ebb ctl`.
    #[error(transparent)]
    Ctl(#[from] ctl::CtlError),
    /// `ebb check` found something that a guest with tiering needs.
    #[error("this host can't run a guest with tiering: {0}")]
    Check(String),
    /// Output could not be written, other than by a reader that has gone.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// The whole program.
pub fn main() -> ExitCode {
    let result = match Cli::try_parse() {
        Ok(cli) => dispatch(cli),
        Err(error) => usage(&error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that closed the pipe has seen enough; that is no failure.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "ebb: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), CliError> {
    start_logging(&cli.log_level)?;
    match cli.command {
        Command::Run(args) => Ok(run::run(*args)?),
        Command::Check(args) => check::check(&args),
        Command::Ctl(args) => ctl::ctl(args),
    }
}

fn start_logging(level: &str) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(level).map_err(|_| CliError::LogLevel(level.to_owned()))?;
    // A log that can't be written must not become a panic, which reporting it on a closed stderr would be.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    // Fails only when a subscriber is there already, as in tests that call this twice.
    let _ = log.with_ansi(false).try_init();
    Ok(())
}

/// Help and version are what was asked for; everything else becomes one line.
fn usage(error: &clap::Error) -> Result<(), CliError> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(io::stderr(), "{text}");
            Err(CliError::Usage("no command given".to_owned()))
        }
        _ => {
            let first = text.split("\n\n").next().unwrap_or_default();
            let words: Vec<&str> = first.split_whitespace().collect();
            let line = words.join(" ");
            Err(CliError::Usage(line.strip_prefix("error: ").unwrap_or(&line).to_owned()))
        }
    }
}

/// Writes to stdout; a closed stdout is an error value, never a panic.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// An error and all that is behind it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut behind = error.source();
    while let Some(error) = behind {
        line.push_str(": ");
        line.push_str(&error.to_string());
        behind = error.source();
    }
    line
}

/// For clap, which shows only an error's own message: the whole chain as the message.
fn chained<T, E: Error>(parse: impl Fn(&str) -> Result<T, E> + Clone) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| parse(text).map_err(|error| chain(&error))
}

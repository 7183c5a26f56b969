//! `ebb check`: what this host can do, as a list for people or as JSON.
//!
//! Promises: ends with success exactly when a guest with tiering can run. Must never: leave something changed.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, print};
use crate::check::{Row, State, rows};

/// Flags of `ebb check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Print JSON: a list of what, state (ok, missing or warn), detail and mend
    #[arg(long)]
    json: bool,
    /// Where the swap file is or would be
    #[arg(long, value_name = "PATH", default_value = ".")]
    swap: PathBuf,
}

/// Looks at the host and prints what was found.
pub fn check(args: &CheckArgs) -> Result<(), CliError> {
    let rows = rows(&args.swap);
    if args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| CliError::Usage(error.to_string()))?;
        print(&format!("{text}\n"))?;
    } else {
        print(&show(&rows))?;
    }
    verdict(&rows)
}

fn verdict(rows: &[Row]) -> Result<(), CliError> {
    let missing: Vec<&str> = rows.iter().filter(|row| row.state == State::Missing).map(|row| row.what).collect();
    if missing.is_empty() { Ok(()) } else { Err(CliError::Check(missing.join(", "))) }
}

fn show(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let state = match row.state {
            State::Ok => "ok",
            State::Missing => "missing",
            State::Warn => "warn",
        };
        text.push_str(&format!("{state:<7}  {:<width$}  {}\n", row.what, row.detail));
        if let Some(mend) = &row.mend {
            text.push_str(&format!("{:7}  {:<width$}  -> {mend}\n", "", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &'static str, state: State, mend: Option<&str>) -> Row {
        Row { what, state, detail: "found".to_owned(), mend: mend.map(str::to_owned) }
    }

    #[test]
    fn only_what_is_missing_makes_it_fail() {
        assert!(verdict(&[row("a", State::Ok, None), row("b", State::Warn, Some("mend"))]).is_ok());
        let failed =
            verdict(&[row("a", State::Missing, None), row("b", State::Ok, None), row("c", State::Missing, None)]);
        assert_eq!(failed.unwrap_err().to_string(), "this host can't run a guest with tiering: a, c");
    }

    #[test]
    fn each_row_has_its_mend_below() {
        let text = show(&[row("kvm", State::Ok, None), row("io_uring", State::Warn, Some("do this"))]);
        assert_eq!(text, "ok       kvm       found\nwarn     io_uring  found\n                   -> do this\n");
    }
}

//! Measured figures: rows in `target/reports/<target>.json`, and the same as a table for people.
//!
//! Promises: a row says what was measured, where, and whether it is within its budget; what several programs of one `make` target report is
//! merged. Must never: round a figure across its budget (`ok` is decided on the exact value).

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::artifacts;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What it must be, such as `<= 25`; none for figures that are only shown.
    pub budget: Option<String>,
    /// Whether it is so; true without a budget.
    pub ok: bool,
    /// Where it was measured: `native`, `emulated` or `build`.
    pub host: String,
}

/// What a figure is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// It is only shown.
    None,
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Exactly this.
    Exactly(f64),
}

impl Budget {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::None => true,
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Exactly(limit) => value == limit,
        }
    }

    fn text(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::AtMost(limit) => Some(format!("<= {limit}")),
            Self::AtLeast(limit) => Some(format!(">= {limit}")),
            Self::Exactly(limit) => Some(format!("= {limit}")),
        }
    }
}

impl Row {
    /// A figure held to its budget.
    pub fn new(name: &str, value: f64, unit: &str, budget: Budget, host: &str) -> Self {
        let (name, unit, host) = (name.to_owned(), unit.to_owned(), host.to_owned());
        Self { name, value, unit, budget: budget.text(), ok: budget.holds(value), host }
    }
}

/// Writes `target/reports/<target>.json`, replacing what was there, and answers its path.
pub fn write(target: &str, rows: &[Row]) -> io::Result<PathBuf> {
    let folder = artifacts::output_folder("reports").map_err(io::Error::other)?;
    let path = folder.join(format!("{target}.json"));
    std::fs::write(&path, serde_json::to_string_pretty(rows)? + "\n")?;
    Ok(path)
}

/// For a test that measures: leaves its rows for the program that runs all tests and writes the report of `target`.
pub fn contribute(target: &str, part: &str, rows: &[Row]) -> io::Result<()> {
    let folder = artifacts::output_folder(&format!("reports/{target}.parts")).map_err(io::Error::other)?;
    std::fs::write(folder.join(format!("{part}.json")), serde_json::to_string(rows)?)
}

/// Takes the rows that were left for `target`, in the order of their parts' names, and removes them.
pub fn collect(target: &str) -> io::Result<Vec<Row>> {
    let folder = artifacts::output_folder(&format!("reports/{target}.parts")).map_err(io::Error::other)?;
    let mut paths = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let mut rows = Vec::new();
    for path in paths {
        rows.extend(serde_json::from_slice::<Vec<Row>>(&std::fs::read(&path)?)?);
        std::fs::remove_file(path)?;
    }
    std::fs::remove_dir(folder)?;
    Ok(rows)
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let width = |part: fn(&Row) -> usize, head: &str| rows.iter().map(part).max().unwrap_or(0).max(head.len());
    let names = width(|row| row.name.chars().count(), "");
    let values = width(|row| figure(row.value).len(), "");
    let units = width(|row| row.unit.chars().count(), "");
    let mut text = String::new();
    for row in rows {
        let verdict = match (&row.budget, row.ok) {
            (None, _) => String::new(),
            (Some(budget), true) => format!("ok      {budget}"),
            (Some(budget), false) => format!("MISSED  {budget}"),
        };
        let line = format!("  {:<names$}  {:>values$} {:<units$}   {verdict}", row.name, figure(row.value), row.unit);
        writeln!(text, "{}", line.trim_end()).expect("writing to memory");
    }
    text
}

/// A number as people write it: whole ones with thousands apart, others with two decimals.
fn figure(value: f64) -> String {
    if value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_held_to_the_exact_value() {
        let ok = |value, budget| Row::new("x", value, "%", budget, "native").ok;
        assert!(ok(25.0, Budget::AtMost(25.0)) && !ok(25.001, Budget::AtMost(25.0)));
        assert!(ok(80.0, Budget::AtLeast(80.0)) && !ok(79.999, Budget::AtLeast(80.0)));
        assert!(ok(0.0, Budget::Exactly(0.0)) && !ok(1.0, Budget::Exactly(0.0)));
        assert!(ok(f64::MAX, Budget::None) && !ok(f64::NAN, Budget::AtMost(1.0)));
    }

    #[test]
    fn the_table_lines_up_and_shows_what_was_missed() {
        let rows = [
            Row::new("bytes verified", 12_345_678.0, "B", Budget::None, "emulated"),
            Row::new("resident", 30.5, "%", Budget::AtMost(25.0), "emulated"),
        ];
        assert_eq!(table(&rows), "  bytes verified  12,345,678 B\n  resident             30.50 %   MISSED  <= 25\n");
    }

    #[test]
    fn rows_left_by_parts_come_together_once() {
        let row = |name: &str| Row::new(name, 1.0, "", Budget::None, "build");
        contribute("report-test", "b", &[row("second")]).expect("b");
        contribute("report-test", "a", &[row("first")]).expect("a");
        let names: Vec<String> = collect("report-test").expect("both").into_iter().map(|row| row.name).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(collect("report-test").expect("none").is_empty());
    }
}

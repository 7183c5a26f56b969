//! What a script on a host reported, line by line, and what it all came to.
//!
//! Promises: a line that is none of the known forms is kept as it is, never lost; a value asked for that is missing or of the wrong form is an
//! error that names it. Must never: take silence for success, a run without an exit status has failed.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// One line from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What happens now.
    Step(String),
    /// A measurement or observation.
    Value {
        /// Its name.
        name: String,
        /// The rest of the line.
        value: String,
    },
    /// The script gave up.
    Fail(String),
    /// The script has ended with this status.
    Exit(i32),
    /// The host runs; there is nothing new.
    Alive,
    /// Anything else.
    Other(String),
}

impl Line {
    /// Reads a line as `resources/initramfs/lib.sh` writes it.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        if line == "EBB-ALIVE" {
            return Self::Alive;
        }
        let known = match line.split_once(' ') {
            Some(("EBB-STEP", text)) => Some(Self::Step(text.to_owned())),
            Some(("EBB-FAIL", text)) => Some(Self::Fail(text.to_owned())),
            Some(("EBB-EXIT", status)) => status.parse().ok().map(Self::Exit),
            Some(("EBB-RESULT", pair)) => {
                pair.split_once('=').map(|(name, value)| Self::Value { name: name.to_owned(), value: value.to_owned() })
            }
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other(line.to_owned()))
    }
}

/// A value that was asked of an [`Outcome`] and is not there, or not of that form.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The script did not report it.
    #[error("the host reported no {0}")]
    Missing(String),
    /// It is something else.
    #[error("the host reported {name}={value}, which is no {wanted}")]
    Form {
        /// Name asked for.
        name: String,
        /// What was reported.
        value: String,
        /// What was expected.
        wanted: &'static str,
    },
}

/// What a finished script reported.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Values by name; a name reported twice keeps the last.
    pub values: BTreeMap<String, String>,
    /// When each step began, as seen from outside, and its text.
    pub steps: Vec<(Duration, String)>,
    /// Processor time that the host had used when each step began.
    pub work: Vec<Duration>,
    /// Lines of no known form.
    pub others: Vec<String>,
    /// Why the script gave up.
    pub failures: Vec<String>,
    /// Its exit status, once it has ended.
    pub exit: Option<i32>,
}

impl Outcome {
    /// Takes in one line that arrived `at` after the start.
    pub fn take(&mut self, at: Duration, work: Duration, line: Line) {
        match line {
            Line::Step(text) => {
                self.steps.push((at, text));
                self.work.push(work);
            }
            Line::Value { name, value } => drop(self.values.insert(name, value)),
            Line::Fail(text) => self.failures.push(text),
            Line::Exit(status) => self.exit = Some(status),
            Line::Alive => {}
            Line::Other(text) => self.others.push(text),
        }
    }

    /// Whether the script ended by itself, with status 0 and no complaint.
    pub fn succeeded(&self) -> bool {
        self.exit == Some(0) && self.failures.is_empty()
    }

    /// A value as text.
    pub fn text(&self, name: &str) -> Result<&str, ValueError> {
        self.values.get(name).map(String::as_str).ok_or_else(|| ValueError::Missing(name.to_owned()))
    }

    /// A value as a number.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<T, ValueError> {
        let value = self.text(name)?;
        value.trim().parse().map_err(|_| ValueError::Form {
            name: name.to_owned(),
            value: value.to_owned(),
            wanted: "number",
        })
    }

    /// A value as JSON.
    pub fn json(&self, name: &str) -> Result<serde_json::Value, ValueError> {
        let value = self.text(name)?;
        serde_json::from_str(value).map_err(|_| ValueError::Form {
            name: name.to_owned(),
            value: value.to_owned(),
            wanted: "JSON",
        })
    }
}

/// The number at `pointer` (as in RFC 6901) of a JSON value.
pub fn json_number(json: &serde_json::Value, pointer: &str) -> Result<u64, ValueError> {
    let value = json.pointer(pointer).ok_or_else(|| ValueError::Missing(pointer.to_owned()))?;
    value.as_u64().ok_or_else(|| ValueError::Form {
        name: pointer.to_owned(),
        value: value.to_string(),
        wanted: "number",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_line_is_told_from_the_others() {
        assert_eq!(Line::parse("EBB-STEP guest boots\r\n"), Line::Step("guest boots".into()));
        let value = |name: &str, value: &str| Line::Value { name: name.into(), value: value.into() };
        assert_eq!(Line::parse("EBB-RESULT pages=12"), value("pages", "12"));
        assert_eq!(Line::parse(r#"EBB-RESULT status={"a":"b=c d"}"#), value("status", r#"{"a":"b=c d"}"#));
        assert_eq!(Line::parse("EBB-FAIL no answer"), Line::Fail("no answer".into()));
        assert_eq!(Line::parse("EBB-EXIT 3"), Line::Exit(3));
        assert_eq!(Line::parse("EBB-ALIVE\r"), Line::Alive);
        for odd in ["EBB-EXIT three", "EBB-RESULT pages", "xEBB-STEP a", "EBB-STEP"] {
            assert_eq!(Line::parse(odd), Line::Other(odd.into()));
        }
    }

    #[test]
    fn silence_and_complaints_are_no_success() {
        let mut outcome = Outcome::default();
        assert!(!outcome.succeeded());
        outcome.take(Duration::ZERO, Duration::ZERO, Line::Exit(0));
        assert!(outcome.succeeded());
        outcome.take(Duration::ZERO, Duration::ZERO, Line::Fail("but".into()));
        assert!(!outcome.succeeded());
    }

    #[test]
    fn a_value_of_the_wrong_form_is_named() {
        let mut outcome = Outcome::default();
        outcome.take(Duration::ZERO, Duration::ZERO, Line::parse("EBB-RESULT pages=many"));
        assert_eq!(
            outcome.number::<u64>("pages").unwrap_err().to_string(),
            "the host reported pages=many, which is no number"
        );
        assert_eq!(outcome.number::<u64>("bytes").unwrap_err().to_string(), "the host reported no bytes");
        assert!(outcome.json("pages").is_err());
        let json = serde_json::json!({"counters": {"faults": 7, "name": "x"}});
        assert_eq!(json_number(&json, "/counters/faults").unwrap(), 7);
        assert_eq!(
            json_number(&json, "/counters/name").unwrap_err().to_string(),
            "the host reported /counters/name=\"x\", which is no number"
        );
    }
}

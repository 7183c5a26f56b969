//! What this host can do for a guest with tiering, and what to do about what is missing.
//!
//! Promises: every row comes from trying the thing, not from version numbers; nothing stays changed. Must never: call something missing
//! that a guest with tiering runs without; that is a warning.

mod access;
mod host;
mod huge;
mod kvm;
mod storage;
mod trackers;

use std::path::Path;

use serde::Serialize;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There.
    Ok,
    /// Not there, and a guest with tiering can't run.
    Missing,
    /// Not there or not as it should be; a guest with tiering runs, with less.
    Warn,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do about it; nothing when it is as it should be.
    pub mend: Option<String>,
}

impl Row {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, state: State::Ok, detail: detail.into(), mend: None }
    }

    fn missing(what: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, state: State::Missing, detail: detail.into(), mend: Some(mend.into()) }
    }

    fn warn(what: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, state: State::Warn, detail: detail.into(), mend: Some(mend.into()) }
    }
}

/// Looks at everything; `swap` is where a swap file is or would be.
pub fn rows(swap: &Path) -> Vec<Row> {
    let (mut rows, dirty_log) = kvm::rows();
    rows.extend(access::rows());
    rows.extend(trackers::rows(access::can_lock(), dirty_log));
    rows.extend(storage::rows(swap));
    rows.extend(huge::rows());
    rows.extend(host::rows());
    rows
}

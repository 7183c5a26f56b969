//! Scans, as a client asks for them and sees them.
//!
//! Promises: plain data. Must never: hold locks or references into live structures.

use serde::{Deserialize, Serialize};

/// A series of scans: `loops` times, arm everything, wait `sleep_ms`, look; `interval_ms` between one scan's end and the next one's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ScanPlan {
    /// How many scans, 1..=120 (etmem's range).
    pub loops: u32,
    /// Pause between scans in milliseconds, at most 1,200,000.
    #[serde(default)]
    pub interval_ms: u64,
    /// How long each scan watches, in milliseconds, at most 1,200,000.
    pub sleep_ms: u64,
    /// A page found accessed again and again is looked at every 2^`backoff` scans at least, 0..=8, and counts as accessed in between. 0 looks
    /// at every page in every scan. Without it, 6. Trackers that cost the guest nothing look at every page anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<u32>,
}

/// How far a series of scans is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScanState {
    /// Under way.
    Running,
    /// All loops done.
    Done,
    /// Stopped by the client.
    Cancelled,
    /// Stopped by an error; the report says which.
    Failed,
}

/// What one scan saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScanLoop {
    /// Resident pages accessed while it watched, `assumed` ones included.
    pub accessed: u64,
    /// Pages that count as accessed because they always were lately; this scan did not look at them (see [`ScanPlan::backoff`]).
    #[serde(default)]
    pub assumed: u64,
    /// Resident pages not accessed.
    pub idle: u64,
    /// Time spent arming and collecting, without the waiting, in microseconds.
    pub scan_us: u64,
    /// The longest single call that may have kept a vCPU waiting, in microseconds.
    #[serde(default)]
    pub longest_call_us: u64,
    /// From arming to collected, in microseconds.
    pub duration_us: u64,
}

/// A series of scans: its plan, how far it is, what it saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScanReport {
    /// Its number.
    pub id: u64,
    /// Where it is.
    pub state: ScanState,
    /// What was asked for.
    pub plan: ScanPlan,
    /// Loops that have armed everything: what is accessed from then on is seen by that loop.
    #[serde(default)]
    pub armed: u32,
    /// One entry per finished loop.
    pub loops: Vec<ScanLoop>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

//! What is learned from ages: the cold-memory curve, the working set, heat over time, refaults.
//!
//! [`ages`] and [`census`] count frames by idle age in one walk over the frame words; [`curve`], [`working_set`], [`heat`] and [`refaults`]
//! are made from that; [`etmem_scan`] is the encoding that etmem's readers know. [`Insight`] keeps what one census can't tell: the last scans'
//! samples, and the history of heat.
//!
//! Promises: memory for history is bounded, whatever the guest's size and age; the lock is taken once per finished scan and once per request.
//! Must never: be asked on the fault path.

pub mod age_report;
pub mod ages;
pub mod buckets;
pub mod census;
pub mod curve;
pub mod etmem_scan;
pub mod heat;
pub mod refaults;
pub mod working_set;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use age_report::AgeReport;
pub use census::Census;
pub use curve::ColdCurve;
pub use refaults::RefaultReport;
pub use working_set::WorkingSet;

use crate::memory::GuestMemory;
use crate::status::TrackerKind;
use buckets::Buckets;
use heat::HeatHistory;
use working_set::{MAX_WINDOW, Sample};

/// A scan that has finished, as far as its census does not tell.
#[derive(Clone, Copy, Debug)]
pub struct FinishedScan {
    /// Who saw it.
    pub tracker: TrackerKind,
    /// Resident frames counted as accessed that were not looked at this time.
    pub assumed: u64,
    /// When it began to watch.
    pub began: Instant,
    /// When it had collected.
    pub ended: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Insight {
    began: Instant,
    /// The same moment, for people.
    began_unix_ms: u64,
    buckets: Buckets,
    history: Mutex<History>,
}

#[derive(Debug)]
struct History {
    /// Scans recorded so far.
    scans: u64,
    /// The newest last.
    samples: VecDeque<Sample>,
    heat: HeatHistory,
}

impl Insight {
    /// No history yet.
    pub fn new(memory: &GuestMemory) -> Self {
        let buckets = Buckets::of(memory);
        let frames = buckets.columns().iter().map(|column| column.frames.end - column.frames.start).collect();
        let history =
            History { scans: 0, samples: VecDeque::with_capacity(MAX_WINDOW as usize), heat: HeatHistory::new(frames) };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { began: Instant::now(), began_unix_ms: millis(unix), buckets, history: Mutex::new(history) }
    }

    /// Remembers a finished scan and the census taken right after it.
    pub fn record(&self, census: &Census, scan: &FinishedScan) {
        let sample = Sample {
            tracker: scan.tracker,
            touched_bytes: census.touched_within(1) * census.frame_bytes,
            assumed_bytes: scan.assumed * census.frame_bytes,
            watched: scan.ended.saturating_duration_since(scan.began),
        };
        let since = |moment: Instant| millis(moment.saturating_duration_since(self.began));
        let mut history = self.lock();
        history.scans += 1;
        if history.samples.len() == MAX_WINDOW as usize {
            history.samples.pop_front();
        }
        history.samples.push_back(sample);
        history.heat.add(&census.touched_by_bucket, since(scan.began), since(scan.ended));
    }

    /// Scans recorded so far.
    pub fn scans(&self) -> u64 {
        self.lock().scans
    }

    /// The working set by the last `window` scans; `census` is one taken now. A window of 0 or beyond [`MAX_WINDOW`] is cut to the nearest
    /// that can be.
    pub fn working_set(&self, census: &Census, window: u32) -> WorkingSet {
        let set = WorkingSet::new(window.clamp(1, MAX_WINDOW), self.lock().samples.iter());
        let bytes = |frames: u64| frames * census.frame_bytes;
        let distinct = |scans| working_set::Distinct { scans, bytes: bytes(census.touched_within(scans)) };
        WorkingSet {
            resident_bytes: bytes(census.resident()),
            distinct: (1..=set.scans).map(distinct).collect(),
            ..set
        }
    }

    /// Heat over time, all of it.
    pub fn heat(&self) -> HeatMap {
        let columns = self.buckets.columns().iter().map(|column| HeatColumn {
            region: column.region,
            start: column.start,
            len: u64::from(column.frames.end - column.frames.start) * self.buckets.frame_bytes(),
        });
        let mut map = HeatMap {
            began_unix_ms: self.began_unix_ms,
            bucket_bytes: self.buckets.bucket_bytes(),
            scans_per_row: 0,
            columns: columns.collect(),
            rows: Vec::new(),
        };
        let history = self.lock();
        map.scans_per_row = history.heat.step();
        map.rows = history
            .heat
            .rows()
            .map(|(time, shares)| HeatRow {
                began_ms: time.began_ms,
                ended_ms: time.ended_ms,
                scans: time.scans,
                shares: shares.to_vec(),
            })
            .collect();
        map
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Heat over time: rows of time, columns of address buckets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeatMap {
    /// When times count from, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// Bytes of a bucket that is not its region's last.
    pub bucket_bytes: u64,
    /// Scans that each row but the last stands for.
    pub scans_per_row: u32,
    /// The buckets, by address.
    pub columns: Vec<HeatColumn>,
    /// Oldest first.
    pub rows: Vec<HeatRow>,
}

/// One address bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeatColumn {
    /// The region that it is of, counted from 0.
    pub region: usize,
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One row of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeatRow {
    /// When its first scan began, in milliseconds since the tiers were made.
    pub began_ms: u64,
    /// When its last scan ended.
    pub ended_ms: u64,
    /// Scans in it.
    pub scans: u32,
    /// For each bucket the share of its frames touched in a scan, on average: 0 none, 65535 all.
    pub shares: Vec<u16>,
}

#[cfg(test)]
#[path = "insight_test.rs"]
mod tests;

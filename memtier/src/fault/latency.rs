//! How long faults took to answer: one histogram per handler, merged when somebody asks.
//!
//! Promises: recording allocates nothing and contends with nobody but a reader. Must never: lose count; what is beyond the range counts as
//! its end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::status::Latency;

/// 1 µs to 60 s, two significant digits: about 12 KiB per handler.
const MAX_US: u64 = 60_000_000;

/// One handler's histogram.
#[derive(Debug)]
pub struct LatencyLog {
    /// The handler records, a reader merges now and then: all but always free.
    histogram: Mutex<Histogram<u32>>,
}

impl Default for LatencyLog {
    fn default() -> Self {
        Self { histogram: Mutex::new(empty()) }
    }
}

fn empty() -> Histogram<u32> {
    Histogram::new_with_max(MAX_US, 2).expect("a range of 1..=60,000,000 with two digits is valid")
}

impl LatencyLog {
    /// Records one fault.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(MAX_US);
        self.histogram.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(us);
    }

    /// All handlers together.
    pub fn merge<'a>(logs: impl Iterator<Item = &'a Self>) -> Latency {
        let mut all = empty();
        for log in logs {
            let histogram = log.histogram.lock().unwrap_or_else(PoisonError::into_inner);
            // Same range and digits, so adding can't fail.
            all.add(&*histogram).expect("histograms of one shape add up");
        }
        if all.is_empty() {
            return Latency::default();
        }
        Latency {
            count: all.len(),
            p50_us: all.value_at_quantile(0.5),
            p99_us: all.value_at_quantile(0.99),
            max_us: all.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_merge_and_saturate() {
        let (a, b) = (LatencyLog::default(), LatencyLog::default());
        assert_eq!(LatencyLog::merge([&a, &b].into_iter()), Latency::default());
        (0..99).for_each(|_| a.record(Duration::from_micros(50)));
        b.record(Duration::from_secs(3600));
        let merged = LatencyLog::merge([&a, &b].into_iter());
        assert_eq!((merged.count, merged.p50_us, merged.p99_us), (100, 50, 50));
        assert!(merged.max_us >= MAX_US * 99 / 100, "{merged:?}");
    }
}

//! How much memory the guest uses, and how sure that is.
//!
//! Each scan is one sample: the bytes touched while it watched. The mean of the last scans estimates the working set for a time as long as one
//! scan watches, and their spread says how far off it may be: the 95 % interval is Student's t for that many samples, which takes the scans
//! for independent. Hot frames that a scan did not look at and took for touched again (`assumed`) make a second doubt: the truth is between
//! counting none of them and all of them.
//!
//! Promises: low ≤ seen ≤ mean ≤ high; one sample has no interval. Must never: mix scans by different trackers (writes are not accesses).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::insight::ages::EXACT_AGES;
use crate::status::TrackerKind;

/// The most scans that are remembered one by one, and the longest window. Ages are exact up to as many.
pub const MAX_WINDOW: u32 = EXACT_AGES;
/// The window when the client names none.
pub const DEFAULT_WINDOW: u32 = 8;

/// What one finished scan contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Who saw it.
    pub tracker: TrackerKind,
    /// Bytes touched while it watched, the assumed ones included.
    pub touched_bytes: u64,
    /// Of these, hot memory that was not looked at this time.
    pub assumed_bytes: u64,
    /// How long it watched.
    pub watched: Duration,
}

/// An estimate of the working set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkingSet {
    /// The window asked for, in scans.
    pub window: u32,
    /// Scans in it that could be used: finished, by the tracker of the newest.
    pub scans: u32,
    /// The tracker that saw them; none before the first scan.
    pub tracker: Option<TrackerKind>,
    /// How long a scan watched, on average, in milliseconds. A longer scan sees a larger working set.
    pub watched_ms: u64,
    /// Bytes touched per scan, on average, with all that was assumed.
    pub mean_bytes: u64,
    /// The 95 % interval of that mean; none with fewer than two scans.
    pub interval: Option<Interval>,
    /// Bytes seen touched per scan, on average, with nothing assumed.
    pub seen_bytes: u64,
    /// The least that both doubts leave: the interval's lower end around `seen_bytes`.
    pub low_bytes: u64,
    /// The most that both doubts leave: the interval's upper end around `mean_bytes`.
    pub high_bytes: u64,
    /// In memory now.
    pub resident_bytes: u64,
    /// Distinct bytes touched in the last n scans, for n from 1 to the scans in the window, wherever they are now.
    pub distinct: Vec<Distinct>,
}

/// Where a mean lies, probably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Interval {
    /// Lower end in bytes.
    pub low_bytes: u64,
    /// Upper end in bytes.
    pub high_bytes: u64,
}

/// How much was touched at all in some scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Distinct {
    /// The last so many scans.
    pub scans: u32,
    /// Bytes touched in at least one of them.
    pub bytes: u64,
}

impl WorkingSet {
    /// The estimate from the newest `window` of `samples` (oldest first). `resident_bytes` and `distinct` are left to the caller, who knows
    /// ages.
    pub fn new<'a>(window: u32, samples: impl DoubleEndedIterator<Item = &'a Sample>) -> Self {
        let mut newest = samples.rev().take(window as usize).peekable();
        let tracker = newest.peek().map(|sample| sample.tracker);
        let used: Vec<&Sample> = newest.take_while(|sample| Some(sample.tracker) == tracker).collect();
        let touched = Spread::of(used.iter().map(|sample| sample.touched_bytes));
        let seen = Spread::of(used.iter().map(|sample| sample.touched_bytes.saturating_sub(sample.assumed_bytes)));
        let watched: Duration = used.iter().map(|sample| sample.watched).sum();
        let scans = u32::try_from(used.len()).unwrap_or(window);
        let interval = touched.half_width.map(|_| touched.interval());
        Self {
            window,
            scans,
            tracker,
            watched_ms: u64::try_from((watched / scans.max(1)).as_millis()).unwrap_or(u64::MAX),
            mean_bytes: touched.mean,
            interval,
            seen_bytes: seen.mean,
            low_bytes: seen.interval().low_bytes,
            high_bytes: touched.interval().high_bytes,
            resident_bytes: 0,
            distinct: Vec::new(),
        }
    }
}

/// Two-sided 95 % quantiles of Student's t in thousandths, for 1, 2, ... degrees of freedom; for more than that the last one is a little
/// wide (its limit is 1.960).
const T95_THOUSANDTHS: [u128; 30] = [
    12706, 4303, 3182, 2776, 2571, 2447, 2365, 2306, 2262, 2228, 2201, 2179, 2160, 2145, 2131, 2120, 2110, 2101, 2093,
    2086, 2080, 2074, 2069, 2064, 2060, 2056, 2052, 2048, 2045, 2042,
];

/// A mean and how far off it may be. In whole bytes, so that nothing depends on floating point.
struct Spread {
    mean: u64,
    half_width: Option<u64>,
}

impl Spread {
    fn of(values: impl ExactSizeIterator<Item = u64> + Clone) -> Self {
        let count = values.len() as u128;
        let sum: u128 = values.clone().map(u128::from).sum();
        let narrow = |wide: u128| u64::try_from(wide).unwrap_or(u64::MAX);
        let mean = narrow(sum.checked_div(count).unwrap_or(0));
        if count < 2 {
            return Self { mean, half_width: None };
        }
        // Deviations times count: exact, and far below 128 bits for 64 samples of 2^44 bytes.
        let squares: u128 = values
            .map(|value| (u128::from(value) * count).abs_diff(sum).saturating_pow(2))
            .fold(0, u128::saturating_add);
        let freedom = count - 1;
        let t = T95_THOUSANDTHS[usize::try_from(freedom).unwrap_or(usize::MAX).min(T95_THOUSANDTHS.len()) - 1];
        let error = (squares / (count.pow(3) * freedom)).isqrt();
        Self { mean, half_width: Some(narrow(error * t / 1000)) }
    }

    fn interval(&self) -> Interval {
        let half = self.half_width.unwrap_or(0);
        Interval { low_bytes: self.mean.saturating_sub(half), high_bytes: self.mean.saturating_add(half) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(touched_bytes: u64, assumed_bytes: u64) -> Sample {
        Sample { tracker: TrackerKind::Unmap, touched_bytes, assumed_bytes, watched: Duration::from_millis(100) }
    }

    #[test]
    fn the_interval_is_students() {
        // Mean 100, standard deviation 10 (n - 1), so the standard error is 5.77 and t(2) is 4.303.
        let samples = [sample(90, 0), sample(100, 0), sample(110, 0)];
        let set = WorkingSet::new(8, samples.iter());
        assert_eq!((set.mean_bytes, set.scans, set.watched_ms), (100, 3, 100));
        // 5 is 5.77 cut: bytes are whole.
        assert_eq!(set.interval, Some(Interval { low_bytes: 100 - 21, high_bytes: 100 + 21 }));
        let large: Vec<Sample> = samples.iter().map(|s| sample(s.touched_bytes << 20, 0)).collect();
        let half = WorkingSet::new(8, large.iter()).interval.unwrap().high_bytes - (100 << 20);
        let expected = 10.0 / 3_f64.sqrt() * 4.303 * f64::from(1 << 20);
        assert!((half as f64 - expected).abs() < expected / 1e4, "{half} {expected}");
    }

    #[test]
    fn none_and_one_have_no_interval() {
        let none = WorkingSet::new(8, [].iter());
        assert_eq!((none.scans, none.mean_bytes, none.interval, none.tracker), (0, 0, None, None));
        let one = WorkingSet::new(8, [sample(7, 0)].iter());
        assert_eq!((one.scans, one.mean_bytes, one.interval, one.low_bytes, one.high_bytes), (1, 7, None, 7, 7));
    }

    #[test]
    fn only_the_newest_scans_of_one_tracker_count() {
        let written = Sample { tracker: TrackerKind::DirtyLog, ..sample(1, 0) };
        let samples = [sample(1000, 0), written, sample(10, 0), sample(20, 0), sample(30, 0)];
        assert_eq!(WorkingSet::new(2, samples.iter()).mean_bytes, 25);
        let all = WorkingSet::new(64, samples.iter());
        assert_eq!(
            (all.scans, all.mean_bytes, all.window),
            (3, 20, 64),
            "what is before the change of tracker is left out"
        );
    }

    proptest! {
        #[test]
        fn bounds_are_in_order_and_the_mean_is_plain(
            values in prop::collection::vec((0_u64..1 << 44, 0_u64..1 << 44), 1..=64), window in 1..=MAX_WINDOW,
        ) {
            let samples: Vec<Sample> = values.iter().map(|(a, b)| sample(*a.max(b), *a.min(b))).collect();
            let set = WorkingSet::new(window, samples.iter());
            prop_assert!(set.low_bytes <= set.seen_bytes && set.seen_bytes <= set.mean_bytes && set.mean_bytes <= set.high_bytes);
            let used = &samples[samples.len().saturating_sub(window as usize)..];
            let plain = used.iter().map(|s| s.touched_bytes).sum::<u64>() / used.len() as u64;
            prop_assert_eq!(set.mean_bytes, plain);
        }
    }
}

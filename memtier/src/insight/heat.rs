//! Heat over time: which part of guest memory was used when, in a picture of fixed size.
//!
//! Each scan is a row: for every address bucket, the share of its frames that were touched. When all rows are taken, neighbouring rows become
//! one (the mean of their shares) and from then on a row stands for twice as many scans.
//!
//! Promises: at most [`CELLS`] cells of two bytes, however long the guest runs; rows are in order of time and don't overlap; a cell is the mean of
//! its scans, give or take one rounding to 1/65535 for each time rows were merged. Must never: allocate beyond that after it was made.

use crate::insight::buckets::MAX_COLUMNS;

/// The most rows.
pub const MAX_ROWS: usize = 256;
/// The most cells: with more buckets than [`MAX_COLUMNS`] there are fewer rows.
pub const CELLS: usize = MAX_COLUMNS * MAX_ROWS;
/// The share "all frames of the bucket" in a cell.
pub const FULL: u16 = u16::MAX;

/// When a row was, in milliseconds since the tiers were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTime {
    /// Its first scan began.
    pub began_ms: u64,
    /// Its last scan ended.
    pub ended_ms: u64,
    /// How many scans are in it.
    pub scans: u32,
}

/// See the module.
#[derive(Debug)]
pub struct HeatHistory {
    /// Frames of each bucket.
    frames: Vec<u32>,
    max_rows: usize,
    /// Scans that a finished row stands for.
    step: u32,
    times: Vec<RowTime>,
    /// Row after row.
    cells: Vec<u16>,
    /// Shares of the newest row's scans, added up.
    sums: Vec<u64>,
}

impl HeatHistory {
    /// A history for buckets of so many frames each.
    pub fn new(frames: Vec<u32>) -> Self {
        let columns = frames.len().max(1);
        // Even, and at least 2, so that rows can be merged in pairs.
        let max_rows = (CELLS / columns).clamp(2, MAX_ROWS) & !1;
        Self {
            max_rows,
            step: 1,
            times: Vec::with_capacity(max_rows),
            cells: Vec::with_capacity(max_rows * columns),
            sums: vec![0; frames.len()],
            frames,
        }
    }

    /// Adds a scan: touched frames per bucket, and when it watched.
    pub fn add(&mut self, touched: &[u32], began_ms: u64, ended_ms: u64) {
        debug_assert_eq!(touched.len(), self.frames.len(), "a census of the same memory");
        match self.times.last_mut() {
            Some(row) if row.scans < self.step => {
                row.ended_ms = ended_ms;
                row.scans += 1;
            }
            _ => {
                if self.times.len() == self.max_rows {
                    self.halve();
                }
                self.times.push(RowTime { began_ms, ended_ms, scans: 1 });
                self.cells.resize(self.times.len() * self.frames.len(), 0);
                self.sums.fill(0);
            }
        }
        self.fill_last(touched);
    }

    fn fill_last(&mut self, touched: &[u32]) {
        let Some(row) = self.times.last() else { return };
        let scans = u64::from(row.scans);
        let start = self.cells.len() - self.frames.len();
        for (((cell, sum), touched), frames) in
            self.cells[start..].iter_mut().zip(&mut self.sums).zip(touched).zip(&self.frames)
        {
            let share = u64::from(*touched) * u64::from(FULL) / u64::from((*frames).max(1));
            *sum += share;
            *cell = u16::try_from((*sum + scans / 2) / scans).unwrap_or(FULL);
        }
    }

    /// Every two rows become one. Called when all rows are taken, and so finished: each stands for the same number of scans.
    fn halve(&mut self) {
        let columns = self.frames.len();
        let rows = self.times.len() / 2;
        for row in 0..rows {
            let (first, second) = (self.times[2 * row], self.times[2 * row + 1]);
            self.times[row] =
                RowTime { began_ms: first.began_ms, ended_ms: second.ended_ms, scans: first.scans + second.scans };
            for column in 0..columns {
                let (first, second) =
                    (self.cells[2 * row * columns + column], self.cells[(2 * row + 1) * columns + column]);
                self.cells[row * columns + column] = first.midpoint(second);
            }
        }
        self.times.truncate(rows);
        self.cells.truncate(rows * columns);
        self.step = self.step.saturating_mul(2);
    }

    /// Scans that a finished row stands for.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// The rows, oldest first: when, and the share of each bucket in 1/65535.
    pub fn rows(&self) -> impl Iterator<Item = (RowTime, &[u16])> {
        self.times.iter().copied().zip(self.cells.chunks(self.frames.len().max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn until_rows_run_out_each_scan_has_its_own() {
        let mut heat = HeatHistory::new(vec![4, 2]);
        for scan in 0..MAX_ROWS as u64 {
            heat.add(&[1, 2], scan * 10, scan * 10 + 5);
        }
        assert_eq!((heat.rows().count(), heat.step()), (MAX_ROWS, 1));
        let (time, shares) = heat.rows().nth(3).unwrap();
        assert_eq!(time, RowTime { began_ms: 30, ended_ms: 35, scans: 1 });
        assert_eq!(shares, [FULL / 4, FULL]);
        heat.add(&[0, 0], 9990, 9999);
        assert_eq!((heat.rows().count(), heat.step()), (MAX_ROWS / 2 + 1, 2));
        let times: Vec<RowTime> = heat.rows().map(|row| row.0).collect();
        assert_eq!(times[1], RowTime { began_ms: 20, ended_ms: 35, scans: 2 });
        assert_eq!(times.last(), Some(&RowTime { began_ms: 9990, ended_ms: 9999, scans: 1 }));
    }

    #[test]
    fn more_buckets_mean_fewer_rows_and_the_same_memory() {
        let mut heat = HeatHistory::new(vec![1; 10 * MAX_COLUMNS]);
        (0..1000).for_each(|scan| heat.add(&vec![1; 10 * MAX_COLUMNS], scan, scan + 1));
        assert!(heat.cells.capacity() <= CELLS && heat.rows().count() * 10 * MAX_COLUMNS <= CELLS);
        assert!(heat.rows().all(|(_, shares)| shares.iter().all(|share| *share == FULL)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_row_is_the_mean_of_its_scans(touched in prop::collection::vec([0..=7_u32, 0..=1_u32, 0..=1000_u32], 0..2000)) {
            let frames = [7, 1, 1000];
            let mut heat = HeatHistory::new(frames.to_vec());
            for (scan, touched) in (0..).zip(&touched) {
                heat.add(touched, scan * 2, scan * 2 + 1);
            }
            let mut first = 0;
            let merges = f64::from(heat.step().ilog2());
            for (time, shares) in heat.rows() {
                let scans = &touched[first..first + time.scans as usize];
                prop_assert_eq!((time.began_ms, time.ended_ms), (2 * first as u64, 2 * (first + scans.len()) as u64 - 1));
                for column in 0..3 {
                    let sum: f64 = scans.iter().map(|touched| f64::from(touched[column]) / f64::from(frames[column])).sum();
                    let mean = sum / scans.len() as f64;
                    let share = f64::from(shares[column]) / f64::from(FULL);
                    prop_assert!((share - mean).abs() <= (merges + 2.0) / f64::from(FULL), "{} {}", share, mean);
                }
                first += scans.len();
            }
            prop_assert_eq!(first, touched.len());
            prop_assert!(heat.rows().count() <= MAX_ROWS && heat.cells.len() <= CELLS);
        }
    }
}

//! The heat map at the size at which it is drawn: time across, addresses down.
//!
//! Promises: every scan and every byte counts in exactly one cell, with its weight; marks name what is really at their place. Must never: make
//! up cells: a map with fewer rows or buckets than there is room for stays as small as it is.

use std::ops::Range;

use memtier::insight::HeatMap;

use crate::config::size::show_size;

/// The title of all pictures.
pub const TITLE: &str = "Heat of guest memory";
/// What the shades mean.
pub const MEANING: &str = "share of pages touched in a scan";

/// A map at the size at which it is drawn.
#[derive(Debug)]
pub struct Plot {
    /// Cells across, one or more rows of the history each.
    pub width: usize,
    /// Cells down, one or more buckets each.
    pub height: usize,
    /// Shares from 0 to 1, line by line.
    shares: Vec<f64>,
    /// Cells at which lines get an address.
    pub addresses: Vec<Mark>,
    /// Cells at which columns get a time.
    pub times: Vec<Mark>,
    /// The first line of each region but the first.
    pub borders: Vec<usize>,
    /// What one cell stands for, in words.
    pub cell: String,
}

/// Something written beside a cell.
#[derive(Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which line or column.
    pub at: usize,
    /// What.
    pub text: String,
}

/// How much room there is, in cells.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Cells across.
    pub width: usize,
    /// Cells down.
    pub height: usize,
    /// Lines from one address to the next, at least.
    pub address_gap: usize,
    /// Columns from one time to the next, at least.
    pub time_gap: usize,
}

impl Plot {
    /// Fits a map into the room; `None` if no scan has finished yet, or the map makes no sense.
    pub fn new(map: &HeatMap, room: Room) -> Option<Self> {
        let width = room.width.min(map.rows.len());
        let lines = lines(map, room.height);
        let height = lines.len();
        let whole = map.rows.iter().all(|row| row.shares.len() == map.columns.len());
        if width == 0 || height == 0 || !whole {
            return None;
        }
        let columns: Vec<Range<usize>> = (0..width).map(|column| piece(column, width, map.rows.len())).collect();
        let shares = lines.iter().flat_map(|line| columns.iter().map(|column| mean(map, column, line))).collect();
        let region_of = |line: &Range<usize>| map.columns[line.start].region;
        let borders = (1..height).filter(|line| region_of(&lines[*line]) != region_of(&lines[line - 1])).collect();
        let addresses = addresses(map, &lines, room.address_gap);
        let times = times(map, &columns, room.time_gap);
        Some(Self { width, height, shares, addresses, times, borders, cell: cell(map, &lines, &columns) })
    }

    /// The share in a cell.
    pub fn share(&self, column: usize, line: usize) -> f64 {
        self.shares[line * self.width + column]
    }
}

/// The buckets of each line, at most `height` lines. No line reaches over a region's end, unless there are more regions than lines.
fn lines(map: &HeatMap, height: usize) -> Vec<Range<usize>> {
    let buckets = map.columns.len();
    let regions: Vec<usize> = map.columns.chunk_by(|a, b| a.region == b.region).map(<[_]>::len).collect();
    if regions.len() > height {
        return (0..height).map(|line| piece(line, height, buckets)).collect();
    }
    let (mut lines, mut first) = (Vec::with_capacity(height.min(buckets)), 0);
    for (number, count) in regions.iter().enumerate() {
        // As many lines as the region's share, at least one, and one is left for each region to come.
        let (end, to_come) = (first + count, regions.len() - number - 1);
        let fair = (end * height).div_ceil(buckets).saturating_sub(lines.len());
        let own = fair.clamp(1, height - lines.len() - to_come).min(*count);
        lines.extend((0..own).map(|line| piece(line, own, *count)).map(|piece| first + piece.start..first + piece.end));
        first = end;
    }
    lines
}

/// The `number`th of `pieces` pieces of `all` things, as equal as can be.
fn piece(number: usize, pieces: usize, all: usize) -> Range<usize> {
    number * all / pieces..(number + 1) * all / pieces
}

fn mean(map: &HeatMap, rows: &Range<usize>, buckets: &Range<usize>) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for row in &map.rows[rows.clone()] {
        for bucket in buckets.clone() {
            let weight = f64::from(row.scans) * map.columns[bucket].len as f64;
            sum += weight * f64::from(row.shares[bucket]) / f64::from(u16::MAX);
            weights += weight;
        }
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

/// Region starts always, round addresses between them where there is room.
fn addresses(map: &HeatMap, lines: &[Range<usize>], gap: usize) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    let start = |line: usize| map.columns[lines[line].start].start;
    let region = |line: usize| map.columns[lines[line].start].region;
    let is_border = |line: usize| line == 0 || region(line) != region(line - 1);
    let bytes: u64 = map.columns.iter().map(|column| column.len).sum();
    let wanted = (lines.len() / gap.max(1)).max(1);
    let step = (bytes / u64::try_from(wanted).unwrap_or(1)).max(1).next_power_of_two();
    for line in 0..lines.len() {
        let round = start(line).is_multiple_of(step);
        let near = marks.last().is_some_and(|last| line - last.at < gap);
        let next_border = (line + 1..(line + gap).min(lines.len())).any(is_border);
        if is_border(line) || round && !near && !next_border {
            // A region that begins right below the last mark takes its place.
            if near && marks.last().is_some_and(|last| last.at > 0) {
                marks.pop();
            }
            marks.push(Mark { at: line, text: show_size(start(line)) });
        }
    }
    marks
}

fn times(map: &HeatMap, columns: &[Range<usize>], gap: usize) -> Vec<Mark> {
    let span = map.rows.last().map_or(0, |row| row.ended_ms);
    let mark = |at: usize| Mark { at, text: show_time(map.rows[columns[at].start].began_ms, span) };
    (0..columns.len()).step_by(gap.max(1)).map(mark).collect()
}

/// A time, as exact as makes sense if the last one is `span`.
fn show_time(ms: u64, span: u64) -> String {
    let (seconds, tenths) = (ms / 1000, ms % 1000 / 100);
    match span / 1000 {
        0..100 => format!("{seconds}.{tenths} s"),
        100..6000 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}

fn cell(map: &HeatMap, lines: &[Range<usize>], columns: &[Range<usize>]) -> String {
    let buckets = lines.iter().map(Range::len).max().unwrap_or(1);
    let rows = columns.iter().map(Range::len).max().unwrap_or(1);
    let bytes = map.bucket_bytes.saturating_mul(u64::try_from(buckets).unwrap_or(u64::MAX));
    let scans = u64::from(map.scans_per_row).saturating_mul(u64::try_from(rows).unwrap_or(u64::MAX));
    let equal = |pieces: &[Range<usize>]| pieces.iter().all(|piece| piece.len() == pieces[0].len());
    let about = |pieces| if equal(pieces) { "" } else { "up to " };
    format!(
        "a cell is {}{} by {}{}",
        about(lines),
        show_size(bytes),
        about(columns),
        if scans == 1 { "one scan".to_owned() } else { format!("{scans} scans") },
    )
}

#[cfg(test)]
#[path = "plot_test.rs"]
pub(super) mod tests;

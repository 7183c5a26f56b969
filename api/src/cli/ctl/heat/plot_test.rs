use memtier::insight::{HeatColumn, HeatRow};
use proptest::prelude::*;

use super::*;

/// A made-up map: 3 GiB and, behind a hole, 1 GiB; a hot stripe at the bottom, and another that wanders.
pub(crate) fn made_up(rows: u64) -> HeatMap {
    let bucket = 16 << 20;
    let column = |number: u64| HeatColumn {
        region: usize::from(number >= 192),
        start: if number < 192 { number * bucket } else { (4 << 30) + (number - 192) * bucket },
        len: bucket,
    };
    let share = |row: u64, number: u64| match number {
        0..16 => u16::MAX,
        192..200 => u16::MAX / 4,
        _ if number / 8 == 4 + row / 12 => u16::MAX / 100,
        _ => 0,
    };
    let row = |row: u64| HeatRow {
        began_ms: row * 10_000,
        ended_ms: row * 10_000 + 9_000,
        scans: 1,
        shares: (0..256).map(|number| share(row, number)).collect(),
    };
    HeatMap {
        began_unix_ms: 0,
        bucket_bytes: bucket,
        scans_per_row: 1,
        columns: (0..256).map(column).collect(),
        rows: (0..rows).map(row).collect(),
    }
}

pub(crate) const ROOM: Room = Room { width: 60, height: 64, address_gap: 4, time_gap: 12 };

#[test]
fn marks_name_regions_round_addresses_and_times() {
    let plot = Plot::new(&made_up(240), ROOM).unwrap();
    let marks = |marks: &[Mark]| marks.iter().map(|mark| (mark.at, mark.text.clone())).collect::<Vec<_>>();
    let addresses = marks(&plot.addresses);
    assert_eq!(addresses[..2], [(0, "0 B".to_owned()), (4, "256 MiB".to_owned())]);
    assert!(addresses.contains(&(48, "4 GiB".to_owned())), "{addresses:?}");
    assert!(addresses.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 4), "{addresses:?}");
    assert_eq!(plot.borders, [48]);
    assert_eq!(marks(&plot.times)[..2], [(0, "0:00 min".to_owned()), (12, "8:00 min".to_owned())]);
    assert_eq!(plot.cell, "a cell is 64 MiB by 4 scans");
}

#[test]
fn a_map_without_a_scan_is_no_picture() {
    assert!(Plot::new(&made_up(0), ROOM).is_none());
    let mut broken = made_up(3);
    broken.rows[1].shares.pop();
    assert!(Plot::new(&broken, ROOM).is_none());
}

#[test]
fn times_are_as_exact_as_makes_sense() {
    assert_eq!(show_time(12_345, 50_000), "12.3 s");
    assert_eq!(show_time(75_000, 200_000), "1:15 min");
    assert_eq!(show_time(7_500_000, 90_000_000), "2:05 h");
}

proptest! {
    #[test]
    fn nothing_is_lost_by_fitting(rows in 1_u64..300, width in 1_usize..400, height in 1_usize..400) {
        let map = made_up(rows);
        let plot = Plot::new(&map, Room { width, height, ..ROOM }).unwrap();
        prop_assert!(plot.width <= width && plot.height <= height);
        // Weighted by what each cell stands for, the picture has as much heat as the map.
        let lines = lines(&map, height);
        let mut sum = 0.0;
        for (line, buckets) in lines.iter().enumerate() {
            prop_assert!(height < 2 || map.columns[buckets.start].region == map.columns[buckets.end - 1].region);
            for column in 0..plot.width {
                sum += plot.share(column, line) * buckets.len() as f64 * piece(column, plot.width, map.rows.len()).len() as f64;
            }
        }
        let next = lines.iter().try_fold(0, |next, buckets| (buckets.start == next).then_some(buckets.end));
        prop_assert_eq!(next, Some(map.columns.len()), "every bucket is in one line: {:?}", lines);
        let plain: f64 = map.rows.iter().flat_map(|row| &row.shares).map(|share| f64::from(*share) / 65535.0).sum();
        prop_assert!((sum - plain).abs() < 1e-6 * plain.max(1.0), "{} {}", sum, plain);
    }
}

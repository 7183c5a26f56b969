use std::time::Duration;

use super::census::tests::{memory, set, word};
use super::*;
use crate::frame::FrameTable;
use crate::frame::word::{Generation, State};

/// Two regions; the clock of this test is the frame words' generations.
struct Scene {
    memory: GuestMemory,
    table: FrameTable,
    insight: Insight,
    now: u32,
}

impl Scene {
    fn new() -> Self {
        let memory = memory(&[(0, 512), (1024, 256)]);
        Self { insight: Insight::new(&memory), table: FrameTable::new(768), memory, now: 0 }
    }

    fn census(&self) -> Census {
        Census::of(&self.memory, &self.table, Generation(self.now))
    }

    /// A scan that sees these frames used, `assumed` of them without looking.
    fn scan(&mut self, touched: std::ops::Range<usize>, assumed: u64) {
        self.now += 1;
        touched.for_each(|frame| set(&self.table, frame, word(self.now, State::Resident).unwrap()));
        let began = self.insight.began + Duration::from_millis(u64::from(self.now) * 1000);
        let ended = began + Duration::from_millis(900);
        self.insight.record(&self.census(), &FinishedScan { tracker: TrackerKind::Unmap, assumed, began, ended });
    }
}

const PAGE: u64 = 4096;

#[test]
fn the_working_set_has_bounds_by_what_was_assumed_and_distinct_bytes_by_age() {
    let mut scene = Scene::new();
    scene.scan(0..100, 0);
    scene.scan(50..150, 40);
    scene.scan(600..610, 0);
    let set = scene.insight.working_set(&scene.census(), 8);
    assert_eq!((set.scans, set.window, set.watched_ms, set.resident_bytes), (3, 8, 900, 160 * PAGE));
    assert_eq!((set.mean_bytes, set.seen_bytes), (70 * PAGE, 170 * PAGE / 3));
    let distinct: Vec<u64> = set.distinct.iter().map(|distinct| distinct.bytes / PAGE).collect();
    assert_eq!(distinct, [10, 110, 160]);
    let last = scene.insight.working_set(&scene.census(), 0);
    assert_eq!(
        (last.window, last.mean_bytes, last.distinct.len()),
        (1, 10 * PAGE, 1),
        "a window of nothing is the smallest"
    );
    // What has left since is still part of what was used.
    set_out(&scene);
    let set = scene.insight.working_set(&scene.census(), 1000);
    assert_eq!((set.window, set.resident_bytes, set.distinct[0].bytes), (MAX_WINDOW, 159 * PAGE, 10 * PAGE));
}

fn set_out(scene: &Scene) {
    set(&scene.table, 600, word(scene.now, State::Swapped).unwrap());
}

#[test]
fn heat_shows_when_and_where() {
    let mut scene = Scene::new();
    scene.scan(0..4, 0);
    scene.scan(512..768, 0);
    let heat = scene.insight.heat();
    assert_eq!((heat.bucket_bytes, heat.columns.len(), heat.scans_per_row), (4 * PAGE, 128 + 64, 1));
    assert_eq!(heat.columns[128], HeatColumn { region: 1, start: 1024 * PAGE, len: 4 * PAGE });
    let [first, second] = &heat.rows[..] else { panic!("{} rows", heat.rows.len()) };
    assert_eq!((first.began_ms, first.ended_ms, second.began_ms), (1000, 1900, 2000));
    assert_eq!((first.shares[0], first.shares[1]), (heat::FULL, 0));
    assert!(second.shares[..128].iter().all(|share| *share == 0));
    assert!(second.shares[128..].iter().all(|share| *share == heat::FULL));
}

#[test]
fn samples_and_rows_are_bounded() {
    let mut scene = Scene::new();
    (0..1000).for_each(|_| scene.scan(0..1, 0));
    assert_eq!(scene.insight.scans(), 1000);
    assert_eq!(scene.insight.working_set(&scene.census(), MAX_WINDOW).scans, MAX_WINDOW);
    let heat = scene.insight.heat();
    assert!(heat.rows.len() <= heat::MAX_ROWS);
    assert_eq!(heat.rows.iter().map(|row| row.scans).sum::<u32>(), 1000);
}

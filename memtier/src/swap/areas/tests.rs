use tempfile::TempDir;

use super::super::cluster::cluster_slots;
use super::*;
use crate::tier::file_store::FileStore;
use crate::units::Bytes;

const ONE: Shard = Shard(0);

struct Bench {
    dir: TempDir,
    areas: Areas,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), areas: Areas::new(1) }
    }

    fn store(&self, name: &str, free: u64) -> Box<FileStore> {
        Box::new(FileStore::open(&self.dir.path().join(name), Some(Bytes::from_pages(free + 1))).unwrap())
    }

    fn on(&self, name: &str, free: u64, priority: Option<u16>) -> AreaId {
        self.areas.swapon(self.store(name, free), priority).unwrap()
    }

    fn take(&self, count: usize) -> Vec<SwapEntry> {
        let mut out = vec![SwapEntry::from_bits(0); count];
        let taken = self.areas.alloc(ONE, &mut out);
        out.truncate(taken);
        out
    }

    /// How many slots each area gave, as (area, count), neighbours put together.
    fn given(&self, count: usize) -> Vec<(u8, usize)> {
        let entries = self.take(count);
        entries.chunk_by(|a, b| a.area() == b.area()).map(|group| (group[0].area().0, group.len())).collect()
    }

    fn off(&self, id: AreaId) {
        self.areas.begin_off(id).unwrap();
        self.areas.finish_off(id).unwrap();
    }

    fn priorities(&self) -> Vec<(u8, i32)> {
        self.areas.list().iter().map(|(priority, area)| (area.id.0, *priority)).collect()
    }
}

#[test]
fn higher_priorities_come_first_and_equal_ones_take_turns_by_batch() {
    let bench = Bench::new();
    bench.on("low", 100, Some(1));
    bench.on("equal a", 200, Some(5));
    bench.on("equal b", 200, Some(5));
    bench.on("high", 10, Some(7));
    assert_eq!(bench.given(10), [(3, 10)]);
    assert_eq!(bench.given(64), [(1, 64)]);
    assert_eq!(bench.given(64), [(2, 64)]);
    assert_eq!(bench.given(200), [(1, 64), (2, 64), (1, 64), (2, 8)]);
    assert_eq!(bench.given(200), [(1, 8), (2, 64), (0, 100)]);
    assert_eq!(bench.given(1), []);
    assert_eq!(bench.areas.free_slots(), 0);
}

#[test]
fn a_full_area_is_back_with_the_first_slot_freed() {
    let bench = Bench::new();
    bench.on("high", 8, Some(2));
    bench.on("low", 100, Some(1));
    let mut high = bench.take(8);
    assert_eq!(bench.given(3), [(1, 3)]);
    bench.areas.free(&mut high[..1]);
    assert_eq!(bench.given(3), [(0, 1), (1, 2)]);
}

#[test]
fn a_whole_cluster_comes_from_the_first_area_that_has_one() {
    let bench = Bench::new();
    let free = |clusters: u64| clusters * u64::from(CLUSTER_SLOTS) - 1;
    bench.on("high, in pieces", free(1), Some(7));
    bench.on("equal a", free(3), Some(5));
    bench.on("equal b", free(2), Some(5));
    let before = bench.areas.free_slots();
    assert_eq!(bench.areas.capacity_in_clusters(), Capacity { total: 3, free: 3 });
    let given: Vec<_> = std::iter::from_fn(|| bench.areas.alloc_cluster()).collect();
    assert_eq!(given.iter().map(|entry| entry.area().0).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(bench.areas.free_slots(), before - 3 * u64::from(CLUSTER_SLOTS));
    assert_eq!(bench.areas.capacity_in_clusters(), Capacity { total: 3, free: 0 });
    let area = bench.areas.get(given[1].area()).unwrap();
    bench.areas.free_in(&area, &cluster_slots(given[1].slot()));
    assert_eq!(bench.areas.capacity_in_clusters(), Capacity { total: 3, free: 1 });
    assert_eq!(bench.areas.alloc_cluster(), Some(given[1]));
}

#[test]
fn automatic_priorities_count_down_and_close_up() {
    let bench = Bench::new();
    let first = bench.on("a", 8, None);
    bench.on("b", 8, None);
    bench.on("c", 8, Some(0));
    bench.on("d", 8, None);
    assert_eq!(bench.priorities(), [(2, 0), (0, -2), (1, -3), (3, -4)]);
    bench.off(first);
    assert_eq!(bench.priorities(), [(2, 0), (1, -2), (3, -3)]);
    bench.on("e", 8, None);
    assert_eq!(bench.priorities(), [(2, 0), (1, -2), (3, -3), (0, -4)]);
}

#[test]
fn a_swapoff_goes_by_its_steps() {
    let bench = Bench::new();
    let id = bench.on("a", 100, None);
    let mut taken = bench.take(10);
    let nine = AreaId(9);
    assert!(matches!(bench.areas.begin_off(nine), Err(SwapError::NotOn { id }) if id == nine));
    assert!(matches!(bench.areas.finish_off(id), Err(SwapError::OffNotBegun { .. })));
    assert!(matches!(bench.areas.abort_off(id), Err(SwapError::OffNotBegun { .. })));
    bench.areas.begin_off(id).unwrap();
    assert_eq!((bench.areas.free_slots(), bench.areas.capacity()), (0, Capacity::default()));
    assert!(matches!(bench.areas.begin_off(id), Err(SwapError::OffBegun { .. })));
    assert_eq!(bench.given(1), []);
    bench.areas.free(&mut taken[..4]);
    assert_eq!(bench.areas.free_slots(), 0);
    let error = bench.areas.finish_off(id).unwrap_err();
    assert_eq!(error.to_string(), "swap area 0 still has 6 slots in use");
    bench.areas.abort_off(id).unwrap();
    assert_eq!(bench.areas.capacity(), Capacity { total: 100, free: 94 });
    assert_eq!(bench.areas.free_slots(), 94);
    bench.areas.begin_off(id).unwrap();
    bench.areas.free(&mut taken[4..]);
    bench.areas.finish_off(id).unwrap();
    assert!(bench.areas.get(id).is_none());
    assert!(matches!(bench.areas.abort_off(id), Err(SwapError::NotOn { .. })));
    // The file is nobody's again.
    bench.on("a", 100, None);
}

#[test]
fn what_can_not_be_switched_on_is_refused() {
    let bench = Bench::new();
    let refused = |priority| bench.areas.swapon(bench.store("x", 1), priority).unwrap_err().to_string();
    assert_eq!(refused(Some(32768)), "swap priority 32768 is above 32767");
    for i in 0..MAX_AREAS {
        assert_eq!(usize::from(bench.on(&format!("{i}"), 1, Some(32767)).0), i);
    }
    assert_eq!(refused(None), "64 swap areas are on, no more are possible");
    assert_eq!(bench.take(100).len(), 64);
}

#[test]
fn bad_slots_do_not_count_as_capacity() {
    let bench = Bench::new();
    let id = bench.on("a", 100, None);
    let taken = bench.take(3);
    bench.areas.get(id).unwrap().slots.mark_bad(&[taken[0].slot(), taken[2].slot()]);
    assert_eq!(bench.areas.capacity(), Capacity { total: 98, free: 97 });
}

use super::*;
use crate::tier::file_store::FileStore;
use crate::units::Bytes;

const ONE: Shard = Shard(0);

/// Caches over an area in a file, with that many free slots.
fn caches(free: u64, shards: u16) -> (tempfile::TempDir, SlotCaches) {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(&dir.path().join("swap"), Some(Bytes::from_pages(free + 1))).unwrap();
    let areas = Arc::new(Areas::new(shards));
    areas.swapon(Box::new(store), None).unwrap();
    (dir, SlotCaches::new(areas, shards))
}

fn take(caches: &SlotCaches, shard: Shard, count: usize) -> Vec<SwapEntry> {
    let mut out = vec![NO_ENTRY; count];
    let taken = caches.take(shard, &mut out);
    out.truncate(taken);
    out
}

fn give_back(caches: &SlotCaches, entries: Vec<SwapEntry>) {
    entries.into_iter().for_each(|entry| caches.give_back(ONE, entry));
}

fn held(caches: &SlotCaches) -> u32 {
    caches.held().iter().sum()
}

#[test]
fn caches_start_only_above_five_batches_per_shard() {
    for (free, active) in [(2 * 5 * 64, false), (2 * 5 * 64 + 1, true)] {
        let (_dir, caches) = caches(free, 2);
        take(&caches, ONE, 1);
        assert_eq!(caches.is_active(), active);
        assert_eq!(held(&caches), if active { 63 } else { 0 });
    }
}

#[test]
fn caches_stop_only_below_two_batches_per_shard_and_are_empty_then() {
    let (_dir, caches) = caches(2 * 5 * 64 + 1, 2);
    let mut out = take(&caches, ONE, 1);
    // 641 slots; now 256 stay in the area when the next one is taken: not below 256.
    out.extend(take(&caches, ONE, 384));
    assert_eq!((caches.areas.free_slots(), held(&caches)), (193, 63));
    assert!(caches.is_active());
    out.extend(take(&caches, Shard(1), 1));
    assert!(!caches.is_active());
    assert_eq!((caches.areas.free_slots(), held(&caches)), (255, 0));
    give_back(&caches, out);
    assert_eq!((caches.areas.free_slots(), held(&caches)), (641, 0));
    let counters = caches.counters();
    assert_eq!((counters.activations, counters.deactivations), (1, 1));
    assert_eq!((counters.direct, counters.returned_direct), (1, 386));
}

#[test]
fn slots_given_back_go_to_the_area_a_batch_at_a_time_and_are_not_handed_out_before() {
    let (_dir, caches) = caches(1024, 1);
    let out = take(&caches, ONE, 64);
    let free = caches.areas.free_slots();
    give_back(&caches, out.clone());
    assert_eq!((caches.areas.free_slots(), held(&caches)), (free, 64));
    let next = take(&caches, ONE, 1);
    assert!(!out.contains(&next[0]));
    let free = caches.areas.free_slots();
    give_back(&caches, next);
    assert_eq!((caches.areas.free_slots(), held(&caches)), (free + 64, 1 + 63));
}

#[test]
fn the_last_slot_can_be_had_whatever_is_in_other_caches() {
    let (_dir, caches) = caches(4 * 5 * 64 + 1, 4);
    for shard in 0..4 {
        take(&caches, Shard(shard), 1);
    }
    assert!(held(&caches) > 0);
    let mut rest = 0;
    loop {
        match take(&caches, ONE, 64).len() {
            0 => break,
            n => rest += n,
        }
    }
    assert_eq!(rest, 4 * 5 * 64 + 1 - 4);
}

#[test]
fn no_slot_is_lost_or_doubled_under_four_threads_and_repeated_drains() {
    let (_dir, caches) = caches(4 * 400, 4);
    let owner: Vec<AtomicBool> = (0..4 * 400 + 1).map(|_| AtomicBool::new(false)).collect();
    std::thread::scope(|scope| {
        for shard in 0..4 {
            let (caches, owner) = (&caches, &owner);
            scope.spawn(move || {
                let mut mine = Vec::new();
                let give_all = |mine: &mut Vec<SwapEntry>| {
                    for entry in mine.drain(..) {
                        assert!(owner[entry.slot().0 as usize].swap(false, Ordering::Relaxed));
                        caches.give_back(Shard(shard), entry);
                    }
                };
                for round in 0..4000usize {
                    for entry in take(caches, Shard(shard), 1 + round % 64) {
                        assert!(!owner[entry.slot().0 as usize].swap(true, Ordering::Relaxed), "{entry} twice");
                        mine.push(entry);
                    }
                    if mine.len() > 300 || round % 7 == 0 {
                        give_all(&mut mine);
                    }
                    if round % 500 == 0 {
                        caches.drain();
                    }
                }
                give_all(&mut mine);
            });
        }
    });
    caches.drain();
    assert_eq!(caches.areas.free_slots(), 4 * 400);
    caches.areas.get(AreaId(0)).unwrap().slots.validate().unwrap();
}

//! What the slot caches save: threads that take and give back slots, once through the caches, once straight at the area's lock.
//!
//! `cargo run --release -p memtier --example slot_cache [threads] [million operations per thread]`

use std::error::Error;
use std::sync::Arc;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use memtier::swap::areas::Areas;
use memtier::swap::slot_cache::SlotCaches;
use memtier::tier::file_store::FileStore;
use memtier::units::{AreaId, Bytes, Shard, SlotOffset, SwapEntry};

/// Slots that each thread holds at a time.
const HELD: usize = 48;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u16>());
    let threads = args.next().transpose()?.unwrap_or(8);
    let operations = u32::from(args.next().transpose()?.unwrap_or(1)) * 1_000_000;
    let dir = tempfile::tempdir()?;
    let store = FileStore::open(&dir.path().join("swap"), Some(Bytes(1 << 30)))?;
    let areas = Arc::new(Areas::new(threads));
    let id = areas.swapon(Box::new(store), None)?;
    let caches = SlotCaches::new(Arc::clone(&areas), threads);
    let area = areas.get(id).ok_or("the area is on")?;

    let locked = run(threads, operations, |shard, held| {
        let mut slot = [SlotOffset(0)];
        assert_eq!(area.slots.alloc(shard, &mut slot), 1);
        let old = std::mem::replace(held, SwapEntry::new(id, slot[0]));
        if old != NONE {
            area.slots.free(&[old.slot()], |_| {});
        }
    });
    let cached = run(threads, operations, |shard, held| {
        let mut entry = [NONE];
        assert_eq!(caches.take(shard, &mut entry), 1);
        let old = std::mem::replace(held, entry[0]);
        if old != NONE {
            caches.give_back(shard, old);
        }
    });
    area.slots.validate()?;
    let (locked, cached) = (per_operation(locked, operations), per_operation(cached, operations));
    println!("{threads} threads, a slot taken and one given back:");
    println!("  area's lock {locked:8.1} ns   slot caches {cached:8.1} ns   ratio {:.2}", locked / cached);
    println!("  {:?}", caches.counters());
    Ok(())
}

const NONE: SwapEntry = SwapEntry::new(AreaId(0), SlotOffset(0));

/// Time until every thread has done its operations, each replacing one of the slots it holds.
fn run(threads: u16, operations: u32, step: impl Fn(Shard, &mut SwapEntry) + Sync) -> Duration {
    let start = Barrier::new(usize::from(threads) + 1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|shard| {
                let (step, start) = (&step, &start);
                scope.spawn(move || {
                    let mut held = [NONE; HELD];
                    start.wait();
                    for i in 0..operations as usize {
                        step(Shard(shard), &mut held[i % HELD]);
                    }
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        for worker in workers {
            worker.join().expect("workers don't panic");
        }
        began.elapsed()
    })
}

fn per_operation(time: Duration, operations: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(operations)
}

//! What a census costs: one walk over the frame words of a guest, in nanoseconds per frame, for guests of several sizes and for words in the
//! three orders that matter: all alike, in runs of 64 (how memory is used), and each different from its neighbour.
//!
//! `cargo run --release -p memtier --example census [GIB]...`

use std::os::fd::OwnedFd;
use std::time::Instant;

use memtier::RegionSpec;
use memtier::frame::FrameTable;
use memtier::frame::word::{FrameWord, Generation};
use memtier::insight::Census;
use memtier::memory::GuestMemory;
use memtier::units::{FrameIndex, Gfn, Hva, PAGE_SIZE};

const FINISHED: u32 = 500;
const ROUNDS: u32 = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes = std::env::args().skip(1).map(|gib| gib.parse::<u64>()).collect::<Result<Vec<_>, _>>()?;
    let sizes = if sizes.is_empty() { vec![1, 4, 16] } else { sizes };
    println!("{:>6}  {:>10}  {:>10}  {:>12}", "GiB", "alike ns", "runs ns", "scattered ns");
    for gib in sizes {
        let pages = (gib << 30) / PAGE_SIZE as u64;
        // Nothing of it is mapped or touched: a census looks at words only.
        let file = OwnedFd::from(std::fs::File::open("/dev/null")?);
        let region = RegionSpec { first: Gfn(0), pages, file, guest_map: Hva(0x7000_0000_0000) };
        let memory = GuestMemory::new(vec![region])?;
        let table = FrameTable::new(memory.frames() as usize);
        let mut costs = Vec::new();
        for shift in [31, 6, 0] {
            for frame in 0..memory.frames() {
                let seen = Generation(FINISHED - (frame >> shift).wrapping_mul(2_654_435_761) % FINISHED);
                let used = |word: FrameWord| word.seen(seen);
                table.update(FrameIndex(frame), used).map_err(|word| format!("{word:?} can't be used"))?;
            }
            costs.push(cost(&memory, &table));
        }
        println!("{gib:>6}  {:>10.2}  {:>10.2}  {:>12.2}", costs[0], costs[1], costs[2]);
    }
    Ok(())
}

/// The median of some walks, in nanoseconds per frame.
fn cost(memory: &GuestMemory, table: &FrameTable) -> f64 {
    let mut took: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            let census = Census::of(memory, table, Generation(FINISHED));
            assert_eq!(census.resident(), u64::from(memory.frames()));
            began.elapsed().as_secs_f64() * 1e9 / f64::from(memory.frames())
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

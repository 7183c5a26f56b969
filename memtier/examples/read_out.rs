//! Two ways for an evictor to read a page on its way out, measured side by side: `pread` on the memfd, or a copy through a second mapping.
//! Each page is read once and then punched, as eviction does, so that a mapping has to be faulted in anew each time.
//!
//! `cargo run --release -p memtier --example read_out`

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use memtier::page::PageSlab;
use memtier::sys::mem::punch_hole;
use memtier::units::PAGE_SIZE;

const BATCH: usize = 64;
const PAGES: usize = 64 * 256;
const ROUNDS: usize = 7;

fn main() -> io::Result<()> {
    // SAFETY: a literal name, a new file descriptor.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len((PAGES * PAGE_SIZE) as u64)?;
    // SAFETY: a new shared mapping of the whole file.
    let map = unsafe {
        libc::mmap(std::ptr::null_mut(), PAGES * PAGE_SIZE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    let mut slab = PageSlab::new(BATCH);
    let (mut by_pread, mut by_mapping) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS * 2 {
        fill(&file)?;
        let (mut reading, mut punching) = (Duration::ZERO, Duration::ZERO);
        for batch in (0..PAGES).step_by(BATCH) {
            let began = Instant::now();
            if round % 2 == 0 {
                file.read_exact_at(slab.as_flattened_mut(), (batch * PAGE_SIZE) as u64)?;
            } else {
                // SAFETY: inside the mapping, and nobody writes the file meanwhile.
                unsafe {
                    let from = map.cast::<u8>().add(batch * PAGE_SIZE);
                    from.copy_to_nonoverlapping(slab.as_mut_ptr().cast(), BATCH * PAGE_SIZE);
                }
            }
            reading += began.elapsed();
            let began = Instant::now();
            punch_hole(&file, (batch * PAGE_SIZE) as u64, (BATCH * PAGE_SIZE) as u64)?;
            punching += began.elapsed();
        }
        let ways = if round % 2 == 0 { &mut by_pread } else { &mut by_mapping };
        ways.push((per_page(reading), per_page(punching)));
    }
    for (way, mut rounds) in [("pread", by_pread), ("mapping", by_mapping)] {
        rounds.sort_unstable();
        let (read, punch) = rounds[ROUNDS / 2];
        println!("{way:8} read {read:4} ns/page, punch {punch:4} ns/page (median of {ROUNDS})");
    }
    Ok(())
}

fn fill(file: &File) -> io::Result<()> {
    let page = [0x5a_u8; PAGE_SIZE];
    (0..PAGES).try_for_each(|index| file.write_all_at(&page, (index * PAGE_SIZE) as u64))
}

fn per_page(time: Duration) -> u128 {
    time.as_nanos() / PAGES as u128
}

//! The disk part: writes seeded blocks over and over and reads each back twice, past the page cache and through it, while memory is worked on.
//!
//! Promises: every pass writes and verifies the whole area with contents that no earlier pass had. Must never: touch the disk outside its area,
//! or report a pass that did not read everything back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::pattern::{Page, WORDS, ZERO, fill, wrong_bytes};

/// `O_DIRECT` on x86-64.
const O_DIRECT: i32 = 0o40000;
/// Pages in one request.
const BLOCK: usize = 16;
/// Between two passes.
const PAUSE: Duration = Duration::from_millis(2000);
const PAGE_BYTES: usize = WORDS * 8;
const BLOCK_BYTES: usize = BLOCK * PAGE_BYTES;

/// What the disk thread did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DiskReport {
    /// Whole passes.
    pub passes: u32,
    /// Bytes verified, each way of reading counted.
    pub bytes: usize,
    /// Bytes that were wrong.
    pub mismatches: usize,
}

/// A disk being worked on.
pub struct DiskWork {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<DiskReport>>,
}

impl DiskWork {
    /// Starts on the first `bytes` bytes of `path`; ends when told, and after one whole pass at least.
    pub fn start(path: &Path, bytes: usize, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (path.to_owned(), Arc::clone(&stop));
        Self { stop, thread: std::thread::spawn(move || work(path, bytes, seed, &stopped)) }
    }

    /// Ends after the pass under way.
    pub fn finish(self) -> io::Result<DiskReport> {
        // Relaxed: the flag carries nothing but itself, and the join orders all else.
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the disk thread panicked")))
    }
}

fn work(path: PathBuf, bytes: usize, seed: u64, stop: &AtomicBool) -> io::Result<DiskReport> {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
    let (direct, buffered) = (open(O_DIRECT)?, open(0)?);
    let blocks = bytes / BLOCK_BYTES;
    if blocks == 0 {
        return Err(io::Error::other(format!("{bytes} bytes are less than one block of {BLOCK_BYTES}")));
    }
    let mut report = DiskReport::default();
    loop {
        pass(&direct, &buffered, blocks, seed, &mut report)?;
        // Relaxed: see `finish`.
        if stop.load(Ordering::Relaxed) {
            return Ok(report);
        }
        // Memory is to be worked on at the same time, on the same CPU perhaps.
        std::thread::sleep(PAUSE);
    }
}

/// Writes all blocks, even ones directly and odd ones through the page cache, then reads all back in both ways.
fn pass(direct: &File, buffered: &File, blocks: usize, seed: u64, report: &mut DiskReport) -> io::Result<()> {
    let mut block = [ZERO; BLOCK];
    let generation = report.passes + 1;
    for at in 0..blocks {
        for (index, page) in (first_page(at)..).zip(&mut block) {
            fill(page, seed, index, generation);
        }
        let file = if at % 2 == 0 { direct } else { buffered };
        file.write_all_at(bytes_of(&block), offset(at))?;
    }
    buffered.sync_all()?;
    forget_page_cache();
    for file in [direct, buffered] {
        for at in 0..blocks {
            block.fill(ZERO);
            file.read_exact_at(bytes_of_mut(&mut block), offset(at))?;
            for (index, page) in (first_page(at)..).zip(&block) {
                report.mismatches += wrong_bytes(page, seed, index, generation);
            }
            report.bytes += BLOCK_BYTES;
        }
    }
    report.passes += 1;
    Ok(())
}

/// Drops clean page cache, so that reads through it ask the disk. Without the right to do so (outside a guest) they are just less telling.
fn forget_page_cache() {
    drop(std::fs::write("/proc/sys/vm/drop_caches", "1"));
}

fn first_page(block: usize) -> u64 {
    u64::try_from(block * BLOCK).unwrap_or(u64::MAX)
}

fn offset(block: usize) -> u64 {
    u64::try_from(block * BLOCK_BYTES).unwrap_or(u64::MAX)
}

fn bytes_of(block: &[Page; BLOCK]) -> &[u8] {
    // SAFETY: `Page` is 4096 bytes of `u64` without padding, every bit pattern of which is a valid `u8`; the length is that of the borrow.
    unsafe { std::slice::from_raw_parts(block.as_ptr().cast(), BLOCK_BYTES) }
}

fn bytes_of_mut(block: &mut [Page; BLOCK]) -> &mut [u8] {
    // SAFETY: as for `bytes_of`; every byte pattern is a valid `u64`, so what is written leaves valid pages, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(block.as_mut_ptr().cast(), BLOCK_BYTES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, bytes: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ebb-workload-{name}-{}", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(bytes)).expect("scratch file");
        path
    }

    #[test]
    fn one_pass_verifies_every_byte_twice_and_stays_in_its_area() {
        let path = scratch("area", 4 << 20);
        let report = DiskWork::start(&path, 1 << 20, 3).finish().expect("a pass");
        assert!(report.passes >= 1);
        assert_eq!(
            (report.bytes, report.mismatches),
            (2 * (1 << 20) * usize::try_from(report.passes).expect("small"), 0)
        );
        let contents = std::fs::read(&path).expect("read back");
        std::fs::remove_file(&path).expect("clean up");
        assert!(contents[1 << 20..].iter().all(|byte| *byte == 0), "wrote behind its area");
        assert!(contents[..1 << 20].iter().filter(|byte| **byte != 0).count() > 300_000);
    }

    #[test]
    fn an_area_smaller_than_a_block_is_an_error() {
        let path = scratch("small", 4096);
        let error = DiskWork::start(&path, 4096, 3).finish().expect_err("must fail");
        std::fs::remove_file(&path).expect("clean up");
        assert_eq!(error.to_string(), "4096 bytes are less than one block of 65536");
    }
}

//! Timed access loops: sequential, random, zipf, hot and cold.
//!
//! Promises: one access of one word per counted access, to a page that the pattern chose. Must never: do anything else to workload memory.

use crate::abi::{PAGE, ZIPF_STEPS, histogram_bucket, pattern_kind};
use crate::mailbox::{Args, Mailbox};
use crate::memory;
use crate::rng::Rng;

/// Accesses between two looks at the stop flag.
const STOP_INTERVAL: u64 = 1024;

/// See [`crate::abi::command::LOOP`].
pub fn run(mailbox: &Mailbox, args: &Args) {
    let &[pattern, write, start, pages, accesses, seed, parameter, histogram] = args;
    let mut rng = Rng::new(seed);
    let (mut done, mut seen) = (0, 0);
    let begin = memory::cycles();
    while done < accesses && !mailbox.stop() {
        for _ in 0..STOP_INTERVAL.min(accesses - done) {
            let page = match pattern {
                pattern_kind::SEQUENTIAL => done % pages,
                pattern_kind::ZIPF => zipf(&mut rng, parameter),
                pattern_kind::HOT_COLD if rng.below(100) != 0 => rng.below(parameter),
                pattern_kind::HOT_COLD => parameter + rng.below(pages - parameter),
                _ => rng.below(pages),
            };
            let address = start + page * PAGE + done % 61 * 64;
            let before = if histogram != 0 { memory::cycles() } else { 0 };
            if write != 0 {
                memory::write(address, done);
            } else {
                seen ^= memory::read(address);
            }
            if histogram != 0 {
                let bucket = histogram + histogram_bucket(memory::cycles() - before) * 4;
                memory::write_u32(bucket, memory::read_u32(bucket).wrapping_add(1));
            }
            done += 1;
        }
    }
    mailbox.results(&[done, memory::cycles() - begin, seen]);
}

/// A zipf-distributed page: a random place in the quantile table, and between two entries a random page.
fn zipf(rng: &mut Rng, table: u64) -> u64 {
    let entry = table + rng.below(ZIPF_STEPS) * 4;
    let (from, to) = (u64::from(memory::read_u32(entry)), u64::from(memory::read_u32(entry + 4)));
    from + rng.below((to - from).max(1))
}

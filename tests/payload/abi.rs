//! What the payload image and the host agree on: where things are in guest memory, port numbers, commands, results.
//!
//! Promises: the image and the host side compile this same file, so they can't disagree. Must never: hold code that only one side can run.
//!
//! Guest physical memory below [`WORK_BASE`] belongs to the image; everything above is for workloads:
//!
//! ```text
//! 0x00_0000  the loader's own tables
//! 0x10_0000  the image: code, page tables, stacks
//! 0x20_0000  one mailbox page per vCPU, then the layout page
//! 0x24_0000  scratch: page lists, latency histograms
//! 0x40_0000  workload memory
//! ```

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// The most vCPUs that the image has stacks and mailboxes for.
pub const MAX_VCPUS: u64 = 32;

/// Stack that each vCPU has in ring 3.
pub const RING3_STACK_BYTES: u64 = 16 << 10;

/// Where the image is linked; the same number stands in `link.ld`.
pub const IMAGE_BASE: u64 = 0x10_0000;

/// The first mailbox; vCPU `n` has page `n` from here.
pub const MAILBOX_BASE: u64 = 0x20_0000;

/// The page that tells the boot code which memory to map: a count, then pairs of start and length, all 64-bit.
pub const LAYOUT_PAGE: u64 = MAILBOX_BASE + MAX_VCPUS * PAGE;

/// Pairs that fit the layout page's use.
pub const MAX_REGIONS: usize = 8;

/// Memory that the host and the workloads use for lists and tables.
pub const SCRATCH_BASE: u64 = 0x24_0000;

/// First byte of workload memory, and the end of the image's own.
pub const WORK_BASE: u64 = 0x40_0000;

/// Guest physical addresses end here at most: as far as the image has page tables.
pub const ADDRESS_LIMIT: u64 = 64 << 30;

/// vCPU `n` talks over the ports from `PORT_BASE + n * PORTS_PER_VCPU` on.
pub const PORT_BASE: u16 = 0x200;

/// Ports that each vCPU has.
pub const PORTS_PER_VCPU: u16 = 8;

/// Offset of the doorbell: reading 32 bits answers 1 when the mailbox holds a command, writing announces an event.
pub const PORT_DOORBELL: u16 = 0;

/// Offset of the data port: 32-bit words that belong to the next event.
pub const PORT_DATA: u16 = 4;

/// Events: what the image writes to the doorbell.
pub mod event {
    /// The vCPU is in ring 3 and waits for its first command.
    pub const READY: u32 = 1;
    /// The command is done; results are in the mailbox.
    pub const DONE: u32 = 2;
    /// A word held what nobody wrote. Data: address, least expected, most expected, found (low half first).
    pub const MISMATCH: u32 = 3;
    /// The CPU raised an exception. Data: vector, error code, instruction pointer, address (low half first): what
    /// CR2 holds, or the machine check's bank. The command is given up.
    pub const EXCEPTION: u32 = 4;
    /// The image panicked. Data: line number. The command is given up.
    pub const PANIC: u32 = 5;
}

/// Commands: what the host writes to [`mailbox::COMMAND`]. Arguments and results are listed in order.
pub mod command {
    /// Touches the pages of a bitmap, each once, nothing else. Args: bitmap address, first page's address, pages, 0 read or 1 write,
    /// value to write. Results: pages touched, xor of what was read.
    pub const TOUCH: u64 = 1;
    /// Fills pages with seeded words. Args: seed, address, pages, kinds mask. Results: pages.
    pub const FILL: u64 = 2;
    /// Verifies what `FILL` wrote. Args as `FILL`. Results: mismatching words, and of the first one address, expected, found.
    pub const VERIFY: u64 = 3;
    /// Versioned pages, until told to stop. Args: seed, address, pages, version table address, hot pages, vCPUs. Counters in the mailbox.
    pub const SOAK: u64 = 4;
    /// An access loop, timed. Args: pattern, 0 read or 1 write, address, pages, accesses, seed, parameter, histogram address or 0.
    /// Results: accesses made, cycles, xor of what was read.
    pub const LOOP: u64 = 5;
    /// Checks every page of a soak's range against the version table. Args as `SOAK`. Results as `VERIFY`.
    pub const AUDIT: u64 = 6;
    /// Writes ascending numbers to one word until told to stop, checking each before the next. Args: address. Results: the last number,
    /// mismatches. Counters in the mailbox.
    pub const HAMMER: u64 = 7;
}

/// Patterns of [`command::LOOP`].
pub mod pattern_kind {
    /// One page after the other, around and around.
    pub const SEQUENTIAL: u64 = 0;
    /// Uniformly random pages.
    pub const RANDOM: u64 = 1;
    /// Zipf-distributed pages. Parameter: address of the quantile table (see the host side's `zipf`).
    pub const ZIPF: u64 = 2;
    /// 99 % of accesses go to the first pages. Parameter: how many pages are hot.
    pub const HOT_COLD: u64 = 3;
}

/// Byte offsets in a vCPU's mailbox page. All words are 64-bit.
pub mod mailbox {
    /// The command.
    pub const COMMAND: u64 = 0x000;
    /// Its arguments.
    pub const ARGS: u64 = 0x008;
    /// How many arguments there can be.
    pub const ARG_COUNT: usize = 8;
    /// Its results.
    pub const RESULTS: u64 = 0x080;
    /// How many results there can be.
    pub const RESULT_COUNT: usize = 8;
    /// Not 0: workloads without an end shall end.
    pub const STOP: u64 = 0x100;
    /// Counters of a running workload, kept up to date by the image.
    pub const COUNTERS: u64 = 0x140;
    /// How many counters there are.
    pub const COUNTER_COUNT: usize = 6;
}

/// Places of a soak's counters, in order from [`mailbox::COUNTERS`].
pub mod counter {
    /// Operations of any kind.
    pub const OPS: usize = 0;
    /// Own pages verified.
    pub const VERIFIED: usize = 1;
    /// Own pages written.
    pub const WRITTEN: usize = 2;
    /// Other vCPUs' pages checked.
    pub const FOREIGN: usize = 3;
    /// Passes over a page that was written in a tight loop.
    pub const PASSES: usize = 4;
    /// Words that held what nobody wrote.
    pub const MISMATCHES: usize = 5;
}

/// Buckets of a latency histogram: 32 powers of two, 16 steps each; one 32-bit count each.
pub const HISTOGRAM_BUCKETS: u64 = 512;

/// Entries of a zipf quantile table minus one; entries are 32-bit page numbers.
pub const ZIPF_STEPS: u64 = 1 << 14;

/// The bucket of a latency in cycles: exact below 16, then 16 steps per power of two.
pub const fn histogram_bucket(cycles: u64) -> u64 {
    if cycles < 16 {
        return cycles;
    }
    let power = 63 - cycles.leading_zeros() as u64;
    let bucket = (power - 3) * 16 + (cycles >> (power - 4) & 15);
    if bucket < HISTOGRAM_BUCKETS { bucket } else { HISTOGRAM_BUCKETS - 1 }
}

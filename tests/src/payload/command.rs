//! The image's commands, typed.
//!
//! Promises: arguments go to the image in the order that `abi::command` says. Must never: know how they get there.

use super::abi::{command, mailbox, pattern_kind};

/// Pages with seeded contents.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// What their contents depend on.
    pub seed: u64,
    /// Guest physical address of the first one.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// A mask of `pattern::kind`.
    pub kinds: u64,
}

/// Pages to touch.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Guest physical address of the bitmap; bit `i` is page `i` from `start`.
    pub bitmap: u64,
    /// Guest physical address of the first page.
    pub start: u64,
    /// Pages that the bitmap covers.
    pub pages: u64,
    /// What to write; without it pages are read.
    pub write: Option<u64>,
}

/// A soak's pages. They begin as zeros, and so does the table.
#[derive(Clone, Copy, Debug)]
pub struct VersionedPages {
    /// What their contents depend on.
    pub seed: u64,
    /// Guest physical address of the first one.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Guest physical address of the version table, 16 bytes per page.
    pub table: u64,
    /// How many of the first pages are picked more often.
    pub hot: u64,
    /// vCPUs that share them: page `p` belongs to vCPU `p % vcpus`.
    pub vcpus: u64,
}

/// Which page an access loop goes to next.
#[derive(Clone, Copy, Debug)]
pub enum AccessPattern {
    /// One after the other.
    Sequential,
    /// Any.
    Random,
    /// Zipf-distributed; the quantile table ([`super::quantiles`]) is at this guest physical address.
    Zipf {
        /// Where the table is.
        table: u64,
    },
    /// 99 % of accesses to the first pages.
    HotCold {
        /// How many pages are hot.
        hot: u64,
    },
}

/// A timed loop of accesses.
#[derive(Clone, Copy, Debug)]
pub struct AccessLoop {
    /// Which pages.
    pub pattern: AccessPattern,
    /// Write instead of read.
    pub write: bool,
    /// Guest physical address of the first page.
    pub start: u64,
    /// How many pages.
    pub pages: u64,
    /// How many accesses.
    pub accesses: u64,
    /// What random choices depend on.
    pub seed: u64,
    /// Where a latency histogram is kept, if one is wanted; it must be zeroed.
    pub histogram: Option<u64>,
}

/// What a vCPU can be told to do.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Touch pages, each once.
    Touch(Touch),
    /// Fill pages.
    Fill(Pages),
    /// Verify filled pages.
    Verify(Pages),
    /// Write and verify versioned pages until told to stop.
    Soak(VersionedPages),
    /// Verify all of a soak's pages, nobody writing.
    Audit(VersionedPages),
    /// Access pages in a timed loop.
    Loop(AccessLoop),
    /// Write one word as fast as possible until told to stop.
    Hammer {
        /// The word's guest physical address.
        address: u64,
    },
}

impl Command {
    /// The command's number and arguments, as the mailbox takes them.
    pub(super) fn encode(&self) -> (u64, [u64; mailbox::ARG_COUNT]) {
        match *self {
            Self::Touch(t) => (
                command::TOUCH,
                [t.bitmap, t.start, t.pages, u64::from(t.write.is_some()), t.write.unwrap_or(0), 0, 0, 0],
            ),
            Self::Fill(p) => (command::FILL, p.args()),
            Self::Verify(p) => (command::VERIFY, p.args()),
            Self::Soak(v) => (command::SOAK, v.args()),
            Self::Audit(v) => (command::AUDIT, v.args()),
            Self::Loop(l) => (command::LOOP, l.args()),
            Self::Hammer { address } => (command::HAMMER, [address, 0, 0, 0, 0, 0, 0, 0]),
        }
    }
}

impl Pages {
    fn args(&self) -> [u64; mailbox::ARG_COUNT] {
        [self.seed, self.start, self.pages, self.kinds, 0, 0, 0, 0]
    }
}

impl VersionedPages {
    fn args(&self) -> [u64; mailbox::ARG_COUNT] {
        [self.seed, self.start, self.pages, self.table, self.hot, self.vcpus, 0, 0]
    }
}

impl AccessLoop {
    fn args(&self) -> [u64; mailbox::ARG_COUNT] {
        let (pattern, parameter) = match self.pattern {
            AccessPattern::Sequential => (pattern_kind::SEQUENTIAL, 0),
            AccessPattern::Random => (pattern_kind::RANDOM, 0),
            AccessPattern::Zipf { table } => (pattern_kind::ZIPF, table),
            AccessPattern::HotCold { hot } => (pattern_kind::HOT_COLD, hot),
        };
        let write = u64::from(self.write);
        [pattern, write, self.start, self.pages, self.accesses, self.seed, parameter, self.histogram.unwrap_or(0)]
    }
}

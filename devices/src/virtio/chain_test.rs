//! Tests of chains: good ones whole, bad ones as errors.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{Ledger, Rings, describe, memory};

const NEXT: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;
const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
const TABLE: u64 = 0x1000;
const INDIRECT_TABLE: u64 = 0x8000;

struct Bench {
    memory: DeviceMemory,
    ledger: Ledger,
    rings: Rings,
    indirect: bool,
}

impl Bench {
    fn new() -> Self {
        let memory = memory(0x20000);
        let rings = Rings::new(&memory, TABLE, 8);
        Self { memory, ledger: Ledger::default(), rings, indirect: true }
    }

    fn walk(&self, head: u16) -> Result<Chain, ChainError> {
        let table = Table {
            memory: &self.memory,
            pinner: &self.ledger,
            gpa: TABLE,
            size: 8,
            longest: 12,
            indirect: self.indirect,
        };
        Chain::walk(&table, head)
    }

    fn describe_indirect(&self, index: u16, len: u32, flags: u32, next: u16) {
        describe(&self.memory, INDIRECT_TABLE, index, 0x9000, len, flags, next);
    }
}

fn lens(chain: &Chain) -> (u32, u32) {
    (chain.readable.len(), chain.writable.len())
}

#[test]
fn a_chain_is_followed_through_the_table_in_its_own_order() {
    let bench = Bench::new();
    bench.rings.describe(5, 0xa000, 16, NEXT, 2);
    bench.rings.describe(2, 0xb000, 512, NEXT | WRITE, 7);
    bench.rings.describe(7, 0xc000, 1, WRITE, 3);
    let chain = bench.walk(5).unwrap();
    assert_eq!(chain.readable.segments(), [Segment { gpa: 0xa000, len: 16 }]);
    assert_eq!(chain.writable.segments(), [Segment { gpa: 0xb000, len: 512 }, Segment { gpa: 0xc000, len: 1 }]);
}

#[test]
fn as_many_descriptors_as_the_queue_has_are_fine_and_a_loop_is_not() {
    let bench = Bench::new();
    for index in 0..8 {
        bench.rings.describe(index, 0xa000, 1, NEXT, (index + 1) % 8);
    }
    let error = bench.walk(0).unwrap_err();
    assert!(matches!(error, ChainError::TooMany { size: 8 }), "{error}");
    assert_eq!(error.to_string(), "more than 8 descriptors");
    bench.rings.describe(7, 0xa000, 1, 0, 0);
    assert_eq!(lens(&bench.walk(0).unwrap()), (8, 0));
}

#[test]
fn a_successor_beyond_the_table_is_an_error_and_not_the_end() {
    let bench = Bench::new();
    bench.rings.describe(0, 0xa000, 16, NEXT, 8);
    let error = bench.walk(0).unwrap_err();
    assert_eq!(error.to_string(), "descriptor 8 does not exist in a table of 8");
}

#[test]
fn readable_memory_after_writable_memory_is_refused() {
    let bench = Bench::new();
    bench.rings.describe(0, 0xa000, 16, NEXT | WRITE, 1);
    bench.rings.describe(1, 0xa000, 16, 0, 0);
    assert!(matches!(bench.walk(0), Err(ChainError::ReadableAfterWritable)));
    assert_eq!(ChainError::ReadableAfterWritable.to_string(), "a readable descriptor after a writable one");
}

#[test]
fn memory_that_the_guest_does_not_have_is_refused() {
    let bench = Bench::new();
    bench.rings.describe(0, 0x20000, 1, WRITE, 0);
    let error = bench.walk(0).unwrap_err();
    assert!(matches!(error, ChainError::Buffer(BufferError::NotMemory { gpa: 0x20000, len: 1 })));
    assert_eq!(error.to_string(), "a descriptor with memory that can't be used");
}

#[test]
fn an_indirect_table_continues_the_chain_and_is_pinned_while_it_is_copied() {
    let bench = Bench::new();
    bench.rings.describe(0, 0xa000, 16, NEXT, 1);
    bench.rings.describe(1, INDIRECT_TABLE, 48, INDIRECT, 0);
    bench.describe_indirect(0, 100, NEXT, 2);
    bench.describe_indirect(2, 7, WRITE, 0);
    assert_eq!(lens(&bench.walk(0).unwrap()), (116, 7));
    assert_eq!(bench.ledger.taken(), [(INDIRECT_TABLE, 0x1000)]);
    assert_eq!(bench.ledger.live(), 0);
}

#[test]
fn an_indirect_table_may_be_as_long_as_the_queue_that_was_offered() {
    let bench = Bench::new();
    bench.rings.describe(0, INDIRECT_TABLE, 12 * 16, INDIRECT, 0);
    for index in 0..12 {
        bench.describe_indirect(index, 1, if index < 11 { NEXT } else { 0 }, index + 1);
    }
    assert_eq!(lens(&bench.walk(0).unwrap()), (12, 0));
}

#[test]
fn an_indirect_table_on_a_lost_page_is_an_error() {
    let bench = Bench::new();
    bench.ledger.poison(INDIRECT_TABLE);
    bench.rings.describe(0, INDIRECT_TABLE, 16, INDIRECT, 0);
    let error = bench.walk(0).unwrap_err();
    assert!(matches!(error, ChainError::Pin(PinError::Unreadable { gpa: INDIRECT_TABLE })));
    assert_eq!(error.to_string(), "an indirect table that can't be read");
}

#[test]
fn indirect_tables_that_are_not_allowed_are_refused() {
    let refused = |bench: &Bench, len: u32| {
        let error = bench.walk(0).unwrap_err();
        assert!(matches!(error, ChainError::BadIndirect { len: found } if found == len), "{error}");
    };
    let mut bench = Bench::new();
    bench.describe_indirect(0, 1, 0, 0);
    // Empty, not whole, too long.
    for len in [0, 15, 17, 13 * 16, u32::MAX, !15] {
        bench.rings.describe(0, INDIRECT_TABLE, len, INDIRECT, 0);
        refused(&bench, len);
    }
    // With a successor.
    bench.rings.describe(0, INDIRECT_TABLE, 16, INDIRECT | NEXT, 1);
    bench.rings.describe(1, 0xa000, 1, 0, 0);
    refused(&bench, 16);
    // One in another.
    bench.rings.describe(0, INDIRECT_TABLE, 16, INDIRECT, 0);
    bench.describe_indirect(0, 32, INDIRECT, 0);
    refused(&bench, 32);
    // Not agreed on.
    bench.describe_indirect(0, 1, 0, 0);
    bench.walk(0).unwrap();
    bench.indirect = false;
    refused(&bench, 16);
}

#[test]
fn a_loop_in_an_indirect_table_ends() {
    let bench = Bench::new();
    bench.rings.describe(0, INDIRECT_TABLE, 32, INDIRECT, 0);
    bench.describe_indirect(0, 1, NEXT, 1);
    bench.describe_indirect(1, 1, NEXT, 0);
    assert!(matches!(bench.walk(0), Err(ChainError::TooMany { size: 2 })));
    bench.describe_indirect(0, 1, NEXT, 2);
    assert!(matches!(bench.walk(0), Err(ChainError::BeyondTable { index: 2, size: 2 })));
}

#[test]
fn an_indirect_table_outside_guest_memory_is_refused() {
    let bench = Bench::new();
    for gpa in [0x20000, 0x1fff8, u64::MAX - 15, u64::MAX] {
        bench.rings.describe(0, gpa, 16, INDIRECT, 0);
        assert!(matches!(bench.walk(0), Err(ChainError::Buffer(BufferError::NotMemory { .. }))));
    }
    assert!(bench.ledger.taken().is_empty(), "what is not memory is never pinned");
}

proptest! {
    #[test]
    fn any_table_is_a_chain_inside_memory_or_an_error(
        descriptors in prop::collection::vec((0u64..0x21000, 0u32..0x2000, 0u32..8, 0u16..10), 16),
        head in 0u16..8,
        indirect in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        bench.indirect = indirect;
        for (index, (gpa, len, flags, next)) in (0u16..).zip(&descriptors) {
            if index < 8 {
                bench.rings.describe(index, *gpa, *len, *flags, *next);
            } else {
                describe(&bench.memory, INDIRECT_TABLE, index - 8, *gpa, *len, *flags, *next);
            }
        }
        if let Ok(chain) = bench.walk(head) {
            let segments: Vec<_> = chain.readable.segments().iter().chain(chain.writable.segments()).collect();
            prop_assert!(segments.len() <= 16);
            prop_assert!(segments.iter().all(|segment| segment.gpa + u64::from(segment.len) <= 0x20000));
        }
        prop_assert_eq!(bench.ledger.live(), 0);
    }
}

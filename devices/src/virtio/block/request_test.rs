//! Tests of parsing: what a request may look like, and each reason to refuse one.

use super::*;
use crate::virtio::testing::memory;

use vm_memory::{Bytes, GuestAddress};

const CAPACITY: u64 = 100;
const WRITABLE: Limits = Limits { capacity: CAPACITY, read_only: false };
const HEADER_AT: u64 = 0x1000;
const DATA_AT: u64 = 0x4000;

struct Bench {
    memory: DeviceMemory,
    chain: Chain,
}

/// A request with one descriptor for each part.
fn request(kind: u32, sector: u64, sent: u32, writable: u32) -> Bench {
    let memory = memory(0x40000);
    let mut chain = Chain::default();
    put_header(&memory, kind, sector);
    chain.readable.push(&memory, HEADER_AT, 16).unwrap();
    chain.readable.push(&memory, DATA_AT, sent).unwrap();
    chain.writable.push(&memory, DATA_AT, writable).unwrap();
    Bench { memory, chain }
}

fn put_header(memory: &DeviceMemory, kind: u32, sector: u64) {
    memory.write_obj(kind, GuestAddress(HEADER_AT)).unwrap();
    memory.write_obj(0xdead_beefu32, GuestAddress(HEADER_AT + 4)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER_AT + 8)).unwrap();
}

fn put_ranges(memory: &DeviceMemory, ranges: &[(u64, u32, u32)]) {
    let mut at = DATA_AT;
    for (sector, count, flags) in ranges {
        memory.write_obj(*sector, GuestAddress(at)).unwrap();
        memory.write_obj([*count, *flags], GuestAddress(at + 8)).unwrap();
        at += 16;
    }
}

impl Bench {
    fn read_with(&self, limits: Limits) -> Result<Request, Refusal> {
        Envelope::open(&self.chain).unwrap().read(&self.memory, limits)
    }

    fn read(&self) -> Result<Request, Refusal> {
        self.read_with(WRITABLE)
    }

    /// The message and the status of the refusal.
    fn refusal(&self) -> (String, u32) {
        let refusal = self.read().unwrap_err();
        (refusal.to_string(), refusal.status())
    }
}

fn with_ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Bench {
    let bench = request(kind, 0, 16 * u32::try_from(ranges.len()).unwrap(), 1);
    put_ranges(&bench.memory, ranges);
    bench
}

fn io_error(message: &str) -> (String, u32) {
    (message.to_owned(), VIRTIO_BLK_S_IOERR)
}

fn unsupported(message: &str) -> (String, u32) {
    (message.to_owned(), VIRTIO_BLK_S_UNSUPP)
}

#[test]
fn reads_and_writes_up_to_the_last_sector_are_fine() {
    for (sector, count) in [(0, 1), (99, 1), (0, 100), (50, 50)] {
        let bytes = count * 512;
        assert!(matches!(
            request(VIRTIO_BLK_T_IN, sector, 0, bytes + 1).read().unwrap(),
            Request::Read { sector: at, into } if at == sector && into.len() == bytes
        ));
        assert!(matches!(
            request(VIRTIO_BLK_T_OUT, sector, bytes, 1).read().unwrap(),
            Request::Write { sector: at, from } if at == sector && from.len() == bytes
        ));
    }
}

#[test]
fn sectors_beyond_the_end_are_refused_however_large_their_number() {
    for (sector, count) in [(100, 1u32), (99, 2), (0, 101), (u64::MAX, 1), (u64::MAX - 1, 2), (1 << 55, 1)] {
        let expected = io_error(&format!("{count} sectors at {sector} of 100"));
        assert_eq!(request(VIRTIO_BLK_T_IN, sector, 0, count * 512 + 1).refusal(), expected);
        assert_eq!(request(VIRTIO_BLK_T_OUT, sector, count * 512, 1).refusal(), expected);
    }
}

#[test]
fn data_that_is_not_whole_sectors_is_refused() {
    for bytes in [0, 1, 511, 513] {
        let expected = io_error(&format!("{bytes} bytes of data are not a whole number of sectors"));
        assert_eq!(request(VIRTIO_BLK_T_IN, 0, 0, bytes + 1).refusal(), expected);
        assert_eq!(request(VIRTIO_BLK_T_OUT, 0, bytes, 1).refusal(), expected);
    }
}

#[test]
fn data_in_the_wrong_direction_is_refused() {
    let expected = io_error("512 bytes of data in the wrong direction");
    assert_eq!(request(VIRTIO_BLK_T_IN, 0, 512, 1).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_IN, 0, 512, 513).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_OUT, 0, 0, 513).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_OUT, 0, 512, 513).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_FLUSH, 0, 512, 1).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_FLUSH, 0, 0, 513).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_DISCARD, 0, 16, 513).refusal(), expected);
    assert_eq!(request(VIRTIO_BLK_T_GET_ID, 0, 512, 21).refusal(), expected);
}

#[test]
fn a_chain_without_room_for_header_or_status_can_not_be_answered() {
    let memory = memory(0x40000);
    for (readable, writable) in [(0, 1), (15, 1), (16, 0), (0, 0)] {
        let mut chain = Chain::default();
        chain.readable.push(&memory, HEADER_AT, readable).unwrap();
        chain.writable.push(&memory, DATA_AT, writable).unwrap();
        assert_eq!(Envelope::open(&chain), None);
    }
}

#[test]
fn header_data_and_status_may_be_split_anywhere() {
    let memory = memory(0x40000);
    put_header(&memory, VIRTIO_BLK_T_OUT, 7);
    let mut chain = Chain::default();
    for at in 0..15 {
        chain.readable.push(&memory, HEADER_AT + at, 1).unwrap();
    }
    // The header's last byte and the first of the data in one piece.
    chain.readable.push(&memory, HEADER_AT + 15, 1 + 500).unwrap();
    chain.readable.push(&memory, DATA_AT, 12).unwrap();
    chain.writable.push(&memory, 0x9000, 1).unwrap();
    let request = Envelope::open(&chain).unwrap().read(&memory, WRITABLE).unwrap();
    let Request::Write { sector: 7, from } = request else { panic!("{request:?}") };
    assert_eq!(from.len(), 512);
    assert_eq!(from.segments()[0].gpa, HEADER_AT + 16);

    put_header(&memory, VIRTIO_BLK_T_IN, 7);
    let mut chain = Chain::default();
    chain.readable.push(&memory, HEADER_AT, 16).unwrap();
    // The status is the last byte of the data's piece.
    chain.writable.push(&memory, DATA_AT, 513).unwrap();
    let envelope = Envelope::open(&chain).unwrap();
    assert_eq!(envelope.status.segments()[0].gpa, DATA_AT + 512);
    assert!(
        matches!(envelope.read(&memory, WRITABLE).unwrap(), Request::Read { sector: 7, into } if into.len() == 512)
    );
}

#[test]
fn flush_and_identity_are_read() {
    assert_eq!(request(VIRTIO_BLK_T_FLUSH, 5, 0, 1).read().unwrap(), Request::Flush);
    assert!(
        matches!(request(VIRTIO_BLK_T_GET_ID, 0, 0, 21).read().unwrap(), Request::GetId { into } if into.len() == 20)
    );
    assert_eq!(
        request(VIRTIO_BLK_T_GET_ID, 0, 0, 20).refusal(),
        io_error("19 bytes of data are not a whole number of sectors")
    );
}

#[test]
fn unknown_types_are_unsupported() {
    for kind in [2, 3, 14, 15, 1 << 31, u32::MAX] {
        assert_eq!(request(kind, 0, 512, 513).refusal(), unsupported(&format!("request type {kind} is not known")));
    }
}

#[test]
fn a_read_only_disk_refuses_what_writes_and_nothing_else() {
    let limits = Limits { read_only: true, ..WRITABLE };
    let writes = [
        request(VIRTIO_BLK_T_OUT, 0, 512, 1),
        with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 1, 0)]),
        with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0)]),
    ];
    for bench in writes {
        bench.read().unwrap();
        let refusal = bench.read_with(limits).unwrap_err();
        assert_eq!((refusal.to_string().as_str(), refusal.status()), ("the disk is read-only", VIRTIO_BLK_S_IOERR));
    }
    for bench in [request(VIRTIO_BLK_T_IN, 0, 0, 513), request(VIRTIO_BLK_T_FLUSH, 0, 0, 1)] {
        bench.read_with(limits).unwrap();
    }
}

#[test]
fn ranges_are_read_with_their_flags() {
    let bench = with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 10, 0), (99, 1, 0)]);
    let expected = vec![SectorRange { sector: 0, count: 10 }, SectorRange { sector: 99, count: 1 }];
    assert_eq!(bench.read().unwrap(), Request::Discard(expected));
    for (flags, unmap) in [(0, false), (1, true)] {
        let bench = with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(20, 5, flags)]);
        let ranges = vec![SectorRange { sector: 20, count: 5 }];
        assert_eq!(bench.read().unwrap(), Request::WriteZeroes { ranges, unmap });
    }
}

#[test]
fn one_bad_range_refuses_them_all() {
    let bench = with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 10, 0), (95, 6, 0)]);
    assert_eq!(bench.refusal(), io_error("6 sectors at 95 of 100"));
    let bench = with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 10, 0), (u64::MAX, 2, 0)]);
    assert_eq!(bench.refusal(), io_error("2 sectors at 18446744073709551615 of 100"));
    let bench = with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 0, 0)]);
    assert_eq!(bench.refusal(), io_error("a range of 0 sectors, of at most 4194304"));
    let bench = with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, WRITE_ZEROES_SECTORS + 1, 0)]);
    assert_eq!(bench.refusal(), io_error("a range of 262145 sectors, of at most 262144"));
}

#[test]
fn flags_that_are_not_known_are_unsupported() {
    let bench = with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 1, 1)]);
    assert_eq!(bench.refusal(), unsupported("flags 0x1 of a range are not known"));
    let bench = with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 2)]);
    assert_eq!(bench.refusal(), unsupported("flags 0x2 of a range are not known"));
}

#[test]
fn lists_of_ranges_have_one_up_to_the_limit_and_no_half_ones() {
    for bytes in [0, 8, 17, 65 * 16] {
        let expected = io_error(&format!("{bytes} bytes are no list of up to 64 ranges"));
        assert_eq!(request(VIRTIO_BLK_T_DISCARD, 0, bytes, 1).refusal(), expected);
    }
    assert_eq!(
        with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0), (1, 1, 0)]).refusal(),
        io_error("32 bytes are no list of up to 1 ranges")
    );
    with_ranges(VIRTIO_BLK_T_DISCARD, &[(0, 1, 0); 64]).read().unwrap();
}

//! Tests of doing requests: bytes where they belong, a status whenever there is room for one, pins while they are needed.

use std::fs;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::event::new_event;
use crate::virtio::testing::{Ledger, memory, peek};

const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x8000;
const SECTORS: usize = 64;

struct Bench {
    file: tempfile::NamedTempFile,
    memory: DeviceMemory,
    ledger: Ledger,
    handler: BlockHandler,
}

fn bench_with(read_only: bool, features: u64) -> Bench {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SECTORS).flat_map(|sector| [u8::try_from(sector).unwrap() + 1; 512]).collect();
    fs::write(file.path(), bytes).unwrap();
    let (memory, ledger) = (memory(0x20000), Ledger::default());
    let disk = Arc::new(Disk::open(file.path(), read_only).unwrap());
    let activation = Activation {
        features,
        memory: memory.clone(),
        queues: vec![],
        interrupt: Arc::new(Interrupt::new(new_event().unwrap())),
        pinner: Arc::new(ledger.clone()),
    };
    let handler = BlockHandler::new(disk, &activation);
    Bench { file, memory, ledger, handler }
}

fn bench() -> Bench {
    bench_with(false, 1 << VIRTIO_BLK_F_FLUSH)
}

impl Bench {
    /// Does a request with `sent` bytes from [`DATA`] or `expected` bytes to there; answers the status and the bytes reported as written.
    fn run(&mut self, kind: u32, sector: u64, sent: u32, expected: u32) -> (u32, u32) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
        let mut chain = Chain::default();
        chain.readable.push(&self.memory, HEADER, 16).unwrap();
        chain.readable.push(&self.memory, DATA, sent).unwrap();
        chain.writable.push(&self.memory, DATA, expected).unwrap();
        chain.writable.push(&self.memory, STATUS, 1).unwrap();
        let written = self.handler.handle(0, &chain);
        assert_eq!(self.ledger.live(), 0, "no pin outlives its request");
        (u32::from(self.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap()), written)
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.file.path()).unwrap()
    }
}

#[test]
fn a_read_brings_the_sectors_asked_for() {
    let mut bench = bench();
    assert_eq!(bench.run(VIRTIO_BLK_T_IN, 10, 0, 1024), (VIRTIO_BLK_S_OK, 1025));
    assert_eq!(peek(&bench.memory, DATA, 1024), [[11; 512], [12; 512]].concat());
    assert_eq!(peek(&bench.memory, DATA + 1024, 512), [0; 512]);
}

#[test]
fn a_write_changes_its_sectors_and_no_other() {
    let mut bench = bench();
    let mut expected = bench.file();
    expected[63 * 512..].fill(0x99);
    bench.memory.write_slice(&[0x99; 512], GuestAddress(DATA)).unwrap();
    assert_eq!(bench.run(VIRTIO_BLK_T_OUT, 63, 512, 0), (VIRTIO_BLK_S_OK, 1));
    assert_eq!(bench.file(), expected);
    assert_eq!(bench.run(VIRTIO_BLK_T_OUT, 63, 1024, 0), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(bench.file(), expected);
}

#[test]
fn every_byte_of_a_request_is_pinned_while_it_is_worked_on() {
    let mut bench = bench();
    bench.run(VIRTIO_BLK_T_IN, 0, 0, 0x2000);
    assert_eq!(bench.ledger.taken(), [(HEADER, 0x3000), (STATUS, 0x1000)]);
}

#[test]
fn a_lost_page_of_data_is_an_io_error_and_touches_nothing() {
    let mut bench = bench();
    bench.ledger.poison(DATA + 0x1000);
    let before = bench.file();
    bench.memory.write_slice(&[7; 0x2000], GuestAddress(DATA)).unwrap();
    assert_eq!(bench.run(VIRTIO_BLK_T_IN, 0, 0, 0x2000), (VIRTIO_BLK_S_IOERR, 0));
    assert_eq!(peek(&bench.memory, DATA, 0x2000), [7; 0x2000]);
    assert_eq!(bench.run(VIRTIO_BLK_T_OUT, 0, 0x2000, 0), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(bench.file(), before);
    assert_eq!(bench.run(VIRTIO_BLK_T_IN, 0, 0, 0x1000), (VIRTIO_BLK_S_OK, 0x1001), "other pages are fine");
}

#[test]
fn a_lost_page_of_the_status_leaves_the_request_undone() {
    let mut bench = bench();
    bench.ledger.poison(STATUS);
    let before = bench.file();
    assert_eq!(bench.run(VIRTIO_BLK_T_OUT, 0, 512, 0), (0xee, 0));
    assert_eq!(bench.file(), before);
}

#[test]
fn a_failed_read_leaves_zeros_and_not_half_of_the_disk() {
    let mut bench = bench();
    bench.file.as_file().set_len(11 * 512).unwrap();
    bench.memory.write_slice(&[7; 1024], GuestAddress(DATA)).unwrap();
    assert_eq!(bench.run(VIRTIO_BLK_T_IN, 10, 0, 1024), (VIRTIO_BLK_S_IOERR, 1025));
    assert_eq!(peek(&bench.memory, DATA, 1024), [0; 1024]);
}

#[test]
fn a_refused_request_that_expects_data_reports_none() {
    let mut bench = bench();
    assert_eq!(bench.run(VIRTIO_BLK_T_IN, 64, 0, 512), (VIRTIO_BLK_S_IOERR, 0));
    assert_eq!(bench.run(77, 0, 0, 512), (VIRTIO_BLK_S_UNSUPP, 0));
    assert_eq!(bench.run(77, 0, 512, 0), (VIRTIO_BLK_S_UNSUPP, 1));
}

#[test]
fn the_identity_fills_its_place_with_zeros_behind() {
    let mut bench = bench();
    bench.memory.write_slice(&[7; 64], GuestAddress(DATA)).unwrap();
    assert_eq!(bench.run(VIRTIO_BLK_T_GET_ID, 0, 0, 30), (VIRTIO_BLK_S_OK, 31));
    let bytes = peek(&bench.memory, DATA, 31);
    assert_eq!(bytes[..20], *bench.handler.disk.id());
    assert_eq!((&bytes[20..30], bytes[30]), (&[0; 10][..], 7));
}

#[test]
fn zeroes_are_written_and_discards_stay_inside() {
    let mut bench = bench();
    let before = bench.file();
    for (kind, sector) in [(VIRTIO_BLK_T_WRITE_ZEROES, 8u64), (VIRTIO_BLK_T_DISCARD, 32)] {
        bench.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        bench.memory.write_obj([8u32, 0], GuestAddress(DATA + 8)).unwrap();
        assert_eq!(bench.run(kind, 0, 16, 0), (VIRTIO_BLK_S_OK, 1));
    }
    let after = bench.file();
    assert!(after[8 * 512..16 * 512].iter().all(|byte| *byte == 0));
    for untouched in [0..8 * 512, 16 * 512..32 * 512, 40 * 512..64 * 512] {
        assert_eq!(before[untouched.clone()], after[untouched]);
    }
    assert_eq!(before.len(), after.len());
}

#[test]
fn flush_works_on_every_disk() {
    assert_eq!(bench().run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), (VIRTIO_BLK_S_OK, 1));
    assert_eq!(bench_with(true, 0).run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), (VIRTIO_BLK_S_OK, 1));
}

#[test]
fn a_read_only_disk_is_never_written() {
    let mut bench = bench_with(true, 1 << VIRTIO_BLK_F_FLUSH);
    let before = bench.file();
    assert_eq!(bench.run(VIRTIO_BLK_T_OUT, 0, 512, 0), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(bench.file(), before);
    assert_eq!(bench.run(VIRTIO_BLK_T_IN, 0, 0, 512), (VIRTIO_BLK_S_OK, 513));
}

#[test]
fn only_a_driver_that_can_flush_gets_unflushed_writes() {
    assert!(!bench().handler.write_through);
    let mut bench = bench_with(false, 0);
    assert!(bench.handler.write_through);
    assert_eq!(bench.run(VIRTIO_BLK_T_OUT, 0, 512, 0), (VIRTIO_BLK_S_OK, 1));
}

#[test]
fn a_chain_that_can_not_be_answered_is_not_done() {
    let mut bench = bench();
    let before = bench.file();
    bench.memory.write_obj(VIRTIO_BLK_T_OUT, GuestAddress(HEADER)).unwrap();
    let mut chain = Chain::default();
    chain.readable.push(&bench.memory, HEADER, 16 + 512).unwrap();
    assert_eq!(bench.handler.handle(0, &chain), 0);
    assert_eq!(bench.file(), before);
    assert_eq!(bench.ledger.taken(), []);
}

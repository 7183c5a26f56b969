//! Tests of the whole device: a driver at the registers, a thread behind them, a real file.

use std::fs;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::DeviceMemory;
use crate::bus::BusDevice;
use crate::virtio::testing::{Driver, Ledger, Piece, Rings, memory, peek};

const RINGS: u64 = 0x1000;
const SECTORS: u64 = 2048;

struct Bench {
    file: tempfile::NamedTempFile,
    memory: DeviceMemory,
    ledger: Ledger,
    rings: Rings,
    driver: Driver,
}

fn bench() -> Bench {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * 512).unwrap();
    let (memory, ledger) = (memory(0x400000), Ledger::default());
    let rings = Rings::new(&memory, RINGS, QUEUE_SIZE);
    let device = Block::new(Disk::open(file.path(), false).unwrap());
    let driver = Driver::new(device, &memory, &ledger);
    Bench { file, memory, ledger, rings, driver }
}

impl Bench {
    /// Lays header and status of request `slot` into memory; answers its pieces around `data`.
    fn request(&self, slot: u64, kind: u32, sector: u64, data: u64, len: u32) -> [Piece; 3] {
        let header = 0x10000 + slot * 64;
        self.memory.write_obj(kind, GuestAddress(header)).unwrap();
        self.memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
        self.memory.write_obj(0xeeu8, GuestAddress(header + 16)).unwrap();
        [(header, 16, false), (data, len, kind == VIRTIO_BLK_T_IN), (header + 16, 1, true)]
    }

    fn status(&self, slot: u64) -> u8 {
        self.memory.read_obj(GuestAddress(0x10000 + slot * 64 + 16)).unwrap()
    }

    fn finish(&mut self, count: usize) {
        self.driver.notify(0);
        let back = self.rings.wait_used(&self.driver.interrupt, count);
        assert_eq!(back.len(), count);
    }
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    let mut bench = bench();
    bench.driver.start(&bench.rings, 0);
    let text: Vec<u8> = (0..=250).cycle().take(64 * 1024).collect();
    bench.memory.write_slice(&text, GuestAddress(0x100000)).unwrap();
    let write = bench.request(0, VIRTIO_BLK_T_OUT, 100, 0x100000, 64 * 1024);
    bench.rings.offer(&write);
    bench.finish(1);
    let read = bench.request(1, VIRTIO_BLK_T_IN, 100, 0x200000, 64 * 1024);
    bench.rings.offer(&read);
    bench.finish(1);
    assert_eq!((bench.status(0), bench.status(1)), (0, 0));
    assert_eq!(peek(&bench.memory, 0x200000, 64 * 1024), text);
    assert_eq!(fs::read(bench.file.path()).unwrap()[100 * 512..][..64 * 1024], text);
}

#[test]
fn a_full_queue_of_indirect_requests_is_worked_off() {
    let mut bench = bench();
    bench.driver.start(&bench.rings, 0);
    for slot in 0..u64::from(QUEUE_SIZE) {
        let data = 0x100000 + slot * 512;
        bench.memory.write_slice(&[u8::try_from(slot).unwrap(); 512], GuestAddress(data)).unwrap();
        let pieces = bench.request(slot, VIRTIO_BLK_T_OUT, slot * 2, data, 512);
        bench.rings.offer_indirect(0x300000 + slot * 64, &pieces);
    }
    bench.finish(usize::from(QUEUE_SIZE));
    let bytes = fs::read(bench.file.path()).unwrap();
    for slot in 0..u64::from(QUEUE_SIZE) {
        assert_eq!(bench.status(slot), 0);
        let at = usize::try_from(slot * 1024).unwrap();
        assert!(bytes[at..at + 512].iter().all(|byte| u64::from(*byte) == slot));
        assert!(bytes[at + 512..at + 1024].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_device_comes_up_again_after_a_reset_and_holds_its_disk_meanwhile() {
    let mut bench = bench();
    for round in 0..3 {
        bench.rings = Rings::new(&bench.memory, RINGS, QUEUE_SIZE);
        bench.driver.start(&bench.rings, 0);
        let pieces = bench.request(round, VIRTIO_BLK_T_IN, 0, 0x100000, 512);
        bench.rings.offer(&pieces);
        bench.finish(1);
        assert_eq!(bench.status(round), 0);
        bench.driver.write(0x070, 0);
        assert_eq!(bench.ledger.live(), 0);
        assert!(matches!(Disk::open(bench.file.path(), false), Err(DiskError::InUse { .. })));
    }
    drop(bench.driver);
    Disk::open(bench.file.path(), false).unwrap();
}

#[test]
fn a_paused_disk_waits_and_a_paused_disk_can_be_reset() {
    let mut bench = bench();
    bench.driver.transport.pause();
    bench.driver.transport.resume();
    bench.driver.start(&bench.rings, 0);
    bench.driver.transport.pause();
    let pieces = bench.request(0, VIRTIO_BLK_T_IN, 0, 0x100000, 512);
    bench.rings.offer(&pieces);
    bench.driver.notify(0);
    assert_eq!(bench.status(0), 0xee);
    bench.driver.transport.resume();
    bench.finish(1);
    assert_eq!(bench.status(0), 0);
    bench.driver.transport.pause();
    bench.driver.write(0x070, 0);
    assert_eq!(bench.ledger.live(), 0);
}

#[test]
fn without_its_queue_the_disk_asks_for_a_reset() {
    let mut bench = bench();
    let features = bench.driver.offered();
    assert!(bench.driver.negotiate(features));
    bench.driver.add_status(4);
    assert_ne!(bench.driver.status() & 64, 0);
}

#[test]
fn the_driver_reads_the_capacity() {
    let mut bench = bench();
    assert_eq!(bench.driver.read(0x008), 2);
    let mut capacity = [0; 8];
    bench.driver.transport.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
}

//! What devices write into guest memory is in the dirty log: all of it, and nothing else.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::common::{HALT, config, image};
use vm_memory::{Bytes, GuestAddress};
use vmm::{DirtyLogMode, DiskConfig, Machine, TieringConfig};

/// A page for each part of the queue, then pages for buffers.
const DESCRIPTORS: u64 = 0x30_0000;
const AVAILABLE: u64 = 0x30_1000;
const USED: u64 = 0x30_2000;
const BUFFERS: u64 = 0x30_3000;
/// The header of a request to a disk.
const HEADER: u64 = 0x30_e000;
/// Where the first virtio device's registers are.
const DEVICE: u64 = 0xd000_0000;
const QUEUE_SIZE: u32 = 8;

/// One descriptor: address, length, whether the device writes to it.
type Descriptor = (u64, u32, bool);

/// A driver of a few instructions: sets queue 0 up and offers what is in it.
fn driver() -> Vec<u8> {
    let low = |address: u64| u32::try_from(address).expect("low memory");
    let registers = [
        (0x70, 1),
        (0x70, 1 | 2),
        // Feature 32, and no other: a device of the standard's first version.
        (0x24, 1),
        (0x20, 1),
        (0x70, 1 | 2 | 8),
        (0x30, 0),
        (0x38, QUEUE_SIZE),
        (0x80, low(DESCRIPTORS)),
        (0x90, low(AVAILABLE)),
        (0xa0, low(USED)),
        (0x44, 1),
        (0x70, 1 | 2 | 4 | 8),
        (0x50, 0),
    ];
    let store = |(register, value): (u64, u32)| {
        // mov eax, value; mov [register], eax
        [&[0xb8][..], &value.to_le_bytes(), &[0xa3], &(DEVICE + register).to_le_bytes()].concat()
    };
    let mut code: Vec<u8> = registers.into_iter().flat_map(store).collect();
    code.extend(HALT);
    code
}

/// Puts one chain into the queue, and a header for it, whether the chain has one or not.
fn offer(machine: &Machine, request: u32, chain: &[Descriptor]) {
    let memory = machine.memory();
    memory.write_obj(request, GuestAddress(HEADER)).expect("RAM");
    for (index, (address, len, written)) in (0u16..).zip(chain) {
        let is_last = usize::from(index) + 1 == chain.len();
        let flags = u16::from(!is_last) | u16::from(*written) << 1;
        let at = GuestAddress(DESCRIPTORS + 16 * u64::from(index));
        let fields = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &(index + 1).to_le_bytes()];
        memory.write_slice(&fields.concat(), at).expect("RAM");
    }
    // No flags, one entry, and that is descriptor 0.
    memory.write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(AVAILABLE)).expect("RAM");
}

/// The pages from the queue's first to the last buffer's that are written while the device works off `chain`.
fn written_by_device(mode: DirtyLogMode, disk: Option<DiskConfig>, request: u32, chain: &[Descriptor]) -> Vec<u64> {
    let kernel = image(&driver());
    let mut config = config(&kernel, 1);
    config.entropy = disk.is_none();
    config.disks.extend(disk);
    config.tiering = Some(TieringConfig { dirty_log: mode, ..TieringConfig::default() });
    let machine = Machine::build(config).expect("built");
    offer(&machine, request, chain);
    let log = machine.dirty_log().expect("this KVM has a dirty log");
    log.start().expect("started");
    let mut bits = vec![0; (16 << 20 >> 12) / 64];
    log.written(0, &mut bits).expect("read");
    assert!(bits.iter().all(|bits| *bits == u64::MAX), "at first all count as written");
    log.clear(0, 0, &bits).expect("cleared");
    machine.start().expect("started");
    let deadline = Instant::now() + Duration::from_secs(60);
    while machine.memory().load::<u16>(GuestAddress(USED + 2), Ordering::Acquire).expect("RAM") != 1 {
        assert!(Instant::now() < deadline, "the device did not answer");
        std::thread::yield_now();
    }
    // After it the device may still say that it wants to be notified.
    machine.pause().expect("paused");
    bits.fill(0);
    log.written(0, &mut bits).expect("read");
    (0x300..0x310).filter(|page| bits[page / 64] >> (page % 64) & 1 == 1).map(|page| page as u64).collect()
}

fn modes() -> [DirtyLogMode; 2] {
    [DirtyLogMode::Bitmap, DirtyLogMode::Ring { entries: 1024 }]
}

#[test]
fn entropy_is_logged_where_it_is_put() {
    for mode in modes() {
        let chain = [(BUFFERS + 0xff0, 0x20, true), (BUFFERS + 0x5000, 0x1000, true)];
        assert_eq!(written_by_device(mode, None, 0, &chain), [0x302, 0x303, 0x304, 0x308], "{mode:?}");
    }
}

#[test]
fn what_a_disk_is_read_into_is_logged_and_what_is_written_to_it_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    File::create(&path).expect("made").write_all(&[7; 0x4000]).expect("written");
    for mode in modes() {
        for (request, data) in [(0, vec![0x304, 0x305, 0x306]), (1, vec![])] {
            let disk = DiskConfig { path: path.clone(), read_only: false };
            let chain = [(HEADER, 16, false), (BUFFERS + 0x1e00, 0x1400, request == 0), (BUFFERS + 0xc000, 1, true)];
            let expected: Vec<u64> = [vec![0x302], data, vec![0x30f]].concat();
            assert_eq!(written_by_device(mode, Some(disk), request, &chain), expected, "{mode:?}, request {request}");
        }
    }
}

//! Any bytes as a descriptor table with what it leads to: a chain is walked and read as a disk request, or refused. What is accepted lies
//! inside guest memory and inside the disk.
//!
//! `cargo fuzz run block_request` from `devices/` (with `--target x86_64-unknown-linux-gnu` and without `crt-static`, which the sanitizers
//! don't support).

#![no_main]

use devices::DeviceMemory;
use devices::NoPin;
use devices::virtio::block::request::{Envelope, Limits, Request, SECTOR_SIZE};
use devices::virtio::buffers::Buffers;
use devices::virtio::chain::{Chain, Table};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 0x10000;
const SIZE: u16 = 16;

fn inside(buffers: &Buffers) -> bool {
    buffers.segments().iter().all(|segment| segment.len > 0 && segment.gpa + u64::from(segment.len) <= MEMORY as u64)
}

fuzz_target!(|bytes: &[u8]| {
    let Some(([head, flags], bytes)) = bytes.split_first_chunk::<2>().map(|(first, rest)| (*first, rest)) else {
        return;
    };
    let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("64 KiB can be mapped");
    let fits = bytes.len().min(MEMORY);
    memory.write_slice(&bytes[..fits], GuestAddress(0)).expect("it fits");
    let table =
        Table { memory: &memory, pinner: &NoPin, gpa: 0, size: SIZE, longest: 2 * SIZE, indirect: flags & 1 != 0 };
    let Ok(chain) = Chain::walk(&table, u16::from(head)) else { return };
    assert!(inside(&chain.readable) && inside(&chain.writable));
    let Some(envelope) = Envelope::open(&chain) else { return };
    assert_eq!(envelope.status.len(), 1);
    let limits = Limits { capacity: 64, read_only: flags & 2 != 0 };
    let end = limits.capacity * SECTOR_SIZE;
    match envelope.read(&memory, limits) {
        Ok(Request::Read { sector, into }) => assert!(sector * SECTOR_SIZE + u64::from(into.len()) <= end),
        Ok(Request::Write { sector, from }) => {
            assert!(!limits.read_only && sector * SECTOR_SIZE + u64::from(from.len()) <= end);
        }
        Ok(Request::Discard(ranges) | Request::WriteZeroes { ranges, .. }) => {
            assert!(!limits.read_only && ranges.iter().all(|range| range.start() + range.bytes() <= end));
        }
        Ok(Request::Flush | Request::GetId { .. }) | Err(_) => {}
    }
});

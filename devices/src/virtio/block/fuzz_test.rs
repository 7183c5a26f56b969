//! Any driver at all: arbitrary register accesses, descriptors and requests, in any order. Nothing panics, nothing hangs, and the file is
//! what the driver could rightly make of it: as long as before, and untouched behind its last whole sector.

use std::fs;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::BusDevice;
use crate::virtio::testing::{Driver, Ledger, Rings, memory};

const MEMORY: u64 = 0x40000;
const SECTORS: usize = 16;
const TAIL: usize = 100;

#[derive(Clone, Debug)]
enum Step {
    Start,
    ReadRegister(u64, usize),
    WriteRegister(u64, Vec<u8>),
    Describe(u16, u64, u32, u32, u16),
    Header(u64, u32, u64),
    /// A whole request: type, sector, address and length of its data, and whether the device may write that.
    Request(u32, u64, u64, u32, bool),
    Offer(u16),
    Poke(u64, u16),
    Notify,
    Pause,
    Resume,
}

/// Mostly the addresses where something is.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0x8000u64..0x9000, 1 => 0u64..MEMORY + 0x1000, 1 => any::<u64>()]
}

fn length() -> impl Strategy<Value = u32> {
    let sectors = prop_oneof![3 => 1u32..4, 1 => 0u32..20].prop_map(|count| count * 512);
    prop_oneof![2 => Just(16u32), 2 => Just(1u32), 6 => sectors, 2 => 0u32..0x2000, 1 => any::<u32>()]
}

fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 14u64..18, 4 => 0u64..20, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![3 => (0u64..0x50).prop_map(|n| n * 4), 1 => 0u64..0x1000, 1 => any::<u64>()];
    let value = prop_oneof![
        (0u32..16).prop_map(|value| value.to_le_bytes().to_vec()),
        any::<u32>().prop_map(|value| value.to_le_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..9),
    ];
    prop_oneof![
        3 => Just(Step::Start),
        1 => (register.clone(), 0usize..9).prop_map(|(at, len)| Step::ReadRegister(at, len)),
        1 => (register, value).prop_map(|(at, value)| Step::WriteRegister(at, value)),
        8 => (0u16..16, address(), length(), 0u32..8, 0u16..17).prop_map(|(i, at, len, flags, next)| Step::Describe(i, at, len, flags, next)),
        4 => (0x8000u64..0x9000, prop_oneof![0u32..16, any::<u32>()], sector()).prop_map(|(at, kind, sector)| Step::Header(at, kind, sector)),
        4 => (0u16..16).prop_map(Step::Offer),
        1 => any::<u16>().prop_map(Step::Offer),
        16 => (prop_oneof![0u32..3, 0u32..16], sector(), address(), length(), any::<bool>())
            .prop_map(|(kind, sector, at, len, writable)| Step::Request(kind, sector, at, len, writable)),
        1 => (0x1000u64..0x4000, any::<u16>()).prop_map(|(at, value)| Step::Poke(at, value)),
        4 => Just(Step::Notify),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
    ]
}

fn run(steps: &[Step], read_only: bool) -> (Vec<u8>, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let before: Vec<u8> = (1..=255).cycle().take(SECTORS * 512 + TAIL).collect();
    fs::write(file.path(), &before).unwrap();
    let memory = memory(usize::try_from(MEMORY).unwrap());
    let ledger = Ledger::default();
    ledger.poison(0xb000);
    let mut rings = Rings::new(&memory, 0x1000, 16);
    let mut driver = Driver::new(Block::new(Disk::open(file.path(), read_only).unwrap()), &memory, &ledger);
    for step in steps {
        match step {
            Step::Start => {
                rings = Rings::new(&memory, 0x1000, 16);
                driver.start(&rings, 0);
            }
            Step::ReadRegister(at, len) => driver.transport.read(*at, &mut vec![0; *len]),
            Step::WriteRegister(at, value) => driver.transport.write(*at, value),
            Step::Describe(index, gpa, len, flags, next) => rings.describe(*index, *gpa, *len, *flags, *next),
            Step::Header(gpa, kind, sector) => {
                memory.write_obj(*kind, GuestAddress(*gpa)).unwrap();
                memory.write_obj(*sector, GuestAddress(*gpa + 8)).unwrap();
            }
            Step::Request(kind, sector, at, len, writable) => {
                memory.write_obj(*kind, GuestAddress(0xa000)).unwrap();
                memory.write_obj(*sector, GuestAddress(0xa008)).unwrap();
                rings.offer(&[(0xa000, 16, false), (*at, *len, *writable), (0xa010, 1, true)]);
                driver.notify(0);
                // Mostly done before the next step; that it need not be is part of the game.
                for _ in 0..50 {
                    std::thread::yield_now();
                }
            }
            Step::Offer(head) => rings.offer_head(*head),
            Step::Poke(gpa, value) => memory.write_obj(*value, GuestAddress(*gpa)).unwrap(),
            Step::Notify => driver.notify(0),
            Step::Pause => driver.transport.pause(),
            Step::Resume => driver.transport.resume(),
        }
    }
    // Ends the thread: what it was asked to do before is done or never will be.
    drop(driver);
    assert_eq!(ledger.live(), 0);
    (before, fs::read(file.path()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_driver_breaks_the_device_or_writes_outside_the_disk(steps in prop::collection::vec(step(), 0..60)) {
        let (before, after) = run(&steps, false);
        prop_assert_eq!(after.len(), before.len());
        prop_assert_eq!(&after[SECTORS * 512..], &before[SECTORS * 512..]);
    }

    #[test]
    fn no_driver_changes_a_read_only_disk(steps in prop::collection::vec(step(), 0..60)) {
        let (before, after) = run(&steps, true);
        prop_assert_eq!(after, before);
    }
}

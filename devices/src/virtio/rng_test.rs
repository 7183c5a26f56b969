//! Tests of the entropy device, driven through its thread.

use super::*;
use crate::event::{new_event, signal};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{ActiveQueue, QueueContext};
use crate::virtio::testing::{Ledger, Rings, memory, peek};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

struct Bench {
    memory: DeviceMemory,
    ledger: Ledger,
    rings: Rings,
    event: EventFd,
    interrupt_event: EventFd,
    rng: Rng,
}

fn bench() -> Bench {
    let (memory, ledger) = (memory(0x100000), Ledger::default());
    let rings = Rings::new(&memory, 0x1000, 64);
    let (event, interrupt_event) = (new_event().unwrap(), new_event().unwrap());
    let context = QueueContext {
        memory: memory.clone(),
        pinner: Arc::new(ledger.clone()),
        interrupt: Arc::new(Interrupt::new(interrupt_event.try_clone().unwrap())),
        features: 0,
    };
    let mut rng = Rng::new();
    let max = rng.queue_sizes()[0];
    let queue = ActiveQueue::new(0, max, &rings.layout, event.try_clone().unwrap(), context.clone()).unwrap();
    let QueueContext { memory: shared, pinner, interrupt, features } = context;
    rng.activate(Activation { features, memory: shared, queues: vec![queue], interrupt, pinner }).unwrap();
    Bench { memory, ledger, rings, event, interrupt_event, rng }
}

impl Bench {
    fn request(&mut self, pieces: &[crate::virtio::testing::Piece]) -> u32 {
        self.rings.offer(pieces);
        signal(&self.event);
        self.rings.wait_used(&self.interrupt_event, 1)[0].1
    }
}

#[test]
fn a_request_is_filled_and_nothing_beside_it() {
    let mut bench = bench();
    assert_eq!(bench.request(&[(0x8000, 100, true), (0x9000, 5000, true)]), 5100);
    let bytes = peek(&bench.memory, 0x9000, 6000);
    // 5000 random bytes have about 20 zeros; 100 would be more than a coincidence.
    assert!(bytes[..5000].iter().filter(|byte| **byte == 0).count() < 100);
    assert!(bytes[5000..].iter().all(|byte| *byte == 0));
    assert_ne!(peek(&bench.memory, 0x8000, 100), peek(&bench.memory, 0x9000, 100));
}

#[test]
fn two_requests_get_different_bytes() {
    let mut bench = bench();
    assert_eq!(bench.request(&[(0x8000, 64, true)]), 64);
    let first = peek(&bench.memory, 0x8000, 64);
    assert_eq!(bench.request(&[(0x8000, 64, true)]), 64);
    assert_ne!(first, peek(&bench.memory, 0x8000, 64));
}

#[test]
fn a_huge_request_gets_the_limit() {
    let mut bench = bench();
    assert_eq!(bench.request(&[(0x10000, 0x80000, true)]), REQUEST_LIMIT);
    let behind = 0x10000 + u64::from(REQUEST_LIMIT);
    assert!(peek(&bench.memory, behind, 4096).iter().all(|byte| *byte == 0));
}

#[test]
fn memory_that_can_not_be_pinned_gets_nothing() {
    let mut bench = bench();
    bench.ledger.poison(0x9000);
    bench.memory.write_slice(&[7; 16], GuestAddress(0x8000)).unwrap();
    assert_eq!(bench.request(&[(0x8000, 16, true), (0x9000, 16, true)]), 0);
    assert_eq!(peek(&bench.memory, 0x8000, 16), [7; 16]);
}

#[test]
fn a_request_with_nothing_to_write_gets_nothing() {
    let mut bench = bench();
    assert_eq!(bench.request(&[(0x8000, 16, false)]), 0);
}

#[test]
fn only_its_rings_are_pinned_between_requests_and_nothing_after_a_reset() {
    let mut bench = bench();
    bench.request(&[(0x8000, 16, true)]);
    bench.rng.pause();
    assert_eq!(bench.ledger.live(), 3);
    bench.rng.resume();
    bench.rng.reset();
    assert_eq!(bench.ledger.live(), 0);
}

#[test]
fn without_its_queue_it_does_not_start() {
    let context = bench();
    let interrupt = Arc::new(Interrupt::new(new_event().unwrap()));
    let activation = Activation {
        features: 0,
        memory: context.memory.clone(),
        queues: vec![],
        interrupt,
        pinner: Arc::new(crate::pin::NoPin),
    };
    let error = Rng::new().activate(activation).unwrap_err();
    assert_eq!(error.to_string(), "queue 0 was not set up");
}

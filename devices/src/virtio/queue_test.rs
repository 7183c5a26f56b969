//! Tests of queues: layouts, rings, and giving requests back.

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::event::new_event;
use crate::virtio::testing::{Ledger, Rings, memory};

const BASE: u64 = 0x1000;
const SIZE: u16 = 8;

struct Bench {
    memory: DeviceMemory,
    ledger: Ledger,
    rings: Rings,
    interrupt: Arc<Interrupt>,
    queue: ActiveQueue,
}

fn context(memory: &DeviceMemory, ledger: &Ledger, features: u64) -> QueueContext {
    QueueContext {
        memory: memory.clone(),
        pinner: Arc::new(ledger.clone()),
        interrupt: Arc::new(Interrupt::new(new_event().unwrap())),
        features,
    }
}

fn bench(features: u64) -> Bench {
    let (memory, ledger) = (memory(0x20000), Ledger::default());
    let rings = Rings::new(&memory, BASE, SIZE);
    let context = context(&memory, &ledger, features);
    let interrupt = Arc::clone(&context.interrupt);
    let queue = ActiveQueue::new(3, 256, &rings.layout, new_event().unwrap(), context).unwrap();
    Bench { memory, ledger, rings, interrupt, queue }
}

fn check(change: impl FnOnce(&mut QueueLayout)) -> Result<u16, QueueError> {
    let memory = memory(0x20000);
    let mut layout = Rings::new(&memory, BASE, SIZE).layout;
    change(&mut layout);
    layout.check(&memory, 16)
}

#[test]
fn a_layout_inside_memory_is_accepted() {
    assert_eq!(check(|_| {}).unwrap(), SIZE);
    assert_eq!(check(|layout| layout.size = 16).unwrap(), 16);
    assert_eq!(check(|layout| layout.size = 1).unwrap(), 1);
    // The used ring of 8 entries has 70 bytes, and 0x20000 is the end.
    assert_eq!(check(|layout| layout.used = 0x20000 - 72).unwrap(), SIZE);
}

#[test]
fn sizes_that_are_not_powers_of_two_up_to_the_maximum_are_refused() {
    for size in [0, 3, 12, 32, 0x1_0008, u32::MAX] {
        let error = check(|layout| layout.size = size).unwrap_err();
        assert!(matches!(error, QueueError::BadSize { size: found, max: 16 } if found == size));
    }
    let error = check(|layout| layout.size = 3).unwrap_err();
    assert_eq!(error.to_string(), "a queue size of 3, not a power of two up to 16");
}

#[test]
fn rings_outside_memory_or_askew_are_refused() {
    type Part = (Ring, fn(&mut QueueLayout) -> &mut u64, u64);
    let parts: [Part; 3] = [
        (Ring::Descriptors, |layout| &mut layout.descriptors, 8),
        (Ring::Available, |layout| &mut layout.available, 1),
        (Ring::Used, |layout| &mut layout.used, 2),
    ];
    for (part, field, askew) in parts {
        for gpa in [0, BASE + askew, 0x1fff0, 0x20000, !0xf, u64::MAX] {
            let error = check(|layout| *field(layout) = gpa).unwrap_err();
            assert!(
                matches!(error, QueueError::BadAddress { ring, gpa: found } if ring == part && found == gpa),
                "{part}"
            );
        }
    }
    let error = check(|layout| layout.used = 2).unwrap_err();
    assert_eq!(error.to_string(), "its used ring at 0x2 is not in guest memory or not aligned");
    assert_eq!(Ring::Descriptors.to_string(), "descriptor table");
}

#[test]
fn the_rings_stay_pinned_as_long_as_the_queue_lives() {
    let bench = bench(0);
    for gpa in [BASE, BASE + 0x1000, BASE + 0x2000] {
        assert!(bench.ledger.covers(gpa));
    }
    drop(bench.queue);
    assert_eq!(bench.ledger.live(), 0);
}

#[test]
fn a_queue_whose_rings_can_not_be_pinned_is_refused_and_holds_no_pin() {
    let (memory, ledger) = (memory(0x20000), Ledger::default());
    let rings = Rings::new(&memory, BASE, SIZE);
    ledger.poison(BASE + 0x2000);
    let context = context(&memory, &ledger, 0);
    let error = ActiveQueue::new(0, 256, &rings.layout, new_event().unwrap(), context).err().unwrap();
    assert!(matches!(error, QueueError::Pin { ring: Ring::Used, source: PinError::Unreadable { gpa: 0x3000 } }));
    assert_eq!(error.to_string(), "its used ring can't be pinned");
    assert_eq!(ledger.live(), 0);
}

#[test]
fn requests_come_in_order_and_go_back_with_what_was_written() {
    let mut bench = bench(0);
    let heads = [10u32, 20, 30].map(|len| u32::from(bench.rings.offer(&[(0x8000, len, true)])));
    let mut seen = Vec::new();
    bench
        .queue
        .serve(
            || false,
            |chain| {
                seen.push(chain.writable.len());
                chain.writable.len() / 10
            },
        )
        .unwrap();
    assert_eq!(seen, [10, 20, 30]);
    assert_eq!(bench.rings.used(), [(heads[0], 1), (heads[1], 2), (heads[2], 3)]);
    assert_eq!(bench.interrupt.status(), VIRTIO_MMIO_INT_VRING);
}

#[test]
fn the_rings_go_round_many_times() {
    let mut bench = bench(1 << VIRTIO_RING_F_EVENT_IDX);
    for round in 0..70_000u32 {
        let head = bench.rings.offer(&[(0x8000, 1, true)]);
        bench.queue.serve(|| false, |_| round).unwrap();
        assert_eq!(bench.rings.used(), [(u32::from(head), round)]);
    }
}

#[test]
fn an_interrupted_queue_keeps_the_rest_for_later() {
    let mut bench = bench(0);
    for _ in 0..3 {
        bench.rings.offer(&[(0x8000, 1, true)]);
    }
    bench.queue.serve(|| true, |_| 0).unwrap();
    assert_eq!(bench.rings.used().len(), 1);
    bench.queue.serve(|| false, |_| 0).unwrap();
    assert_eq!(bench.rings.used().len(), 2);
}

#[test]
fn a_malformed_request_goes_back_untouched_and_the_next_one_is_served() {
    let mut bench = bench(0);
    let bad = bench.rings.offer(&[(0x2_0000, 1, true)]);
    let good = bench.rings.offer(&[(0x8000, 1, true)]);
    let mut served = 0;
    bench
        .queue
        .serve(
            || false,
            |_| {
                served += 1;
                1
            },
        )
        .unwrap();
    assert_eq!(served, 1);
    assert_eq!(bench.rings.used(), [(u32::from(bad), 0), (u32::from(good), 1)]);
}

#[test]
fn a_head_that_does_not_exist_breaks_the_queue() {
    let mut bench = bench(0);
    bench.rings.offer_head(SIZE);
    let error = bench.queue.serve(|| false, |_| 0).unwrap_err();
    assert!(matches!(error, QueueError::BadHead { head: SIZE, size: SIZE }));
    assert_eq!(error.to_string(), "chain head 8 in a queue of 8");
}

#[test]
fn an_available_index_that_ran_away_breaks_the_queue() {
    let mut bench = bench(0);
    bench.memory.write_obj(SIZE + 1, GuestAddress(bench.rings.layout.available + 2)).unwrap();
    let error = bench.queue.serve(|| false, |_| 0).unwrap_err();
    assert!(matches!(error, QueueError::Broken(virtio_queue::Error::InvalidAvailRingIndex)));
    assert_eq!(error.to_string(), "its rings are broken");
}

#[test]
fn with_event_indices_the_driver_is_called_only_when_it_asked_to_be() {
    let mut bench = bench(1 << VIRTIO_RING_F_EVENT_IDX);
    // Call me when the second request is back.
    bench.rings.ask_for_call(1);
    bench.rings.offer(&[(0x8000, 1, true)]);
    bench.queue.serve(|| false, |_| 0).unwrap();
    assert_eq!(bench.interrupt.status(), 0);
    bench.rings.offer(&[(0x8000, 1, true)]);
    bench.queue.serve(|| false, |_| 0).unwrap();
    assert_eq!(bench.interrupt.status(), VIRTIO_MMIO_INT_VRING);
}

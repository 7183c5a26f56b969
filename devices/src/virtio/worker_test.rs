//! Tests of device threads: serving, pausing, stopping, giving up.

use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::DeviceMemory;
use crate::virtio::queue::QueueContext;
use crate::virtio::testing::{Ledger, Rings, memory, wait};

/// Says that a request began, and ends it when told to.
struct Gatekeeper {
    began: Sender<u32>,
    finish: Receiver<()>,
}

impl RequestHandler for Gatekeeper {
    fn handle(&mut self, _queue: u16, chain: &Chain) -> u32 {
        self.began.send(chain.writable.len()).unwrap();
        self.finish.recv().unwrap();
        chain.writable.len()
    }
}

struct Immediate;

impl RequestHandler for Immediate {
    fn handle(&mut self, queue: u16, _chain: &Chain) -> u32 {
        u32::from(queue)
    }
}

struct Bench {
    memory: DeviceMemory,
    ledger: Ledger,
    rings: Rings,
    event: EventFd,
    interrupt: Arc<Interrupt>,
    interrupt_event: EventFd,
    worker: Worker,
}

fn bench(handler: Box<dyn RequestHandler>) -> Bench {
    let (memory, ledger) = (memory(0x20000), Ledger::default());
    let rings = Rings::new(&memory, 0x1000, 8);
    let (event, interrupt_event) = (new_event().unwrap(), new_event().unwrap());
    let interrupt = Arc::new(Interrupt::new(interrupt_event.try_clone().unwrap()));
    let context = QueueContext {
        memory: memory.clone(),
        pinner: Arc::new(ledger.clone()),
        interrupt: Arc::clone(&interrupt),
        features: 0,
    };
    let queue = ActiveQueue::new(5, 8, &rings.layout, event.try_clone().unwrap(), context).unwrap();
    let worker = Worker::spawn("test", vec![queue], handler, Arc::clone(&interrupt)).unwrap();
    Bench { memory, ledger, rings, event, interrupt, interrupt_event, worker }
}

#[test]
fn a_notified_queue_is_served_by_its_number() {
    let mut bench = bench(Box::new(Immediate));
    for _ in 0..100 {
        let head = bench.rings.offer(&[(0x8000, 1, true)]);
        signal(&bench.event);
        assert_eq!(bench.rings.wait_used(&bench.interrupt_event, 1), [(u32::from(head), 5)]);
    }
}

#[test]
fn pausing_waits_for_the_request_at_work_and_starts_no_other() {
    let (began, beginnings) = channel();
    let (endings, finish) = channel();
    let mut bench = bench(Box::new(Gatekeeper { began, finish }));
    bench.rings.offer(&[(0x8000, 10, true)]);
    bench.rings.offer(&[(0x8000, 20, true)]);
    signal(&bench.event);
    assert_eq!(beginnings.recv().unwrap(), 10);
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| bench.worker.pause());
        // The request ends only now, so that the pause finds it at work, or comes before the next one at the latest.
        while !bench.worker.control.interrupted() {
            std::thread::yield_now();
        }
        endings.send(()).unwrap();
        pause.join().unwrap();
    });
    assert_eq!(bench.rings.used().len(), 1);
    signal(&bench.event);
    assert!(beginnings.try_recv().is_err());
    bench.worker.resume();
    assert_eq!(beginnings.recv().unwrap(), 20);
    endings.send(()).unwrap();
    assert_eq!(bench.rings.wait_used(&bench.interrupt_event, 1).len(), 1);
}

#[test]
fn a_paused_thread_leaves_events_alone_and_catches_up_without_them() {
    let mut bench = bench(Box::new(Immediate));
    bench.worker.pause();
    bench.rings.offer(&[(0x8000, 1, true)]);
    signal(&bench.event);
    for _ in 0..1000 {
        std::thread::yield_now();
        assert!(bench.rings.used().is_empty());
    }
    assert_eq!(bench.event.read().unwrap(), 1, "nobody took the notification");
    bench.worker.resume();
    assert_eq!(bench.rings.wait_used(&bench.interrupt_event, 1).len(), 1);
}

#[test]
fn pausing_and_resuming_in_any_rhythm_loses_no_request() {
    let mut bench = bench(Box::new(Immediate));
    for round in 0..500 {
        bench.rings.offer(&[(0x8000, 1, true)]);
        signal(&bench.event);
        if round % 2 == 0 {
            bench.worker.pause();
            bench.worker.pause();
        }
        bench.worker.resume();
        assert_eq!(bench.rings.wait_used(&bench.interrupt_event, 1).len(), 1);
    }
}

#[test]
fn stopping_unpins_the_rings_even_when_paused() {
    let running = bench(Box::new(Immediate));
    assert!(running.ledger.live() > 0);
    running.worker.stop();
    assert_eq!(running.ledger.live(), 0);
    let paused = bench(Box::new(Immediate));
    paused.worker.pause();
    drop(paused.worker);
    assert_eq!(paused.ledger.live(), 0);
}

#[test]
fn a_broken_queue_asks_for_a_reset_and_can_still_be_paused_and_stopped() {
    let mut bench = bench(Box::new(Immediate));
    bench.rings.offer_head(77);
    signal(&bench.event);
    wait(&bench.interrupt_event);
    assert!(bench.interrupt.needs_reset());
    bench.worker.pause();
    bench.worker.resume();
    // Even when the rings look good again: only a reset helps.
    bench.memory.write_slice(&[0; 0x3000], GuestAddress(0x1000)).unwrap();
    signal(&bench.event);
    bench.worker.pause();
    assert!(bench.rings.used().is_empty());
    bench.worker.stop();
    assert_eq!(bench.ledger.live(), 0);
}

#[test]
fn a_thread_that_panicked_does_not_hang_its_owner() {
    struct Panics(Sender<()>);
    impl RequestHandler for Panics {
        fn handle(&mut self, _queue: u16, _chain: &Chain) -> u32 {
            self.0.send(()).unwrap();
            panic!("on purpose");
        }
    }
    let (began, beginnings) = channel();
    let mut bench = bench(Box::new(Panics(began)));
    bench.rings.offer(&[(0x8000, 1, true)]);
    signal(&bench.event);
    beginnings.recv().unwrap();
    bench.worker.pause();
    bench.worker.stop();
}

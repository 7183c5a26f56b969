//! Tests of the transport: each register, the negotiation, and what a driver does out of turn.

use std::sync::Mutex;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

use super::*;
use crate::virtio::queue::QueueLayout;
use crate::virtio::testing::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Driver, FAILED, FEATURES_OK, Ledger, NEEDS_RESET, Rings, memory,
};

const OWN_FEATURE: u64 = 1 << 3;
const ALL: u64 = TRANSPORT_FEATURES | OWN_FEATURE;

#[derive(Default)]
struct Log {
    activations: Vec<(u64, Vec<u16>)>,
    resets: usize,
    config: Vec<(u64, Vec<u8>)>,
    interrupt: Option<Arc<Interrupt>>,
}

/// Two queues; keeps what it was activated with, and says what was done to it.
#[derive(Clone, Default)]
struct Probe {
    log: Arc<Mutex<Log>>,
    queues: Arc<Mutex<Vec<ActiveQueue>>>,
    refuses: bool,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        OWN_FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap());
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().config.push((offset, data.to_vec()));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuses {
            return Err(ActivateError::MissingQueue { index: 1 });
        }
        let numbers = activation.queues.iter().map(ActiveQueue::index).collect();
        let mut log = self.log.lock().unwrap();
        log.activations.push((activation.features, numbers));
        log.interrupt = Some(activation.interrupt);
        *self.queues.lock().unwrap() = activation.queues;
        Ok(())
    }

    fn reset(&mut self) {
        self.queues.lock().unwrap().clear();
        self.log.lock().unwrap().resets += 1;
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}
}

struct Bench {
    driver: Driver,
    probe: Probe,
    rings: [Rings; 2],
    ledger: Ledger,
}

fn bench_with(probe: Probe) -> Bench {
    let (memory, ledger) = (memory(0x20000), Ledger::default());
    let rings = [Rings::new(&memory, 0x1000, 8), Rings::new(&memory, 0x8000, 16)];
    Bench { driver: Driver::new(probe.clone(), &memory, &ledger), probe, rings, ledger }
}

fn bench() -> Bench {
    bench_with(Probe::default())
}

impl Bench {
    fn start_with(&mut self, queues: &[usize]) {
        assert!(self.driver.negotiate(ALL));
        for index in queues {
            assert!(self.driver.set_up_queue(u32::try_from(*index).unwrap(), &self.rings[*index].layout));
        }
        self.driver.add_status(DRIVER_OK);
    }

    fn activations(&self) -> Vec<(u64, Vec<u16>)> {
        self.probe.log.lock().unwrap().activations.clone()
    }
}

#[test]
fn the_registers_say_what_is_there() {
    let mut driver = bench().driver;
    assert_eq!(driver.read(0x000).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(0x004), 2);
    assert_eq!(driver.read(0x008), 42);
    assert_ne!(driver.read(0x00c), 0);
    assert_eq!(driver.offered(), ALL);
    driver.write(0x014, 2);
    assert_eq!(driver.read(0x010), 0, "no features from 64 on");
    for (select, max) in [(0, 8), (1, 16), (2, 0), (u32::MAX, 0)] {
        driver.write(0x030, select);
        assert_eq!((driver.read(0x034), driver.read(0x044)), (max, 0));
    }
    assert_eq!([0x0b0, 0x0b4, 0x0b8, 0x0bc].map(|offset| driver.read(offset)), [u32::MAX; 4], "no shared memory");
    assert_eq!(driver.read(0x0fc), 0);
    assert_eq!(driver.read(0x070), 0);
}

#[test]
fn a_driver_brings_the_device_up() {
    let mut bench = bench();
    bench.start_with(&[0, 1]);
    assert_eq!(bench.driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.activations(), [(ALL, vec![0, 1])]);
    assert_eq!(bench.ledger.live(), 6);
}

#[test]
fn only_queues_that_were_set_up_are_handed_over() {
    let mut bench = bench();
    bench.start_with(&[1]);
    assert_eq!(bench.activations(), [(ALL, vec![1])]);
}

#[test]
fn features_that_are_not_on_offer_or_a_legacy_driver_are_not_accepted() {
    let mut bench = bench();
    for features in [ALL | 1 << VIRTIO_F_RING_PACKED, ALL | 1, ALL & !(1 << VIRTIO_F_VERSION_1), 0] {
        assert!(!bench.driver.negotiate(features), "{features:#x}");
        bench.driver.add_status(DRIVER_OK);
        assert_eq!(bench.driver.status(), ACKNOWLEDGE | DRIVER);
    }
    assert!(bench.driver.negotiate(1 << VIRTIO_F_VERSION_1), "fewer features are fine");
    assert_eq!(bench.activations(), []);
}

#[test]
fn features_beyond_63_are_not_accepted_until_a_reset() {
    let mut driver = bench().driver;
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    driver.write(0x024, 2);
    driver.write(0x020, 1);
    driver.write(0x024, 1);
    driver.write(0x020, 1);
    driver.add_status(FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    assert!(driver.negotiate(ALL));
}

#[test]
fn features_change_only_while_they_are_negotiated() {
    let mut bench = bench();
    bench.driver.write(0x020, 1 << 30);
    assert!(bench.driver.negotiate(ALL));
    bench.driver.write(0x024, 0);
    bench.driver.write(0x020, 0);
    assert!(bench.driver.set_up_queue(0, &bench.rings[0].layout));
    bench.driver.add_status(DRIVER_OK);
    assert_eq!(bench.activations(), [(ALL, vec![0])]);
}

#[test]
fn a_queue_is_set_up_only_between_features_and_start() {
    let mut bench = bench();
    let layout = bench.rings[0].layout;
    assert!(!bench.driver.set_up_queue(0, &layout));
    bench.driver.add_status(ACKNOWLEDGE);
    bench.driver.add_status(DRIVER);
    assert!(!bench.driver.set_up_queue(0, &layout));
    assert!(bench.driver.negotiate(ALL));
    bench.driver.add_status(DRIVER_OK);
    assert!(!bench.driver.set_up_queue(0, &layout));
    assert_eq!(bench.activations(), [(ALL, vec![])]);
}

#[test]
fn a_layout_that_is_not_all_in_memory_never_becomes_ready() {
    let mut bench = bench();
    assert!(bench.driver.negotiate(ALL));
    let good = bench.rings[0].layout;
    let bad = [
        QueueLayout { size: 0, ..good },
        QueueLayout { size: 16, ..good },
        QueueLayout { size: 7, ..good },
        QueueLayout { descriptors: 0x1_0000_0000, ..good },
        QueueLayout { descriptors: 0x1008, ..good },
        QueueLayout { available: 0x1ffff, ..good },
        QueueLayout { used: !3, ..good },
        QueueLayout { used: 0, ..good },
    ];
    for layout in bad {
        assert!(!bench.driver.set_up_queue(0, &layout), "{layout:x?}");
    }
    assert!(!bench.driver.set_up_queue(2, &good), "there are two queues");
    assert!(bench.driver.set_up_queue(0, &good));
}

#[test]
fn a_ready_queue_keeps_its_layout() {
    let mut bench = bench();
    assert!(bench.driver.negotiate(ALL));
    assert!(bench.driver.set_up_queue(0, &bench.rings[0].layout));
    assert!(bench.driver.set_up_queue(0, &QueueLayout { used: 0xffff_f000, ..bench.rings[0].layout }));
    bench.driver.add_status(DRIVER_OK);
    assert_eq!(bench.driver.status() & NEEDS_RESET, 0);
    assert!(bench.ledger.taken().contains(&(bench.rings[0].layout.used, 0x1000)));
}

#[test]
fn rings_that_can_not_be_pinned_make_the_device_ask_for_a_reset() {
    let mut bench = bench();
    bench.ledger.poison(bench.rings[0].layout.available);
    bench.start_with(&[0]);
    assert_ne!(bench.driver.status() & NEEDS_RESET, 0);
    assert_eq!(bench.driver.interrupt.read().unwrap(), 1);
    assert_eq!(bench.driver.read(0x060), 2, "the configuration interrupt");
    assert_eq!(bench.ledger.live(), 0);
    assert!(bench.driver.negotiate(ALL), "a reset is possible");
    assert_eq!(bench.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn a_device_that_does_not_start_asks_for_a_reset() {
    let mut bench = bench_with(Probe { refuses: true, ..Probe::default() });
    bench.start_with(&[0]);
    assert_ne!(bench.driver.status() & NEEDS_RESET, 0);
    bench.driver.notify(0);
    assert!(bench.driver.transport.queue_events()[0].read().is_err());
}

#[test]
fn a_reset_takes_everything_back() {
    let mut bench = bench();
    bench.start_with(&[0, 1]);
    bench.probe.log.lock().unwrap().interrupt.as_ref().unwrap().queue_used();
    assert_eq!(bench.driver.read(0x060), 1);
    bench.driver.write(0x070, 0);
    assert_eq!((bench.driver.status(), bench.driver.read(0x060)), (0, 0));
    assert_eq!(bench.ledger.live(), 0);
    for queue in [0, 1] {
        bench.driver.write(0x030, queue);
        assert_eq!(bench.driver.read(0x044), 0);
    }
    bench.start_with(&[1]);
    assert_eq!(bench.activations(), [(ALL, vec![0, 1]), (ALL, vec![1])]);
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let mut bench = bench();
    bench.start_with(&[0]);
    bench.driver.add_status(FAILED);
    assert_eq!(bench.ledger.live(), 0);
    assert_ne!(bench.driver.status() & FAILED, 0);
    bench.driver.notify(0);
    assert!(bench.driver.transport.queue_events()[0].read().is_err());
}

#[test]
fn starting_twice_activates_once() {
    let mut bench = bench();
    bench.start_with(&[0]);
    bench.driver.add_status(DRIVER_OK);
    assert_eq!(bench.activations().len(), 1);
}

#[test]
fn a_queue_that_is_taken_back_stops_the_device() {
    let mut bench = bench();
    bench.start_with(&[0]);
    bench.driver.write(0x030, 0);
    bench.driver.write(0x044, 0);
    assert_eq!(bench.driver.read(0x044), 0);
    assert_eq!(bench.ledger.live(), 0);
    assert_eq!(bench.driver.status() & NEEDS_RESET, 0);

    bench.start_with(&[0, 1]);
    bench.driver.write(0x030, 1);
    bench.driver.write(0x044, 0);
    assert_eq!(bench.ledger.live(), 0);
    assert_ne!(bench.driver.status() & NEEDS_RESET, 0, "the other queue is dead too, and the driver must know");
}

#[test]
fn notifications_reach_the_right_queue_of_an_active_device() {
    let mut bench = bench();
    let events: Vec<_> = bench.driver.transport.queue_events().iter().map(|event| event.try_clone().unwrap()).collect();
    bench.driver.notify(0);
    assert!(events[0].read().is_err(), "not active yet");
    bench.start_with(&[0, 1]);
    bench.driver.notify(1);
    assert_eq!(events[1].read().unwrap(), 1);
    assert!(events[0].read().is_err());
    for queue in [2, 0x1_0000, u32::MAX] {
        bench.driver.notify(queue);
    }
    assert!(events.iter().all(|event| event.read().is_err()));
    assert_eq!(MmioTransport::QUEUE_NOTIFY, 0x50);
}

#[test]
fn interrupts_are_acknowledged_by_cause() {
    let mut bench = bench();
    bench.start_with(&[0]);
    let interrupt = Arc::clone(bench.probe.log.lock().unwrap().interrupt.as_ref().unwrap());
    interrupt.queue_used();
    interrupt.config_changed();
    assert_eq!(bench.driver.read(0x060), 3);
    bench.driver.write(0x064, 1);
    assert_eq!(bench.driver.read(0x060), 2);
    assert_eq!(bench.driver.read(0x0fc), 1);
}

#[test]
fn the_configuration_space_is_the_devices() {
    let mut bench = bench();
    let mut byte = [0];
    bench.driver.transport.read(0x107, &mut byte);
    assert_eq!(byte, [7]);
    let mut eight = [0; 8];
    bench.driver.transport.read(0x110, &mut eight);
    assert_eq!(eight, [0x10; 8]);
    bench.driver.transport.write(0x104, &[1, 2]);
    bench.driver.add_status(ACKNOWLEDGE);
    bench.driver.add_status(DRIVER);
    bench.driver.transport.write(0x105, &[3, 4]);
    assert_eq!(bench.probe.log.lock().unwrap().config, [(5, vec![3, 4])], "only a driver writes");
}

#[test]
fn accesses_that_are_not_four_aligned_bytes_are_ignored() {
    let mut bench = bench();
    for (offset, len) in [(0x000, 1), (0x000, 2), (0x000, 8), (0x002, 4), (0x001, 1)] {
        let mut bytes = vec![0xee; len];
        bench.driver.transport.read(offset, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
    bench.driver.transport.write(0x070, &[1]);
    bench.driver.transport.write(0x070, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.driver.status(), 0);
}

#[test]
fn a_transport_that_goes_away_stops_its_device() {
    let mut bench = bench();
    bench.start_with(&[0]);
    drop(bench.driver);
    assert_eq!(bench.ledger.live(), 0);
    assert!(bench.probe.log.lock().unwrap().resets > 0);
}

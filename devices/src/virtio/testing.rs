//! What the tests of devices share: guest memory, a driver's side of a queue, and a pinner that keeps books.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::DeviceMemory;
use crate::bus::BusDevice;
use crate::event::new_event;
use crate::pin::{PinError, Pinned, Pinner};
use crate::virtio::buffers::Buffers;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::queue::QueueLayout;

/// `bytes` bytes of guest memory from address 0 on.
pub fn memory(bytes: usize) -> DeviceMemory {
    DeviceMemory::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
}

/// Reads `len` bytes at `gpa`.
pub fn peek(memory: &DeviceMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

/// Waits until `event` is signalled, and takes the signal. Ten seconds without one are a failure.
pub fn wait(event: &EventFd) {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one `pollfd` at a valid address.
    let count = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
    assert_eq!(count, 1, "no event within ten seconds");
    event.read().unwrap();
}

/// A piece of a request: guest physical address, length, and whether the device may write it.
pub type Piece = (u64, u32, bool);

/// The driver's side of a queue.
pub struct Rings {
    memory: DeviceMemory,
    pub layout: QueueLayout,
    size: u16,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

impl Rings {
    /// Rings of `size` entries, from `base` on, in three pages.
    pub fn new(memory: &DeviceMemory, base: u64, size: u16) -> Self {
        assert!(size <= 256, "the descriptor table has a page");
        let layout =
            QueueLayout { size: u32::from(size), descriptors: base, available: base + 0x1000, used: base + 0x2000 };
        memory.write_slice(&[0; 0x3000], GuestAddress(base)).unwrap();
        Self { memory: memory.clone(), layout, size, next_descriptor: 0, available: 0, seen: 0 }
    }

    /// Writes descriptor `index`.
    pub fn describe(&self, index: u16, gpa: u64, len: u32, flags: u32, next: u16) {
        describe(&self.memory, self.layout.descriptors, index, gpa, len, flags, next);
    }

    /// Puts a chain's head into the available ring.
    pub fn offer_head(&mut self, head: u16) {
        let entry = self.layout.available + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(self.layout.available + 2)).unwrap();
    }

    /// Offers a request in descriptors of its own; answers its head.
    pub fn offer(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.next_descriptor;
        for (at, (gpa, len, writable)) in pieces.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let next = if at + 1 < pieces.len() { VRING_DESC_F_NEXT } else { 0 };
            let write = if *writable { VRING_DESC_F_WRITE } else { 0 };
            self.describe(index, *gpa, *len, next | write, self.next_descriptor);
        }
        self.offer_head(head);
        head
    }

    /// Offers a request in an indirect table at `table`; answers its head.
    pub fn offer_indirect(&mut self, table: u64, pieces: &[Piece]) -> u16 {
        for (index, (gpa, len, writable)) in (0u16..).zip(pieces) {
            let next = if usize::from(index) + 1 < pieces.len() { VRING_DESC_F_NEXT } else { 0 };
            let write = if *writable { VRING_DESC_F_WRITE } else { 0 };
            describe(&self.memory, table, index, *gpa, *len, next | write, index + 1);
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size;
        self.describe(head, table, 16 * u32::try_from(pieces.len()).unwrap(), VRING_DESC_F_INDIRECT, 0);
        self.offer_head(head);
        head
    }

    /// The requests that came back since the last look: head and bytes written.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.layout.used + 2)).unwrap();
        let mut back = Vec::new();
        while self.seen != index {
            let entry = self.layout.used + 4 + 8 * u64::from(self.seen % self.size);
            let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(entry)).unwrap();
            back.push((head, written));
            self.seen = self.seen.wrapping_add(1);
        }
        back
    }

    /// Waits for `count` requests to come back, with `interrupt` as the call.
    pub fn wait_used(&mut self, interrupt: &EventFd, count: usize) -> Vec<(u32, u32)> {
        let mut back = Vec::new();
        while back.len() < count {
            // "Call me for the next one", then look again before waiting: as a driver with event indices has to.
            self.ask_for_call(self.seen);
            let new = self.used();
            if new.is_empty() {
                wait(interrupt);
            }
            back.extend(new);
        }
        back
    }

    /// Asks for an interrupt when request number `index` comes back; only devices with event indices look.
    pub fn ask_for_call(&self, index: u16) {
        let used_event = self.layout.available + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(index, GuestAddress(used_event)).unwrap();
        // The device must not miss the wish while we miss its request.
        fence(Ordering::SeqCst);
    }
}

/// Status bits as a driver climbs them.
pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
pub const FAILED: u32 = 128;

/// A driver at the registers of a transport, as Linux' virtio_mmio works them.
pub struct Driver {
    pub transport: MmioTransport,
    pub interrupt: EventFd,
}

impl Driver {
    /// Puts `device` behind registers.
    pub fn new(device: impl VirtioDevice + 'static, memory: &DeviceMemory, ledger: &Ledger) -> Self {
        let interrupt = new_event().unwrap();
        let pinner = Arc::new(ledger.clone());
        let event = interrupt.try_clone().unwrap();
        let transport = MmioTransport::new(Box::new(device), memory.clone(), pinner, event).unwrap();
        Self { transport, interrupt }
    }

    pub fn read(&mut self, offset: u32) -> u32 {
        let mut bytes = [0xee; 4];
        self.transport.read(u64::from(offset), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&mut self, offset: u32, value: u32) {
        self.transport.write(u64::from(offset), &value.to_le_bytes());
    }

    pub fn status(&mut self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }

    pub fn add_status(&mut self, bits: u32) {
        let status = self.status();
        self.write(register::VIRTIO_MMIO_STATUS, status | bits);
    }

    pub fn offered(&mut self) -> u64 {
        self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.read(register::VIRTIO_MMIO_DEVICE_FEATURES));
        self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        high << 32 | u64::from(self.read(register::VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// Everything up to FEATURES_OK; answers whether the device took the features.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(register::VIRTIO_MMIO_STATUS, 0);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        for (select, shift) in [(1, 32), (0, 0)] {
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            let half = features >> shift & u64::from(u32::MAX);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
        self.add_status(FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// Lays out a queue; answers whether the device says that it is ready.
    pub fn set_up_queue(&mut self, index: u32, layout: &QueueLayout) -> bool {
        let halves = |address: u64| {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
        };
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, layout.size);
        for (low, high, address) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, register::VIRTIO_MMIO_QUEUE_DESC_HIGH, layout.descriptors),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, layout.available),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, register::VIRTIO_MMIO_QUEUE_USED_HIGH, layout.used),
        ] {
            let (low_half, high_half) = halves(address);
            self.write(low, low_half);
            self.write(high, high_half);
        }
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
        self.read(register::VIRTIO_MMIO_QUEUE_READY) == 1
    }

    /// From nothing to DRIVER_OK, with one queue and every feature on offer but `without`.
    pub fn start(&mut self, rings: &Rings, without: u64) {
        let features = self.offered() & !without;
        assert!(self.negotiate(features));
        assert!(self.set_up_queue(0, &rings.layout));
        self.add_status(DRIVER_OK);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn notify(&mut self, queue: u32) {
        self.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
}

/// Writes a descriptor into the table at `table`.
pub fn describe(memory: &DeviceMemory, table: u64, index: u16, gpa: u64, len: u32, flags: u32, next: u16) {
    let descriptor = Descriptor::new(gpa, len, u16::try_from(flags).unwrap(), next);
    memory.write_obj(descriptor, GuestAddress(table + 16 * u64::from(index))).unwrap();
}

#[derive(Default)]
struct Books {
    taken: Vec<(u64, u64)>,
    live: Vec<(u64, u64)>,
    poisoned: BTreeSet<u64>,
}

/// A pinner that remembers every pin, knows which ones live, and refuses poisoned pages.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Books>>);

struct Entry {
    books: Arc<Mutex<Books>>,
    range: (u64, u64),
}

impl Ledger {
    /// Every pin so far, as address and length.
    pub fn taken(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap().taken.clone()
    }

    /// How many pins live.
    pub fn live(&self) -> usize {
        self.0.lock().unwrap().live.len()
    }

    /// Whether the byte at `gpa` is pinned.
    pub fn covers(&self, gpa: u64) -> bool {
        self.0.lock().unwrap().live.iter().any(|(start, len)| (*start..start + len).contains(&gpa))
    }

    /// From now on the page at `gpa` can't be pinned.
    pub fn poison(&self, gpa: u64) {
        self.0.lock().unwrap().poisoned.insert(gpa);
    }
}

impl Pinner for Ledger {
    fn pin(&self, gpa: u64, len: u64) -> Result<Box<dyn Pinned>, PinError> {
        let mut books = self.0.lock().unwrap();
        if let Some(page) = books.poisoned.range(gpa & !0xfff..gpa + len).next() {
            return Err(PinError::Unreadable { gpa: *page });
        }
        books.taken.push((gpa, len));
        books.live.push((gpa, len));
        Ok(Box::new(Entry { books: Arc::clone(&self.0), range: (gpa, len) }))
    }
}

impl Pinned for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut books = self.books.lock().unwrap();
        let at = books.live.iter().position(|range| *range == self.range).unwrap();
        books.live.swap_remove(at);
    }
}

/// Buffers made of these pieces (address, length).
pub fn buffers(memory: &DeviceMemory, pieces: &[(u64, u32)]) -> Buffers {
    let mut buffers = Buffers::default();
    for (gpa, len) in pieces {
        buffers.push(memory, *gpa, *len).unwrap();
    }
    buffers
}

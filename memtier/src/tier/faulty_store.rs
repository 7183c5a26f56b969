//! A store that goes wrong on demand, around a real one. For tests, here and end to end; the product never makes one.
//!
//! Promises: without a plan it is the store inside; with one, exactly the slots that the plan names go wrong, the way it says. Must never: make a
//! store that failed look better than it is to the code under test.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::store::{PageStore, StoreKind, WriteRun};
use crate::page::{Page, PageSlab};
use crate::units::{PAGE_SIZE, SlotOffset};

/// What is being done to one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotOp {
    /// A page is written to it.
    Write(SlotOffset),
    /// It is read.
    Read(SlotOffset),
}

impl SlotOp {
    /// The slot.
    pub const fn slot(self) -> SlotOffset {
        match self {
            Self::Write(slot) | Self::Read(slot) => slot,
        }
    }

    /// Whether it is a write.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write(_))
    }
}

/// How a slot goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails with this error number (`libc::EIO`, `libc::ENOSPC`) and moves no data.
    Fail(i32),
    /// Fails after half a page.
    Short,
    /// Says that all went well, after half a page.
    Torn,
    /// Says that all went well and did nothing: a lost write, or a read that left the buffer as it was.
    Lost,
    /// Turns this bit of the page over, counted from its first byte's lowest.
    FlipBit(usize),
    /// Goes to this slot instead. With a plan that answers so for two slots, these are exchanged.
    Misdirect(SlotOffset),
    /// Takes this long, then goes well.
    Delay(Duration),
}

/// Says what happens to each slot touched; asked once per slot and operation.
pub type FaultPlan = dyn Fn(SlotOp) -> Option<Fault> + Send + Sync;

/// The handle by which a test changes what goes wrong while the store is in use.
pub struct Faults {
    plan: RwLock<Option<Box<FaultPlan>>>,
    injected: AtomicU64,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("injected", &self.injected()).finish_non_exhaustive()
    }
}

impl Faults {
    /// From now on the plan decides.
    pub fn set(&self, plan: impl Fn(SlotOp) -> Option<Fault> + Send + Sync + 'static) {
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(plan));
    }

    /// From now on the plan decides, but the first `skip` operations that it names go well.
    pub fn set_after(&self, skip: u64, plan: impl Fn(SlotOp) -> Option<Fault> + Send + Sync + 'static) {
        let seen = AtomicU64::new(0);
        self.set(move |op| plan(op).filter(|_| seen.fetch_add(1, Ordering::Relaxed) >= skip));
    }

    /// From now on all goes well.
    pub fn clear(&self) {
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How often something was made to go wrong.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    fn next(&self, op: SlotOp) -> Option<Fault> {
        let plan = self.plan.read().unwrap_or_else(PoisonError::into_inner);
        let fault = plan.as_ref().and_then(|plan| plan(op));
        self.injected.fetch_add(u64::from(fault.is_some()), Ordering::Relaxed);
        fault
    }
}

/// A store that goes wrong on demand.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Box<dyn PageStore>,
    faults: Arc<Faults>,
}

impl FaultyStore {
    /// Wraps a store. All goes well until the handle says otherwise.
    pub fn new(inner: Box<dyn PageStore>) -> (Self, Arc<Faults>) {
        let faults = Arc::new(Faults { plan: RwLock::new(None), injected: AtomicU64::new(0) });
        (Self { inner, faults: Arc::clone(&faults) }, faults)
    }

    /// Writes one page with its fault.
    fn write_one(&self, slot: SlotOffset, page: &Page) -> io::Result<()> {
        // A copy: some faults change it, and direct I/O wants it aligned.
        let mut copy = PageSlab::new(1);
        copy[0] = *page;
        let (mut to, mut outcome) = (slot, Ok(()));
        match self.faults.next(SlotOp::Write(slot)) {
            None => {}
            Some(Fault::Fail(number)) => return Err(io::Error::from_raw_os_error(number)),
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::FlipBit(bit)) => flip(&mut copy[0], bit),
            Some(Fault::Misdirect(other)) => to = other,
            Some(Fault::Delay(time)) => std::thread::sleep(time),
            Some(half @ (Fault::Short | Fault::Torn)) => {
                let mut old = PageSlab::new(1);
                self.inner.read(slot, &mut old[0])?;
                copy[0][PAGE_SIZE / 2..].copy_from_slice(&old[0][PAGE_SIZE / 2..]);
                if half == Fault::Short {
                    outcome = Err(io::ErrorKind::WriteZero.into());
                }
            }
        }
        let mut run = [WriteRun::new(to, &copy)];
        self.inner.write(&mut run);
        let [run] = run;
        run.outcome.and(outcome)
    }
}

impl PageStore for FaultyStore {
    fn slots(&self) -> u64 {
        self.inner.slots()
    }

    fn bad_slots(&self) -> &[SlotOffset] {
        self.inner.bad_slots()
    }

    /// Page by page, so that each has its own fault; a run stops at its first failure, as a disk's write does.
    fn write(&self, runs: &mut [WriteRun<'_>]) {
        for run in runs {
            let mut pages = (run.first.0..).zip(run.pages);
            run.outcome = pages.try_for_each(|(slot, page)| self.write_one(SlotOffset(slot), page));
        }
    }

    fn read(&self, slot: SlotOffset, into: &mut Page) -> io::Result<()> {
        match self.faults.next(SlotOp::Read(slot)) {
            None => self.inner.read(slot, into),
            Some(Fault::Fail(number)) => Err(io::Error::from_raw_os_error(number)),
            Some(Fault::Lost) => Ok(()),
            Some(Fault::Misdirect(other)) => self.inner.read(other, into),
            Some(Fault::FlipBit(bit)) => self.inner.read(slot, into).map(|()| flip(into, bit)),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                self.inner.read(slot, into)
            }
            Some(half @ (Fault::Short | Fault::Torn)) => {
                let mut copy = PageSlab::new(1);
                self.inner.read(slot, &mut copy[0])?;
                into[..PAGE_SIZE / 2].copy_from_slice(&copy[0][..PAGE_SIZE / 2]);
                if half == Fault::Short { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
            }
        }
    }

    fn read_run(&self, first: SlotOffset, into: &mut [Page]) -> io::Result<()> {
        (first.0..).zip(into).try_for_each(|(slot, page)| self.read(SlotOffset(slot), page))
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn kind(&self) -> StoreKind {
        self.inner.kind()
    }

    fn direct_io(&self) -> bool {
        self.inner.direct_io()
    }
}

fn flip(page: &mut Page, bit: usize) {
    page[bit / 8 % PAGE_SIZE] ^= 1 << (bit % 8);
}

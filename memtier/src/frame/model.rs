//! The life of one page under every interleaving: an evictor, a guest that reads and writes it, a handler that answers its faults and a
//! device that pins it, over a model of what the kernel does (page present or not, write-protected or not, who is woken).
//!
//! The frame table and its transitions are the real ones; the steps around them follow `evict`, `fault::handler`, `fault::fill` and `pins`.
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p memtier --release --lib --target-dir target/loom loom_`.

use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;

use super::table::FrameTable;
use super::word::{FrameWord, Generation, State, Ticket};
use crate::units::{AreaId, FrameIndex, SlotOffset, SwapEntry};

const FRAME: FrameIndex = FrameIndex(0);
const OLD: u64 = 1;
const NEW: u64 = 2;

/// What the kernel and the store hold for the frame.
#[derive(Debug)]
struct World {
    /// The page's contents, if it is in memory.
    page: Option<u64>,
    protected: bool,
    /// What the slot holds, if it is in use.
    slot: Option<u64>,
}

#[derive(Clone)]
struct Model {
    frames: Arc<FrameTable>,
    world: Arc<Mutex<World>>,
}

/// What an access came to, as the kernel sees it.
enum Access {
    Done(u64),
    Fault { write_protect: bool },
}

impl Model {
    fn new() -> Self {
        let frames = FrameTable::new(1);
        frames.update(FRAME, |word| word.seen(Generation(0))).unwrap();
        let world = World { page: Some(OLD), protected: false, slot: None };
        Self { frames: Arc::new(frames), world: Arc::new(Mutex::new(world)) }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn update(&self, step: impl Fn(FrameWord) -> Option<FrameWord>) -> Result<FrameWord, FrameWord> {
        self.frames.update(FRAME, step).map(|(_, after)| after)
    }

    fn open(&self, step: impl Fn(FrameWord) -> Option<FrameWord>) -> bool {
        let owned = self.update(step).is_ok();
        if owned {
            self.world().protected = false;
            self.update(FrameWord::opened).unwrap();
        }
        owned
    }

    /// `evict::Batch`, step by step.
    fn evict(&self, number: u32) {
        let ticket = Ticket::new(u64::from(number));
        if self.update(|word| word.claim(ticket)).is_err() {
            return;
        }
        self.world().protected = true;
        // Called off and evicted by another meanwhile, it reads as a hole does; the commit below must fail then.
        let bytes = self.world().page.unwrap_or(0);
        // Each evictor has a slot of its own in the model: one slot, one owner at a time.
        let entry = SwapEntry::new(AreaId(0), SlotOffset(number));
        if self.update(|word| word.begin_leave(ticket, Some(entry))).is_err() {
            // Called off; if it is still ours, it was locked, which this model does not do.
            return;
        }
        self.world().slot = Some(bytes);
        self.world().page = None;
        self.update(FrameWord::left).unwrap();
    }

    fn access(&self, write: Option<u64>) -> Access {
        let mut world = self.world();
        match (world.page, write) {
            (None, _) => Access::Fault { write_protect: false },
            (Some(_), Some(_)) if world.protected => Access::Fault { write_protect: true },
            (Some(old), None) => Access::Done(old),
            (Some(_), Some(new)) => {
                world.page = Some(new);
                Access::Done(new)
            }
        }
    }

    /// The guest: accesses until it works. Waking is modelled as trying again, with the handler's answer in between.
    fn guest(&self, write: Option<u64>) -> u64 {
        loop {
            match self.access(write) {
                Access::Done(value) => return value,
                Access::Fault { write_protect } => self.answer(write_protect),
            }
            thread::yield_now();
        }
    }

    /// `fault::handler::Answering::answer`, once.
    fn answer(&self, write_protect: bool) {
        match self.frames.get(FRAME).state() {
            State::Swapped | State::Zero => self.fill(),
            State::Evicting if write_protect => _ = self.open(FrameWord::cancel),
            State::Resident if write_protect => _ = self.open(FrameWord::open),
            State::Leaving => _ = self.update(FrameWord::wait_for_leave),
            _ => {}
        }
    }

    fn fill(&self) {
        if self.update(FrameWord::begin_fill).is_err() {
            return;
        }
        let bytes = self.world().slot.expect("a swapped page's slot holds it");
        {
            let mut world = self.world();
            assert_eq!(world.page, None, "the memory was given back before the state moved");
            world.page = Some(bytes);
            world.protected = false;
        }
        self.update(|word| word.filled(Generation(0))).unwrap();
    }

    /// `pins::PinGuard`, with direct I/O that does not see the protection.
    fn device(&self, value: u64) {
        while let Err(word) = self.update(FrameWord::pin) {
            match word.state() {
                State::Evicting => _ = self.open(FrameWord::cancel),
                State::Swapped | State::Zero => self.fill(),
                _ => {}
            }
            thread::yield_now();
        }
        {
            let mut world = self.world();
            assert!(world.page.is_some(), "a pinned page is in memory");
            world.page = Some(value);
        }
        self.update(FrameWord::unpin).unwrap();
    }
}

fn check(threads: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(if threads > 2 { 3 } else { 5 });
    builder.check(model);
}

#[test]
fn loom_a_write_during_eviction_is_never_lost() {
    check(2, || {
        let model = Model::new();
        let evictor = thread::spawn({
            let model = model.clone();
            move || model.evict(1)
        });
        model.guest(Some(NEW));
        assert_eq!(model.guest(None), NEW);
        evictor.join().unwrap();
        assert_eq!(model.guest(None), NEW);
    });
}

#[test]
fn loom_a_page_claimed_again_is_not_committed_by_the_first_evictor() {
    check(3, || {
        let model = Model::new();
        let evictors = [1, 2].map(|number| {
            let model = model.clone();
            thread::spawn(move || model.evict(number))
        });
        model.guest(Some(NEW));
        evictors.map(|evictor| evictor.join().unwrap());
        assert_eq!(model.guest(None), NEW);
    });
}

#[test]
fn loom_a_device_that_pins_never_writes_into_memory_that_is_given_back() {
    check(2, || {
        let model = Model::new();
        let evictor = thread::spawn({
            let model = model.clone();
            move || model.evict(1)
        });
        model.device(NEW);
        evictor.join().unwrap();
        assert_eq!(model.guest(None), NEW);
    });
}

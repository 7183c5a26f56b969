//! The life of one page under every interleaving: evictors, guests that read and write it, the handler that answers their faults, a device
//! that pins it, a tracker that unmaps it, a tier that wants its slot, over a model of what the kernel does (page in memory or not, mapped or not, write-protected or
//! not, who sleeps and who is woken).
//!
//! The frame table and its transitions are the real ones; the steps around them follow `evict`, `fault::handler`, `fault::fill`, `kept`, `arena`
//! and `pins`. A wake-up that nobody gives is a deadlock, which loom reports.
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p memtier --release --lib --target-dir target/loom loom_`.

use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;

use super::table::FrameTable;
use super::word::{EvictionStamp, FrameWord, Generation, State, Ticket};
use crate::units::{AreaId, FrameIndex, SlotOffset, SwapEntry};

const FRAME: FrameIndex = FrameIndex(0);
const OLD: u64 = 1;
const NEW: u64 = 2;

/// What the kernel and the store hold for the frame.
#[derive(Debug)]
struct World {
    /// The page's contents, if it is in memory.
    page: Option<u64>,
    /// Whether the guest's page table has it.
    mapped: bool,
    protected: bool,
    /// What slots 1 and 2 hold, if they are in use.
    slots: [Option<u64>; 3],
    /// Faults that wait in the kernel.
    asleep: u32,
    /// Wake-ups so far: a sleeper goes on when this has changed.
    woken: u32,
}

#[derive(Clone)]
struct Model {
    frames: Arc<FrameTable>,
    /// Whether a page that comes back on a fault keeps its slot.
    keeps_slots: bool,
    world: Arc<(Mutex<World>, Condvar)>,
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
        let world = World { page: Some(OLD), mapped: true, protected: false, slots: [None; 3], asleep: 0, woken: 0 };
        Self { frames: Arc::new(frames), keeps_slots: false, world: Arc::new((Mutex::new(world), Condvar::new())) }
    }

    fn swapped() -> Self {
        let model = Self::new();
        model.evict(1);
        assert_eq!(model.frames.get(FRAME).state(), State::Swapped);
        model
    }

    /// In memory, written nowhere since it came back, with slot 1 still in use.
    fn clean() -> Self {
        let model = Self { keeps_slots: true, ..Self::swapped() };
        assert_eq!(model.guest(None), OLD);
        assert_eq!((model.frames.get(FRAME).state(), model.slots_in_use()), (State::Clean, 1));
        model
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.0.lock().unwrap()
    }

    fn update(&self, step: impl Fn(FrameWord) -> Option<FrameWord>) -> Result<(FrameWord, FrameWord), FrameWord> {
        self.frames.update(FRAME, step)
    }

    fn wake(&self, mut world: MutexGuard<'_, World>) {
        world.asleep = 0;
        world.woken += 1;
        self.world.1.notify_all();
    }

    /// `Arena::settle`.
    fn settle(&self, step: impl Fn(FrameWord) -> Option<FrameWord>) {
        let (before, _) = self.update(step).expect("ours");
        if before.is_waited_for() {
            self.wake(self.world());
        }
    }

    /// `Arena::open`.
    fn open(&self, step: impl Fn(FrameWord) -> Option<FrameWord>) -> bool {
        if self.update(step).is_err() {
            return false;
        }
        let mut world = self.world();
        world.protected = false;
        self.wake(world);
        self.settle(FrameWord::opened);
        true
    }

    /// `evict::Batch`, step by step; each evictor has a slot of its own.
    fn evict(&self, number: u32) {
        let ticket = Ticket::new(u64::from(number));
        let Ok((before, _)) = self.update(|word| word.claim(ticket)) else { return };
        self.world().protected = true;
        // Called off and evicted by another meanwhile, it reads as a hole does; the commit below must fail then.
        let bytes = self.world().page.unwrap_or(0);
        let entry = self.still_holding(before.entry(), bytes).unwrap_or_else(|| {
            let before = self.world().slots[number as usize].replace(bytes);
            assert_eq!(before, None, "a slot in use was handed out");
            SwapEntry::new(AreaId(0), SlotOffset(number))
        });
        if self.update(|word| word.begin_leave(ticket, Some(entry), EvictionStamp::default())).is_err() {
            self.free(entry);
            return;
        }
        let mut world = self.world();
        (world.page, world.mapped) = (None, false);
        drop(world);
        self.settle(FrameWord::left);
    }

    /// `evict::Batch::fate_of`: the kept slot if it still has these bytes, else it is freed.
    fn still_holding(&self, kept: Option<SwapEntry>, bytes: u64) -> Option<SwapEntry> {
        let entry = kept?;
        let held = self.world().slots[entry.slot().0 as usize].expect("the claimant's slot is in use");
        if held == bytes {
            return kept;
        }
        self.free(entry);
        None
    }

    /// `kept::KeptSlots::forget`.
    fn forget_slot(&self) {
        if let Ok((before, _)) = self.update(FrameWord::forget_slot) {
            self.free(before.entry().expect("a clean page has a slot"));
        }
    }

    fn free(&self, entry: SwapEntry) {
        let freed = self.world().slots[entry.slot().0 as usize].take();
        assert!(freed.is_some(), "a slot was freed twice");
    }

    fn access(&self, write: Option<u64>) -> Access {
        let mut world = self.world();
        match (world.page, write) {
            (None, _) => Access::Fault { write_protect: false },
            (Some(_), Some(_)) if world.protected => Access::Fault { write_protect: true },
            (Some(old), None) => {
                world.mapped = true;
                Access::Done(old)
            }
            (Some(_), Some(new)) => {
                (world.page, world.mapped) = (Some(new), true);
                Access::Done(new)
            }
        }
    }

    /// The guest: accesses until it works. The kernel decides to fault, then (`handle_userfault`) queues, looks at the page table once more,
    /// and sleeps until woken; the handler gets the event while it sleeps.
    fn guest(&self, write: Option<u64>) -> u64 {
        loop {
            let write_protect = match self.access(write) {
                Access::Done(value) => return value,
                Access::Fault { write_protect } => write_protect,
            };
            let ticket = {
                let mut world = self.world();
                let must_wait = if write_protect { world.protected && world.mapped } else { !world.mapped };
                if !must_wait {
                    continue;
                }
                world.asleep += 1;
                world.woken
            };
            self.answer(write_protect);
            let mut world = self.world();
            while world.woken == ticket {
                world = self.world.1.wait(world).unwrap();
            }
        }
    }

    /// `fault::handler::Answering::answer`.
    fn answer(&self, write_protect: bool) {
        loop {
            let answered = match self.frames.get(FRAME).state() {
                State::Swapped => self.fill(),
                State::Evicting if write_protect => self.open(FrameWord::cancel),
                State::Resident if write_protect => self.open(FrameWord::open),
                State::Clean if write_protect => {
                    self.forget_slot();
                    false
                }
                State::Evicting | State::Resident | State::Clean => {
                    self.wake(self.world());
                    true
                }
                _ => self.update(FrameWord::wait_for_owner).is_ok(),
            };
            if answered {
                return;
            }
        }
    }

    fn fill(&self) -> bool {
        let Ok((_, filling)) = self.update(FrameWord::begin_fill) else { return false };
        let entry = filling.entry().expect("a swapped page has a slot");
        let bytes = self.world().slots[entry.slot().0 as usize].expect("a swapped page's slot holds it");
        let mut world = self.world();
        assert_eq!(world.page, None, "the memory was given back before the state moved");
        (world.page, world.mapped, world.protected) = (Some(bytes), true, false);
        self.wake(world);
        if self.keeps_slots {
            self.settle(|word| word.filled_keeping_slot(Generation(0)));
        } else {
            self.settle(|word| word.filled(Generation(0)));
            self.free(entry);
        }
        true
    }

    /// `pins::PinGuard`, with direct I/O that does not see the protection.
    fn device(&self, value: u64) {
        while let Err(word) = self.update(FrameWord::pin) {
            match word.state() {
                State::Evicting => _ = self.open(FrameWord::cancel),
                State::Swapped => _ = self.fill(),
                State::Clean => self.forget_slot(),
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

    /// The `unmap` tracker's arming.
    fn unmap(&self) {
        self.world().mapped = false;
    }

    /// Lets another thread take `steps`.
    fn beside(&self, steps: impl FnOnce(&Self) + 'static) -> thread::JoinHandle<()> {
        let model = self.clone();
        thread::spawn(move || steps(&model))
    }

    fn slots_in_use(&self) -> usize {
        self.world().slots.iter().flatten().count()
    }

    /// At the end: the frame's own slot is in use and no other.
    fn check_slots(&self) {
        let own = self.frames.get(FRAME).entry();
        assert_eq!(self.slots_in_use(), usize::from(own.is_some()));
        assert!(own.is_none_or(|own| self.world().slots[own.slot().0 as usize].is_some()), "its slot was freed");
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn loom_a_write_during_eviction_is_never_lost() {
    check(5, || {
        let model = Model::new();
        let evictor = model.beside(|model| model.evict(1));
        model.guest(Some(NEW));
        assert_eq!(model.guest(None), NEW);
        evictor.join().unwrap();
        assert_eq!(model.guest(None), NEW);
        assert_eq!(model.slots_in_use(), 0);
    });
}

#[test]
fn loom_a_page_claimed_again_is_not_committed_by_the_first_evictor() {
    check(3, || {
        let model = Model::new();
        let evictors = [1, 2].map(|number| model.beside(move |model| model.evict(number)));
        model.guest(Some(NEW));
        evictors.into_iter().for_each(|evictor| evictor.join().unwrap());
        assert_eq!(model.guest(None), NEW);
        assert_eq!(model.slots_in_use(), 0);
    });
}

#[test]
fn loom_a_device_that_pins_never_writes_into_memory_that_is_given_back() {
    check(5, || {
        let model = Model::new();
        let evictor = model.beside(|model| model.evict(1));
        model.device(NEW);
        evictor.join().unwrap();
        assert_eq!(model.guest(None), NEW);
    });
}

#[test]
fn loom_two_guests_that_fault_on_one_page_are_both_woken() {
    check(4, || {
        let model = Model::swapped();
        let other = model.beside(|model| assert_eq!(model.guest(None), OLD));
        assert_eq!(model.guest(None), OLD);
        other.join().unwrap();
        assert_eq!(model.slots_in_use(), 0);
    });
}

#[test]
fn loom_a_fault_queued_after_the_fills_own_wakeup_is_woken() {
    check(3, || {
        let model = Model::swapped();
        let other = model.beside(|model| assert_eq!(model.guest(None), OLD));
        let tracker = model.beside(Model::unmap);
        assert_eq!(model.guest(None), OLD);
        other.join().unwrap();
        tracker.join().unwrap();
    });
}

#[test]
fn loom_a_write_that_meets_a_left_over_protection_is_woken() {
    check(4, || {
        let model = Model::new();
        let evictor = model.beside(|model| model.evict(1));
        let device = model.beside(|model| model.device(NEW));
        model.guest(Some(NEW));
        evictor.join().unwrap();
        device.join().unwrap();
        assert_eq!(model.guest(None), NEW);
    });
}

#[test]
fn loom_a_write_to_a_page_whose_slot_is_kept_is_never_lost() {
    check(5, || {
        let model = Model::clean();
        let evictor = model.beside(|model| model.evict(2));
        model.guest(Some(NEW));
        assert_eq!(model.guest(None), NEW);
        evictor.join().unwrap();
        assert_eq!(model.guest(None), NEW);
        model.check_slots();
    });
}

#[test]
fn loom_a_kept_slot_is_freed_once_whoever_wants_it_gone() {
    check(4, || {
        let model = Model::clean();
        let evictor = model.beside(|model| model.evict(2));
        let tier = model.beside(Model::forget_slot);
        model.device(NEW);
        evictor.join().unwrap();
        tier.join().unwrap();
        assert_eq!(model.guest(None), NEW);
        model.check_slots();
    });
}

#[test]
fn loom_a_slot_is_kept_or_freed_while_two_guests_and_an_evictor_are_at_the_page() {
    check(3, || {
        let model = Model { keeps_slots: true, ..Model::swapped() };
        let other = model.beside(|model| assert_eq!(model.guest(None), OLD));
        let evictor = model.beside(|model| model.evict(2));
        assert_eq!(model.guest(None), OLD);
        other.join().unwrap();
        evictor.join().unwrap();
        assert_eq!(model.guest(None), OLD);
        model.check_slots();
    });
}

#[test]
fn loom_a_page_that_did_not_change_leaves_for_the_slot_it_kept() {
    check(2, || {
        let model = Model::clean();
        model.evict(2);
        let entry = model.frames.get(FRAME).entry().unwrap();
        assert_eq!((entry.slot(), model.slots_in_use()), (SlotOffset(1), 1));
        assert_eq!(model.guest(None), OLD);
    });
}

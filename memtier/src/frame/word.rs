//! The frame word: state, marks, the scan that last saw the frame used, and what belongs to the state, in 64 bits.
//!
//! ```text
//!             first touch seen            claim            begin_leave          left
//!  Untouched ─────────────────▶ Resident ──────▶ Evicting ────────────▶ Leaving ─────▶ Swapped / Zero
//!      │ begin_fill              ▲  ▲ │             │ cancel, take_back                    │ begin_fill
//!      │                  opened │  │ │ open        ▼                                      │
//!      │                         └──┼─┴──────── Opening                                    │
//!      ▼                     filled │                                                      │
//!   Filling ────────────────────────┴────────────────────────────────────◀─────────────────┘
//!      ├── poison ──▶ Poisoned
//!      └── filled_keeping_slot ──▶ Clean ── claim ──▶ Evicting
//!                                    └── forget_slot ──▶ Resident
//! ```
//!
//! A Clean frame is in memory as a Resident one is, and its slot still has the bytes it came back with. Whether the guest has written to it
//! since is found out when it is to leave again. Pins and the lifting of a protection are for Resident frames: who wants those forgets the
//! slot first.
//!
//! Promises: each transition is a pure function that answers `None` where the step is not allowed; what is not part of the step stays as it
//! was. Whoever moves a frame to Evicting, Leaving, Opening or Filling owns it until it moves it on; the exceptions are named at the
//! transitions. Whoever moves it out of Leaving, Opening or Filling and finds it waited for owes a wake-up afterwards: a wake-up given
//! before can come too early for a fault that was answered with "somebody is at it". Must never: lose a swap entry: `claim`, `filled`,
//! `forget_slot` and `poison` take one out of the word, and whoever made that step has it from the word before and owes its slot's end.
//!
//! | bits | what |
//! |---|---|
//! | 0..4 | state |
//! | 4 | locked: the client asked that it stays |
//! | 5 | waited for: a fault waits until its owner has moved it on |
//! | 6..20 | generation: the scan that last saw it used |
//! | 20..64 | Evicting: ticket; Resident, Opening: pins; all others as follows |
//! | 20..58 | Leaving, Swapped, Filling: swap entry, 0 for none; Clean: swap entry |
//! | 58..64 | Leaving, Swapped, Zero: when it left, on the eviction clock; a Filling frame that was Swapped has it still |

use crate::units::{AreaId, SlotOffset, SwapEntry};

const STATE_BITS: u32 = 4;
const LOCKED: u64 = 1 << STATE_BITS;
const WAITED_FOR: u64 = 1 << (STATE_BITS + 1);
const GENERATION_SHIFT: u32 = STATE_BITS + 2;
const GENERATION_BITS: u32 = 14;
const PAYLOAD_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
const PAYLOAD_BITS: u32 = 64 - PAYLOAD_SHIFT;
const STAMP_BITS: u32 = PAYLOAD_BITS - SwapEntry::BITS;
const ENTRY_MASK: u64 = (1 << SwapEntry::BITS) - 1;
// Slot 0 of an area is its header, so an entry is never 0 and 0 can stand for "no entry".
const _: () = assert!(SwapEntry::new(AreaId(0), SlotOffset(0)).to_bits() == 0);

/// How many readings of the eviction clock can be told apart.
pub const EVICTION_STAMPS: u32 = 1 << STAMP_BITS;

/// The most pins on one frame; far above what devices can have in flight.
pub const MAX_PINS: u64 = (1 << 16) - 1;

/// Where a frame's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nowhere: nobody touched it, as far as has been seen.
    Untouched = 0,
    /// In memory.
    Resident = 1,
    /// In memory, write-protected, being stored by the owner of the ticket.
    Evicting = 2,
    /// Stored, its memory being given back; a fault waits until that is done.
    Leaving = 3,
    /// In a swap slot.
    Swapped = 4,
    /// All zero, stored nowhere.
    Zero = 5,
    /// Being brought back.
    Filling = 6,
    /// In memory, its write-protection being taken away.
    Opening = 7,
    /// Given back by the guest: reads as zero, stored nowhere.
    Discarded = 8,
    /// Its bytes could not be read back.
    Poisoned = 9,
    /// In memory, and its slot still has the bytes that came back.
    Clean = 10,
}

impl State {
    /// Every state, for counting by state.
    pub const ALL: [Self; 11] = [
        Self::Untouched,
        Self::Resident,
        Self::Evicting,
        Self::Leaving,
        Self::Swapped,
        Self::Zero,
        Self::Filling,
        Self::Opening,
        Self::Discarded,
        Self::Poisoned,
        Self::Clean,
    ];
}

/// Which eviction claimed a frame. Unique among all evictions that ever run, so that a frame which was taken back and claimed again can't be
/// committed by the first claimant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket with this number; numbers beyond the payload's bits (17 trillion batches) wrap.
    pub const fn new(number: u64) -> Self {
        Self(number & ((1 << PAYLOAD_BITS) - 1))
    }
}

/// A reading of the eviction clock, modulo [`EVICTION_STAMPS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EvictionStamp(u32);

impl EvictionStamp {
    /// The stamp of a reading.
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below 64")]
    pub const fn new(ticks: u64) -> Self {
        Self((ticks % EVICTION_STAMPS as u64) as u32)
    }

    /// Ticks from this reading to a later one, modulo [`EVICTION_STAMPS`].
    pub const fn ticks_until(self, later: Self) -> usize {
        (later.0.wrapping_sub(self.0) % EVICTION_STAMPS) as usize
    }
}

/// A scan's number, kept modulo 2^14. Ages are differences of generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// Ages saturate here; beyond, a difference can't be told from a generation that is still to come.
    pub const MAX_AGE: u32 = (1 << (GENERATION_BITS - 1)) - 1;

    const fn bits(self) -> u64 {
        (self.0 as u64) & ((1 << GENERATION_BITS) - 1)
    }
}

/// The word of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameWord(u64);

impl FrameWord {
    /// A frame at the start: all bits zero, so that a zeroed table is a table of untouched frames.
    pub const UNTOUCHED: Self = Self(0);

    /// From its bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The state.
    ///
    /// # Panics
    /// If the bits hold no state: then memory was overwritten, and going on would risk the guest's bytes.
    pub const fn state(self) -> State {
        match self.0 & ((1 << STATE_BITS) - 1) {
            0 => State::Untouched,
            1 => State::Resident,
            2 => State::Evicting,
            3 => State::Leaving,
            4 => State::Swapped,
            5 => State::Zero,
            6 => State::Filling,
            7 => State::Opening,
            8 => State::Discarded,
            9 => State::Poisoned,
            10 => State::Clean,
            _ => panic!("frame word holds no state"),
        }
    }

    /// Whether the frame is in memory and in nobody's hands: free to be looked at, to be claimed, to be called idle.
    pub const fn is_resident(self) -> bool {
        matches!(self.state(), State::Resident | State::Clean)
    }

    /// Whether its memory counts as in use: resident, or on the way out or in.
    pub const fn is_in_memory(self) -> bool {
        !matches!(self.state(), State::Untouched | State::Swapped | State::Zero | State::Discarded | State::Poisoned)
    }

    /// Whether the client asked that the frame stays.
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// Whether a fault waits until the frame's owner has moved it on.
    pub const fn is_waited_for(self) -> bool {
        self.0 & WAITED_FOR != 0
    }

    /// Pins by devices.
    pub const fn pins(self) -> u64 {
        match self.state() {
            State::Resident | State::Opening => self.payload(),
            _ => 0,
        }
    }

    /// Where the contents are stored, if they are; of a Clean frame, those it came back with.
    pub const fn entry(self) -> Option<SwapEntry> {
        match self.state() {
            State::Leaving | State::Swapped | State::Filling | State::Clean if self.payload() & ENTRY_MASK != 0 => {
                Some(SwapEntry::from_bits(self.payload()))
            }
            _ => None,
        }
    }

    /// When it left, if it is out.
    pub const fn left_at(self) -> Option<EvictionStamp> {
        match self.state() {
            State::Swapped | State::Zero => Some(EvictionStamp::new(self.payload() >> SwapEntry::BITS)),
            _ => None,
        }
    }

    /// How many finished scans in a row saw the frame idle, if `finished` was the last one. Saturates at [`Generation::MAX_AGE`] as long as
    /// [`Self::aged`] is applied often enough.
    pub const fn age(self, finished: Generation) -> u32 {
        let seen = self.0 >> GENERATION_SHIFT;
        let distance = (finished.bits().wrapping_sub(seen) & ((1 << GENERATION_BITS) - 1)) as u32;
        // Seen by a scan that is still under way: not idle at all.
        if distance > Generation::MAX_AGE { 0 } else { distance }
    }

    const fn payload(self) -> u64 {
        self.0 >> PAYLOAD_SHIFT
    }

    const fn with(self, state: State, payload: u64) -> Self {
        let kept = self.0 & ((1 << PAYLOAD_SHIFT) - 1) & !((1 << STATE_BITS) - 1);
        Self(payload << PAYLOAD_SHIFT | kept | state as u64)
    }

    const fn with_generation(self, generation: Generation) -> Self {
        let mask = ((1 << GENERATION_BITS) - 1) << GENERATION_SHIFT;
        Self(self.0 & !mask | generation.bits() << GENERATION_SHIFT)
    }

    /// Resident or Clean → Evicting, by the evictor. Not while locked or pinned. A Clean frame's entry is the claimant's from then on.
    pub fn claim(self, ticket: Ticket) -> Option<Self> {
        let free = self.is_resident() && self.pins() == 0 && !self.is_locked();
        free.then(|| self.with(State::Evicting, ticket.0))
    }

    /// Whether the frame is claimed under this ticket.
    pub fn is_claimed_by(self, ticket: Ticket) -> bool {
        self.state() == State::Evicting && self.payload() == ticket.0
    }

    /// Evicting → Leaving, by the claimant, when the store has acknowledged (no entry: all zero). Not if it was locked meanwhile.
    pub fn begin_leave(self, ticket: Ticket, entry: Option<SwapEntry>, now: EvictionStamp) -> Option<Self> {
        let mine = self.is_claimed_by(ticket) && !self.is_locked();
        let payload = u64::from(now.0) << SwapEntry::BITS | entry.map_or(0, SwapEntry::to_bits);
        mine.then(|| self.with(State::Leaving, payload))
    }

    /// Leaving, Opening or Filling: a fault asks to be woken when the owner has moved it on.
    pub fn wait_for_owner(self) -> Option<Self> {
        let owned = matches!(self.state(), State::Leaving | State::Opening | State::Filling);
        owned.then_some(Self(self.0 | WAITED_FOR))
    }

    const fn settled(self, state: State, payload: u64) -> Self {
        Self(self.with(state, payload).0 & !WAITED_FOR)
    }

    /// Leaving → Swapped or Zero, by the claimant, when the memory is given back.
    pub fn left(self) -> Option<Self> {
        let state = if self.entry().is_none() { State::Zero } else { State::Swapped };
        (self.state() == State::Leaving).then(|| self.settled(state, self.payload()))
    }

    /// Resident or Untouched → Leaving, by who remakes the frame's memory in other pages and has it back in a moment. Locked or not: it does not
    /// leave. Not while pinned.
    pub fn withdraw(self) -> Option<Self> {
        let free = matches!(self.state(), State::Resident | State::Untouched) && self.pins() == 0;
        free.then(|| self.with(State::Leaving, 0))
    }

    /// Leaving → Resident, by who withdrew it, when its memory is there again.
    pub fn returned(self) -> Option<Self> {
        (self.state() == State::Leaving && self.entry().is_none()).then(|| self.settled(State::Resident, 0))
    }

    /// Leaving → Untouched, by who withdrew it from there, when nothing was done to it.
    pub fn untaken(self) -> Option<Self> {
        (self.state() == State::Leaving && self.entry().is_none()).then(|| self.settled(State::Untouched, 0))
    }

    /// Evicting → Opening: by anybody (a write, a pin), which cancels the eviction and makes the caller the owner.
    pub fn cancel(self) -> Option<Self> {
        (self.state() == State::Evicting).then(|| self.with(State::Opening, 0))
    }

    /// Evicting → Opening, by the claimant, when it can't be stored.
    pub fn take_back(self, ticket: Ticket) -> Option<Self> {
        self.is_claimed_by(ticket).then(|| self.with(State::Opening, 0))
    }

    /// Resident → Opening: a write found the page write-protected. Pins stay.
    pub fn open(self) -> Option<Self> {
        (self.state() == State::Resident).then(|| self.with(State::Opening, self.payload()))
    }

    /// Opening → Resident, by its owner, when the protection is away.
    pub fn opened(self) -> Option<Self> {
        (self.state() == State::Opening).then(|| self.settled(State::Resident, self.payload()))
    }

    /// Swapped, Zero, Discarded or Untouched → Filling.
    pub fn begin_fill(self) -> Option<Self> {
        match self.state() {
            State::Swapped => Some(self.with(State::Filling, self.payload())),
            State::Zero | State::Discarded | State::Untouched => Some(self.with(State::Filling, 0)),
            _ => None,
        }
    }

    /// Filling → Resident, by its owner, when the page is there.
    pub fn filled(self, generation: Generation) -> Option<Self> {
        (self.state() == State::Filling).then(|| self.settled(State::Resident, 0).with_generation(generation))
    }

    /// Filling → Clean, by its owner, when the page is there and its slot stays in use. Not without an entry.
    pub fn filled_keeping_slot(self, generation: Generation) -> Option<Self> {
        let stored = self.state() == State::Filling && self.entry().is_some();
        stored.then(|| self.settled(State::Clean, self.payload() & ENTRY_MASK).with_generation(generation))
    }

    /// Clean → Resident. The entry of the word before is the caller's to free.
    pub fn forget_slot(self) -> Option<Self> {
        (self.state() == State::Clean).then(|| self.with(State::Resident, 0))
    }

    /// Filling → Swapped, or Untouched if it has no entry, by its owner, when it could not be brought back now and nothing is lost. A zero
    /// page and an untouched one are the same to a fault; an untouched one is noticed when the guest touches it without a fault.
    pub fn unfilled(self) -> Option<Self> {
        let state = if self.payload() == 0 { State::Untouched } else { State::Swapped };
        (self.state() == State::Filling).then(|| self.settled(state, self.payload()))
    }

    /// Filling → Poisoned, by its owner, when the bytes are lost.
    pub fn poison(self) -> Option<Self> {
        (self.state() == State::Filling).then(|| self.settled(State::Poisoned, 0))
    }

    /// Resident: one more pin.
    pub fn pin(self) -> Option<Self> {
        let room = self.state() == State::Resident && self.payload() < MAX_PINS;
        room.then(|| self.with(State::Resident, self.payload() + 1))
    }

    /// Resident or Opening: one pin less.
    pub fn unpin(self) -> Option<Self> {
        (self.pins() > 0).then(|| self.with(self.state(), self.payload() - 1))
    }

    /// Marks it as used in `generation`; an untouched frame is resident from then on. A frame on its way out keeps the mark for the case that
    /// it stays; one that is out or being brought back was not seen in memory.
    pub fn seen(self, generation: Generation) -> Option<Self> {
        match self.state() {
            State::Untouched => Some(self.with(State::Resident, 0).with_generation(generation)),
            State::Resident | State::Clean | State::Evicting | State::Leaving | State::Opening => {
                Some(self.with_generation(generation))
            }
            _ => None,
        }
    }

    /// Takes a mark of `from` back to `to`: the scan `from` was abandoned and its number comes again.
    pub fn relabelled(self, from: Generation, to: Generation) -> Option<Self> {
        let marked = self.0 >> GENERATION_SHIFT & ((1 << GENERATION_BITS) - 1) == from.bits();
        (marked && self.state() != State::Untouched).then(|| self.with_generation(to))
    }

    /// Keeps the age from wrapping: a frame older than half of [`Generation::MAX_AGE`] becomes exactly that old.
    pub fn aged(self, finished: Generation) -> Option<Self> {
        let half = Generation::MAX_AGE / 2;
        // Untouched words stay zero: their memory is not there yet.
        (self.age(finished) > half && self.state() != State::Untouched)
            .then(|| self.with_generation(Generation(finished.0.wrapping_sub(half))))
    }

    /// Sets or clears the client's lock.
    pub fn lock(self, on: bool) -> Option<Self> {
        Some(Self(if on { self.0 | LOCKED } else { self.0 & !LOCKED }))
    }
}

impl std::fmt::Debug for FrameWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.state())?;
        if let Some(entry) = self.entry() {
            write!(f, "@{entry}")?;
        }
        if self.pins() > 0 {
            write!(f, " pins={}", self.pins())?;
        }
        if self.is_locked() {
            write!(f, " locked")?;
        }
        if self.is_waited_for() {
            write!(f, " waited-for")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "word_test.rs"]
mod tests;

//! One byte per slot: what the slot is used for. The kernel's `swap_map`.
//!
//! ```text
//!            take            hold             release (last user)
//!   free 0 ───────▶ cached 0x40 ───────▶ 1 ───────────────────────▶ cached 0x40
//!     ▲                │   │             │ ▲ share, release
//!     └──── put ───────┘   │ condemn     2..=0x3e
//!                          ▼
//!                        bad 0x3f
//! ```
//!
//! Promises: every change is one atomic step from a state in which it is allowed; a slot given back twice is noticed, not handed out twice.
//! Must never: decide which slot is taken next.
//!
//! Who may change a byte: free ⇄ cached only under the area's lock; every other change only by whoever the slot was handed to. So no two
//! threads work on the same byte, except through a bug. Under the lock a load and a store are therefore enough, and they are many; elsewhere a
//! compare-and-swap lets only one of two through. All orderings are relaxed: a slot passes from one thread to the next through a lock (slot
//! cache, area) or through the frame's state word, and either carries what was written before.

use std::io;

use super::sync::{AtomicU8, Ordering};
use crate::units::SlotOffset;

/// The most users that a slot counts.
pub const COUNT_MAX: u8 = 0x3e;
/// The count field's value for a slot that must not be used.
const BAD: u8 = 0x3f;
/// The flag of a slot that is in a cache's hands: about to be filled, or about to be free.
const HAS_CACHE: u8 = 0x40;

/// A slot's byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState(u8);

impl SlotState {
    /// Nobody's.
    pub const FREE: Self = Self(0);
    /// In a slot cache, or taken from it and not holding a page yet.
    pub const CACHED: Self = Self(HAS_CACHE);
    /// Never to be used.
    pub const UNUSABLE: Self = Self(BAD);

    /// How many users the page in it has; 0 when it holds none.
    pub const fn count(self) -> u8 {
        match self.0 & !HAS_CACHE {
            BAD => 0,
            count => count,
        }
    }

    /// Whether it holds a page.
    pub const fn holds_page(self) -> bool {
        self.count() > 0
    }

    const fn take(self) -> Option<Self> {
        if self.0 == Self::FREE.0 { Some(Self::CACHED) } else { None }
    }

    const fn put(self) -> Option<Self> {
        if self.0 == Self::CACHED.0 { Some(Self::FREE) } else { None }
    }

    const fn hold(self) -> Option<Self> {
        if self.0 == Self::CACHED.0 { Some(Self(1)) } else { None }
    }

    const fn share(self) -> Option<Self> {
        match self.count() {
            0 | COUNT_MAX => None,
            _ => Some(Self(self.0 + 1)),
        }
    }

    const fn release(self) -> Option<Self> {
        match self.count() {
            0 => None,
            1 => Some(Self::CACHED),
            _ => Some(Self(self.0 - 1)),
        }
    }

    const fn condemn(self) -> Option<Self> {
        if self.0 == Self::CACHED.0 { Some(Self::UNUSABLE) } else { None }
    }
}

/// A change that the slot's state does not allow. Somebody used a slot that was not theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{slot} is in state {state:?}, can't {change} it")]
pub struct WrongState {
    /// The slot.
    pub slot: SlotOffset,
    /// Its state.
    pub state: SlotState,
    /// What was to be done.
    pub change: &'static str,
}

/// A slot changed state that its changer did not own. The slot is left as it is, so nothing is handed out twice; tests stop here.
#[track_caller]
pub(super) fn report(error: WrongState) {
    debug_assert!(false, "{error}");
    tracing::error!(%error, "slot misused, left as it is");
}

#[cfg(not(loom))]
type Bytes = super::zeroed::Zeroed<AtomicU8>;
#[cfg(loom)]
type Bytes = Vec<AtomicU8>;

/// The bytes of one area's slots.
#[derive(Debug)]
pub struct SlotMap {
    bytes: Bytes,
}

impl SlotMap {
    /// A map of `slots` free slots. Its memory is used only where slots are.
    #[cfg(not(loom))]
    pub fn new(slots: usize) -> io::Result<Self> {
        Ok(Self { bytes: Bytes::new(slots)? })
    }

    /// The same for the model checker.
    #[cfg(loom)]
    pub fn new(slots: usize) -> io::Result<Self> {
        Ok(Self { bytes: (0..slots).map(|_| AtomicU8::new(0)).collect() })
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no slot at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The slot's state; a slot beyond the end is unusable.
    pub fn get(&self, slot: SlotOffset) -> SlotState {
        self.bytes.get(slot.0 as usize).map_or(SlotState::UNUSABLE, |byte| SlotState(byte.load(Ordering::Relaxed)))
    }

    /// Free → cached. Under the area's lock.
    pub fn take(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.change_locked(slot, "take", SlotState::take)
    }

    /// Cached → free. Under the area's lock.
    pub fn put(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.change_locked(slot, "free", SlotState::put)
    }

    /// Cached → holds a page with one user.
    pub fn hold(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.change(slot, "fill", SlotState::hold).map(drop)
    }

    /// One user more of the page in it; refused at [`COUNT_MAX`].
    pub fn share(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.change(slot, "share", SlotState::share).map(drop)
    }

    /// One user less. Answers whether that was the last one: then the slot is cached and wants to be put.
    pub fn release(&self, slot: SlotOffset) -> Result<bool, WrongState> {
        self.change(slot, "release", SlotState::release).map(|state| state == SlotState::CACHED)
    }

    /// Cached → bad, for good.
    pub fn condemn(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.change(slot, "condemn", SlotState::condemn).map(drop)
    }

    /// Free → bad, before the area is in use.
    pub fn exclude(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.take(slot)?;
        self.condemn(slot)
    }

    fn change_locked(
        &self,
        slot: SlotOffset,
        change: &'static str,
        step: impl Fn(SlotState) -> Option<SlotState>,
    ) -> Result<(), WrongState> {
        let state = self.get(slot);
        let next = step(state).ok_or(WrongState { slot, state, change })?;
        self.bytes[slot.0 as usize].store(next.0, Ordering::Relaxed);
        Ok(())
    }

    fn change(
        &self,
        slot: SlotOffset,
        change: &'static str,
        step: impl Fn(SlotState) -> Option<SlotState>,
    ) -> Result<SlotState, WrongState> {
        let byte = self.bytes.get(slot.0 as usize);
        let byte = byte.ok_or(WrongState { slot, state: SlotState::UNUSABLE, change })?;
        let mut now = byte.load(Ordering::Relaxed);
        loop {
            let Some(next) = step(SlotState(now)) else {
                return Err(WrongState { slot, state: SlotState(now), change });
            };
            match byte.compare_exchange(now, next.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(other) => now = other,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const S: SlotOffset = SlotOffset(3);

    #[test]
    fn a_slot_goes_round_and_no_step_can_be_taken_twice() {
        let map = SlotMap::new(8).unwrap();
        assert_eq!(map.get(S), SlotState::FREE);
        assert!(map.hold(S).is_err() && map.put(S).is_err() && map.release(S).is_err() && map.condemn(S).is_err());
        map.take(S).unwrap();
        assert!(map.take(S).is_err() && map.release(S).is_err() && map.share(S).is_err());
        map.hold(S).unwrap();
        assert!(map.get(S).holds_page());
        assert!(map.hold(S).is_err() && map.put(S).is_err() && map.take(S).is_err() && map.condemn(S).is_err());
        assert!(map.release(S).unwrap());
        assert!(map.release(S).is_err());
        map.put(S).unwrap();
        assert!(map.put(S).is_err());
        assert_eq!(map.get(S), SlotState::FREE);
    }

    #[test]
    fn use_counts_stop_at_the_kernels_limit() {
        let map = SlotMap::new(8).unwrap();
        map.take(S).unwrap();
        map.hold(S).unwrap();
        for users in 1..COUNT_MAX {
            assert_eq!(map.get(S).count(), users);
            map.share(S).unwrap();
        }
        assert!(map.share(S).is_err());
        for _ in 1..COUNT_MAX {
            assert!(!map.release(S).unwrap());
        }
        assert!(map.release(S).unwrap());
    }

    #[test]
    fn a_bad_slot_stays_bad_and_beyond_the_end_there_is_none() {
        let map = SlotMap::new(8).unwrap();
        map.exclude(S).unwrap();
        assert!(map.take(S).is_err() && map.put(S).is_err() && map.hold(S).is_err() && map.release(S).is_err());
        assert_eq!(map.get(S).count(), 0);
        let wrong = map.take(SlotOffset(8)).unwrap_err();
        assert_eq!(wrong.to_string(), "s8 is in state SlotState(63), can't take it");
    }
}

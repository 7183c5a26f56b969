use proptest::prelude::*;

use super::*;

fn entry(slot: u32) -> SwapEntry {
    SwapEntry::new(AreaId(3), SlotOffset(slot))
}

const STAMP: EvictionStamp = EvictionStamp::new(37);

fn resident() -> FrameWord {
    FrameWord::UNTOUCHED.seen(Generation(1)).unwrap()
}

#[test]
fn a_page_goes_out_and_comes_back_with_its_entry() {
    let ticket = Ticket::new(9);
    let evicting = resident().claim(ticket).unwrap();
    let leaving = evicting.begin_leave(ticket, Some(entry(7)), STAMP).unwrap();
    let swapped = leaving.left().unwrap();
    assert_eq!((swapped.state(), swapped.entry()), (State::Swapped, Some(entry(7))));
    let filling = swapped.begin_fill().unwrap();
    assert_eq!(filling.entry(), Some(entry(7)));
    assert_eq!(filling.unfilled(), Some(swapped));
    assert_eq!(filling.filled(Generation(1)).unwrap(), resident());
}

#[test]
fn a_page_that_is_out_knows_when_it_left() {
    for (entry, stamp) in [
        (Some(entry(u32::MAX)), EvictionStamp::new(63)),
        (None, EvictionStamp::new(64 + 5)),
        (Some(entry(1)), EvictionStamp::new(0)),
    ] {
        let leaving = resident().claim(Ticket::new(9)).unwrap().begin_leave(Ticket::new(9), entry, stamp).unwrap();
        assert_eq!((leaving.entry(), leaving.left_at()), (entry, None));
        let left = leaving.wait_for_owner().unwrap().left().unwrap();
        assert_eq!((left.entry(), left.left_at()), (entry, Some(stamp)));
        let filling = left.begin_fill().unwrap();
        assert_eq!((filling.entry(), filling.left_at()), (entry, None));
        let back = filling.unfilled().unwrap();
        assert_eq!((back.entry(), back.left_at()), (entry, entry.map(|_| stamp)));
        assert!(filling.filled(Generation(1)).unwrap() == resident());
    }
    assert_eq!(EvictionStamp::new(63).ticks_until(EvictionStamp::new(65)), 2);
}

#[test]
fn a_page_that_came_back_keeps_its_entry_until_it_is_claimed_or_forgotten() {
    let leaving = resident().claim(Ticket::new(9)).unwrap().begin_leave(Ticket::new(9), Some(entry(7)), STAMP).unwrap();
    let filling = leaving.left().unwrap().begin_fill().unwrap().wait_for_owner().unwrap();
    let clean = filling.filled_keeping_slot(Generation(3)).unwrap();
    assert_eq!((clean.state(), clean.entry(), clean.age(Generation(4))), (State::Clean, Some(entry(7)), 1));
    assert!(clean.is_resident() && !clean.is_waited_for());
    assert_eq!((clean.pin(), clean.open(), clean.begin_fill(), clean.pins()), (None, None, None, 0));
    assert_eq!(clean.forget_slot().unwrap(), resident().seen(Generation(3)).unwrap());
    assert_eq!(clean.lock(true).unwrap().claim(Ticket::new(8)), None);
    let claimed = clean.claim(Ticket::new(8)).unwrap();
    assert_eq!((claimed.entry(), claimed.forget_slot()), (None, None));
    assert_eq!(claimed.cancel().unwrap().opened().unwrap().state(), State::Resident);
}

#[test]
fn a_frame_without_a_slot_has_none_to_keep() {
    let zero =
        resident().claim(Ticket::new(9)).unwrap().begin_leave(Ticket::new(9), None, STAMP).unwrap().left().unwrap();
    assert_eq!(zero.begin_fill().unwrap().filled_keeping_slot(Generation(0)), None);
    assert_eq!(resident().forget_slot(), None);
    assert_eq!(resident().filled_keeping_slot(Generation(0)), None);
}

#[test]
fn a_zero_page_leaves_without_an_entry() {
    let ticket = Ticket::new(9);
    let zero = resident().claim(ticket).unwrap().begin_leave(ticket, None, STAMP).unwrap().left().unwrap();
    assert_eq!((zero.state(), zero.entry()), (State::Zero, None));
    assert_eq!(zero.begin_fill().unwrap().unfilled().unwrap().state(), State::Untouched);
}

#[test]
fn a_claim_taken_back_and_claimed_again_cannot_be_committed_by_the_first_claimant() {
    let (first, second) = (Ticket::new(1), Ticket::new(2));
    let claimed = resident().claim(first).unwrap();
    let again = claimed.cancel().unwrap().opened().unwrap().claim(second).unwrap();
    assert_eq!(again.begin_leave(first, Some(entry(1)), STAMP), None);
    assert_eq!(again.take_back(first), None);
    assert!(again.begin_leave(second, Some(entry(2)), STAMP).is_some());
}

#[test]
fn locked_and_pinned_frames_cannot_be_claimed() {
    assert_eq!(resident().lock(true).unwrap().claim(Ticket::new(1)), None);
    let pinned = resident().pin().unwrap();
    assert_eq!(pinned.claim(Ticket::new(1)), None);
    assert!(pinned.unpin().unwrap().claim(Ticket::new(1)).is_some());
}

#[test]
fn a_lock_set_while_leaving_stops_the_commit() {
    let ticket = Ticket::new(1);
    let claimed = resident().claim(ticket).unwrap().lock(true).unwrap();
    assert_eq!(claimed.begin_leave(ticket, None, STAMP), None);
    assert_eq!(claimed.take_back(ticket).unwrap().opened().unwrap().state(), State::Resident);
}

#[test]
fn pins_survive_the_lifting_of_a_protection_and_can_go_during_it() {
    let opening = resident().pin().unwrap().pin().unwrap().open().unwrap();
    assert_eq!(opening.pins(), 2);
    assert_eq!(opening.unpin().unwrap().opened().unwrap().pins(), 1);
}

#[test]
fn a_waiter_is_remembered_until_the_owner_has_moved_the_frame_on() {
    let ticket = Ticket::new(1);
    let leaving = resident().claim(ticket).unwrap().begin_leave(ticket, Some(entry(1)), STAMP).unwrap();
    let waited = leaving.wait_for_owner().unwrap();
    assert!(waited.is_waited_for());
    assert_eq!(waited.entry(), Some(entry(1)));
    assert_eq!(waited.take_back(ticket), None);
    let swapped = waited.left().unwrap();
    assert!(!swapped.is_waited_for());
    assert_eq!(swapped.wait_for_owner(), None);
    let filling = swapped.begin_fill().unwrap().wait_for_owner().unwrap();
    assert_eq!(filling.entry(), Some(entry(1)));
    for moved_on in [filling.filled(Generation(0)), filling.unfilled(), filling.poison()] {
        assert!(filling.is_waited_for() && !moved_on.unwrap().is_waited_for());
    }
    let opening = resident().open().unwrap().wait_for_owner().unwrap();
    assert!(opening.is_waited_for() && !opening.opened().unwrap().is_waited_for());
    assert_eq!(resident().wait_for_owner(), None);
}

#[test]
fn ages_count_scans_and_saturate() {
    let word = resident();
    assert_eq!(word.age(Generation(1)), 0);
    assert_eq!(word.age(Generation(5)), 4);
    // Seen by a scan that has not finished.
    assert_eq!(word.age(Generation(0)), 0);
    let mut aged = word;
    for finished in 1..100_000 {
        aged = aged.aged(Generation(finished)).unwrap_or(aged);
    }
    assert_eq!(aged.age(Generation(99_999)), Generation::MAX_AGE / 2);
}

#[test]
fn an_access_on_the_way_out_counts_if_the_page_stays() {
    let ticket = Ticket::new(1);
    let evicting = resident().claim(ticket).unwrap().seen(Generation(9)).unwrap();
    assert!(evicting.is_claimed_by(ticket));
    assert_eq!(evicting.cancel().unwrap().opened().unwrap().age(Generation(9)), 0);
}

#[test]
fn marks_of_an_abandoned_scan_are_taken_back() {
    let marked = resident().seen(Generation(5)).unwrap();
    assert_eq!(marked.relabelled(Generation(4), Generation(3)), None);
    assert_eq!(marked.relabelled(Generation(5), Generation(4)).unwrap().age(Generation(5)), 1);
    assert_eq!(FrameWord::UNTOUCHED.relabelled(Generation(0), Generation(1)), None);
}

/// Any word that transitions can make: start anywhere legal and take arbitrary steps.
fn step(word: FrameWord, choice: u8, number: u64) -> Option<FrameWord> {
    let ticket = Ticket::new(number % 3);
    let some = entry(u32::try_from(number % 1000 + 1).unwrap());
    match choice {
        0 => word.claim(ticket),
        1 => word.begin_leave(ticket, (number.is_multiple_of(2)).then_some(some), EvictionStamp::new(number)),
        2 => word.wait_for_owner(),
        3 => word.left(),
        4 => word.cancel(),
        5 => word.take_back(ticket),
        6 => word.open(),
        7 => word.opened(),
        8 => word.begin_fill(),
        9 => word.filled(Generation(u32::try_from(number % 99).unwrap())),
        10 => word.unfilled(),
        11 => word.pin(),
        12 => word.unpin(),
        13 => word.seen(Generation(u32::try_from(number % 99).unwrap())),
        14 => word.lock(number.is_multiple_of(2)),
        15 => word.poison(),
        16 => word.filled_keeping_slot(Generation(u32::try_from(number % 99).unwrap())),
        17 => word.forget_slot(),
        18 => word.relabelled(Generation(u32::try_from(number % 99).unwrap()), Generation(7)),
        _ => word.aged(Generation(u32::try_from(number % 20_000).unwrap())),
    }
}

proptest! {
    #[test]
    fn no_walk_breaks_the_word(steps in prop::collection::vec((0_u8..20, any::<u64>()), 1..200)) {
        let mut word = FrameWord::UNTOUCHED;
        let mut locked = false;
        let mut pins = 0_u64;
        let mut stored = None;
        for (choice, number) in steps {
            let Some(next) = step(word, choice, number) else { continue };
            match choice {
                1 => stored = next.entry(),
                11 => pins += 1,
                12 => pins -= 1,
                14 => locked = number.is_multiple_of(2),
                0 | 9 | 15 | 17 => stored = None,
                _ => {}
            }
            prop_assert_eq!(next.is_locked(), locked, "{:?} after {}", next, choice);
            prop_assert_eq!(next.pins(), pins, "{:?} after {}", next, choice);
            prop_assert_eq!(next.entry(), stored, "{:?} after {}", next, choice);
            prop_assert!(pins == 0 || matches!(next.state(), State::Resident | State::Opening));
            let owned = matches!(next.state(), State::Leaving | State::Opening | State::Filling);
            prop_assert!(owned || !next.is_waited_for(), "{:?} after {}", next, choice);
            prop_assert!(next.state() != State::Clean || stored.is_some(), "{:?} after {}", next, choice);
            word = next;
        }
    }
}

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::cluster::{CLUSTER_SLOTS, cluster_slots};
use super::*;

const ONE: Shard = Shard(0);
const TWO: Shard = Shard(1);

fn take(area: &SlotArea, shard: Shard, count: usize) -> Vec<u32> {
    let mut out = vec![SlotOffset(0); count];
    let taken = area.alloc(shard, &mut out);
    out[..taken].iter().map(|slot| slot.0).collect()
}

fn free(area: &SlotArea, slots: impl IntoIterator<Item = u32>) {
    area.free(&slots.into_iter().map(SlotOffset).collect::<Vec<_>>(), |_| {});
}

#[test]
fn each_shard_fills_a_cluster_of_its_own_from_front_to_back() {
    let area = SlotArea::new(8 * CLUSTER_SLOTS, 2, &[]).unwrap();
    // Cluster 0 has the header in it, so it is not wholly free.
    assert_eq!(take(&area, ONE, 64), (512..576).collect::<Vec<_>>());
    assert_eq!(take(&area, TWO, 64), (1024..1088).collect::<Vec<_>>());
    assert_eq!(take(&area, ONE, 500), (576..1024).chain(1536..1588).collect::<Vec<_>>());
    area.validate().unwrap();
}

#[test]
fn freed_clusters_are_used_again_in_the_order_they_were_freed_after_those_never_used() {
    let area = SlotArea::new(5 * CLUSTER_SLOTS, 1, &[]).unwrap();
    assert_eq!(take(&area, ONE, 1024), (512..1536).collect::<Vec<_>>());
    free(&area, 1024..1536);
    free(&area, 512..1024);
    assert_eq!(take(&area, ONE, 2048), (1536..2560).chain(1024..1536).chain(512..1024).collect::<Vec<_>>());
    area.validate().unwrap();
}

#[test]
fn a_current_cluster_that_empties_is_not_handed_to_another_shard() {
    let area = SlotArea::new(3 * CLUSTER_SLOTS, 2, &[]).unwrap();
    assert_eq!(take(&area, ONE, 10), (512..522).collect::<Vec<_>>());
    free(&area, 512..522);
    assert_eq!(take(&area, TWO, 10), (1024..1034).collect::<Vec<_>>());
    assert_eq!(take(&area, ONE, 1), [522]);
    free(&area, [522]);
    // Through with it while nothing of it is in use: it goes on the list, and is found whole.
    let rest = take(&area, ONE, 501);
    free(&area, rest);
    assert_eq!(take(&area, ONE, 512), (512..1024).collect::<Vec<_>>());
    area.validate().unwrap();
}

#[test]
fn whole_clusters_are_handed_out_until_none_is_wholly_free() {
    // The header is in cluster 0, a bad slot in cluster 2, and the last one is short.
    let area = SlotArea::new(5 * CLUSTER_SLOTS + 100, 1, &[SlotOffset(2 * CLUSTER_SLOTS + 7)]).unwrap();
    assert_eq!(area.whole_clusters_if_on(), (3, 0));
    let taken: Vec<_> = std::iter::from_fn(|| area.alloc_cluster()).collect();
    assert_eq!(taken, [1, 3, 4].map(|cluster| SlotOffset(cluster * CLUSTER_SLOTS)));
    assert_eq!((area.whole_clusters_if_on(), area.counts().used), ((0, 3), 3 * CLUSTER_SLOTS));
    area.validate().unwrap();
    let mut emptied = Vec::new();
    area.free(&cluster_slots(taken[1]), |cluster| emptied.push(cluster.slots().start));
    assert_eq!((emptied, area.whole_clusters_if_on()), (vec![u64::from(taken[1].0)], (1, 2)));
    assert_eq!(area.alloc_cluster(), Some(taken[1]));
    // One that goes bad in part is freed for the rest, and not handed out again.
    area.mark_bad(&[SlotOffset(taken[0].0 + 9)]);
    let rest: Vec<_> = cluster_slots(taken[0]).into_iter().filter(|slot| slot.0 != taken[0].0 + 9).collect();
    area.free(&rest, |_| panic!("it is not wholly free"));
    assert_eq!((area.alloc_cluster(), area.counts().bad), (None, 2));
    area.validate().unwrap();
    area.free(&cluster_slots(taken[2]), |_| ());
    area.begin_off().unwrap();
    assert_eq!((area.alloc_cluster(), area.whole_clusters_if_on()), (None, (0, 0)));
}

#[test]
fn the_last_free_slots_are_found_wherever_they_are() {
    let slots = 3 * CLUSTER_SLOTS + 100;
    let bad = [SlotOffset(600), SlotOffset(600), SlotOffset(1630), SlotOffset(99_999)];
    let area = SlotArea::new(slots, 4, &bad).unwrap();
    assert_eq!(area.counts(), SlotCounts { free: slots - 3, used: 0, bad: 2 });
    let all = take(&area, ONE, 4096);
    let expected: BTreeSet<u32> = (1..slots).filter(|slot| ![600, 1630].contains(slot)).collect();
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), expected);
    assert_eq!(all.len(), expected.len());
    assert!(!area.may_have_free());
    for slot in [1635, 1, 1024, 511] {
        free(&area, [slot]);
        assert_eq!(take(&area, TWO, 2), [slot]);
    }
    area.validate().unwrap();
}

#[test]
fn an_area_of_one_slot_hands_it_out_once() {
    let area = SlotArea::new(2, 1, &[]).unwrap();
    assert_eq!(take(&area, ONE, 4), [1]);
    assert!(take(&area, ONE, 4).is_empty());
    free(&area, [1]);
    assert_eq!(take(&area, ONE, 4), [1]);
}

#[test]
fn an_area_going_off_gives_nothing_and_takes_everything_back() {
    let area = SlotArea::new(2048, 1, &[]).unwrap();
    let held = take(&area, ONE, 10);
    assert_eq!(area.begin_off(), Ok(2037));
    assert_eq!(area.begin_off(), Err(OffError::Begun));
    assert!(take(&area, ONE, 10).is_empty());
    assert_eq!(area.finish_off(), Err(OffError::InUse { used: 10 }));
    assert_eq!(area.abort_off(), Ok(2037));
    assert_eq!(area.abort_off(), Err(OffError::NotBegun));
    assert_eq!(area.finish_off(), Err(OffError::NotBegun));
    assert_eq!(area.begin_off(), Ok(2037));
    area.mark_bad(&[SlotOffset(held[0])]);
    free(&area, held[1..].iter().copied());
    assert_eq!(area.finish_off(), Ok(()));
    assert_eq!(area.begin_off(), Err(OffError::Begun));
    assert!(take(&area, ONE, 10).is_empty());
    area.validate().unwrap();
}

#[test]
#[should_panic(expected = "can't free it")]
fn a_slot_freed_twice_is_noticed() {
    let area = SlotArea::new(2048, 1, &[]).unwrap();
    let held = take(&area, ONE, 2);
    free(&area, [held[0], held[0]]);
}

#[derive(Clone, Debug)]
enum Op {
    Take { shard: u16, count: usize },
    Free { from: usize, count: usize },
    Bad { which: usize },
    BeginOff,
    AbortOff,
    FinishOff,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => (0u16..4, 0usize..130).prop_map(|(shard, count)| Op::Take { shard, count }),
        40 => (any::<usize>(), 0usize..130).prop_map(|(from, count)| Op::Free { from, count }),
        2 => any::<usize>().prop_map(|which| Op::Bad { which }),
        1 => Just(Op::BeginOff),
        3 => Just(Op::AbortOff),
        1 => Just(Op::FinishOff),
    ]
}

/// The area as it should be, without any cleverness: a set of who has what.
#[derive(Debug, Default)]
struct Model {
    free: BTreeSet<u32>,
    held: Vec<u32>,
    bad: BTreeSet<u32>,
    going_off: bool,
    off: bool,
}

impl Model {
    fn apply(&mut self, area: &SlotArea, op: &Op) {
        match *op {
            Op::Take { shard, count } => {
                let taken = take(area, Shard(shard), count);
                let expected = if self.going_off { 0 } else { count.min(self.free.len()) };
                assert_eq!(taken.len(), expected, "{self:?}");
                for slot in taken {
                    assert!(self.free.remove(&slot), "{slot} was not free: {self:?}");
                    self.held.push(slot);
                }
            }
            Op::Free { from, count } if !self.held.is_empty() => {
                let from = from % self.held.len();
                let end = self.held.len().min(from + count);
                let given: Vec<u32> = self.held.splice(from..end, []).collect();
                self.free.extend(&given);
                free(area, given);
            }
            Op::Bad { which } if !self.held.is_empty() => {
                let slot = self.held.swap_remove(which % self.held.len());
                self.bad.insert(slot);
                area.mark_bad(&[SlotOffset(slot)]);
            }
            Op::Free { .. } | Op::Bad { .. } => {}
            Op::BeginOff => {
                assert_eq!(area.begin_off().is_ok(), !self.going_off);
                self.going_off = true;
            }
            Op::AbortOff => {
                assert_eq!(area.abort_off().is_ok(), self.going_off && !self.off);
                self.going_off = self.off;
            }
            Op::FinishOff => {
                let may = self.going_off && !self.off && self.held.is_empty();
                assert_eq!(area.finish_off().is_ok(), may);
                self.off |= may;
            }
        }
    }

    fn compare(&self, area: &SlotArea) {
        let count = |n: usize| u32::try_from(n).unwrap();
        let expected =
            SlotCounts { free: count(self.free.len()), used: count(self.held.len()), bad: count(self.bad.len()) };
        assert_eq!(area.counts(), expected, "{self:?}");
        area.validate().unwrap_or_else(|error| panic!("{error}: {self:?}"));
    }
}

proptest! {
    // 80 runs of 1,300 to 1,500 operations: more than 100,000.
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn an_area_does_what_a_set_of_slots_would(
        slots in 2u32..6 * CLUSTER_SLOTS,
        bad in proptest::collection::vec(1u32..3000, 0..8),
        ops in proptest::collection::vec(op(), 1300..1500),
    ) {
        let bad: Vec<_> = bad.into_iter().map(SlotOffset).collect();
        let area = SlotArea::new(slots, 4, &bad).unwrap();
        let mut model = Model {
            free: (1..slots).filter(|slot| !bad.contains(&SlotOffset(*slot))).collect(),
            bad: bad.iter().map(|slot| slot.0).filter(|slot| *slot < slots).collect(),
            ..Model::default()
        };
        for (i, op) in ops.iter().enumerate() {
            model.apply(&area, op);
            if i % 16 == 0 {
                model.compare(&area);
            }
        }
        model.compare(&area);
    }
}

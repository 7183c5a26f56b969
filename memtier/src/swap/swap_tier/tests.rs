use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::page::PageSlab;
use crate::tier::faulty_store::{Fault, Faults, FaultyStore, SlotOp};
use crate::units::MAX_AREAS;

fn page_of(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (i, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes();
    }
    page
}

fn gfns(from: u64, count: u64) -> Vec<Gfn> {
    (from..from + count).map(Gfn).collect()
}

fn store_all(tier: &SwapTier, gfns: &[Gfn]) -> Vec<StoreResult> {
    let mut slab = PageSlab::new(STORE_BATCH);
    let mut all = Vec::new();
    let mut results = Vec::new();
    for batch in gfns.chunks(STORE_BATCH) {
        for (page, gfn) in slab.iter_mut().zip(batch) {
            *page = page_of(gfn.0);
        }
        tier.store(Shard(0), batch, &slab, &mut results);
        assert_eq!(results.len(), batch.len());
        all.append(&mut results);
    }
    all
}

fn file_spec(dir: &TempDir, name: &str, slots: u64) -> AreaSpec {
    AreaSpec { path: dir.path().join(name), size: Some(Bytes::from_pages(slots).0), ..AreaSpec::default() }
}

#[test]
fn pages_come_back_from_a_file_as_they_were_stored() {
    let dir = tempfile::tempdir().unwrap();
    let tier = SwapTier::new(2, FrameSize::Small);
    let id = tier.swapon(&file_spec(&dir, "swap", 2048)).unwrap();
    let gfns = gfns(7, 1000);
    let entries: Vec<_> = store_all(&tier, &gfns).into_iter().map(Result::unwrap).collect();
    let mut slab = PageSlab::new(1);
    for (entry, gfn) in entries.iter().zip(&gfns) {
        tier.load(*entry, *gfn, &mut slab[..1]).unwrap();
        assert_eq!(slab[0], page_of(gfn.0));
        let mut unaligned = vec![0; PAGE_SIZE + 1];
        let page = <&mut Page>::try_from(&mut unaligned[1..]).unwrap();
        tier.load(*entry, *gfn, std::slice::from_mut(page)).unwrap();
        assert_eq!(*page, page_of(gfn.0));
        assert!(matches!(
            tier.load(*entry, Gfn(gfn.0 + 1), std::slice::from_mut(page)),
            Err(LoadError::Checksum { .. })
        ));
    }
    assert_eq!(tier.list()[0].used, 1000 * PAGE_SIZE as u64);
    tier.begin_swapoff(id).unwrap();
    assert!(matches!(tier.finish_swapoff(id), Err(SwapError::InUse { used: 1000, .. })));
    for entry in &entries {
        tier.invalidate(Shard(1), *entry);
        assert!(matches!(tier.load(*entry, Gfn(7), &mut slab[..1]), Err(LoadError::NotInUse { .. })));
    }
    tier.finish_swapoff(id).unwrap();
    assert!(tier.list().is_empty());
    assert!(matches!(tier.load(entries[0], Gfn(7), &mut slab[..1]), Err(LoadError::NotInUse { .. })));
    assert_eq!(tier.counters().bytes_written, 1000 * PAGE_SIZE as u64);
}

/// A tier with one area in a file that can be made to go wrong.
fn faulty(dir: &TempDir, slots: u64) -> (SwapTier, Arc<Faults>) {
    let tier = SwapTier::new(1, FrameSize::Small);
    let faults = add_faulty(&tier, dir, "swap", slots);
    (tier, faults)
}

fn add_faulty(tier: &SwapTier, dir: &TempDir, name: &str, slots: u64) -> Arc<Faults> {
    let store = FileStore::open(&dir.path().join(name), Some(Bytes::from_pages(slots))).unwrap();
    let (store, faults) = FaultyStore::new(Box::new(store));
    tier.swapon_store(Box::new(store), None).unwrap();
    faults
}

fn load(tier: &SwapTier, entry: SwapEntry, gfn: Gfn) -> Result<Page, LoadError> {
    let mut slab = PageSlab::new(1);
    tier.load(entry, gfn, &mut slab[..1]).map(|()| slab[0])
}

#[test]
fn a_write_error_costs_the_slot_and_no_other_page() {
    let dir = tempfile::tempdir().unwrap();
    let (tier, faults) = faulty(&dir, 2048);
    faults.set(|op| (op.is_write() && op.slot().0 % 10 == 0).then_some(Fault::Fail(libc::EIO)));
    let gfns = gfns(0, 640);
    let results = store_all(&tier, &gfns);
    for (result, gfn) in results.iter().zip(&gfns) {
        match result {
            Ok(entry) => assert_eq!(load(&tier, *entry, *gfn).unwrap(), page_of(gfn.0)),
            Err(StoreError::Write { entry, source }) => {
                assert_eq!((entry.slot().0 % 10, source.raw_os_error()), (0, Some(libc::EIO)));
                assert!(matches!(load(&tier, *entry, *gfn), Err(LoadError::NotInUse { .. })));
            }
            Err(StoreError::Full) => panic!("there is room"),
        }
    }
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 64);
    let row = &tier.list()[0];
    assert_eq!((row.bad_slots, row.used), (64, (640 - 64) * PAGE_SIZE as u64));
    assert_eq!(row.size, (2048 - 1 - 64) * PAGE_SIZE as u64);
    assert_eq!((tier.counters().write_errors, tier.counters().bytes_written), (64, row.used));
    // The bad slots are not handed out again.
    faults.clear();
    let more = store_all(&tier, &self::gfns(10_000, 1407));
    assert_eq!(more.iter().flatten().count(), 1407);
    assert!(more.iter().flatten().all(|entry| !(512..1152).contains(&entry.slot().0) || entry.slot().0 % 10 != 0));
    assert!(matches!(store_all(&tier, &[Gfn(1)])[..], [Err(StoreError::Full)]));
}

#[test]
fn a_kept_slot_holds_its_page_for_its_frame_until_the_area_goes_off() {
    let dir = tempfile::tempdir().unwrap();
    let tier = SwapTier::new(1, FrameSize::Small);
    let id = tier.swapon(&file_spec(&dir, "swap", 512)).unwrap();
    let entries: Vec<_> = store_all(&tier, &gfns(0, 150)).into_iter().map(Result::unwrap).collect();
    let (entry, gfn, page) = (entries[5], Gfn(5), page_of(5));
    assert!(tier.should_keep(entry) && tier.still_holds(entry, gfn, &[page]));
    assert!(!tier.still_holds(entries[6], gfn, &[page]) && !tier.still_holds(entry, Gfn(6), &[page]));
    let mut other = page;
    other[PAGE_SIZE - 1] ^= 0x80;
    assert!(!tier.still_holds(entry, gfn, &[other]));
    // Nothing was read for that.
    assert_eq!(tier.counters().bytes_read, 0);
    tier.begin_swapoff(id).unwrap();
    assert!(!tier.should_keep(entry) && !tier.still_holds(entry, gfn, &[page]));
    tier.abort_swapoff(id).unwrap();
    assert!(tier.should_keep(entry) && tier.still_holds(entry, gfn, &[page]));
    // Past half of it.
    store_all(&tier, &gfns(200, 150));
    assert!(!tier.should_keep(entry) && tier.still_holds(entry, gfn, &[page]));
    tier.invalidate(Shard(0), entry);
    assert!(!tier.still_holds(entry, gfn, &[page]));
    assert!(!tier.should_keep(SwapEntry::new(AreaId(9), SlotOffset(1))));
}

#[test]
fn a_store_without_room_answers_so_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let (tier, faults) = faulty(&dir, 101);
    let all = gfns(0, 130);
    let results = store_all(&tier, &all);
    assert!(results[..100].iter().all(Result::is_ok));
    assert!(results[100..].iter().all(|result| matches!(result, Err(StoreError::Full))));
    assert_eq!((tier.counters().full, tier.capacity()), (30, Capacity { total: 100, free: 0 }));
    results.iter().flatten().for_each(|entry| tier.invalidate(Shard(0), *entry));
    faults.set(|op| op.is_write().then_some(Fault::Fail(libc::ENOSPC)));
    let results = store_all(&tier, &gfns(0, 100));
    assert!(results.iter().all(|result| matches!(result, Err(StoreError::Write { .. }))));
    assert_eq!(results[0].as_ref().unwrap_err().to_string(), "write to 0:s1 failed");
    assert_eq!(tier.capacity(), Capacity { total: 0, free: 0 });
}

#[test]
fn a_page_that_can_not_be_read_is_an_error_and_its_neighbours_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (tier, faults) = faulty(&dir, 1024);
    let entries: Vec<_> = store_all(&tier, &gfns(0, 20)).into_iter().map(Result::unwrap).collect();
    let (third, other) = (entries[3].slot(), entries[4].slot());
    for (fault, read_error) in [
        (Fault::Fail(libc::EIO), true),
        (Fault::Short, true),
        (Fault::Torn, false),
        (Fault::Lost, false),
        (Fault::FlipBit(12_345), false),
        (Fault::Misdirect(other), false),
    ] {
        faults.set(move |op| (op == SlotOp::Read(third)).then_some(fault));
        let error = load(&tier, entries[3], Gfn(3)).unwrap_err();
        assert_eq!(matches!(error, LoadError::Read { .. }), read_error, "{fault:?}: {error}");
        assert_eq!(matches!(error, LoadError::Checksum { .. }), !read_error, "{fault:?}: {error}");
        assert_eq!(load(&tier, entries[2], Gfn(2)).unwrap(), page_of(2));
        assert_eq!(load(&tier, entries[4], Gfn(4)).unwrap(), page_of(4));
        faults.clear();
        assert_eq!(load(&tier, entries[3], Gfn(3)).unwrap(), page_of(3));
    }
    assert_eq!((tier.counters().read_errors, tier.counters().checksum_errors), (2, 4));
}

#[test]
fn a_slot_corrupted_or_exchanged_in_the_file_is_noticed() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let tier = SwapTier::new(1, FrameSize::Small);
    let spec = file_spec(&dir, "swap", 1024);
    tier.swapon(&spec).unwrap();
    let entries: Vec<_> = store_all(&tier, &gfns(0, 20)).into_iter().map(Result::unwrap).collect();
    let file = std::fs::File::options().read(true).write(true).open(&spec.path).unwrap();
    let at = |i: usize| u64::from(entries[i].slot().0) * PAGE_SIZE as u64;
    file.write_all_at(&[0xa5], at(5) + 100).unwrap();
    file.write_all_at(&page_of(7), at(8)).unwrap();
    file.write_all_at(&page_of(8), at(7)).unwrap();
    for (i, entry) in entries.iter().enumerate() {
        let loaded = load(&tier, *entry, Gfn(i as u64));
        match i {
            5 | 7 | 8 => assert!(matches!(loaded, Err(LoadError::Checksum { .. })), "{i}"),
            _ => assert_eq!(loaded.unwrap(), page_of(i as u64)),
        }
    }
}

#[test]
fn entries_that_were_never_given_are_not_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (tier, _faults) = faulty(&dir, 1024);
    let entry = *store_all(&tier, &gfns(0, 1))[0].as_ref().unwrap();
    for (area, slot) in [(0, 0), (0, entry.slot().0 + 1), (0, 1024), (0, u32::MAX), (1, entry.slot().0), (63, 1)] {
        let entry = SwapEntry::new(AreaId(area), SlotOffset(slot));
        assert!(matches!(load(&tier, entry, Gfn(0)), Err(LoadError::NotInUse { .. })), "{entry}");
    }
}

#[test]
fn neighbours_are_one_write() {
    use std::sync::atomic::AtomicUsize;
    #[derive(Debug)]
    struct CountRuns(FileStore, Arc<AtomicUsize>);
    impl PageStore for CountRuns {
        fn slots(&self) -> u64 {
            self.0.slots()
        }
        fn write(&self, runs: &mut [WriteRun<'_>]) {
            self.1.fetch_add(runs.len(), Ordering::Relaxed);
            self.0.write(runs);
        }
        fn read(&self, slot: SlotOffset, into: &mut Page) -> io::Result<()> {
            self.0.read(slot, into)
        }
        fn read_run(&self, first: SlotOffset, into: &mut [Page]) -> io::Result<()> {
            self.0.read_run(first, into)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
        fn path(&self) -> &std::path::Path {
            self.0.path()
        }
        fn kind(&self) -> crate::tier::store::StoreKind {
            self.0.kind()
        }
        fn direct_io(&self) -> bool {
            self.0.direct_io()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let tier = SwapTier::new(1, FrameSize::Small);
    let runs = Arc::new(AtomicUsize::new(0));
    let store = FileStore::open(&dir.path().join("swap"), Some(Bytes::from_pages(4096))).unwrap();
    tier.swapon_store(Box::new(CountRuns(store, Arc::clone(&runs))), None).unwrap();
    assert_eq!(store_all(&tier, &gfns(0, 640)).iter().flatten().count(), 640);
    assert_eq!(runs.load(Ordering::Relaxed), 10);
}

#[test]
fn a_swap_file_is_named_as_proc_swaps_would() {
    let dir = tempfile::tempdir().unwrap();
    let tier = SwapTier::new(1, FrameSize::Small);
    let spec = AreaSpec { priority: Some(3), ..file_spec(&dir, "swap", 1024) };
    tier.swapon(&spec).unwrap();
    let rows = tier.list();
    let [row] = &rows[..] else { panic!("one area is on") };
    assert_eq!((&row.path, row.kind.as_str(), row.priority), (&spec.path, "file", 3));
    assert_eq!((row.size, row.used, row.bad_slots), (1023 * PAGE_SIZE as u64, 0, 0));
    assert!(matches!(tier.swapon(&spec), Err(SwapError::Open(_))));
    let wrong = AreaSpec { priority: Some(40_000), ..file_spec(&dir, "other", 1024) };
    assert!(matches!(tier.swapon(&wrong), Err(SwapError::Priority { priority: 40_000 })));
    assert!(!wrong.path.exists());
}

#[derive(Clone, Debug)]
enum Op {
    Store { gfns: Vec<u64> },
    Load { which: usize },
    Invalidate { which: usize },
    Fault { kind: u8, every: u32 },
    Heal,
    Swapoff { area: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => proptest::collection::vec(0u64..1000, 1..=STORE_BATCH).prop_map(|gfns| Op::Store { gfns }),
        20 => any::<usize>().prop_map(|which| Op::Load { which }),
        30 => any::<usize>().prop_map(|which| Op::Invalidate { which }),
        2 => (0u8..7, 2u32..40).prop_map(|(kind, every)| Op::Fault { kind, every }),
        2 => Just(Op::Heal),
        1 => (0u8..2).prop_map(|area| Op::Swapoff { area }),
    ]
}

fn fault(kind: u8, op: SlotOp) -> Fault {
    match kind {
        0 => Fault::Fail(libc::EIO),
        1 => Fault::Fail(libc::ENOSPC),
        2 => Fault::Short,
        3 => Fault::Torn,
        4 => Fault::Lost,
        5 => Fault::FlipBit(op.slot().0 as usize * 7),
        _ => Fault::Misdirect(SlotOffset(op.slot().0 ^ 1)),
    }
}

/// Two areas in faulty files against a map of what was stored.
struct Checked {
    _dir: TempDir,
    tier: SwapTier,
    faults: [Arc<Faults>; 2],
    /// What is stored: whose page, and with which content.
    stored: BTreeMap<SwapEntry, (Gfn, u64)>,
    /// Makes every page's content new.
    version: u64,
    slab: PageSlab,
    results: Vec<StoreResult>,
}

impl Checked {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tier = SwapTier::new(1, FrameSize::Small);
        let faults = [add_faulty(&tier, &dir, "a", 700), add_faulty(&tier, &dir, "b", 90)];
        let slab = PageSlab::new(STORE_BATCH);
        Self { _dir: dir, tier, faults, stored: BTreeMap::new(), version: 0, slab, results: Vec::new() }
    }

    fn nth(&self, which: usize) -> Option<SwapEntry> {
        let at = which.checked_rem(self.stored.len())?;
        self.stored.keys().nth(at).copied()
    }

    /// The page that is stored there, or an error; never another page.
    fn check(&mut self, entry: SwapEntry, healthy: bool) {
        let (gfn, version) = self.stored[&entry];
        match self.tier.load(entry, gfn, &mut self.slab[..1]) {
            Ok(()) => assert!(self.slab[0] == page_of(version), "{entry} gave a wrong page"),
            Err(error) => assert!(!healthy && !matches!(error, LoadError::NotInUse { .. }), "{error}"),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Store { gfns } => {
                let gfns: Vec<_> = gfns.iter().copied().map(Gfn).collect();
                for page in &mut self.slab[..gfns.len()] {
                    self.version += 1;
                    *page = page_of(self.version);
                }
                self.tier.store(Shard(0), &gfns, &self.slab, &mut self.results);
                assert_eq!(self.results.len(), gfns.len());
                let first = self.version - gfns.len() as u64 + 1;
                for ((result, gfn), version) in self.results.iter().zip(gfns).zip(first..) {
                    if let Ok(entry) = result {
                        assert!(self.stored.insert(*entry, (gfn, version)).is_none(), "{entry} given twice");
                    }
                }
            }
            Op::Load { which } => {
                if let Some(entry) = self.nth(*which) {
                    self.check(entry, false);
                }
            }
            Op::Invalidate { which } => {
                if let Some(entry) = self.nth(*which) {
                    self.stored.remove(&entry);
                    self.tier.invalidate(Shard(0), entry);
                    assert!(matches!(
                        self.tier.load(entry, Gfn(0), &mut self.slab[..1]),
                        Err(LoadError::NotInUse { .. })
                    ));
                }
            }
            Op::Fault { kind, every } => {
                let (kind, every) = (*kind, *every);
                self.faults[0].set(move |op| (op.slot().0 % every == 0).then(|| fault(kind, op)));
            }
            Op::Heal => self.faults.iter().for_each(|faults| faults.clear()),
            Op::Swapoff { area } => self.swapoff(AreaId(*area)),
        }
    }

    /// Begins; takes half of what is there out, finds the area in use, and gives up.
    fn swapoff(&mut self, id: AreaId) {
        self.tier.begin_swapoff(id).unwrap();
        let there: Vec<_> = self.stored.keys().copied().filter(|entry| entry.area() == id).collect();
        for entry in &there[..there.len() / 2] {
            self.stored.remove(entry);
            self.tier.invalidate(Shard(0), *entry);
        }
        if there.is_empty() {
            // Not finished, so that the area stays for the rest of the run.
            return self.tier.abort_swapoff(id).unwrap();
        }
        let used = u32::try_from(there.len() - there.len() / 2).unwrap();
        assert!(matches!(self.tier.finish_swapoff(id), Err(SwapError::InUse { used: n, .. }) if n == used));
        self.tier.abort_swapoff(id).unwrap();
    }

    /// In the end everything goes back, and the books are right.
    fn finish(mut self) {
        self.apply(&Op::Heal);
        for entry in self.stored.keys().copied().collect::<Vec<_>>() {
            self.check(entry, false);
            self.tier.invalidate(Shard(0), entry);
        }
        for id in [AreaId(0), AreaId(1)] {
            self.tier.areas.get(id).unwrap().slots.validate().unwrap();
            self.tier.begin_swapoff(id).unwrap();
            self.tier.finish_swapoff(id).unwrap();
        }
        assert_eq!(self.tier.areas.free_slots(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_wrong_page_ever_comes_back(ops in proptest::collection::vec(op(), 100..400)) {
        let mut checked = Checked::new();
        ops.iter().for_each(|op| checked.apply(op));
        checked.finish();
    }

    #[test]
    fn without_faults_every_page_comes_back(ops in proptest::collection::vec(op(), 100..400)) {
        let mut checked = Checked::new();
        for op in ops.iter().filter(|op| !matches!(op, Op::Fault { .. })) {
            checked.apply(op);
            if let Some((entry, _)) = checked.stored.last_key_value() {
                let entry = *entry;
                checked.check(entry, true);
            }
        }
        for entry in checked.stored.keys().copied().collect::<Vec<_>>() {
            checked.check(entry, true);
        }
        checked.finish();
    }
}

#[test]
fn eight_threads_store_load_and_invalidate_across_swapoffs() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tier = SwapTier::new(8, FrameSize::Small);
    tier.swapon(&file_spec(&dir, "a", 6000)).unwrap();
    let second = tier.swapon(&file_spec(&dir, "b", 6000)).unwrap();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8u16)
            .map(|shard| {
                scope.spawn({
                    let tier = &tier;
                    move || churn(tier, Shard(shard))
                })
            })
            .collect();
        let mut offs = 0;
        while !workers.iter().all(|worker| worker.is_finished()) {
            tier.begin_swapoff(second).unwrap();
            match tier.finish_swapoff(second) {
                Ok(()) => {
                    offs += 1;
                    assert_eq!(tier.swapon(&file_spec(&dir, "b", 6000)).unwrap(), second);
                }
                Err(SwapError::InUse { .. }) => tier.abort_swapoff(second).unwrap(),
                Err(error) => panic!("{error}"),
            }
            std::thread::yield_now();
        }
        let _ = offs;
    });
    for id in [AreaId(0), second] {
        tier.begin_swapoff(id).unwrap();
        tier.areas.get(id).unwrap().slots.validate().unwrap();
        tier.finish_swapoff(id).unwrap();
    }
    assert_eq!(tier.areas.free_slots(), 0);
    assert!(tier.list().is_empty() && tier.caches.held() == [0; MAX_AREAS]);
}

/// Stores, checks and gives back pages of this shard's own frames.
fn churn(tier: &SwapTier, shard: Shard) {
    let mut slab = PageSlab::new(STORE_BATCH);
    let mut results = Vec::new();
    let mut mine = Vec::new();
    for round in 0..300u64 {
        let base = u64::from(shard.0) << 32 | round << 8;
        let gfns = gfns(base, 1 + (round * 7 + u64::from(shard.0)) % STORE_BATCH as u64);
        gfns.iter().zip(slab.iter_mut()).for_each(|(gfn, page)| *page = page_of(gfn.0));
        tier.store(shard, &gfns, &slab, &mut results);
        mine.extend(results.drain(..).zip(gfns).filter_map(|(result, gfn)| Some((result.ok()?, gfn))));
        if mine.len() > 400 || round == 299 {
            for (entry, gfn) in mine.drain(..) {
                tier.load(entry, gfn, &mut slab[..1]).unwrap();
                assert!(slab[0] == page_of(gfn.0), "{entry}");
                tier.invalidate(Shard(shard.0 ^ 1), entry);
            }
        }
    }
}

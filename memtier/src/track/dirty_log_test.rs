//! Tests of the `dirty_log` tracker against a log in memory that keeps the contract and nothing else.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};

use proptest::prelude::*;

use super::*;
use crate::memory::RegionSpec;
use crate::units::{FrameSize, Gfn, Hva};

/// Pages of the two regions: neither a multiple of 64.
const PAGES: [u64; 2] = [130, 70];
const FRAMES: u32 = 200;

#[derive(Debug)]
struct ModelLog {
    /// Pages of each region.
    pages: Vec<usize>,
    /// `None` while it does not log.
    written: Mutex<Option<Vec<Vec<bool>>>>,
    calls: Mutex<Vec<&'static str>>,
}

impl ModelLog {
    fn write(&self, frame: u32) {
        let (region, page) = if frame < 130 { (0, frame) } else { (1, frame - 130) };
        self.write_page(region, page as usize);
    }

    fn write_page(&self, region: usize, page: usize) {
        self.written.lock().unwrap().as_mut().expect("logs")[region][page] = true;
    }

    fn with<T>(&self, call: &'static str, action: impl FnOnce(&mut Vec<Vec<bool>>) -> T) -> io::Result<T> {
        self.calls.lock().unwrap().push(call);
        let mut written = self.written.lock().unwrap();
        Ok(action(written.as_mut().ok_or_else(|| io::Error::other("off"))?))
    }
}

impl DirtyLog for ModelLog {
    fn start(&self) -> io::Result<()> {
        let all = || self.pages.iter().map(|pages| vec![true; *pages]).collect();
        self.written.lock().unwrap().get_or_insert_with(all);
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        *self.written.lock().unwrap() = None;
        Ok(())
    }

    fn written(&self, region: usize, bits: &mut [u64]) -> io::Result<()> {
        self.with("written", |written| {
            assert_eq!(bits.len(), written[region].len().div_ceil(64));
            for (page, _) in written[region].iter().enumerate().filter(|(_, written)| **written) {
                bits[page / 64] |= 1 << (page % 64);
            }
        })
    }

    fn clear(&self, region: usize, first: u64, bits: &[u64]) -> io::Result<()> {
        assert!(first.is_multiple_of(64));
        let first = usize::try_from(first).unwrap();
        self.with("clear", |written| {
            for bit in (0..bits.len() * 64).filter(|bit| bits[bit / 64] >> (bit % 64) & 1 == 1) {
                written[region][first + bit] = false;
            }
        })
    }
}

fn memory() -> GuestMemory {
    let mut first = Gfn(0);
    let spec = |pages: u64| {
        let spec = RegionSpec {
            first,
            pages,
            file: File::open("/dev/null").unwrap().into(),
            guest_map: Hva(0x10_0000_0000 + first.gpa()),
        };
        first = first.offset(pages + 1000);
        spec
    };
    GuestMemory::new(PAGES.map(spec).into()).unwrap()
}

fn tracker(memory: &GuestMemory) -> (Arc<ModelLog>, DirtyTracker) {
    let pages = memory.regions().iter().map(|region| region.pages as usize).collect();
    let log = Arc::new(ModelLog { pages, written: Mutex::default(), calls: Mutex::default() });
    let tracker = DirtyTracker::new(Arc::clone(&log) as _, memory).unwrap();
    (log, tracker)
}

fn collected(tracker: &DirtyTracker, memory: &GuestMemory, frames: Range<u32>) -> Vec<u32> {
    let mut all = Vec::new();
    tracker.collect(memory, frames, &mut |run| all.extend(run)).unwrap();
    all
}

#[test]
fn everything_counts_as_written_until_it_is_armed() {
    let memory = memory();
    let (_log, tracker) = tracker(&memory);
    let everything: Vec<u32> = (0..FRAMES).collect();
    assert_eq!(collected(&tracker, &memory, 0..FRAMES), everything);
    assert_eq!(collected(&tracker, &memory, 0..FRAMES), everything, "collecting does not arm");
    tracker.arm(&memory, 0..FRAMES).unwrap();
    assert!(collected(&tracker, &memory, 0..FRAMES).is_empty());
}

#[test]
fn arming_without_collecting_first_clears_too() {
    let memory = memory();
    let (_log, tracker) = tracker(&memory);
    tracker.arm(&memory, 3..150).unwrap();
    assert_eq!(collected(&tracker, &memory, 0..FRAMES), (0..3).chain(150..FRAMES).collect::<Vec<_>>());
}

#[test]
fn a_write_between_collecting_and_arming_is_told_later() {
    let memory = memory();
    let (log, tracker) = tracker(&memory);
    tracker.arm(&memory, 0..FRAMES).unwrap();
    log.write(64);
    assert_eq!(collected(&tracker, &memory, 0..FRAMES), [64]);
    log.write(65);
    log.write(140);
    tracker.arm(&memory, 0..FRAMES).unwrap();
    assert_eq!(collected(&tracker, &memory, 0..FRAMES), [65, 140]);
}

#[test]
fn arming_what_nobody_wrote_asks_the_log_for_nothing() {
    let memory = memory();
    let (log, tracker) = tracker(&memory);
    tracker.arm(&memory, 0..FRAMES).unwrap();
    log.write(7);
    collected(&tracker, &memory, 0..FRAMES);
    log.calls.lock().unwrap().clear();
    tracker.arm(&memory, 8..FRAMES).unwrap();
    assert!(log.calls.lock().unwrap().is_empty());
    tracker.arm(&memory, 0..FRAMES).unwrap();
    assert_eq!(*log.calls.lock().unwrap(), ["clear"]);
}

#[test]
fn the_log_runs_only_as_long_as_the_tracker_is_used() {
    let memory = memory();
    let (log, first) = tracker(&memory);
    first.retire();
    assert!(log.written.lock().unwrap().is_none());
    first.collect(&memory, 0..1, &mut |_| ()).expect_err("off");
    first.arm(&memory, 0..1).expect_err("off");
    let second = DirtyTracker::new(Arc::clone(&log) as _, &memory).unwrap();
    drop(first);
    assert!(log.written.lock().unwrap().is_some(), "a tracker that was retired does not stop its successor's log");
    drop(second);
    assert!(log.written.lock().unwrap().is_none(), "one that is dropped without being retired stops it");
}

#[test]
fn huge_frames_are_written_and_armed_as_a_whole() {
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a NUL-terminated string that outlives the call; no page is taken from the pool before the file is touched.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
    assert!(fd >= 0, "no memory file on huge pages");
    // SAFETY: a descriptor that was just made and that nobody else knows.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let spec = RegionSpec { first: Gfn(0), pages: 4 * 512, file, guest_map: Hva(0x10_0000_0000) };
    let memory = GuestMemory::with_frame_size(vec![spec], FrameSize::Huge).unwrap();
    let (log, tracker) = tracker(&memory);
    tracker.arm(&memory, 1..3).unwrap();
    assert_eq!(collected(&tracker, &memory, 0..4), [0, 3]);
    tracker.arm(&memory, 0..4).unwrap();
    log.write_page(0, 511);
    log.write_page(0, 512);
    assert_eq!(collected(&tracker, &memory, 0..4), [0, 1]);
    assert_eq!(collected(&tracker, &memory, 1..4), [1]);
    tracker.arm(&memory, 1..2).unwrap();
    assert_eq!(collected(&tracker, &memory, 0..4), [0]);
}

/// A bitmap with the bits of `flags`.
fn pack(flags: &[bool]) -> Vec<u64> {
    let mut bits = vec![0; flags.len().div_ceil(64)];
    flags.iter().enumerate().filter(|(_, set)| **set).for_each(|(bit, _)| bits[bit / 64] |= 1 << (bit % 64));
    bits
}

proptest! {
    #[test]
    fn runs_are_the_set_bits_and_as_long_as_they_come(lens in prop::collection::vec(1usize..150, 0..8), first: bool) {
        let flags: Vec<bool> =
            lens.iter().enumerate().flat_map(|(i, len)| std::iter::repeat_n((i % 2 == 0) == first, *len)).collect();
        let mut runs = Vec::new();
        for_each_run(&pack(&flags), |run| runs.push(run));
        prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
        let found: Vec<usize> = runs.into_iter().flatten().collect();
        let expected: Vec<usize> = (0..flags.len()).filter(|bit| flags[*bit]).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_frame_is_written_if_any_of_its_pages_is(set in prop::collection::vec(0usize..4096, 0..20)) {
        const PAGES: usize = 512;
        let mut flags = vec![false; 4096];
        set.iter().for_each(|page| flags[*page] = true);
        let mut runs = Vec::new();
        for_each_frames(&pack(&flags), PAGES, |run| runs.push(run));
        prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
        let found: Vec<usize> = runs.into_iter().flatten().collect();
        let mut expected: Vec<usize> = set.iter().map(|page| page / PAGES).collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn only_bits_in_the_range_are_kept(a in 0usize..200, b in 0usize..200) {
        let mut bits = vec![u64::MAX; 3];
        keep_only(&mut bits, a..b);
        for bit in 0..192 {
            prop_assert_eq!(bits[bit / 64] >> (bit % 64) & 1 == 1, (a..b).contains(&bit));
        }
    }

    #[test]
    fn what_is_told_is_what_was_written_since_it_was_armed(
        steps in prop::collection::vec((0u8..3, 0..FRAMES, 1..FRAMES), 1..40),
    ) {
        let memory = memory();
        let (log, tracker) = tracker(&memory);
        let mut written: Vec<bool> = vec![true; FRAMES as usize];
        let mut told = written.clone();
        for (step, first, count) in steps {
            let range = first..(first + count).min(FRAMES);
            match step {
                0 => {
                    log.write(first);
                    written[first as usize] = true;
                }
                1 => {
                    let expected: Vec<u32> = range.clone().filter(|frame| written[*frame as usize]).collect();
                    expected.iter().for_each(|frame| told[*frame as usize] = true);
                    prop_assert_eq!(collected(&tracker, &memory, range), expected);
                }
                _ => {
                    tracker.arm(&memory, range.clone()).unwrap();
                    for frame in range {
                        written[frame as usize] &= !std::mem::take(&mut told[frame as usize]);
                    }
                }
            }
        }
    }
}

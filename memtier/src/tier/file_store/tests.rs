use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::swap::header::{HeaderError, SwapHeader};

const SLOTS: u64 = 300;
const SIZE: Bytes = Bytes::from_pages(SLOTS);

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn page_of(seed: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (i, word) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = (seed.wrapping_mul(0x9e37_79b1) ^ u32::try_from(i).unwrap()).to_le_bytes();
    }
    page
}

/// Pages that are not where direct I/O wants them.
fn unaligned(bytes: &mut Vec<u8>, count: usize) -> &mut [Page] {
    bytes.resize(PAGE_SIZE * (count + 1), 0);
    let start = bytes.as_ptr().align_offset(PAGE_SIZE) + 8;
    bytes[start..start + PAGE_SIZE * count].as_chunks_mut().0
}

/// Every way in which a store works, on whatever file system it is.
fn stores(dir: &TempDir) -> Vec<FileStore> {
    let open = |name: &str| FileStore::open(&dir.path().join(name), Some(SIZE)).unwrap();
    let mut buffered = open("buffered");
    raw_file::set_direct(&buffered.file, false).unwrap();
    buffered.direct = false;
    vec![open("plain"), open("pwrite").without_ring(), buffered]
}

/// What holds for every store: what was written to a slot is read from it, and nowhere else.
fn conforms(store: &dyn PageStore) {
    let mut pages = PageSlab::new(64);
    let mut expected = vec![[0; PAGE_SIZE]; usize::try_from(store.slots()).unwrap()];
    for (round, lens) in [vec![64], vec![1; 64], vec![1, 5, 17, 3, 30, 8], vec![2]].into_iter().enumerate() {
        let seed = u32::try_from(round).unwrap() * 1000;
        (seed..).zip(pages.iter_mut()).for_each(|(seed, page)| *page = page_of(seed));
        let (mut runs, mut from, mut slot) = (Vec::new(), 0, 7 + round);
        for len in lens {
            runs.push(WriteRun::new(SlotOffset(u32::try_from(slot).unwrap()), &pages[from..from + len]));
            expected[slot..slot + len].copy_from_slice(&pages[from..from + len]);
            (from, slot) = (from + len, slot + len + 1);
        }
        store.write(&mut runs);
        runs.into_iter().for_each(|run| run.outcome.unwrap());
    }
    let mut unaligned_bytes = Vec::new();
    let one = &mut unaligned(&mut unaligned_bytes, 1)[0];
    for (slot, page) in (1u32..).zip(&expected[1..]) {
        store.read(SlotOffset(slot), &mut pages[0]).unwrap();
        assert!(pages[0] == *page, "slot {slot}");
        store.read(SlotOffset(slot), one).unwrap();
        assert!(*one == *page, "slot {slot}, unaligned");
    }
    store.read_run(SlotOffset(5), &mut pages).unwrap();
    assert!(pages[..] == expected[5..69]);
    let several = unaligned(&mut unaligned_bytes, 9);
    store.read_run(SlotOffset(8), several).unwrap();
    assert!(*several == expected[8..17]);
    several.fill(page_of(99));
    let mut runs = [WriteRun::new(SlotOffset(100), several)];
    store.write(&mut runs);
    let [run] = runs;
    run.outcome.unwrap();
    store.read(SlotOffset(108), &mut pages[0]).unwrap();
    assert!(pages[0] == page_of(99));
    store.sync().unwrap();
}

#[test]
fn what_is_written_is_read_on_a_disk_and_in_memory_directly_and_through_the_cache() {
    for dir in [dir(), tempfile::tempdir_in("/dev/shm").unwrap()] {
        for store in stores(&dir) {
            conforms(&store);
        }
    }
}

#[test]
fn writing_goes_on_without_the_ring_when_it_breaks() {
    let dir = dir();
    let store = FileStore::open(&dir.path().join("swap"), Some(SIZE)).unwrap();
    if let Some(ring) = &mut *store.ring.lock().unwrap() {
        ring.break_off();
    }
    conforms(&store);
    assert!(store.ring.lock().unwrap().is_none());
}

#[test]
fn a_new_file_is_private_has_its_room_and_a_header() {
    let dir = dir();
    let path = dir.path().join("swap");
    let store = FileStore::open(&path, Some(Bytes(SIZE.0 + 4095))).unwrap();
    assert_eq!((store.slots(), store.kind(), store.path()), (SLOTS, StoreKind::File, path.as_path()));
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.permissions().mode() & 0o777), (SIZE.0, 0o600));
    assert!(found.blocks() * 512 >= SIZE.0);
    let page = Page::try_from(&fs::read(&path).unwrap()[..PAGE_SIZE]).unwrap();
    assert_eq!(u64::from(SwapHeader::decode(&page).unwrap().last_slot().0), SLOTS - 1);
}

#[test]
fn a_file_of_ours_is_taken_again_and_resized_when_asked() {
    let dir = dir();
    let path = dir.path().join("swap");
    let uuid =
        |path| SwapHeader::decode(&Page::try_from(&fs::read(path).unwrap()[..PAGE_SIZE]).unwrap()).unwrap().uuid();
    drop(FileStore::open(&path, Some(SIZE)).unwrap());
    let first = uuid(&path);
    assert_eq!(FileStore::open(&path, None).unwrap().slots(), SLOTS);
    for slots in [SLOTS * 2, SLOTS / 2] {
        assert_eq!(FileStore::open(&path, Some(Bytes::from_pages(slots))).unwrap().slots(), slots);
        assert_eq!(fs::metadata(&path).unwrap().len(), Bytes::from_pages(slots).0);
    }
    assert_eq!(uuid(&path), first);
}

#[test]
fn bad_slots_in_the_header_are_known() {
    let dir = dir();
    let path = dir.path().join("swap");
    drop(FileStore::open(&path, Some(SIZE)).unwrap());
    let bad = vec![SlotOffset(3), SlotOffset(200)];
    let header = SwapHeader::with(SlotOffset(299), uuid::Uuid::nil(), Default::default(), bad.clone()).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(&header.encode(), 0).unwrap();
    assert_eq!(FileStore::open(&path, None).unwrap().bad_slots(), bad);
}

#[test]
fn a_file_in_use_is_refused_until_its_user_is_gone() {
    let dir = dir();
    let path = dir.path().join("swap");
    let store = FileStore::open(&path, Some(SIZE)).unwrap();
    let error = FileStore::open(&path, Some(SIZE)).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }));
    assert!(error.to_string().ends_with("swap is in use by another ebb or by the system"));
    drop(store);
    FileStore::open(&path, None).unwrap();
}

const CHILD: &str = "EBB_TEST_HOLD_SWAP_FILE";

/// Not a test of its own: what the next one runs in a process that it kills.
#[test]
fn holds_a_swap_file_when_told_to() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let _store = FileStore::open(Path::new(&path), Some(SIZE)).unwrap();
    println!("\nholding");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_killed_user_leaves_no_lock_behind() {
    let dir = dir();
    let path = dir.path().join("swap");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "tier::file_store::tests::holds_a_swap_file_when_told_to"])
        .env(CHILD, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "holding"));
    assert!(matches!(FileStore::open(&path, Some(SIZE)), Err(OpenError::InUse { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    FileStore::open(&path, None).unwrap();
}

#[test]
fn a_file_that_holds_data_is_refused_and_left_as_it_is() {
    let dir = dir();
    let path = dir.path().join("data");
    let mut kernels = vec![0; 8 * PAGE_SIZE];
    kernels[4086..4096].copy_from_slice(b"SWAPSPACE2");
    for (data, expected) in [
        (b"a letter".to_vec(), HeaderError::Magic),
        (vec![1; 8 * PAGE_SIZE], HeaderError::Magic),
        (vec![0; 8 * PAGE_SIZE], HeaderError::Magic),
        (kernels, HeaderError::KernelSwap),
    ] {
        fs::write(&path, &data).unwrap();
        for size in [None, Some(SIZE)] {
            let error = FileStore::open(&path, size).unwrap_err();
            assert!(matches!(&error, OpenError::Foreign { source, .. } if *source == expected), "{error}");
            assert!(error.to_string().contains("truncate -s 0"), "{error}");
        }
        assert!(fs::read(&path).unwrap() == data);
    }
}

#[test]
fn a_file_without_any_data_in_it_is_taken() {
    let dir = dir();
    let path = dir.path().join("swap");
    fs::write(&path, "").unwrap();
    let error = FileStore::open(&path, None).unwrap_err();
    assert!(error.to_string().ends_with("swap would have 0 B, at least 8 KiB are needed"), "{error}");
    assert_eq!(FileStore::open(&path, Some(SIZE)).unwrap().slots(), SLOTS);
    fs::remove_file(&path).unwrap();
    File::create(&path).unwrap().set_len(SIZE.0).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(FileStore::open(&path, None).unwrap().slots(), SLOTS);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_damaged_or_shortened_file_of_ours_is_refused_until_a_size_is_given() {
    let dir = dir();
    let path = dir.path().join("swap");
    drop(FileStore::open(&path, Some(SIZE)).unwrap());
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(SIZE.0 - 1).unwrap();
    let error = FileStore::open(&path, None).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { source: HeaderError::Truncated { .. }, .. }), "{error}");
    file.write_all_at(&[0xff], 1500).unwrap();
    let error = FileStore::open(&path, None).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { source: HeaderError::Checksum { .. }, .. }), "{error}");
    assert!(error.to_string().ends_with("give a size to have it made anew"));
    FileStore::open(&path, Some(SIZE)).unwrap();
    // A file whose maker was killed after its first step.
    file.set_len(PAGE_SIZE as u64).unwrap();
    FileStore::open(&path, Some(SIZE)).unwrap();
    assert_eq!(FileStore::open(&path, None).unwrap().slots(), SLOTS);
}

#[test]
fn what_is_no_file_is_named() {
    let dir = dir();
    let refused = |path: &Path, size| FileStore::open(path, size).unwrap_err().to_string();
    assert!(refused(dir.path(), Some(SIZE)).ends_with("is a directory"));
    assert_eq!(
        refused(Path::new("/dev/null"), None),
        "swap file /dev/null is neither a regular file nor a block device"
    );
    let missing = dir.path().join("missing");
    assert!(refused(&missing, None).ends_with("does not exist; give a size to have it made"));
    assert!(refused(&dir.path().join("no/such/dir"), Some(SIZE)).starts_with("can't make swap file"));
    assert!(refused(&missing, Some(Bytes(8191))).ends_with("would have 8191 B, at least 8 KiB are needed"));
    assert!(!missing.exists());
}

#[test]
fn a_file_that_does_not_fit_is_not_left_behind() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("swap");
    for size in [1 << 50, u64::MAX] {
        let error = FileStore::open(&path, Some(Bytes(size))).unwrap_err();
        assert!(matches!(error, OpenError::NoSpace { .. }), "{error}");
        assert!(!path.exists());
    }
    assert!(FileStore::open(&path, Some(Bytes(1 << 50))).unwrap_err().to_string().contains("of 1048576 GiB at"));
}

#[test]
fn a_file_cut_underneath_gives_an_error_and_takes_writes_again() {
    let dir = dir();
    for store in stores(&dir) {
        let mut pages = PageSlab::new(8);
        File::options().write(true).open(&store.path).unwrap().set_len(20 * PAGE_SIZE as u64 + 512).unwrap();
        for slot in [20, 21, 200] {
            let error = store.read(SlotOffset(slot), &mut pages[0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "slot {slot}");
        }
        assert!(store.read_run(SlotOffset(17), &mut pages).is_err());
        pages.fill(page_of(5));
        let mut runs = [WriteRun::new(SlotOffset(200), &pages)];
        store.write(&mut runs);
        let [run] = runs;
        run.outcome.unwrap();
        let mut page = PageSlab::new(1);
        store.read(SlotOffset(207), &mut page[0]).unwrap();
        assert!(page[0] == page_of(5));
    }
}

//! Tests of disk files: what is accepted, what is locked, what zeroing leaves.

use std::fs;
use std::process::{Command, Stdio};

use super::*;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn sectors(count: u64) -> tempfile::NamedTempFile {
    file(&vec![0xaa; usize::try_from(count * SECTOR_SIZE).unwrap()])
}

fn range(sector: u64, count: u64) -> SectorRange {
    SectorRange::within(sector, count, u64::MAX >> 10).unwrap()
}

#[test]
fn the_capacity_is_the_files_length_in_whole_sectors() {
    assert_eq!(Disk::open(sectors(7).path(), false).unwrap().sectors(), 7);
    let odd = file(&[1; 1500]);
    assert_eq!(Disk::open(odd.path(), false).unwrap().sectors(), 2);
    assert_eq!(odd.as_file().metadata().unwrap().len(), 1500);
}

#[test]
fn what_is_not_a_disk_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    for read_only in [false, true] {
        let error = Disk::open(folder.path(), read_only).unwrap_err();
        assert_eq!(error.to_string(), format!("disk {path} is neither a file nor a block device"));
    }
    for read_only in [false, true] {
        let error = Disk::open(Path::new("/dev/null"), read_only).unwrap_err();
        assert_eq!(error.to_string(), "disk /dev/null is neither a file nor a block device");
    }
    let error = Disk::open(&folder.path().join("none"), false).unwrap_err();
    assert_eq!(error.to_string(), format!("can't open disk {path}/none"));
    assert!(matches!(error, DiskError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound));
    let small = file(&[1; 511]);
    let error = Disk::open(small.path(), false).unwrap_err();
    assert_eq!(error.to_string(), format!("disk {} has 511 bytes, less than a sector of 512", small.path().display()));
}

#[test]
fn a_pipe_without_a_peer_is_refused_and_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for read_only in [false, true] {
        assert!(matches!(Disk::open(&pipe, read_only), Err(DiskError::NotAFile { .. })));
    }
}

#[test]
fn a_writer_is_alone_and_readers_share() {
    let file = sectors(4);
    let writer = Disk::open(file.path(), false).unwrap();
    for read_only in [false, true] {
        let error = Disk::open(file.path(), read_only).unwrap_err();
        assert_eq!(error.to_string(), format!("disk {} is in use", file.path().display()));
    }
    drop(writer);
    let readers = [Disk::open(file.path(), true).unwrap(), Disk::open(file.path(), true).unwrap()];
    assert!(matches!(Disk::open(file.path(), false), Err(DiskError::InUse { .. })));
    drop(readers);
    Disk::open(file.path(), false).unwrap();
}

/// Set in the process that `a_lock_ends_with_its_process_and_not_before` starts.
const HOLD: &str = "DEVICES_TEST_HOLD_DISK";

#[test]
fn a_lock_ends_with_its_process_and_not_before() {
    use std::io::{Read, Write};

    if let Some(path) = std::env::var_os(HOLD) {
        let _disk = Disk::open(Path::new(&path), false).unwrap();
        std::io::stdout().write_all(b"locked\n").unwrap();
        // Killed here; or else the end of whoever started this ends the wait.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let file = sectors(4);
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "virtio::block::disk::tests::a_lock_ends_with_its_process_and_not_before", "--nocapture"])
        .env(HOLD, file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = holder.stdout.take().unwrap();
    let mut said = Vec::new();
    while !said.windows(6).any(|word| word == b"locked") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the holder ended early");
        said.push(byte[0]);
    }
    let while_held = Disk::open(file.path(), false);
    // SIGKILL: no handler and no destructor runs.
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(matches!(while_held, Err(DiskError::InUse { .. })));
    Disk::open(file.path(), false).unwrap();
}

#[test]
fn the_identity_tells_files_apart_and_stays_the_same() {
    let (one, other) = (sectors(1), sectors(1));
    let first = *Disk::open(one.path(), false).unwrap().id();
    assert_eq!(first, *Disk::open(one.path(), true).unwrap().id());
    assert_ne!(first, *Disk::open(other.path(), false).unwrap().id());
    assert!(first.iter().all(|byte| byte.is_ascii_graphic() || *byte == 0));
    assert_eq!(identity(u64::MAX, 1, 2), *b"ffffffffffffffff-1-2", "cut at twenty bytes");
    assert_eq!(identity(u64::MAX, u64::MAX, 2), *b"ffffffffffffffff-fff");
}

#[test]
fn zeroing_touches_its_range_only_and_keeps_the_length() {
    for unmap in [false, true] {
        let file = sectors(64);
        let disk = Disk::open(file.path(), false).unwrap();
        disk.write_zeroes(range(3, 20), unmap).unwrap();
        disk.write_zeroes(range(62, 2), unmap).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 64 * 512);
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let zeroed = (3..23).contains(&sector) || sector >= 62;
            assert!(bytes.iter().all(|byte| *byte == if zeroed { 0 } else { 0xaa }), "sector {sector}");
        }
    }
}

#[test]
fn zeroing_by_hand_does_the_same() {
    let file = sectors(400);
    let disk = Disk::open(file.path(), false).unwrap();
    disk.write_zeroes_by_hand(512, 300 * 512).unwrap();
    let bytes = fs::read(file.path()).unwrap();
    assert!(bytes[..512].iter().chain(&bytes[301 * 512..]).all(|byte| *byte == 0xaa));
    assert!(bytes[512..301 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(bytes.len(), 400 * 512);
}

#[test]
fn discarding_gives_space_back_where_the_filesystem_can() {
    use std::os::unix::fs::MetadataExt;

    let file = sectors(4096);
    file.as_file().sync_all().unwrap();
    let before = file.as_file().metadata().unwrap();
    let disk = Disk::open(file.path(), false).unwrap();
    disk.discard(range(0, 2048)).unwrap();
    file.as_file().sync_all().unwrap();
    let after = file.as_file().metadata().unwrap();
    assert_eq!(after.len(), before.len());
    if zero_range(file.as_file(), 0, 4096, Zeroing::Deallocate).unwrap() {
        assert!(after.blocks() <= before.blocks() - 2048 + 16, "{} of {} blocks left", after.blocks(), before.blocks());
    }
}

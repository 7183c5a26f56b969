use std::os::fd::{AsRawFd, OwnedFd};

use super::*;
use crate::units::PAGE_SIZE;

fn memory(regions: &[(u64, u64)]) -> Result<GuestMemory, MemoryError> {
    let spec = |&(first, pages): &(u64, u64)| {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages << PAGE_SHIFT).unwrap();
        let (len, fd) = (usize::try_from(pages << PAGE_SHIFT).unwrap().max(1), file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice. It stays for the process's life, as nothing tells when the test is done.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(map, libc::MAP_FAILED);
        RegionSpec { first: Gfn(first), pages, file: OwnedFd::from(file), guest_map: Hva(map as u64) }
    };
    GuestMemory::new(regions.iter().map(spec).collect())
}

#[test]
fn frames_indices_and_addresses_lead_to_each_other_across_a_hole() {
    let memory = memory(&[(0, 256), (0x1000, 128)]).unwrap();
    assert_eq!((memory.frames(), memory.end()), (384, Gfn(0x1080)));
    for index in (0..384).map(FrameIndex) {
        assert_eq!(memory.index(memory.gfn(index)), Some(index));
        assert_eq!(memory.index_of_hva(memory.hva(index)), Some(index));
    }
    assert_eq!(memory.index(Gfn(256)), None);
    assert_eq!(memory.index(Gfn(0xfff)), None);
    assert_eq!(memory.index(Gfn(0x1080)), None);
    assert_eq!(memory.index(Gfn(u64::MAX)), None);
}

#[test]
fn a_range_over_a_hole_counts_what_is_not_memory() {
    let memory = memory(&[(0, 256), (0x1000, 128)]).unwrap();
    assert_eq!(memory.indices(250..0x1002), (vec![250..256, 256..258], 0x1000 - 256));
    assert_eq!(memory.indices(300..400), (vec![], 100));
}

#[test]
fn regions_out_of_order_empty_or_too_large_are_refused() {
    assert!(matches!(memory(&[]), Err(MemoryError::Empty)));
    assert!(matches!(memory(&[(0, 0)]), Err(MemoryError::Empty)));
    assert!(matches!(memory(&[(100, 10), (0, 10)]), Err(MemoryError::Order(Gfn(0)))));
    assert!(matches!(memory(&[(0, 10), (9, 10)]), Err(MemoryError::Order(Gfn(9)))));
}

#[test]
fn contents_are_read_punched_and_found_by_frame() {
    let memory = memory(&[(0, 64), (0x1000, 64)]).unwrap();
    let mut page = [[1_u8; PAGE_SIZE]];
    memory.read(FrameIndex(70), &mut page).unwrap();
    assert_eq!(page, [[0; PAGE_SIZE]]);
    let present = || {
        let mut runs = Vec::new();
        memory.for_each_present(10..100, |run| runs.push(run)).unwrap();
        runs
    };
    assert!(present().is_empty(), "reading a hole leaves it a hole");
    for frame in [9, 62, 63, 64, 99, 100] {
        let region = memory.region(FrameIndex(frame));
        region.file.write_all_at(&[1], region.offset(FrameIndex(frame))).unwrap();
    }
    assert_eq!(present(), vec![62..64, 64..65, 99..100]);
    memory.punch(FrameIndex(62), 1).unwrap();
    assert_eq!(present(), vec![63..64, 64..65, 99..100]);
}

/// Huge regions in pages of 4 KiB; their memory is neither mapped nor taken from the pool.
fn huge_memory(regions: &[(u64, u64, u64)]) -> Result<GuestMemory, MemoryError> {
    let spec = |&(first, pages, guest_map): &(u64, u64, u64)| {
        let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        // SAFETY: a literal name and no pointers kept.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: just made.
        let file = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        RegionSpec { first: Gfn(first), pages, file, guest_map: Hva(guest_map) }
    };
    GuestMemory::with_frame_size(regions.iter().map(spec).collect(), FrameSize::Huge)
}

const MAP: u64 = 0x7000_0000_0000;

#[test]
fn huge_frames_are_counted_in_their_own_size_and_named_by_page() {
    let memory = huge_memory(&[(0, 1024, MAP), (0x1000, 512, MAP + (64 << 20))]).unwrap();
    assert_eq!((memory.frames(), memory.end(), memory.frame_buffer().len()), (3, Gfn(0x1200), 512));
    for (frame, gfn) in [(0, 0), (1, 512), (2, 0x1000)] {
        assert_eq!(memory.gfns(FrameIndex(frame)), gfn..gfn + 512);
        for page in [0, 1, 511] {
            assert_eq!(memory.index(Gfn(gfn + page)), Some(FrameIndex(frame)));
            assert_eq!(
                memory.index_of_hva(memory.hva(FrameIndex(frame)).offset(page << 12 | 77)),
                Some(FrameIndex(frame))
            );
        }
    }
    assert_eq!((memory.index(Gfn(1024)), memory.index(Gfn(0x1200))), (None, None));
    assert_eq!(memory.hva(FrameIndex(1)), Hva(MAP + (2 << 20)));
    // A range touches whole frames; what it leaves out is counted in pages.
    let (whole, left_out) = memory.indices(511..513);
    assert_eq!((whole.first(), whole.len(), left_out), (Some(&(0..2)), 1, 0));
    assert_eq!(memory.indices(600..0x1001), (vec![1..2, 2..3], 0x1000 - 1024));
    assert_eq!(memory.indices(512..512), (vec![], 0));
}

#[test]
fn huge_regions_must_be_whole_frames_on_huge_pages() {
    let refused = |first, pages, map| huge_memory(&[(first, pages, map)]).unwrap_err().to_string();
    assert_eq!(refused(8, 512, MAP), "region at g8: start 0x8000 is not a multiple of the frame size, 2 MiB");
    assert_eq!(refused(0, 513, MAP), "region at g0: length 0x201000 is not a multiple of the frame size, 2 MiB");
    assert_eq!(
        refused(0, 512, MAP + 4096),
        "region at g0: mapping 0x700000001000 is not a multiple of the frame size, 2 MiB"
    );
    let spec = |flags| {
        // SAFETY: a literal name and no pointers kept.
        let fd = unsafe { libc::memfd_create(c"other".as_ptr(), flags) };
        // SAFETY: just made.
        let file = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        vec![RegionSpec { first: Gfn(0), pages: 512, file, guest_map: Hva(MAP) }]
    };
    let error = GuestMemory::with_frame_size(spec(libc::MFD_CLOEXEC), FrameSize::Huge).unwrap_err();
    assert_eq!(error.to_string(), "region at g0: the file's pages are not of 2 MiB");
    let error = GuestMemory::new(spec(libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)).unwrap_err();
    assert_eq!(error.to_string(), "region at g0: the file's pages are not of 4 KiB");
}

use std::os::fd::OwnedFd;

use super::*;
use crate::units::PAGE_SIZE;

fn memory(regions: &[(u64, u64)]) -> Result<GuestMemory, MemoryError> {
    let spec = |&(first, pages): &(u64, u64)| {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages << PAGE_SHIFT).unwrap();
        RegionSpec {
            first: Gfn(first),
            pages,
            file: OwnedFd::from(file),
            guest_map: Hva(0x7000_0000_0000 + (first << 12)),
        }
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

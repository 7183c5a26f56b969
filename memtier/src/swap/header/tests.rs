use proptest::prelude::*;

use super::*;

fn header() -> SwapHeader {
    let label = Label::new("scratch").unwrap();
    SwapHeader::with(SlotOffset(1000), Uuid::from_u128(7), label, vec![SlotOffset(9), SlotOffset(5)]).unwrap()
}

/// The header's page with some bytes changed and a checksum that fits again.
fn forged(at: usize, bytes: &[u8]) -> Page {
    let mut page = header().encode();
    put(&mut page, at, bytes);
    let sum = checksum(&page);
    put(&mut page, CHECKSUM_AT, &sum.to_le_bytes());
    page
}

#[test]
fn a_header_lies_where_the_kernel_looks_for_it() {
    let page = header().encode();
    assert_eq!(&page[4086..], MAGIC);
    assert_eq!(page[..1024], [0; 1024]);
    assert_eq!(page[1024..1036], [1, 0, 0, 0, 0xe8, 3, 0, 0, 2, 0, 0, 0]);
    assert_eq!(page[1036..1052], 7u128.to_be_bytes());
    assert_eq!(&page[1052..1060], b"scratch\0");
    assert_eq!(page[1536..1544], [5, 0, 0, 0, 9, 0, 0, 0]);
}

#[test]
fn every_field_that_is_wrong_is_named() {
    let refused = |page: &Page| SwapHeader::decode(page).unwrap_err();
    assert_eq!(refused(&[0; PAGE_SIZE]), HeaderError::Magic);
    assert_eq!(refused(&forged(MAGIC_AT, b"SWAPSPACE2")), HeaderError::KernelSwap);
    assert_eq!(refused(&forged(VERSION_AT, &[2])), HeaderError::Version { found: 2 });
    assert_eq!(refused(&forged(PAGE_SIZE_AT, &[0, 0, 1, 0])), HeaderError::PageSize { found: 65536 });
    assert_eq!(refused(&forged(LAST_SLOT_AT, &[0; 4])), HeaderError::NoSlots);
    assert_eq!(refused(&forged(BAD_COUNT_AT, &638u32.to_le_bytes())), HeaderError::BadCount { found: 638 });
    assert_eq!(refused(&forged(BAD_COUNT_AT, &u32::MAX.to_le_bytes())), HeaderError::BadCount { found: u32::MAX });
    let last = SlotOffset(1000);
    assert_eq!(refused(&forged(BAD_AT + 4, &[0xe9, 3])), HeaderError::BadSlot { slot: SlotOffset(1001), last });
    assert_eq!(refused(&forged(BAD_AT, &[0])), HeaderError::BadSlot { slot: SlotOffset(0), last });
    assert_eq!(refused(&forged(BAD_AT, &[10])), HeaderError::NotCanonical);
    assert_eq!(refused(&forged(BAD_AT, &[9])), HeaderError::NotCanonical);
    assert_eq!(refused(&forged(BAD_AT + 8, &[1])), HeaderError::NotCanonical);
    assert_eq!(refused(&forged(17, &[1])), HeaderError::NotCanonical);
    assert_eq!(refused(&forged(LABEL_AT, &[0xff])), HeaderError::Label);
    assert_eq!(refused(&forged(LABEL_AT + 9, b"x")), HeaderError::NotCanonical);
    let mut page = header().encode();
    page[BAD_AT] ^= 1;
    assert!(matches!(refused(&page), HeaderError::Checksum { .. }));
}

#[test]
fn a_file_shorter_than_claimed_is_refused() {
    let header = header();
    assert_eq!(header.bytes(), Bytes(1001 * 4096));
    assert!(header.check_len(Bytes(1001 * 4096)).is_ok());
    let error = header.check_len(Bytes(1001 * 4096 - 1)).unwrap_err();
    assert_eq!(error.to_string(), "header claims 4004 KiB, the file has 4100095 B");
}

#[test]
fn a_header_that_could_not_be_read_back_is_not_made() {
    let with = |last, bad: std::ops::RangeInclusive<u32>| {
        SwapHeader::with(SlotOffset(last), Uuid::nil(), Label::default(), bad.map(SlotOffset).collect())
    };
    assert_eq!(with(0, 1..=1), Err(HeaderError::NoSlots));
    assert_eq!(with(1000, 1..=638), Err(HeaderError::BadCount { found: 638 }));
    assert!(with(1000, 1..=637).is_ok());
    assert!(matches!(with(5, 6..=6), Err(HeaderError::BadSlot { .. })));
    assert!(Label::new("seventeen letters").is_none());
    assert!(Label::new("nul\0").is_none());
    assert_eq!(Label::new("sixteen letters!").unwrap().as_str(), "sixteen letters!");
}

#[test]
fn a_resized_header_forgets_bad_slots_beyond_its_end() {
    let small = header().resized(SlotOffset(8)).unwrap();
    assert_eq!(small.bad_slots(), [SlotOffset(5)]);
    assert_eq!((small.uuid(), small.label()), (header().uuid(), header().label()));
}

proptest! {
    #[test]
    fn every_header_comes_back_as_it_was_written(
        last in 1u32..,
        uuid: u128,
        label in "[a-zA-Z0-9 ä]{0,8}",
        bad in proptest::collection::vec(any::<u32>(), 0..=MAX_BAD_SLOTS),
    ) {
        let bad = bad.into_iter().map(|slot| SlotOffset(slot % last + 1)).collect();
        let label = Label::new(&label).unwrap();
        let header = SwapHeader::with(SlotOffset(last), Uuid::from_u128(uuid), label, bad).unwrap();
        prop_assert_eq!(SwapHeader::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn no_single_changed_byte_goes_unnoticed(at in 0..PAGE_SIZE, change in 1u8..) {
        let mut page = header().encode();
        page[at] ^= change;
        prop_assert!(SwapHeader::decode(&page).is_err());
    }

    #[test]
    fn what_is_accepted_encodes_to_the_same_page(at in 1024..1600usize, bytes in proptest::collection::vec(any::<u8>(), 1..9)) {
        let page = forged(at, &bytes);
        if let Ok(header) = SwapHeader::decode(&page) {
            prop_assert_eq!(header.encode(), page);
        }
    }
}

use super::*;
use proptest::prelude::*;

/// A reader, written from the description: pages by address, and where it ended.
fn decode(bytes: &[u8]) -> (Vec<(u64, PageType)>, u64) {
    let kinds = [
        PageType::Accessed,
        PageType::HugeAccessed,
        PageType::Dirty,
        PageType::HugeDirty,
        PageType::Idle,
        PageType::HugeIdle,
        PageType::HugeAllIdle,
        PageType::Hole,
        PageType::HugeHole,
    ];
    let (mut pages, mut address, mut at) = (Vec::new(), None, 0);
    while at < bytes.len() {
        if bytes[at] == 0xa0 {
            address = Some(u64::from_be_bytes(bytes[at + 1..at + 9].try_into().unwrap()));
            at += 9;
            continue;
        }
        let (number, count) = (bytes[at] >> 4, bytes[at] & 0xf);
        let kind = *kinds.iter().find(|kind| **kind as u8 == number).expect("a known type");
        assert!(count > 0, "a byte counts at least one page");
        for _ in 0..count {
            let here = address.expect("an address comes first");
            pages.push((here, kind));
            address = Some(here + kind.bytes());
        }
        at += 1;
    }
    (pages, address.expect("there is an address"))
}

#[test]
fn the_bytes_are_those_of_the_description() {
    let mut encoder = Encoder::new(64).unwrap();
    for page in 0..17_u64 {
        encoder.page(0x7f00_1000 + page * 4096, PageType::Idle).unwrap();
    }
    encoder.page(0x7f00_1000 + 17 * 4096, PageType::Accessed).unwrap();
    encoder.page(0x7f00_1000 + 18 * 4096, PageType::Hole).unwrap();
    encoder.page(0x7f80_0000, PageType::Hole).unwrap();
    encoder.page(0x7fa0_0000, PageType::HugeAccessed).unwrap();
    let bytes = encoder.finish(0x8000_0000);
    let expected = [
        &[0xa0, 0, 0, 0, 0, 0x7f, 0, 0x10, 0, 0x5f, 0x52, 0x01, 0x81][..],
        &[0xa0, 0, 0, 0, 0, 0x7f, 0xa0, 0, 0, 0x11],
        &[0xa0, 0, 0, 0, 0, 0x80, 0, 0, 0],
    ];
    assert_eq!(bytes, expected.concat());
}

#[test]
fn nothing_but_holes_is_where_it_ends() {
    let mut encoder = Encoder::new(MIN_BUFFER).unwrap();
    for page in 0..100 {
        encoder.page(page * 4096, PageType::Hole).unwrap();
    }
    assert_eq!(encoder.finish(100 * 4096), [0xa0, 0, 0, 0, 0, 0, 6, 0x40, 0]);
}

#[test]
fn a_buffer_below_nineteen_bytes_is_none() {
    assert!((0..MIN_BUFFER).all(|len| Encoder::new(len).is_none()));
    let mut encoder = Encoder::new(MIN_BUFFER).unwrap();
    assert_eq!((0..15).map(|page| encoder.page(page * 4096, PageType::Dirty)).filter(Result::is_ok).count(), 15);
    assert_eq!(encoder.page(15 * 4096, PageType::Dirty), Err(Full));
    assert_eq!(encoder.finish(15 * 4096).len(), 10, "decoding ends where the walk ended: no record is needed");
}

fn kind() -> impl Strategy<Value = PageType> {
    prop_oneof![
        3 => Just(PageType::Accessed), 3 => Just(PageType::Idle), 1 => Just(PageType::Dirty), 2 => Just(PageType::Hole),
        1 => Just(PageType::HugeAccessed), 1 => Just(PageType::HugeIdle), 1 => Just(PageType::HugeDirty), 1 => Just(PageType::HugeAllIdle),
        1 => Just(PageType::HugeHole),
    ]
}

proptest! {
    #[test]
    fn pages_come_back_as_far_as_the_buffer_goes(
        runs in prop::collection::vec((0_u64..3, kind(), 1_u64..40), 0..40), buffer in MIN_BUFFER..400,
    ) {
        let (mut address, mut pages) = (0x1000, Vec::new());
        for (jump, kind, count) in runs {
            address += jump * 4096;
            for _ in 0..count {
                pages.push((address, kind));
                address += kind.bytes();
            }
        }
        let mut encoder = Encoder::new(buffer).unwrap();
        let taken = pages.iter().take_while(|(address, kind)| encoder.page(*address, *kind).is_ok()).count();
        let end = pages.get(taken).map_or(address, |page| page.0);
        let bytes = encoder.finish(end);
        prop_assert!(bytes.len() <= buffer);
        let (decoded, stopped) = decode(&bytes);
        prop_assert_eq!(stopped, end, "a reader goes on where the walk ended");
        let no_hole = |pages: &[(u64, PageType)]| pages.iter().copied().filter(|page| !page.1.is_hole()).collect::<Vec<_>>();
        prop_assert_eq!(no_hole(&decoded), no_hole(&pages[..taken]));
        prop_assert!(decoded.iter().all(|page| pages.contains(page)), "no page is made up, holes included");
        prop_assert!(taken == pages.len() || taken > 0 && bytes.len() + 10 > buffer - 9);
    }
}

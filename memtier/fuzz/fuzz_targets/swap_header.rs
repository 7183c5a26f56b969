//! Any page at all: decoding does not panic, and what it accepts encodes to the same page.
//!
//! `cargo +nightly fuzz run swap_header`, from `memtier/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memtier::swap::header::{SwapHeader, seal};
use memtier::units::PAGE_SIZE;

fuzz_target!(|bytes: &[u8]| {
    let mut page = [0; PAGE_SIZE];
    let len = bytes.len().min(PAGE_SIZE);
    page[..len].copy_from_slice(&bytes[..len]);
    // Unhelped, a fuzzer never finds the checksum; so each input is tried as it is and with magic and checksum made right.
    let mut sealed = page;
    seal(&mut sealed);
    for page in [page, sealed] {
        if let Ok(header) = SwapHeader::decode(&page) {
            assert_eq!(header.encode(), page);
        }
    }
});

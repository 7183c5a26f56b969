//! What of an ELF file has to be known before its segments are loaded.
//!
//! Promises: a file with wrong numbers gives an error, never a panic; nothing beyond the program headers is read. Must never: load anything.

use std::io::{self, Read, Seek, SeekFrom};

/// The first four bytes of every ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const TYPE_LOAD: u32 = 1;

/// Why an ELF file is no kernel for this machine.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not 64-bit little-endian x86.
    #[error("it is an ELF file, but not for 64-bit x86")]
    Machine,
    /// Nothing to load.
    #[error("it is an ELF file without loadable segments")]
    Empty,
    /// A segment whose end is beyond the address space.
    #[error("an ELF segment at {start:#x} is {len:#x} bytes long")]
    Overflow {
        /// Physical start.
        start: u64,
        /// Length.
        len: u64,
    },
    /// The headers cannot be read.
    #[error("its ELF headers cannot be read")]
    Read(#[source] io::Error),
}

/// The physical range that loadable segments span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Lowest byte.
    pub start: u64,
    /// Behind the highest byte, memory without file contents included.
    pub end: u64,
}

/// Checks the headers and tells the span of what would be loaded.
pub fn span(file: &mut (impl Read + Seek)) -> Result<Span, ElfError> {
    let mut header = [0; HEADER_SIZE];
    read_at(file, 0, &mut header)?;
    let machine = u16::from_le_bytes(field(&header, 18));
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN || machine != MACHINE_X86_64 {
        return Err(ElfError::Machine);
    }
    let table = u64::from_le_bytes(field(&header, 32));
    let count = u16::from_le_bytes(field(&header, 56));
    let mut span: Option<Span> = None;
    for index in 0..u64::from(count) {
        let mut entry = [0; PROGRAM_HEADER_SIZE];
        let offset = table.checked_add(index * PROGRAM_HEADER_SIZE as u64).ok_or(ElfError::Empty)?;
        read_at(file, offset, &mut entry)?;
        if u32::from_le_bytes(field(&entry, 0)) != TYPE_LOAD {
            continue;
        }
        let start = u64::from_le_bytes(field(&entry, 24));
        let len = u64::from_le_bytes(field::<8>(&entry, 32)).max(u64::from_le_bytes(field(&entry, 40)));
        let end = start.checked_add(len).ok_or(ElfError::Overflow { start, len })?;
        let known = span.get_or_insert(Span { start, end });
        *known = Span { start: known.start.min(start), end: known.end.max(end) };
    }
    span.ok_or(ElfError::Empty)
}

fn read_at(file: &mut (impl Read + Seek), offset: u64, into: &mut [u8]) -> Result<(), ElfError> {
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(into)).map_err(ElfError::Read)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the slice has N bytes")
}

#[cfg(test)]
pub mod testing {
    //! ELF files made by hand.

    use super::*;

    /// A file with one segment of `code` at physical `address`, entered at its first byte; `memory` bytes long once loaded.
    pub fn image(address: u64, code: &[u8], memory: u64) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..4].copy_from_slice(&MAGIC);
        file[4..7].copy_from_slice(&[CLASS_64, LITTLE_ENDIAN, 1]);
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[24..32].copy_from_slice(&address.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&TYPE_LOAD.to_le_bytes());
        file[68..72].copy_from_slice(&5u32.to_le_bytes());
        for (offset, value) in [(72, 0x1000), (80, address), (88, address), (96, code.len() as u64), (104, memory)] {
            file[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        file.extend_from_slice(code);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn the_span_includes_memory_without_file_contents() {
        let image = testing::image(0x20_0000, &[0xf4], 0x5000);
        assert_eq!(span(&mut Cursor::new(image)).expect("good"), Span { start: 0x20_0000, end: 0x20_5000 });
    }

    #[test]
    fn other_machines_and_broken_headers_are_refused() {
        let good = testing::image(0x20_0000, &[0xf4], 1);
        let changed = |offset: usize, bytes: &[u8]| {
            let mut image = good.clone();
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
            span(&mut Cursor::new(image))
        };
        assert!(matches!(changed(4, &[1]), Err(ElfError::Machine)), "32-bit");
        assert!(matches!(changed(18, &[183]), Err(ElfError::Machine)), "another processor");
        assert!(matches!(changed(56, &[0]), Err(ElfError::Empty)), "no segments");
        assert!(matches!(changed(32, &[0xff; 8]), Err(ElfError::Empty | ElfError::Read(_))), "headers beyond the file");
        assert!(matches!(changed(80, &[0xff; 24]), Err(ElfError::Overflow { .. })), "beyond the address space");
        assert!(matches!(span(&mut Cursor::new(&good[..40])), Err(ElfError::Read(_))), "cut off");
    }
}

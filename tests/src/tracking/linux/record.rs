//! What a Linux guest leaves on its disk for the host to read: the frame numbers of its arena, and which of its pages it touched last.
//!
//! A header, then one 64-bit word for each page's guest frame number, ascending, then a bit for each page in the same order; words in the
//! byte order of the machine, which guest and host share. Each of the three begins a block of 4 KiB.
//!
//! Promises: the header is written last, after everything that it vouches for is on the disk, so a reader that finds the number it waits for
//! finds the rest of that access. Must never: be written through a cache that the host does not see; the writer opens the disk synchronously.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::tracking::sets::PageSet;

const BLOCK: u64 = 4096;
const MAGIC: u64 = 0x6562_622d_7472_7574;
const HEADER_WORDS: usize = 4;

/// Why a disk holds no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The disk can't be read or written.
    #[error("the guest's disk")]
    Disk(#[from] io::Error),
    /// There is something else at its begin.
    #[error("the guest's disk begins with {0:#x}, which is no record")]
    Magic(u64),
    /// A number of pages that no guest has.
    #[error("the record is of {pages} pages, which is no multiple of 64 up to {most}")]
    Pages {
        /// What the header says.
        pages: u64,
        /// The most that is taken for true.
        most: u64,
    },
}

/// The most pages of an arena: 4 GiB.
pub const MOST_PAGES: u64 = 1 << 20;

/// What the record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Pages of the arena, a multiple of 64.
    pub pages: u64,
    /// The number of the last access; 0 before the first.
    pub number: u64,
    /// Pages that were found in another frame than before, after that access.
    pub moved: u64,
}

impl Header {
    /// Writes it: what was written before is on the disk by then.
    pub fn write(self, disk: &File) -> Result<(), RecordError> {
        Ok(write_words(disk, 0, &[MAGIC, self.pages, self.number, self.moved])?)
    }

    /// Reads and checks it.
    pub fn read(disk: &File) -> Result<Self, RecordError> {
        let words = read_words(disk, 0, HEADER_WORDS)?;
        if words[0] != MAGIC {
            return Err(RecordError::Magic(words[0]));
        }
        let pages = words[1];
        if pages == 0 || !pages.is_multiple_of(64) || pages > MOST_PAGES {
            return Err(RecordError::Pages { pages, most: MOST_PAGES });
        }
        Ok(Self { pages, number: words[2], moved: words[3] })
    }

    /// Bytes of a disk that holds a record of this many pages.
    pub const fn disk_bytes(pages: u64) -> u64 {
        set_at(pages) + (pages / 8).next_multiple_of(BLOCK)
    }
}

/// Writes the arena's frame numbers.
pub fn write_frames(disk: &File, frames: &[u64]) -> Result<(), RecordError> {
    Ok(write_words(disk, BLOCK, frames)?)
}

/// Reads the arena's frame numbers.
pub fn read_frames(disk: &File, header: Header) -> Result<Vec<u64>, RecordError> {
    Ok(read_words(disk, BLOCK, usize::try_from(header.pages).expect("checked when read"))?)
}

/// Writes which pages were touched.
pub fn write_set(disk: &File, pages: u64, set: &PageSet) -> Result<(), RecordError> {
    Ok(write_words(disk, set_at(pages), set.words())?)
}

/// Reads which pages were touched.
pub fn read_set(disk: &File, header: Header) -> Result<PageSet, RecordError> {
    let words = usize::try_from(header.pages / 64).expect("checked when read");
    Ok(PageSet::from_words(read_words(disk, set_at(header.pages), words)?))
}

const fn set_at(pages: u64) -> u64 {
    BLOCK + (pages * 8).next_multiple_of(BLOCK)
}

fn write_words(disk: &File, at: u64, words: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    disk.write_all_at(&bytes, at)
}

fn read_words(disk: &File, at: u64, words: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; words * 8];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_ne_bytes(*chunk)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_fits_the_disk() {
        const PAGES: u64 = 576;
        let disk = tempfile::tempfile().expect("a file");
        let frames: Vec<u64> = (0..PAGES).map(|page| page * 3 + 100).collect();
        let set = PageSet::from_words((0..PAGES / 64).map(|word| word << 7 | 1).collect());
        let header = Header { pages: PAGES, number: 9, moved: 1 };
        write_frames(&disk, &frames).expect("frames");
        write_set(&disk, PAGES, &set).expect("set");
        header.write(&disk).expect("header");
        assert_eq!(Header::read(&disk).expect("header"), header);
        assert_eq!(read_frames(&disk, header).expect("frames"), frames);
        assert_eq!(read_set(&disk, header).expect("set"), set);
        assert!(disk.metadata().expect("its size").len() <= Header::disk_bytes(PAGES));
    }

    #[test]
    fn a_disk_without_a_record_is_refused_with_what_is_there() {
        let disk = tempfile::tempfile().expect("a file");
        assert_eq!(Header::read(&disk).unwrap_err().to_string(), "the guest's disk");
        disk.set_len(8192).expect("longer");
        assert_eq!(
            Header::read(&disk).unwrap_err().to_string(),
            "the guest's disk begins with 0x0, which is no record"
        );
        for pages in [0, 65, MOST_PAGES + 64] {
            Header { pages, number: 0, moved: 0 }.write(&disk).expect("written");
            let expected = format!("the record is of {pages} pages, which is no multiple of 64 up to 1048576");
            assert_eq!(Header::read(&disk).unwrap_err().to_string(), expected);
        }
    }
}

//! Direct reads from a file into guest memory, as a device makes them: the kernel holds references to the pages that nothing in their
//! mapping shows. Only pins keep the evictor away.
//!
//! Promises: what was read is compared word by word after the pin is gone; the first page of each read gets contents that it did not hold
//! before, and so do most of the others. Must never: read into a page without a pin.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memtier::status::GuestRange;

use super::SoakError;
use super::scene::{Scene, part_of};
use crate::payload::abi::PAGE;
use crate::payload::pattern::{WORDS, kind, word};
use crate::payload::rng::Rng;
use crate::payload::{Pages, Verified};

/// Different contents in the file for every page.
const GENERATIONS: u64 = 8;

/// The most pages of one read.
const MOST: u64 = 32;

/// A file with contents for the direct-I/O pages, and which of them each page holds.
#[derive(Debug)]
pub(super) struct DirectIo {
    path: PathBuf,
    file: File,
    range: GuestRange,
    /// Per page the generation read last; none for pages never read into.
    held: Vec<Option<u64>>,
}

impl DirectIo {
    /// Makes the file: generation by generation, the contents of every page.
    pub(super) fn new(scene: &Scene<'_>, folder: &Path) -> Result<Self, SoakError> {
        let path = folder.join("soak-direct-io");
        let range = scene.layout.direct_io;
        let failed = |what, source| SoakError::File { what, path: path.clone(), source };
        write_contents(&path, range).map_err(|error| failed("writing", error))?;
        let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        let file = open.map_err(|error| failed("opening for direct I/O", error))?;
        let held = (0..range.len / PAGE).map(|_| None).collect();
        Ok(Self { file, range, held, path })
    }

    /// One read into some of the pages, and a look at what arrived.
    pub(super) fn step(&mut self, scene: &Scene<'_>, rng: &mut Rng) -> Result<(), SoakError> {
        let part = part_of(self.range, MOST, rng);
        let first = (part.start - self.range.start) / PAGE;
        let before = self.held[index(first)];
        let generation = (before.unwrap_or(0) + 1 + rng.below(GENERATIONS - 1)) % GENERATIONS;
        let guard = scene.memtier.pin(part).map_err(SoakError::refused("a pin for direct I/O"))?;
        let offset = (generation * self.range.len / PAGE + first) * PAGE;
        self.read(scene, part, offset)?;
        drop(guard);
        for page in first..first + part.len / PAGE {
            self.held[index(page)] = Some(generation);
        }
        scene.tally.count(|totals| totals.direct_reads += 1);
        verify(scene, part, generation)
    }

    /// Lets the guest verify every page that was read into.
    pub(super) fn verify_in_guest(&self, scene: &Scene<'_>) -> Result<(), SoakError> {
        for (page, generation) in (0..).zip(&self.held) {
            let Some(seed) = *generation else { continue };
            let start = self.range.start + page * PAGE;
            let verified: Verified = scene.vm.vcpu(0).verify(Pages { seed, start, pages: 1, kinds: kind::RANDOM })?;
            SoakError::unless_clean(0, &verified)?;
        }
        Ok(())
    }

    fn read(&self, scene: &Scene<'_>, part: GuestRange, offset: u64) -> Result<(), SoakError> {
        let into = scene.vm.words().host_range(part.start, part.len)?;
        let len = usize::try_from(part.len).expect("a part of memory");
        let offset = libc::off_t::try_from(offset).expect("a small file");
        // SAFETY: `into` is `len` bytes of guest memory, mapped for as long as the guest is there; the kernel may write them at any time, as
        // the guest may, and nobody has references to them.
        let got = unsafe { libc::pread(self.file.as_raw_fd(), into.cast(), len, offset) };
        let source = match usize::try_from(got) {
            Ok(got) if got == len => return Ok(()),
            Ok(_) => io::Error::from(io::ErrorKind::UnexpectedEof),
            Err(_) => io::Error::last_os_error(),
        };
        Err(SoakError::File { what: "reading directly from", path: self.path.clone(), source })
    }
}

/// Compares the pages with what the file has for them in this generation.
fn verify(scene: &Scene<'_>, part: GuestRange, generation: u64) -> Result<(), SoakError> {
    for address in (part.start..part.start + part.len).step_by(8) {
        let expected = word(generation, address / PAGE, kind::RANDOM, address % PAGE / 8);
        let found = scene.vm.words().read(address)?;
        if found != expected {
            return Err(SoakError::DirectRead { address, expected, found });
        }
    }
    Ok(())
}

fn write_contents(path: &Path, range: GuestRange) -> io::Result<()> {
    let file = File::create(path)?;
    for generation in 0..GENERATIONS {
        let frames = range.start / PAGE..(range.start + range.len) / PAGE;
        let words = frames.flat_map(|frame| (0..WORDS).map(move |index| word(generation, frame, kind::RANDOM, index)));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        file.write_all_at(&bytes, generation * range.len)?;
    }
    file.sync_all()
}

fn index(page: u64) -> usize {
    usize::try_from(page).expect("a small number of pages")
}

//! Holds a running `ebb`'s idle bitmap against what its Linux guest really touched. Runs on the guest's host, beside `ebb`.
//!
//! For each set: marks all of guest memory idle, tells the guest on its console to touch the set, waits for the guest's record on the disk,
//! reads the idle bitmap, and prints one result line of raw counts.
//!
//! Promises: the truth is what the guest recorded, frame by frame; a record of another access, or of pages that moved, is an error and no result.
//! Must never: judge, or know which tracker is at work; its name is only printed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ebb_tests::tracking::linux::access::{Access, plan};
use ebb_tests::tracking::linux::record::{self, Header};
use ebb_tests::tracking::sets::PageSet;

const USAGE: &str = "usage: ebb-truth SOCKET DISK CONSOLE NAME ROUNDS
  SOCKET   of the running ebb
  DISK     the file behind the guest's disk, on which it leaves its records
  CONSOLE  what the guest's console reads
  NAME     begins each result's name
  ROUNDS   sets of each kind";

/// How long the guest may take for one set, and how often its record is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);
/// Wrong frames that are named in a result line.
const EXAMPLES: usize = 6;

/// A running `ebb`.
struct Ebb<'a> {
    socket: &'a Path,
}

impl Ebb<'_> {
    /// The whole idle bitmap, 64 frames to a word; a set bit is an idle frame.
    fn idle(&self) -> Result<Vec<u64>, String> {
        let bits = self.request("GET", &[])?;
        Ok(bits.as_chunks::<8>().0.iter().map(|chunk| u64::from_ne_bytes(*chunk)).collect())
    }

    /// Marks everything idle that can be.
    fn mark_all(&self, words: usize) -> Result<(), String> {
        self.request("PUT", &vec![0xff; words * 8]).map(|_| ())
    }

    /// One request, one connection; the body of a 200 answer.
    fn request(&self, method: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.socket.display());
        let mut stream = UnixStream::connect(self.socket).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut request = format!(
            "{method} /memtier/idle_bitmap HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request).map_err(failed)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(failed)?;
        let refused = || format!("{method} of the idle bitmap: {}", String::from_utf8_lossy(&answer));
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(refused)?;
        if !answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(refused());
        }
        Ok(answer.split_off(end + 4))
    }
}

/// A guest that obeys its console and leaves records on its disk.
struct Guest {
    console: File,
    disk: File,
    pages: u64,
    /// Frame numbers of the pages that the truth is about, ascending.
    frames: Vec<u64>,
}

impl Guest {
    fn new(console: &Path, disk: &Path) -> Result<Self, String> {
        let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        let console = OpenOptions::new().write(true).open(console).map_err(|error| failed(console, error))?;
        let disk = File::open(disk).map_err(|error| failed(disk, error))?;
        let header = Header::read(&disk).map_err(|error| error.to_string())?;
        let frames = record::read_frames(&disk, header).map_err(|error| error.to_string())?;
        Ok(Self { console, disk, pages: header.pages, frames })
    }

    /// The number that the next access gets.
    fn next_number(&self) -> Result<u64, String> {
        Ok(Header::read(&self.disk).map_err(|error| error.to_string())?.number + 1)
    }

    /// Lets it touch a set, and answers which pages it touched by its own record.
    fn touch(&mut self, access: Access) -> Result<PageSet, String> {
        writeln!(self.console, "access:{access}").map_err(|error| format!("the guest's console: {error}"))?;
        let header = self.wait_for(access)?;
        if header.moved > 0 {
            return Err(format!("{access}: {} pages of the guest's arena moved", header.moved));
        }
        record::read_set(&self.disk, header).map_err(|error| error.to_string())
    }

    fn wait_for(&self, access: Access) -> Result<Header, String> {
        let begin = Instant::now();
        loop {
            let header = Header::read(&self.disk).map_err(|error| error.to_string())?;
            if header.number == access.number && header.pages == self.pages {
                return Ok(header);
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("{access}: no record from the guest after {PATIENCE:?}"));
            }
            // It shares one processor with the guest.
            std::thread::sleep(PAUSE);
        }
    }

    /// The pages that the idle bitmap calls accessed.
    fn accessed(&self, idle: &[u64]) -> Result<PageSet, String> {
        let mut words = vec![0; self.frames.len() / 64];
        for (page, frame) in self.frames.iter().enumerate() {
            let place = usize::try_from(frame / 64).map_err(|error| error.to_string())?;
            let word = idle.get(place).ok_or_else(|| format!("frame {frame:#x} is beyond the idle bitmap"))?;
            if word >> (frame % 64) & 1 == 0 {
                words[page / 64] |= 1 << (page % 64);
            }
        }
        Ok(PageSet::from_words(words))
    }
}

/// What `truth` and `found` come to: counts, and the first frames on which they differ.
fn counts(frames: &[u64], truth: &PageSet, found: &PageSet) -> String {
    let (seen, missed, invented) = truth.compare(found);
    let mut line = format!("pages={} seen={seen} missed={missed} invented={invented}", frames.len());
    for (what, one, other) in [("missed", truth, found), ("invented", found, truth)] {
        let only: Vec<String> = only_in(one, other).take(EXAMPLES).map(|page| format!("{:#x}", frames[page])).collect();
        if !only.is_empty() {
            line += &format!(" first_{what}={}", only.join(","));
        }
    }
    line
}

/// Pages that are in one set and not in the other.
fn only_in<'a>(one: &'a PageSet, other: &'a PageSet) -> impl Iterator<Item = usize> + 'a {
    let words = one.words().iter().zip(other.words()).map(|(one, other)| one & !other).enumerate();
    words.flat_map(|(place, word)| (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| place * 64 + bit))
}

fn run(socket: &Path, disk: &Path, console: &Path, name: &str, rounds: u64) -> Result<(), String> {
    let ebb = Ebb { socket };
    let mut guest = Guest::new(console, disk)?;
    let words = ebb.idle()?.len();
    for access in plan(guest.next_number()?, rounds) {
        ebb.mark_all(words)?;
        let truth = guest.touch(access)?;
        let found = guest.accessed(&ebb.idle()?)?;
        let result = access.choice.result_name(access.write, access.round);
        println!("EBB-RESULT {name}.{result}={}", counts(&guest.frames, &truth, &found));
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, disk, console, name, rounds] = &arguments[..] else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let rounds = rounds.parse().map_err(|_| format!("{rounds:?} is not a number of rounds"));
    match rounds.and_then(|rounds| run(socket.as_ref(), disk.as_ref(), console.as_ref(), name, rounds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("EBB-FAIL {name}: {reason}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_tests::tracking::linux::access::Choice;

    use super::*;

    #[test]
    fn counts_name_the_frames_on_which_truth_and_bitmap_differ() {
        let frames: Vec<u64> = (0..64).map(|page| 0x1000 + page).collect();
        let set = |bits| PageSet::from_words(vec![bits]);
        assert_eq!(counts(&frames, &set(0b1011), &set(0b1011)), "pages=64 seen=3 missed=0 invented=0");
        assert_eq!(
            counts(&frames, &set(0b1011), &set(0b1100)),
            "pages=64 seen=1 missed=2 invented=1 first_missed=0x1000,0x1001 first_invented=0x1002"
        );
    }

    #[test]
    fn a_frame_that_is_not_idle_was_accessed_and_one_beyond_the_bitmap_is_an_error() {
        let (console, disk) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let frames = (0..64).map(|page| 32 + page).collect();
        let guest = Guest { console, disk, pages: 64, frames };
        // Frames 33 and 64 are not idle: pages 1 and 32.
        let accessed = guest.accessed(&[!(1 << 33), !1]).expect("all inside");
        assert_eq!(accessed.words(), [1 << 32 | 1 << 1]);
        assert_eq!(guest.accessed(&[0]).unwrap_err(), "frame 0x40 is beyond the idle bitmap");
    }

    #[test]
    fn a_guest_that_leaves_a_record_is_heard_and_one_whose_pages_moved_is_not_believed() {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        let console = tempfile::NamedTempFile::new().expect("a file");
        let frames: Vec<u64> = (100..164).collect();
        record::write_frames(disk.as_file(), &frames).expect("frames");
        let set = PageSet::from_words(vec![0xf0]);
        record::write_set(disk.as_file(), 64, &set).expect("set");
        Header { pages: 64, number: 4, moved: 0 }.write(disk.as_file()).expect("header");
        let mut guest = Guest::new(console.path(), disk.path()).expect("a guest");
        assert_eq!((guest.next_number(), &guest.frames), (Ok(5), &frames));
        let access = Access { choice: Choice::Zipf, round: 2, write: true, number: 4 };
        assert_eq!(guest.touch(access), Ok(set));
        assert_eq!(std::fs::read_to_string(console.path()).expect("read"), "access:zipf:2:write:4\n");
        Header { pages: 64, number: 4, moved: 3 }.write(disk.as_file()).expect("header");
        assert_eq!(guest.touch(access), Err("zipf:2:write:4: 3 pages of the guest's arena moved".to_owned()));
    }
}

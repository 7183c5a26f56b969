//! Values of flags that have parts: `--disk PATH[,ro]`, `--swap PATH[,size=SIZE][,priority=N]`, `--console stdio|off|FILE`.
//!
//! Promises: every part is understood or refused, with its key, value and limit. Must never: guess.

use std::path::PathBuf;
use std::str::FromStr;

use memtier::status::{AreaSpec, HugePages, TrackerChoice, TrackerKind};

use super::size::{SizeError, parse_size};

/// The highest priority of a swap area, as `swapon` has it.
pub const MAX_PRIORITY: u16 = 32767;

/// Why a value was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing before the first comma.
    #[error("the path is empty")]
    NoPath,
    /// A part that is not among those known here.
    #[error("'{part}' is not an option here; known: {known}")]
    UnknownOption {
        /// The part.
        part: String,
        /// What it could be.
        known: &'static str,
    },
    /// A key given twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A size that isn't one.
    #[error("size")]
    Size(#[source] SizeError),
    /// A number of ring entries that is none.
    #[error("'{0}' is not a number of entries")]
    Entries(String),
    /// A priority that is not a number or too large.
    #[error("priority '{0}' is not a number from 0 to {MAX_PRIORITY}")]
    Priority(String),
}

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// Where the guest's serial console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Nowhere.
    Off,
    /// Output to a file, no input.
    File(PathBuf),
}

/// Splits off the path, which is everything before the first comma.
fn path_and_options(text: &str) -> Result<(PathBuf, impl Iterator<Item = &str>), SpecError> {
    let mut parts = text.split(',');
    match parts.next() {
        None | Some("") => Err(SpecError::NoPath),
        Some(path) => Ok((PathBuf::from(path), parts)),
    }
}

/// Reads `PATH[,ro]`.
pub fn parse_disk(text: &str) -> Result<Disk, SpecError> {
    let (path, options) = path_and_options(text)?;
    let mut disk = Disk { path, read_only: false };
    for part in options {
        match part {
            "ro" if disk.read_only => return Err(SpecError::Twice("ro")),
            "ro" => disk.read_only = true,
            _ => return Err(SpecError::UnknownOption { part: part.to_owned(), known: "ro" }),
        }
    }
    Ok(disk)
}

/// Reads `PATH[,size=SIZE][,priority=N]`.
pub fn parse_swap(text: &str) -> Result<AreaSpec, SpecError> {
    let (path, options) = path_and_options(text)?;
    let mut area = AreaSpec { path, size: None, ..AreaSpec::default() };
    for part in options {
        match part.split_once('=') {
            Some(("size", _)) if area.size.is_some() => return Err(SpecError::Twice("size")),
            Some(("size", value)) => area.size = Some(parse_size(value).map_err(SpecError::Size)?),
            Some(("priority", _)) if area.priority.is_some() => return Err(SpecError::Twice("priority")),
            Some(("priority", value)) => area.priority = Some(parse_priority(value)?),
            _ => return Err(SpecError::UnknownOption { part: part.to_owned(), known: "size=SIZE, priority=N" }),
        }
    }
    Ok(area)
}

/// Reads a swap area's priority.
pub fn parse_priority(text: &str) -> Result<u16, SpecError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|n| digits && *n <= MAX_PRIORITY);
    number.ok_or_else(|| SpecError::Priority(text.to_owned()))
}

/// Reads `stdio`, `off` or a file's path.
pub fn parse_console(text: &str) -> Result<Console, SpecError> {
    match text {
        "" => Err(SpecError::NoPath),
        "stdio" => Ok(Console::Stdio),
        "off" => Ok(Console::Off),
        path => Ok(Console::File(PathBuf::from(path))),
    }
}

/// Reads what backs guest memory: Firecracker's `None` and `2M`, and `off` and `thp`.
pub fn parse_huge_pages(text: &str) -> Result<HugePages, SpecError> {
    match text {
        "None" | "off" => Ok(HugePages::Off),
        "thp" => Ok(HugePages::Transparent),
        "2M" => Ok(HugePages::Hugetlb2M),
        _ => Err(SpecError::UnknownOption { part: text.to_owned(), known: "None or off, thp, 2M" }),
    }
}

/// The word for it, Firecracker's where it has one.
pub fn huge_pages_name(huge_pages: HugePages) -> &'static str {
    match huge_pages {
        HugePages::Off => "None",
        HugePages::Transparent => "thp",
        HugePages::Hugetlb2M => "2M",
    }
}

/// Reads how many entries a dirty ring has; whether it can have so many is for the machine to say.
pub fn parse_dirty_ring(text: &str) -> Result<u32, SpecError> {
    text.parse().map_err(|_| SpecError::Entries(text.to_owned()))
}

/// How accesses are seen, or that tiering is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracker(pub Option<TrackerChoice>);

impl Default for Tracker {
    fn default() -> Self {
        Self(Some(TrackerChoice::default()))
    }
}

impl FromStr for Tracker {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "off" => Ok(Self(None)),
            "auto" => Ok(Self(Some(TrackerChoice::Auto))),
            _ => match TrackerKind::ALL.into_iter().find(|kind| kind.name() == text) {
                Some(kind) => Ok(Self(Some(kind.into()))),
                None => Err(SpecError::UnknownOption {
                    part: text.to_owned(),
                    known: "auto, unmap, page_idle, dirty_log, off",
                }),
            },
        }
    }
}

impl Tracker {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self.0 {
            None => "off",
            Some(choice) => choice.named().map_or("auto", TrackerKind::name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(part: &str, known: &'static str) -> SpecError {
        SpecError::UnknownOption { part: part.to_owned(), known }
    }

    #[test]
    fn a_disk_is_a_path_and_perhaps_read_only() {
        assert_eq!(parse_disk("a.img"), Ok(Disk { path: "a.img".into(), read_only: false }));
        assert_eq!(parse_disk("/d/a=b.img,ro"), Ok(Disk { path: "/d/a=b.img".into(), read_only: true }));
        assert_eq!(parse_disk(""), Err(SpecError::NoPath));
        assert_eq!(parse_disk(",ro"), Err(SpecError::NoPath));
        assert_eq!(parse_disk("a,rw"), Err(unknown("rw", "ro")));
        assert_eq!(parse_disk("a,"), Err(unknown("", "ro")));
        assert_eq!(parse_disk("a,ro,ro"), Err(SpecError::Twice("ro")));
        assert_eq!(parse_disk("a,ro=1").unwrap_err().to_string(), "'ro=1' is not an option here; known: ro");
    }

    #[test]
    fn a_swap_area_takes_size_and_priority_in_any_order() {
        let whole = AreaSpec { path: "s".into(), size: Some(1 << 30), priority: Some(7), ..AreaSpec::default() };
        assert_eq!(parse_swap("s,size=1G,priority=7"), Ok(whole.clone()));
        assert_eq!(parse_swap("s,priority=7,size=1024M"), Ok(whole));
        assert_eq!(parse_swap("s"), Ok(AreaSpec::new("s")));
    }

    #[test]
    fn a_swap_area_refuses_what_it_does_not_know() {
        let known = "size=SIZE, priority=N";
        assert_eq!(parse_swap("s,discard"), Err(unknown("discard", known)));
        assert_eq!(parse_swap("s,Size=1G"), Err(unknown("Size=1G", known)));
        assert_eq!(parse_swap("s,size=1G,size=1G"), Err(SpecError::Twice("size")));
        assert_eq!(parse_swap("s,priority=1,priority=1"), Err(SpecError::Twice("priority")));
        assert_eq!(parse_swap("s,size=").unwrap_err(), SpecError::Size(SizeError::Form(String::new())));
        for text in ["-1", "32768", "+1", "", "1.0", "70000"] {
            let error = parse_swap(&format!("s,priority={text}")).unwrap_err();
            assert_eq!(error, SpecError::Priority(text.to_owned()));
            assert_eq!(error.to_string(), format!("priority '{text}' is not a number from 0 to 32767"));
        }
    }

    #[test]
    fn huge_pages_and_rings_are_read_and_refused() {
        for huge_pages in [HugePages::Off, HugePages::Transparent, HugePages::Hugetlb2M] {
            assert_eq!(parse_huge_pages(huge_pages_name(huge_pages)), Ok(huge_pages));
        }
        assert_eq!(parse_huge_pages("1G"), Err(unknown("1G", "None or off, thp, 2M")));
        assert_eq!(parse_dirty_ring("4096"), Ok(4096));
        assert_eq!(parse_dirty_ring("-1").unwrap_err().to_string(), "'-1' is not a number of entries");
    }

    #[test]
    fn console_and_tracker_know_their_words() {
        assert_eq!(parse_console("stdio"), Ok(Console::Stdio));
        assert_eq!(parse_console("off"), Ok(Console::Off));
        assert_eq!(parse_console("./off"), Ok(Console::File("./off".into())));
        assert_eq!(parse_console(""), Err(SpecError::NoPath));
        for word in ["off", "auto", "unmap", "page_idle", "dirty_log"] {
            assert_eq!(word.parse::<Tracker>().unwrap().name(), word);
        }
        assert_eq!("Unmap".parse::<Tracker>(), Err(unknown("Unmap", "auto, unmap, page_idle, dirty_log, off")));
    }
}

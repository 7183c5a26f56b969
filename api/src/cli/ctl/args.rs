//! The flags of `ebb ctl`; their comments are the help text.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use memtier::status::{GuestRange, TrackerChoice};

use crate::cli::chained;
use crate::config::size::{SizeError, parse_size};
use crate::config::spec::parse_priority;

/// Flags of `ebb ctl`.
#[derive(Args, Debug)]
pub struct CtlArgs {
    /// Socket of the running ebb, as given to its --api-sock
    #[arg(long, global = true, value_name = "PATH")]
    pub sock: Option<PathBuf>,
    /// Print the server's JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// The commands of `ebb ctl`.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Where the guest's pages are, the swap areas, and what has happened
    Status,
    /// Watch which pages are accessed, so that idle ones become known
    Scan(ScanArgs),
    /// The idle bitmap, or how many pages are idle
    Idle(IdleArgs),
    /// Evict the coldest pages
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
    Reclaim(ReclaimArgs),
    /// Evict pages that are named, whatever their age
    #[command(group = clap::ArgGroup::new("what").required(true))]
    Evict(EvictArgs),
    /// Switch a swap area on
    Swapon(SwaponArgs),
    /// Bring everything back from a swap area and switch it off
    Swapoff(SwapoffArgs),
    /// Whether pages may leave on their own; with a word, change it
    SwapEnable(SwapEnableArgs),
    /// Sizes by state
    Report,
    /// Which part of memory was used when, drawn in the terminal or into a file
    Heat(HeatArgs),
    /// How much memory has been idle for how long
    Curve,
    /// How much memory the guest uses, and how sure that is
    Ws(WsArgs),
    /// How accesses are seen; with a name, change it
    Tracker(TrackerArgs),
}

/// Flags of `ebb ctl scan`.
#[derive(Args, Debug)]
pub struct ScanArgs {
    /// How many scans, 1 to 120
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub loops: u32,
    /// Pause between scans: 500ms, 2s, 1m; a number alone is milliseconds
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_time)]
    pub interval: u64,
    /// How long each scan watches: 500ms, 2s, 1m; a number alone is milliseconds
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    pub sleep: u64,
    /// Look at hot pages every 2^N scans at least, 0 to 8; 0 is every scan. When not given, the server's choice
    #[arg(long, value_name = "N")]
    pub backoff: Option<u32>,
    /// Wait for the end, with progress on standard error, and show what was seen
    #[arg(long)]
    pub wait: bool,
}

/// What to show of the idle bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdleView {
    /// Count the idle pages
    Summary,
}

/// Flags of `ebb ctl idle`.
#[derive(Args, Debug)]
pub struct IdleArgs {
    /// Count the idle pages; so it is too when nothing is given
    #[arg(value_enum, conflicts_with_all = ["offset", "len"])]
    pub view: Option<IdleView>,
    /// First byte of the bitmap to show, a multiple of 8
    #[arg(long, value_name = "BYTES", value_parser = chained(parse_number))]
    pub offset: Option<u64>,
    /// Bytes of the bitmap to show, a multiple of 8
    #[arg(long, value_name = "BYTES", value_parser = chained(parse_number))]
    pub len: Option<u64>,
}

/// Flags of `ebb ctl reclaim`.
#[derive(Args, Debug)]
pub struct ReclaimArgs {
    /// Stop when this much has left
    #[arg(long, value_name = "SIZE", group = "what", value_parser = chained(parse_size))]
    pub bytes: Option<u64>,
    /// Take only pages idle in at least this many scans in a row
    #[arg(long, value_name = "N", group = "what")]
    pub min_idle_scans: Option<u32>,
}

/// Flags of `ebb ctl evict`.
#[derive(Args, Debug)]
pub struct EvictArgs {
    /// Guest physical start and length, 0x... or a size; may be given more than once
    #[arg(long = "range", value_name = "START:LEN", group = "what", value_parser = parse_range)]
    pub ranges: Vec<GuestRange>,
    /// All of the guest's memory, coldest first
    #[arg(long, group = "what")]
    pub all: bool,
}

/// Flags of `ebb ctl swapon`.
#[derive(Args, Debug)]
pub struct SwaponArgs {
    /// The file; made when it is not there and a size is given
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Size that the file shall have
    #[arg(long, value_name = "SIZE", value_parser = chained(parse_size))]
    pub size: Option<u64>,
    /// 0 to 32767; areas with a higher one fill first
    #[arg(long, value_name = "N", value_parser = chained(parse_priority))]
    pub priority: Option<u16>,
}

/// Flags of `ebb ctl swapoff`.
#[derive(Args, Debug)]
pub struct SwapoffArgs {
    /// The area's number, as status shows it
    #[arg(value_name = "ID")]
    pub id: u64,
}

/// Flags of `ebb ctl swap-enable`.
#[derive(Args, Debug)]
pub struct SwapEnableArgs {
    /// true, 1, false or 0; without it the present state is shown
    #[arg(value_name = "true|false")]
    pub state: Option<String>,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// When standard output is a terminal with colours, and NO_COLOR is not set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never: plain characters
    Never,
}

/// Flags of `ebb ctl heat`.
#[derive(Args, Debug)]
pub struct HeatArgs {
    /// Write an SVG picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write a PNG picture
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Width: characters in the terminal (its own when not given), 600 to 8000 pixels in a file (1000 when not given)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(20..=8000))]
    pub width: Option<u32>,
    /// Colours in the terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub color: Colour,
}

/// Flags of `ebb ctl ws`.
#[derive(Args, Debug)]
pub struct WsArgs {
    /// How many of the last scans to take, 1 to 64; 8 when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub scans: Option<u32>,
}

/// Flags of `ebb ctl tracker`.
#[derive(Args, Debug)]
pub struct TrackerArgs {
    /// The tracker to go on with; without it the present one is shown
    #[arg(value_enum, value_name = "NAME")]
    pub tracker: Option<TrackerName>,
}

/// A tracker as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TrackerName {
    /// The best one this host has
    Auto,
    /// Drops page tables; a page mapped again was accessed
    Unmap,
    /// The host kernel's idle page bitmap
    PageIdle,
    /// KVM's dirty log: writes only
    DirtyLog,
}

impl TrackerName {
    /// As the API has it.
    pub fn choice(self) -> TrackerChoice {
        match self {
            Self::Auto => TrackerChoice::Auto,
            Self::Unmap => TrackerChoice::Unmap,
            Self::PageIdle => TrackerChoice::PageIdle,
            Self::DirtyLog => TrackerChoice::DirtyLog,
        }
    }
}

/// Reads a time into milliseconds.
fn parse_time(text: &str) -> Result<u64, String> {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = &text[..text.len() - digits.len()];
    let factor = match digits {
        "" | "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(format!("'{text}' is not a time: a number with ms, s or m expected, as in 2s")),
    };
    let number: Option<u64> = number.parse().ok();
    let milliseconds = number.and_then(|n| n.checked_mul(factor));
    milliseconds.ok_or_else(|| format!("'{text}' is not a time: a number with ms, s or m expected, as in 2s"))
}

/// Reads a number of bytes: hexadecimal with 0x, or a size.
fn parse_number(text: &str) -> Result<u64, SizeError> {
    match text.strip_prefix("0x") {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).map_err(|_| SizeError::TooLarge(text.to_owned()))
        }
        _ => parse_size(text),
    }
}

/// Reads `START:LEN`.
fn parse_range(text: &str) -> Result<GuestRange, String> {
    let (start, len) = text.split_once(':').ok_or("START:LEN expected, as in 0x100000:4M")?;
    let number = |part: &str| parse_number(part).map_err(|error| error.to_string());
    Ok(GuestRange { start: number(start)?, len: number(len)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds_unless_they_say_otherwise() {
        for (text, milliseconds) in [("0", 0), ("250", 250), ("250ms", 250), ("2s", 2000), ("3m", 180_000)] {
            assert_eq!(parse_time(text), Ok(milliseconds));
        }
        for text in ["", "s", "1h", "1.5s", "-1", "1 s", "18446744073709551615s", "99999999999999999999"] {
            assert!(parse_time(text).unwrap_err().contains(&format!("'{text}' is not a time")), "{text}");
        }
    }

    #[test]
    fn ranges_take_hexadecimal_addresses_and_sizes() {
        assert_eq!(parse_range("0x100000:4M"), Ok(GuestRange { start: 1 << 20, len: 4 << 20 }));
        assert_eq!(parse_range("1G:0x1000"), Ok(GuestRange { start: 1 << 30, len: 4096 }));
        for text in ["", "1", ":", "1:", ":1", "0x:1", "0xg:1", "-1:1", "1:2:3", "0x10000000000000000:1"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }
}

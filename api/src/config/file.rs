//! The configuration file: Firecracker's shape, with `memtier`, `console` and `id` added.
//!
//! Promises: an error names the file and the place in it. Must never: read more than [`MAX_FILE`] bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::bodies::{BootSource, Drive, Entropy, MachineConfiguration, Tiering};
use super::draft::{Draft, DraftError};
use super::json;
use super::spec::parse_console;

/// The most bytes that a configuration file may have.
pub const MAX_FILE: u64 = 1 << 20;

/// Why a configuration file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("configuration {} is larger than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not JSON, or not of this shape. The place is in the message.
    #[error("configuration {}{at}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// `", at machine-config.vcpu_count"`, or nothing where the file as a whole is meant.
        at: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A value that can't be.
    #[error("configuration {}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: DraftError,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "boot-source")]
    boot_source: Option<BootSource>,
    #[serde(default, rename = "machine-config")]
    machine_config: Option<MachineConfiguration>,
    #[serde(default)]
    drives: Vec<Drive>,
    #[serde(default)]
    entropy: Option<Entropy>,
    #[serde(default)]
    memtier: Option<Tiering>,
    #[serde(default)]
    console: Option<String>,
}

/// Reads a file into a draft.
pub fn read(path: &Path) -> Result<Draft, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n > MAX_FILE) {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Draft, FileError> {
    let file: ConfigFile = json::parse(bytes).map_err(|error| {
        let at = error.place.map_or_else(String::new, |place| format!(", at {place}"));
        FileError::Parse { path: path.to_owned(), at, source: error.source }
    })?;
    draft(file).map_err(|source| FileError::Value { path: path.to_owned(), source })
}

fn draft(file: ConfigFile) -> Result<Draft, DraftError> {
    let mut draft = Draft::default();
    draft.boot = file.boot_source;
    if let Some(id) = file.id {
        draft.set_id(&id)?;
    }
    if let Some(body) = file.machine_config {
        draft.set_machine(&body)?;
    }
    draft.set_drives(file.drives)?;
    if let Some(body) = file.entropy {
        draft.set_entropy(&body)?;
    }
    if let Some(body) = file.memtier {
        draft.set_tiering(body)?;
    }
    if let Some(word) = file.console {
        draft.console = parse_console(&word).map_err(|source| DraftError::Word { key: "console", source })?;
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("x"), &bytes);
        }

        #[test]
        fn any_numbers_and_words_are_taken_or_refused(
            cpus in any::<i64>(), mib in any::<u64>(), tracker in ".{0,8}", size in any::<u64>(), console in ".{0,8}"
        ) {
            let text = serde_json::json!({
                "machine-config": { "vcpu_count": cpus, "mem_size_mib": mib },
                "memtier": { "tracker": tracker, "swap_areas": [{ "path": console, "size": size }] },
                "console": console,
            });
            if let Ok(draft) = parse(Path::new("x"), text.to_string().as_bytes()) {
                prop_assert!((1..=32).contains(&draft.cpus));
                prop_assert_eq!(draft.memory >> 20, mib);
            }
        }
    }
}

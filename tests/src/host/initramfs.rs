//! Makes an initramfs: a cpio archive in the "newc" format, straight from a list of entries.
//!
//! Promises: the same entries give the same bytes (no times, owners or inode numbers of the build machine; entries sorted by path); needs no
//! root, device nodes included, because nothing is ever put on a filesystem. Must never: follow a name out of the archive (absolute or `..`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file that was to go in could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file on this machine.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The name inside the archive is absolute, empty or climbs.
    #[error("{0:?} is no name for an archive member: it must be relative, without '.' and '..'")]
    Name(String),
    /// A file is beyond what the format's 32-bit size holds.
    #[error("{name} has {size} bytes, an archive member holds at most {limit}", limit = u32::MAX)]
    TooLarge {
        /// Name in the archive.
        name: String,
        /// Its size.
        size: usize,
    },
    /// busybox did not say what it can do.
    #[error("{path} --list failed: {reason}")]
    Busybox {
        /// The program asked.
        path: PathBuf,
        /// Its answer.
        reason: String,
    },
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
}

#[derive(Debug)]
enum Entry {
    Dir,
    File { mode: u32, bytes: Vec<u8> },
    Link { target: String },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive being put together.
#[derive(Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
}

impl Initramfs {
    /// An empty archive with the folders a first program mounts things on, and `/dev/console`, which the kernel opens before it starts it.
    pub fn new() -> Self {
        let mut archive = Self::default();
        for dir in ["bin", "dev", "proc", "sys", "tmp", "run", "etc", "root"] {
            archive.entries.insert(dir.to_owned(), Entry::Dir);
        }
        archive.entries.insert("dev/console".to_owned(), Entry::CharDevice { mode: 0o600, major: 5, minor: 1 });
        archive
    }

    /// Adds a file with these bytes; missing folders above it are made.
    pub fn bytes(mut self, name: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Result<Self, InitramfsError> {
        let bytes = bytes.into();
        if u32::try_from(bytes.len()).is_err() {
            return Err(InitramfsError::TooLarge { name: name.to_owned(), size: bytes.len() });
        }
        self.make_parents(name)?;
        self.entries.insert(name.to_owned(), Entry::File { mode: mode & 0o7777, bytes });
        Ok(self)
    }

    /// Adds a copy of a file of this machine.
    pub fn file(self, name: &str, mode: u32, source: &Path) -> Result<Self, InitramfsError> {
        let bytes =
            std::fs::read(source).map_err(|error| InitramfsError::Read { path: source.to_owned(), source: error })?;
        self.bytes(name, mode, bytes)
    }

    /// Adds copies of all plain files in a folder of this machine, under `name`.
    pub fn folder(mut self, name: &str, mode: u32, source: &Path) -> Result<Self, InitramfsError> {
        let failed = |error| InitramfsError::Read { path: source.to_owned(), source: error };
        for entry in std::fs::read_dir(source).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file_name = entry.file_name();
            let member = file_name.to_str().ok_or_else(|| InitramfsError::Name(format!("{}", file_name.display())))?;
            if entry.file_type().map_err(failed)?.is_file() {
                self = self.file(&format!("{name}/{member}"), mode, &entry.path())?;
            }
        }
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn link(mut self, name: &str, target: &str) -> Result<Self, InitramfsError> {
        self.make_parents(name)?;
        self.entries.insert(name.to_owned(), Entry::Link { target: target.to_owned() });
        Ok(self)
    }

    /// Adds busybox and a link in `/bin` for each of its commands.
    pub fn busybox(self, busybox: &Path) -> Result<Self, InitramfsError> {
        let refused = |reason: String| InitramfsError::Busybox { path: busybox.to_owned(), reason };
        let answer = Command::new(busybox).arg("--list").output().map_err(|error| refused(error.to_string()))?;
        let list = String::from_utf8(answer.stdout).map_err(|error| refused(error.to_string()))?;
        if !answer.status.success() || list.is_empty() {
            return Err(refused(answer.status.to_string()));
        }
        let mut archive = self.file("bin/busybox", 0o755, busybox)?;
        for command in list.lines().filter(|name| *name != "busybox") {
            archive = archive.link(&format!("bin/{command}"), "busybox")?;
        }
        Ok(archive)
    }

    /// Writes the archive.
    pub fn write(&self, to: &mut impl Write) -> Result<(), InitramfsError> {
        let mut offset = 0;
        for (index, (name, entry)) in (1_u32..).zip(&self.entries) {
            offset += write_member(to, index, name, entry)?;
        }
        offset += write_member(to, 0, "TRAILER!!!", &Entry::File { mode: 0, bytes: Vec::new() })?;
        // The kernel wants nothing more, `cpio` likes whole blocks.
        Ok(to.write_all(&vec![0; offset.next_multiple_of(512) - offset])?)
    }

    /// Writes the archive to a file.
    pub fn write_file(&self, path: &Path) -> Result<(), InitramfsError> {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        self.write(&mut file)?;
        Ok(file.flush()?)
    }

    fn make_parents(&mut self, name: &str) -> Result<(), InitramfsError> {
        if name.is_empty() || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(InitramfsError::Name(name.to_owned()));
        }
        for (at, _) in name.match_indices('/') {
            self.entries.entry(name[..at].to_owned()).or_insert(Entry::Dir);
        }
        Ok(())
    }
}

/// Writes one member and answers how many bytes it took.
fn write_member(to: &mut impl Write, inode: u32, name: &str, entry: &Entry) -> io::Result<usize> {
    let (mode, data, device): (u32, &[u8], (u32, u32)) = match entry {
        Entry::Dir => (S_IFDIR | 0o755, &[], (0, 0)),
        // The trailer is the one member without a type.
        Entry::File { mode, bytes } if inode == 0 => (*mode, bytes, (0, 0)),
        Entry::File { mode, bytes } => (S_IFREG | mode, bytes, (0, 0)),
        Entry::Link { target } => (S_IFLNK | 0o777, target.as_bytes(), (0, 0)),
        Entry::CharDevice { mode, major, minor } => (S_IFCHR | mode, &[], (*major, *minor)),
    };
    let links = if matches!(entry, Entry::Dir) { 2 } else { 1 };
    let mut header = String::from("070701");
    // inode, mode, uid, gid, nlink, mtime, filesize, device major and minor, rdev major and minor, name size with its zero, check
    let fields = [inode, mode, 0, 0, links, 0];
    let sizes = [data.len(), 0, 0];
    for field in fields {
        header.push_str(&format!("{field:08x}"));
    }
    for field in sizes {
        header.push_str(&format!("{field:08x}"));
    }
    header.push_str(&format!("{:08x}{:08x}{:08x}{:08x}", device.0, device.1, name.len() + 1, 0));
    to.write_all(header.as_bytes())?;
    to.write_all(name.as_bytes())?;
    let head = header.len() + name.len();
    let padded_head = (head + 1).next_multiple_of(4);
    to.write_all(&[0; 4][..padded_head - head])?;
    to.write_all(data)?;
    let padded_data = data.len().next_multiple_of(4);
    to.write_all(&[0; 4][..padded_data - data.len()])?;
    Ok(padded_head + padded_data)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn sample() -> Initramfs {
        let archive = Initramfs::new().bytes("init", 0o755, *b"#!/bin/sh\n").expect("init");
        let archive = archive.bytes("usr/lib/thing/data", 0o644, vec![7_u8; 1001]).expect("data");
        archive.link("bin/sh", "busybox").expect("link")
    }

    fn written(archive: &Initramfs) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).expect("writing to memory");
        bytes
    }

    #[test]
    fn cpio_lists_what_was_put_in_with_parents_before_children() {
        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by resources/setup.sh");
        child.stdin.take().expect("piped").write_all(&written(&sample())).expect("cpio reads all");
        let answer = child.wait_with_output().expect("cpio ends");
        assert!(answer.status.success());
        let list = String::from_utf8(answer.stdout).expect("text");
        let find = |part: &str| {
            list.lines().position(|line| line.ends_with(part)).unwrap_or_else(|| panic!("{part} not in {list}"))
        };
        assert!(find(" usr") < find(" usr/lib") && find(" usr/lib/thing") < find(" usr/lib/thing/data"), "{list}");
        let line = |part: &str| list.lines().nth(find(part)).expect("found above");
        assert!(line(" init").starts_with("-rwxr-xr-x") && line(" init").contains(" 10 "), "{list}");
        assert!(line("/data").starts_with("-rw-r--r--") && line("/data").contains(" 1001 "), "{list}");
        assert!(line("bin/sh -> busybox").starts_with("lrwxrwxrwx"), "{list}");
        assert!(line("dev/console").starts_with("crw-------") && line("dev/console").contains("5,   1"), "{list}");
    }

    #[test]
    fn the_same_entries_give_the_same_bytes_in_any_order() {
        let one = Initramfs::new().bytes("a", 0o600, *b"1").and_then(|a| a.bytes("b", 0o600, *b"2")).expect("one");
        let two = Initramfs::new().bytes("b", 0o600, *b"2").and_then(|a| a.bytes("a", 0o600, *b"1")).expect("two");
        assert_eq!(written(&one), written(&two));
        assert_eq!(written(&one).len() % 512, 0);
    }

    #[test]
    fn names_that_leave_the_archive_are_refused() {
        for name in ["", "/etc/passwd", "a/../b", "./a", "a//b", "a/"] {
            match Initramfs::new().bytes(name, 0o644, *b"") {
                Err(InitramfsError::Name(refused)) => assert_eq!(refused, name),
                other => panic!("{name:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let error = Initramfs::new().file("x", 0o644, Path::new("/does/not/exist")).expect_err("must fail");
        assert_eq!(error.to_string(), "cannot read /does/not/exist");
    }
}

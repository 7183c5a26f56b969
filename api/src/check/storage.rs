//! Writing pages out: io_uring, and direct I/O where the swap file is or would be.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use memtier::page::PageSlab;
use memtier::units::PAGE_SIZE;

use super::Row;
use super::access::read_word;
use crate::cli::chain;
use crate::sys::probe;

pub(super) fn rows(swap: &Path) -> Vec<Row> {
    vec![io_uring(), direct_io(swap)]
}

fn io_uring() -> Row {
    const WHAT: &str = "io_uring";
    let Err(error) = probe::io_uring() else { return Row::ok(WHAT, "a ring can be made") };
    let disabled = read_word("/proc/sys/kernel/io_uring_disabled").filter(|word| word != "0");
    let mend = match disabled {
        Some(_) => "set kernel.io_uring_disabled=0",
        None => "let the seccomp filter allow io_uring_setup, or run a kernel with CONFIG_IO_URING",
    };
    Row::warn(WHAT, format!("{}; pages are written with pwrite", chain(&error)), mend)
}

fn direct_io(swap: &Path) -> Row {
    const WHAT: &str = "O_DIRECT on the swap path";
    let shown = swap.display();
    match try_direct_io(swap) {
        Ok(()) => Row::ok(WHAT, format!("{shown}: works")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Row::warn(
            WHAT,
            format!("{shown}: {}", chain(&error)),
            "make the directory, or name another place with --swap",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Row::warn(
            WHAT,
            format!("{shown}: {}", chain(&error)),
            "let this user write there, or name another place with --swap",
        ),
        Err(error) => Row::warn(
            WHAT,
            format!("{shown}: {}; pages pass through the page cache", chain(&error)),
            "put the swap file on a file system with direct I/O, such as ext4, xfs or btrfs",
        ),
    }
}

/// Moves one page with direct I/O: a read where there is a file or device, a write into an unnamed file where there is none yet.
fn try_direct_io(swap: &Path) -> io::Result<()> {
    let mut page = PageSlab::new(1);
    let kind = match fs::metadata(swap) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return write_in(parent(swap), &page),
        meta => meta?.file_type(),
    };
    if kind.is_dir() {
        return write_in(swap, &page);
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file, a block device nor a directory"));
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(swap)?;
    // A file shorter than a page reads short, which is fine here.
    file.read_at(&mut page[0], 0).map(|_| ())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_in(directory: &Path, page: &PageSlab) -> io::Result<()> {
    let unnamed = |flags| OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(directory);
    let file: File = match unnamed(libc::O_TMPFILE | libc::O_DIRECT) {
        // Where unnamed files are not to be had, neither is an answer that leaves nothing behind.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "cannot be tried without a file there"));
        }
        file => file?,
    };
    let written = file.write_at(&page[0], 0)?;
    if written == PAGE_SIZE { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn trying_direct_io_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let row = direct_io(&directory.path().join("swap"));
        // tmpfs before Linux 6.6 has no direct I/O; then there is a mend.
        assert!(row.state == State::Ok || row.mend.is_some(), "{row:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_only_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("swap");
        fs::write(&path, b"precious").unwrap();
        direct_io(&path);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_swap_path_without_a_directory_is_told_so() {
        let row = direct_io(Path::new("/nonexistent/swap"));
        assert_eq!(row.state, State::Warn);
        assert!(row.mend.unwrap().starts_with("make the directory"));
    }
}

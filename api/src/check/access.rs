//! Seeing and steering what a guest touches: userfaultfd, page maps, locked memory.

use std::fs::{self, File};
use std::path::Path;

use memtier::sys::pagemap::{Method, Pagemap};
use memtier::sys::uffd::{Uffd, UffdError};
use memtier::units::FrameSize;

use super::Row;
use crate::cli::chain;

// Numbers from include/uapi/linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_PTRACE: u32 = 19;

pub(super) fn rows() -> Vec<Row> {
    vec![userfaultfd(), userfaultfd_access(), memory_locking(), pagemap_scan()]
}

/// Opens one as the tiers do, with all features that they need.
fn userfaultfd() -> Row {
    const WHAT: &str = "userfaultfd";
    match Uffd::open(FrameSize::Small) {
        Ok(_) => Row::ok(WHAT, "opens, with write-protection of shared memory, POISON and THREAD_ID"),
        Err(error @ UffdError::Permission(_)) => Row::missing(
            WHAT,
            chain(&error),
            "give this user read access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1, or grant CAP_SYS_PTRACE",
        ),
        Err(error @ UffdError::Features { .. }) => Row::missing(WHAT, chain(&error), "run Linux 6.6 or later"),
        Err(error) => Row::missing(WHAT, chain(&error), "run a kernel with CONFIG_USERFAULTFD"),
    }
}

/// Whether guest memory can be kept from the host's own reclaim.
fn memory_locking() -> Row {
    const WHAT: &str = "memory locking";
    if has_capability(CAP_IPC_LOCK) {
        return Row::ok(WHAT, "without limit, by CAP_IPC_LOCK");
    }
    if can_lock() {
        return Row::ok(WHAT, "without limit");
    }
    Row::warn(
        WHAT,
        format!(
            "limited to {} bytes: the host may unmap guest pages, which then look idle",
            lock_limit().as_deref().unwrap_or("unknown")
        ),
        "raise the limit (ulimit -l unlimited, LimitMEMLOCK=infinity) or grant CAP_IPC_LOCK",
    )
}

/// Whether this process may lock memory of any size.
pub(super) fn can_lock() -> bool {
    has_capability(CAP_IPC_LOCK) || lock_limit().is_some_and(|limit| limit == "unlimited")
}

fn lock_limit() -> Option<String> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next());
    limit.map(str::to_owned)
}

/// The ways in that this process has.
fn userfaultfd_access() -> Row {
    const WHAT: &str = "userfaultfd access";
    let mut ways = Vec::new();
    let device = match File::open("/dev/userfaultfd") {
        Ok(_) => {
            ways.push("/dev/userfaultfd");
            "opens".to_owned()
        }
        Err(error) => chain(&error),
    };
    let sysctl = read_word("/proc/sys/vm/unprivileged_userfaultfd");
    if sysctl.as_deref() == Some("1") {
        ways.push("vm.unprivileged_userfaultfd=1");
    }
    if has_capability(CAP_SYS_PTRACE) {
        ways.push("CAP_SYS_PTRACE");
    }
    if !ways.is_empty() {
        return Row::ok(WHAT, format!("by {}", ways.join(", ")));
    }
    let sysctl = sysctl.as_deref().unwrap_or("not there");
    Row::missing(
        WHAT,
        format!("/dev/userfaultfd: {device}; vm.unprivileged_userfaultfd: {sysctl}; no CAP_SYS_PTRACE"),
        "give this user read access to /dev/userfaultfd, for example with a udev rule",
    )
}

/// How the `unmap` tracker finds the pages that were touched.
fn pagemap_scan() -> Row {
    const WHAT: &str = "PAGEMAP_SCAN";
    match Pagemap::open() {
        Ok(pagemap) if pagemap.method() == Method::Scan => Row::ok(WHAT, "there, scans of idle memory are fast"),
        Ok(_) => {
            Row::warn(WHAT, "not there, page maps are read entry by entry", "run Linux 6.7 or later for faster scans")
        }
        Err(error) => Row::missing(
            WHAT,
            format!("/proc/self/pagemap: {}", chain(&error)),
            "mount /proc, and let this process read /proc/self/pagemap",
        ),
    }
}

/// The first word of a small file.
pub(super) fn read_word(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().next()?.to_owned())
}

fn has_capability(number: u32) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| capability_in(&status, number))
}

/// Whether the effective set in the text of a status file has the capability.
fn capability_in(status: &str, number: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> number & 1 == 1)
}

/// Whether a file can be opened for reading.
pub(super) fn readable(path: &Path) -> bool {
    File::open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "CapPrm:\tffffffffffffffff\nCapEff:\t0000000000080000\n";
        assert!(capability_in(status, 19));
        assert!(!capability_in(status, 18));
        assert!(!capability_in("CapPrm:\tffffffffffffffff\n", 19));
        assert!(!capability_in("CapEff:\tzz\n", 19));
    }
}

//! The host's size and settings: processors, memory, its limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::Row;
use super::access::{read_word, readable};
use crate::config::size::show_size;

/// Tiering splits guest memory into up to 8,192 mappings; the rest of the process needs some too.
const WANTED_MAPS: u64 = 16_384;

/// Less than this leaves no room for a guest beside the host.
const LITTLE_MEMORY: u64 = 256 << 20;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![mappings(), processors(), memory()];
    rows.extend(cgroup());
    rows
}

fn mappings() -> Row {
    const WHAT: &str = "vm.max_map_count";
    let count = read_word("/proc/sys/vm/max_map_count").and_then(|word| word.parse::<u64>().ok());
    match count {
        Some(count) if count >= WANTED_MAPS => Row::ok(WHAT, count.to_string()),
        Some(count) => Row::warn(
            WHAT,
            format!("{count}, tiering of large guests takes up to {WANTED_MAPS}"),
            format!("set vm.max_map_count={WANTED_MAPS} or more"),
        ),
        None => Row::warn(WHAT, "can't be read", "mount /proc"),
    }
}

fn processors() -> Row {
    const WHAT: &str = "processors";
    match thread::available_parallelism() {
        Ok(count) => Row::ok(WHAT, count.to_string()),
        Err(error) => Row::warn(WHAT, error.to_string(), "nothing to do"),
    }
}

fn memory() -> Row {
    const WHAT: &str = "memory";
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(total), Some(available)) = (meminfo(&info, "MemTotal:"), meminfo(&info, "MemAvailable:")) else {
        return Row::warn(WHAT, "/proc/meminfo can't be read", "mount /proc");
    };
    let detail = format!("{} of {} available", show_size(available), show_size(total));
    if available < LITTLE_MEMORY {
        return Row::warn(WHAT, detail, "free memory, or run smaller guests");
    }
    Row::ok(WHAT, detail)
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The memory limit of this process's control group, where there is one.
fn cgroup() -> Option<Row> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let file = limit_file(&groups).filter(|path| readable(path))?;
    // cgroup v1 has a number near 2^63 for "no limit", v2 the word "max".
    let limit = read_word(&file)?.parse::<u64>().ok().filter(|limit| *limit < 1 << 60);
    let detail = match limit {
        Some(limit) => format!("memory limited to {}", show_size(limit)),
        None => "no memory limit".to_owned(),
    };
    Some(Row::ok("control group", format!("{detail} ({})", file.display())))
}

/// Where the limit of the groups named in the text of /proc/self/cgroup stands.
fn limit_file(groups: &str) -> Option<PathBuf> {
    let join = |root: &str, group: &str, file: &str| Path::new(root).join(group.trim_start_matches('/')).join(file);
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if controllers.split(',').any(|name| name == "memory") {
            return Some(join("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
        }
        if controllers.is_empty() {
            unified = Some(join("/sys/fs/cgroup", group, "memory.max"));
        }
    }
    unified
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_stands_where_the_group_is() {
        let first = "3:cpu,cpuacct:/a\n2:memory:/a/b\n0::/c\n";
        assert_eq!(limit_file(first), Some(PathBuf::from("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes")));
        assert_eq!(limit_file("0::/user.slice\n"), Some(PathBuf::from("/sys/fs/cgroup/user.slice/memory.max")));
        assert_eq!(limit_file("garbage"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n", "MemTotal:"), Some(2 << 20));
        assert_eq!(meminfo("MemTotal: x kB", "MemTotal:"), None);
    }
}

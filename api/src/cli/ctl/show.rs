//! Answers as people read them.

use memtier::status::{Outcomes, Reclaimed, Report, ScanReport, Status};
use serde::Deserialize;

use crate::cli::table::Table;
use crate::config::size::show_size;

/// The answer to a swap area that was switched on.
#[derive(Deserialize)]
pub struct AreaTaken {
    /// Its number.
    pub id: u64,
}

/// A swap area, as the server lists it.
#[derive(Deserialize)]
pub struct Area {
    id: u64,
    path: String,
    size: u64,
    used: u64,
    priority: i32,
    bad_slots: u64,
    direct_io: bool,
}

/// `part` of `whole` in percent; nothing of nothing is nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let share = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}%", share / 10, share % 10)
}

pub(super) fn status(status: &Status, areas: Vec<Area>) -> String {
    let mut states = Table::with_heads(&["pages", "count", "size", "share"]);
    let mut state = |name: &str, pages: u64| {
        let size = show_size(pages.saturating_mul(status.page_size));
        states.row([name.to_owned(), pages.to_string(), size, percent(pages, status.guest_pages)]);
    };
    state("guest", status.guest_pages);
    state("resident", status.resident_pages);
    state("swapped", status.swapped_pages);
    state("zero", status.zero_pages);
    state("untouched", status.untouched_pages);
    state("discarded", status.discarded_pages);
    state("poisoned", status.poisoned_pages);
    state("locked", status.locked_pages);
    state("pinned", status.pinned_pages);
    let tracker = serde_json::to_value(status.tracker).ok().and_then(|v| v.as_str().map(str::to_owned));
    format!(
        "tracker {}, pages may leave on their own: {}\n\n{}\n{}\n{}",
        tracker.as_deref().unwrap_or("unknown"),
        if status.swap_enable { "yes" } else { "no" },
        states.render(),
        area_list(areas),
        events(status),
    )
}

fn area_list(areas: Vec<Area>) -> String {
    if areas.is_empty() {
        return "no swap areas\n".to_owned();
    }
    let mut table = Table::with_heads(&["swap area", "priority", "size", "used", "bad slots", "direct I/O", "file"]);
    for area in areas {
        table.row([
            area.id.to_string(),
            area.priority.to_string(),
            show_size(area.size),
            show_size(area.used),
            area.bad_slots.to_string(),
            if area.direct_io { "yes" } else { "no" }.to_owned(),
            area.path,
        ]);
    }
    table.render()
}

fn events(status: &Status) -> String {
    let c = &status.counters;
    let mut table = Table::with_heads(&["since the start", ""]);
    for (name, count) in [
        ("major faults", c.faults_major),
        ("minor faults", c.faults_minor),
        ("write-protect faults", c.faults_write_protect),
        ("pages fetched", c.pages_fetched),
        ("pages out", c.pages_out),
        ("pages out as zero", c.pages_out_zero),
        ("evictions cancelled", c.evictions_cancelled),
        ("store errors", c.store_errors),
        ("pages poisoned", c.pages_poisoned),
        ("scans", c.scans),
    ] {
        table.row([name.to_owned(), count.to_string()]);
    }
    table.row(["written".to_owned(), show_size(c.bytes_written)]);
    table.row(["read".to_owned(), show_size(c.bytes_read)]);
    let latency = &status.fault_latency;
    if latency.count > 0 {
        table.row(["fault latency p50".to_owned(), format!("{} us", latency.p50_us)]);
        table.row(["fault latency p99".to_owned(), format!("{} us", latency.p99_us)]);
        table.row(["fault latency max".to_owned(), format!("{} us", latency.max_us)]);
    }
    table.render()
}

pub(super) fn report(report: &Report) -> String {
    let mut table = Table::with_heads(&["state", "size", "share"]);
    for (name, bytes) in [
        ("resident", report.resident_bytes),
        ("swapped", report.swapped_bytes),
        ("zero", report.zero_bytes),
        ("untouched", report.untouched_bytes),
        ("discarded", report.discarded_bytes),
        ("poisoned", report.poisoned_bytes),
        ("guest", report.guest_bytes),
    ] {
        table.row([name.to_owned(), show_size(bytes), percent(bytes, report.guest_bytes)]);
    }
    table.render()
}

pub(super) fn outcomes(outcomes: &Outcomes) -> String {
    let mut table = Table::with_heads(&["outcome", "pages"]);
    for (name, pages) in [
        ("evicted", outcomes.evicted),
        ("absent", outcomes.absent),
        ("locked", outcomes.locked),
        ("shared", outcomes.shared),
        ("busy", outcomes.busy),
        ("cancelled", outcomes.cancelled),
        ("error", outcomes.error),
    ] {
        table.row([name.to_owned(), pages.to_string()]);
    }
    table.render()
}

pub(super) fn reclaimed(reclaimed: &Reclaimed) -> String {
    format!("{} left\n\n{}", show_size(reclaimed.bytes), outcomes(&reclaimed.outcomes))
}

pub(super) fn scan(report: &ScanReport) -> String {
    let mut table = Table::with_heads(&["loop", "accessed", "idle", "idle share", "watched", "scanning"]);
    for (number, seen) in (1u32..).zip(&report.loops) {
        table.row([
            number.to_string(),
            seen.accessed.to_string(),
            seen.idle.to_string(),
            percent(seen.idle, seen.accessed.saturating_add(seen.idle)),
            format!("{} ms", seen.duration_us / 1000),
            format!("{} us", seen.scan_us),
        ]);
    }
    table.render()
}

pub(super) fn idle_summary(idle: u64, status: &Status) -> String {
    let size = |pages: u64| show_size(pages.saturating_mul(status.page_size));
    format!(
        "{idle} of {} resident pages are idle: {} of {}, {}\n",
        status.resident_pages,
        size(idle),
        size(status.resident_pages),
        percent(idle, status.resident_pages),
    )
}

/// Words of the bitmap, each with the number of its first guest frame.
pub(super) fn idle_words(offset: u64, words: impl Iterator<Item = u64>) -> String {
    let first = offset.saturating_mul(8);
    let lines = (0u64..).zip(words).map(|(number, word)| format!("{:#x}  {word:016x}\n", first + number * 64));
    lines.collect()
}

//! `ebb ctl curve`, `ebb ctl ws` and `ebb ctl tracker`: what is known of the guest's memory, and by which means.

use hyper::Method;
use memtier::insight::{ColdCurve, WorkingSet};
use memtier::status::{TrackerInfo, TrackerKind};
use serde_json::json;

use super::args::{TrackerArgs, WsArgs};
use super::{Session, body, parse};
use crate::cli::table::Table;
use crate::cli::{CliError, print};
use crate::client::Body;
use crate::config::size::show_size;

/// Characters of the curve's longest bar.
const BAR: u64 = 30;

pub(super) fn curve(session: &Session) -> Result<(), CliError> {
    let target = "/memtier/cold_curve";
    let bytes = session.get(target)?;
    if session.json {
        return session.print_json(&bytes);
    }
    print(&show_curve(&parse(target, &bytes)?))
}

fn show_curve(curve: &ColdCurve) -> String {
    let whole = curve.total.resident_bytes;
    let mut table = Table::with_heads(&["idle for scans", "in memory", "share", "", "in a tier"]);
    for point in &curve.total.points {
        let bar = u128::from(point.resident_bytes) * u128::from(BAR) / u128::from(whole.max(1));
        let bar = "#".repeat(usize::try_from(bar).unwrap_or(0));
        table.row([
            format!(">= {}", point.min_idle_scans),
            show_size(point.resident_bytes),
            super::show::percent(point.resident_bytes, whole),
            format!("{bar:<width$}", width = usize::try_from(BAR).unwrap_or(0)),
            show_size(point.out_bytes),
        ]);
    }
    format!("after {} scans, of {} in memory\n\n{}", curve.scans, show_size(whole), table.render())
}

pub(super) fn working_set(session: &Session, args: &WsArgs) -> Result<(), CliError> {
    let target = match args.scans {
        Some(scans) => format!("/memtier/working_set?scans={scans}"),
        None => "/memtier/working_set".to_owned(),
    };
    let bytes = session.get(&target)?;
    if session.json {
        return session.print_json(&bytes);
    }
    print(&show_working_set(&parse(&target, &bytes)?))
}

fn show_working_set(set: &WorkingSet) -> String {
    let Some(tracker) = set.tracker else {
        return "no scan has finished yet, so nothing is known: see ebb ctl scan\n".to_owned();
    };
    let touched = if tracker == TrackerKind::DirtyLog { "written" } else { "touched" };
    let mut table = Table::with_heads(&[touched, "size"]);
    let interval = match set.interval {
        Some(interval) => format!("{} to {}", show_size(interval.low_bytes), show_size(interval.high_bytes)),
        None => "unknown from one scan".to_owned(),
    };
    table.row(["per scan, on average".to_owned(), show_size(set.mean_bytes)]);
    table.row(["95% interval of that".to_owned(), interval]);
    table.row(["with nothing assumed".to_owned(), show_size(set.seen_bytes)]);
    table.row([
        "at least, at most".to_owned(),
        format!("{} to {}", show_size(set.low_bytes), show_size(set.high_bytes)),
    ]);
    for distinct in &set.distinct {
        let scans =
            if distinct.scans == 1 { "the last scan".to_owned() } else { format!("the last {} scans", distinct.scans) };
        table.row([format!("at all in {scans}"), show_size(distinct.bytes)]);
    }
    table.row(["in memory".to_owned(), show_size(set.resident_bytes)]);
    let watched = format!("{}.{} s", set.watched_ms / 1000, set.watched_ms % 1000 / 100);
    format!("by {} scans of {watched} each, tracker {}\n\n{}", set.scans, tracker.name(), table.render())
}

pub(super) fn tracker(session: &Session, args: &TrackerArgs) -> Result<(), CliError> {
    let target = "/memtier/tracker";
    let bytes = match args.tracker {
        Some(tracker) => session.send(Method::PUT, target, body(&json!({ "tracker": tracker.choice() }))?)?,
        None => session.send(Method::GET, target, Body::Empty)?,
    };
    if session.json {
        return session.print_json(&bytes);
    }
    print(&show_tracker(&parse(target, &bytes)?))
}

fn show_tracker(info: &TrackerInfo) -> String {
    let mut text = format!("{}, which sees {}: {}\n", info.tracker.name(), info.sees, info.reason);
    if info.switches > 0 {
        text.push_str(&format!("changed {} times while the guest ran\n", info.switches));
    }
    text.push('\n');
    let width = info.trackers.iter().map(|offer| offer.tracker.name().len()).max().unwrap_or(0);
    for offer in &info.trackers {
        let usable = if offer.usable { "usable" } else { "not here" };
        text.push_str(&format!("{:<width$}  {usable:<8}  {}\n", offer.tracker.name(), offer.note));
    }
    text
}

#[cfg(test)]
mod tests {
    use memtier::insight::curve::{CurveOf, CurvePoint};
    use memtier::insight::working_set::{Distinct, Interval};
    use memtier::status::{TrackerChoice, TrackerOffer};

    use super::*;

    #[test]
    fn the_curve_has_a_bar_per_age() {
        let point =
            |min_idle_scans, resident_bytes, out_bytes| CurvePoint { min_idle_scans, resident_bytes, out_bytes };
        let points = vec![point(0, 4 << 20, 1 << 20), point(1, 2 << 20, 1 << 20), point(2, 0, 4096)];
        let total = CurveOf { start: 0, len: 8 << 20, resident_bytes: 4 << 20, out_bytes: 1 << 20, points };
        let text = show_curve(&ColdCurve { scans: 5, frame_bytes: 4096, total, regions: Vec::new() });
        let expected = [
            "after 5 scans, of 4 MiB in memory",
            "",
            "idle for scans  in memory   share                                  in a tier",
            ">= 0                4 MiB  100.0%  ##############################      1 MiB",
            ">= 1                2 MiB   50.0%  ###############                     1 MiB",
            ">= 2                  0 B    0.0%                                      4 KiB",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_working_set_says_how_sure_it_is() {
        let set = WorkingSet {
            window: 8,
            scans: 2,
            tracker: Some(TrackerKind::Unmap),
            watched_ms: 1050,
            mean_bytes: 3 << 20,
            interval: Some(Interval { low_bytes: 2 << 20, high_bytes: 4 << 20 }),
            seen_bytes: 1 << 20,
            low_bytes: 512 << 10,
            high_bytes: 4 << 20,
            resident_bytes: 64 << 20,
            distinct: vec![Distinct { scans: 1, bytes: 3 << 20 }, Distinct { scans: 2, bytes: 5 << 20 }],
        };
        let text = show_working_set(&set);
        assert!(text.starts_with("by 2 scans of 1.0 s each, tracker unmap\n\ntouched "), "{text}");
        for line in [
            "95% interval of that  2 MiB to 4 MiB",
            "at least, at most  512 KiB to 4 MiB",
            "at all in the last 2 scans  5 MiB",
        ] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.lines().any(|found| words(found) == words(line)), "{line} in\n{text}");
        }
        let written = WorkingSet { tracker: Some(TrackerKind::DirtyLog), interval: None, ..set.clone() };
        assert!(show_working_set(&written).contains("\nwritten "));
        assert!(show_working_set(&written).contains("unknown from one scan"));
        assert!(show_working_set(&WorkingSet { tracker: None, ..set }).starts_with("no scan has finished yet"));
    }

    #[test]
    fn the_tracker_is_named_with_its_reason_and_the_others_with_what_they_lack() {
        let offer = |tracker, usable, note: &str| TrackerOffer { tracker, usable, note: note.to_owned() };
        let info = TrackerInfo {
            wanted: TrackerChoice::Auto,
            tracker: TrackerKind::Unmap,
            reason: "it is exact".to_owned(),
            sees: "accesses".to_owned(),
            switches: 2,
            trackers: vec![offer(TrackerKind::Unmap, true, "works"), offer(TrackerKind::PageIdle, false, "no bitmap")],
        };
        let expected = "unmap, which sees accesses: it is exact\nchanged 2 times while the guest ran\n\n\
                        unmap      usable    works\npage_idle  not here  no bitmap\n";
        assert_eq!(show_tracker(&info), expected);
    }
}

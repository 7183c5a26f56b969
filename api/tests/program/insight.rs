//! What ages tell, over REST and `ebb ctl`, over real tiers.

use memtier::units::PAGE_SIZE;
use serde_json::{Value, json};

use crate::support::{PAGES, Site, ctl, error_line};
use crate::tiers::finished;

const PAGE: u64 = PAGE_SIZE as u64;
/// One past the last frame: 512 pages, a hole as large, 256 pages.
const END: usize = 1280;

/// Runs one scan that sees these frames read.
fn scan(site: &Site, touched: std::ops::Range<u64>) {
    let sleeping = site.expect(202, "POST", "/memtier/scans", r#"{"loops": 1, "sleep_ms": 200, "backoff": 0}"#);
    let id = sleeping["id"].as_u64().unwrap();
    let target = format!("/memtier/scans/{id}");
    // Touched again and again until the scan has ended, so that some of it is while it watches, however slow this machine is.
    loop {
        touched.clone().for_each(|gfn| _ = site.guest().read(gfn * PAGE));
        if site.expect(200, "GET", &target, "")["state"] != "running" {
            break;
        }
    }
    assert_eq!(finished(site, id)["state"], "done");
}

/// All memory touched, then three scans: of 64 pages, of 32 others, of none.
fn scanned() -> Site {
    let site = Site::filled();
    scan(&site, 0..0);
    scan(&site, 0..64);
    scan(&site, 1024..1056);
    site
}

fn numbers(list: &Value, keys: &[&str]) -> Vec<Vec<u64>> {
    let row = |entry: &Value| keys.iter().map(|key| entry[key].as_u64().unwrap()).collect();
    list.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn the_cold_curve_falls_by_region_and_follows_pages_out() {
    let site = scanned();
    let curve = site.expect(200, "GET", "/memtier/cold_curve", "");
    assert_eq!((&curve["scans"], &curve["frame_bytes"]), (&json!(3), &json!(4096)));
    let keys = ["min_idle_scans", "resident_bytes", "out_bytes"];
    let pages = |piece: &Value| -> Vec<(u64, u64, u64)> {
        numbers(&piece["points"], &keys).iter().map(|p| (p[0], p[1] / PAGE, p[2] / PAGE)).collect()
    };
    assert_eq!(pages(&curve["total"]), [(0, PAGES, 0), (1, 736, 0), (2, 672, 0), (3, 672, 0)]);
    assert_eq!(pages(&curve["regions"][0]), [(0, 512, 0), (1, 512, 0), (2, 448, 0), (3, 448, 0)]);
    assert_eq!(pages(&curve["regions"][1]), [(0, 256, 0), (1, 224, 0), (2, 224, 0), (3, 224, 0)]);
    let start = |region: usize| (&curve["regions"][region]["start"], &curve["regions"][region]["len"]);
    assert_eq!(start(1), (&json!(1024 * PAGE), &json!(256 * PAGE)));
    site.expect(200, "POST", "/memtier/reclaim", r#"{"min_idle_scans": 3}"#);
    let curve = site.expect(200, "GET", "/memtier/cold_curve", "");
    assert_eq!(pages(&curve["total"]), [(0, 96, 672), (1, 64, 672), (2, 0, 672), (3, 0, 672)]);
}

#[test]
fn the_working_set_is_the_mean_of_the_last_scans_with_what_it_was_at_all() {
    let site = scanned();
    let set = site.expect(200, "GET", "/memtier/working_set", "");
    assert_eq!((&set["window"], &set["scans"], &set["tracker"]), (&json!(8), &json!(3), &json!("unmap")));
    assert_eq!((&set["mean_bytes"], &set["seen_bytes"]), (&json!(32 * PAGE), &json!(32 * PAGE)));
    assert_eq!(set["resident_bytes"], json!(PAGES * PAGE));
    let distinct = numbers(&set["distinct"], &["scans", "bytes"]);
    assert_eq!(distinct, [vec![1, 32 * PAGE], vec![2, 96 * PAGE], vec![3, 96 * PAGE]]);
    assert!(set["interval"]["low_bytes"].as_u64() < set["mean_bytes"].as_u64(), "{set}");
    let last = site.expect(200, "GET", "/memtier/working_set?scans=1", "");
    assert_eq!((&last["mean_bytes"], &last["interval"]), (&json!(32 * PAGE), &Value::Null));
    for scans in ["0", "65"] {
        let message = site.refused(400, "GET", &format!("/memtier/working_set?scans={scans}"), "");
        assert_eq!(message, format!("scans {scans} is not in 1..=64"));
    }
    site.refused(400, "GET", "/memtier/working_set?window=1", "");
}

#[test]
fn heat_is_json_or_bytes_and_both_are_the_same() {
    let site = scanned();
    let heat = site.expect(200, "GET", "/memtier/heat", "");
    let (columns, rows) = (heat["columns"].as_array().unwrap(), heat["rows"].as_array().unwrap());
    assert_eq!((columns.len(), rows.len(), &heat["bucket_bytes"]), (192, 3, &json!(4 * PAGE)));
    let hot = |row: usize| -> Vec<usize> {
        let shares = rows[row]["shares"].as_array().unwrap();
        (0..shares.len()).filter(|column| shares[*column] == 65535).collect()
    };
    assert_eq!((hot(0), hot(1), hot(2)), (vec![], (0..16).collect(), (128..136).collect()));
    assert!(rows[0]["ended_ms"].as_u64() <= rows[1]["began_ms"].as_u64(), "{rows:?}");

    let (status, bytes) = site.send("GET", "/memtier/heat?format=binary", "");
    assert_eq!((status, &bytes[..8]), (200, &b"EBBHEAT1"[..]));
    let cells = 40 + 24 * (192 + 3);
    assert_eq!(bytes.len(), cells + 2 * 192 * 3);
    for (row, shown) in rows.iter().enumerate() {
        for column in 0..192 {
            let at = cells + 2 * (row * 192 + column);
            assert_eq!(shown["shares"][column], u16::from_le_bytes([bytes[at], bytes[at + 1]]), "{row} {column}");
        }
    }
    let asked =
        b"GET /memtier/heat HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/octet-stream\r\n\r\n";
    let answer = site.raw(asked);
    assert!(answer.contains("application/octet-stream") && answer.contains("EBBHEAT1"));
    site.refused(400, "GET", "/memtier/heat?format=xml", "");
}

#[test]
fn refaults_are_counted_by_distance_and_by_vcpu() {
    let site = Site::filled();
    let none = site.expect(200, "GET", "/memtier/refaults", "");
    assert_eq!((&none["refaults"], &none["distances"]), (&json!(0), &json!([])));
    assert_eq!((&none["guest_bytes"], &none["step_bytes"]), (&json!(PAGES * PAGE), &json!(24 * PAGE)));
    site.expect(200, "POST", "/memtier/reclaim", &json!({ "bytes": PAGES * PAGE }).to_string());
    site.guest().verify();
    let report = site.expect(200, "GET", "/memtier/refaults", "");
    assert_eq!((&report["refaults"], &report["left_bytes"]), (&json!(PAGES), &json!(PAGES * PAGE)));
    let distances = numbers(&report["distances"], &["distance_bytes", "refaults"]);
    // The first to leave was the first to come back, the last to leave the last.
    assert!(distances.len() > 30 && distances.iter().all(|d| d[0] <= (PAGES + 24) * PAGE), "{distances:?}");
    assert_eq!(distances.iter().map(|d| d[1]).sum::<u64>(), PAGES);
    assert_eq!(report["vcpus"].as_array().unwrap().len(), 1, "{report}");
}

#[test]
fn ages_are_a_byte_a_frame_or_a_histogram() {
    let site = scanned();
    site.expect(200, "POST", "/memtier/swap_pages", r#"{"ranges": [{"start": 4096, "len": 8192}]}"#);
    let (status, ages) = site.send("GET", "/memtier/ages?format=binary", "");
    assert_eq!((status, ages.len()), (200, END));
    let expected = |gfn: usize| match gfn {
        1 | 2 => 254,
        0..64 => 1,
        64..512 => 3,
        512..1024 => 255,
        1024..1056 => 0,
        _ => 3,
    };
    assert!((0..END).all(|gfn| ages[gfn] == expected(gfn)), "{ages:?}");
    let piece = |query: &str| site.send("GET", &format!("/memtier/ages?format=binary&{query}"), "").1;
    assert_eq!(piece("offset=1022&len=3"), ages[1022..1025]);
    assert_eq!(piece("offset=1279&len=99"), ages[1279..]);
    assert!(piece("offset=1280").is_empty());
    assert!(piece(&format!("offset={}&len={}", u64::MAX, u64::MAX)).is_empty());
    assert!(piece("offset=5&len=0").is_empty());

    let report = site.expect(200, "GET", "/memtier/ages", "");
    let rows = numbers(&report["ages"], &["min_scans", "max_scans", "resident_frames", "out_frames"]);
    assert_eq!(rows, [[0, 0, 32, 0], [1, 1, 62, 2], [3, 3, 672, 0]]);
    let message = site.refused(400, "GET", "/memtier/ages?offset=1", "");
    assert_eq!(message, "offset and len are for bytes: ask with format=binary");
}

/// A reader of etmem's encoding, written from its description: pages as (address, type), and where it ended.
fn decode(bytes: &[u8]) -> (Vec<(u64, u8)>, u64) {
    let (mut pages, mut address, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        if bytes[at] == 0xa0 {
            address = u64::from_be_bytes(bytes[at + 1..at + 9].try_into().unwrap());
            at += 9;
            continue;
        }
        let kind = bytes[at] >> 4;
        for _ in 0..bytes[at] & 0xf {
            pages.push((address, kind));
            address += if [0, 3, 5, 8].contains(&kind) { PAGE } else { 2 << 20 };
        }
        at += 1;
    }
    (pages, address)
}

const ACCESSED: u8 = 0;
const IDLE: u8 = 5;
const ALL_IDLE: u8 = 7;
const HOLE: u8 = 8;

fn idle_pages(site: &Site, query: &str) -> (Vec<(u64, u8)>, u64) {
    let (status, bytes) = site.send("GET", &format!("/memtier/idle_pages?{query}"), "");
    assert_eq!(status, 200, "{query}: {}", String::from_utf8_lossy(&bytes));
    decode(&bytes)
}

#[test]
fn etmems_reader_sees_what_was_accessed_since_it_read_last() {
    let site = Site::filled();
    let of = |pages: &[(u64, u8)], wanted: u8| -> Vec<u64> {
        pages.iter().filter(|page| page.1 == wanted).map(|page| page.0 / PAGE).collect()
    };
    let (pages, end) = idle_pages(&site, "");
    assert_eq!((of(&pages, ACCESSED).len() as u64, end), (PAGES, END as u64 * PAGE));
    assert!(of(&pages, HOLE).is_empty(), "the hole is jumped over");
    [3, 511, 1024].iter().for_each(|gfn| _ = site.guest().read(gfn * PAGE));
    site.expect(200, "POST", "/memtier/swap_pages", r#"{"ranges": [{"start": 8192, "len": 4096}]}"#);
    // Looking without clearing can be repeated.
    for query in ["clear=false", "clear=false", "clear=true", ""] {
        let (pages, _) = idle_pages(&site, query);
        let expected: Vec<u64> = if query.is_empty() { vec![] } else { vec![3, 511, 1024] };
        assert_eq!(of(&pages, ACCESSED), expected, "{query}");
        assert_eq!(of(&pages, HOLE), [2], "{query}");
        assert_eq!(of(&pages, IDLE).len(), END - 512 - 1 - expected.len(), "{query}");
    }
    site.guest().verify();
}

#[test]
fn etmems_buffers_and_offsets_are_its_own() {
    let site = Site::filled();
    let message = site.refused(400, "GET", "/memtier/idle_pages?len=18", "");
    assert_eq!(message, "idle pages buffer of 18 bytes is below 19");
    let message = site.refused(400, "GET", "/memtier/idle_pages?offset=100", "");
    assert_eq!(message, "idle pages offset 0x64 is not a multiple of 4096");
    site.refused(400, "GET", "/memtier/idle_pages?addresses=moon", "");
    for offset in [END as u64 * PAGE, 1 << 60, u64::MAX - PAGE + 1] {
        assert_eq!(site.send("GET", &format!("/memtier/idle_pages?offset={offset}"), ""), (200, vec![]));
    }
    // A walk with the smallest buffer goes on where decoding ends, and sees every page once.
    let (mut offset, mut seen) = (0, Vec::new());
    while offset < END as u64 * PAGE {
        let (pages, end) = idle_pages(&site, &format!("offset={offset}&len=19"));
        assert!(end > offset, "{offset:#x}");
        seen.extend(pages.iter().map(|page| page.0 / PAGE));
        offset = end;
    }
    assert_eq!(seen, (0..512).chain(1024..1280).collect::<Vec<_>>());
    // Eight pages for each byte of buffer.
    assert_eq!(idle_pages(&site, "len=40&offset=4096").1, (1 + 320) * PAGE);
}

#[test]
fn etmems_reader_may_ask_by_host_addresses_and_for_huge_pieces() {
    let site = Site::filled();
    let (guest, _) = idle_pages(&site, "clear=false");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let first = site.guest().host_address(0);
    let (host, end) = idle_pages(&site, &format!("clear=false&addresses=host&offset={first}&len=64"));
    assert!(maps.contains(&format!("{first:x}-")), "etmem's tools find it in the maps");
    assert_eq!(host[..512], guest[..512].iter().map(|page| (page.0 + first, page.1)).collect::<Vec<_>>());
    assert_eq!(end, first + 512 * PAGE);
    idle_pages(&site, "");
    let (pages, _) = idle_pages(&site, "huge=true&clear=false");
    assert_eq!(pages[0], (0, ALL_IDLE), "nothing of the first 2 MiB was accessed");
    assert_eq!(pages[1], (1024 * PAGE, IDLE), "the second region is shorter than 2 MiB");
    site.guest().read(5 * PAGE);
    assert_eq!(idle_pages(&site, "huge=true&clear=false").0[5], (5 * PAGE, ACCESSED));
}

#[test]
fn the_tracker_is_told_and_changed_and_what_is_not_there_is_refused() {
    let site = scanned();
    let info = site.expect(200, "GET", "/memtier/tracker", "");
    assert_eq!((&info["tracker"], &info["sees"], &info["switches"]), (&json!("unmap"), &json!("accesses"), &json!(0)));
    assert_eq!(info["trackers"].as_array().unwrap().len(), 3);
    let before = site.send("GET", "/memtier/ages?format=binary", "").1;
    let info = site.expect(200, "PUT", "/memtier/tracker", r#"{"tracker": "auto"}"#);
    assert_eq!((&info["wanted"], info["reason"].as_str().unwrap().is_empty()), (&json!("auto"), false));
    let message = site.refused(400, "PUT", "/memtier/tracker", r#"{"tracker": "dirty_log"}"#);
    assert_eq!(message, "the dirty_log tracker can't be used: the hypervisor offers no dirty log");
    assert_eq!(site.expect(200, "GET", "/memtier/tracker", "")["tracker"], info["tracker"]);
    assert_eq!(site.send("GET", "/memtier/ages?format=binary", "").1, before, "ages stay");
    for body in [r#"{"tracker": "magic"}"#, "{}", r#"{"tracker": "auto", "now": true}"#] {
        site.refused(400, "PUT", "/memtier/tracker", body);
    }
}

#[track_caller]
fn out(site: &Site, args: &[&str]) -> String {
    let output = ctl(&site.socket(), args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn ctl_shows_curve_working_set_and_tracker() {
    let site = scanned();
    let words =
        |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let curve = words(&out(&site, &["curve"]));
    assert_eq!(curve[0], "after 3 scans, of 3 MiB in memory");
    assert!(curve.contains(&">= 1 2.8 MiB 95.8% ############################ 0 B".to_owned()), "{curve:?}");
    let set = words(&out(&site, &["ws", "--scans", "2"]));
    assert!(set.contains(&"per scan, on average 192 KiB".to_owned()), "{set:?}");
    assert!(set.contains(&"at all in the last 2 scans 384 KiB".to_owned()), "{set:?}");
    let tracker = out(&site, &["tracker"]);
    assert!(tracker.starts_with("unmap, which sees accesses: "), "{tracker}");
    assert!(out(&site, &["tracker", "unmap"]).contains("it was asked for"));
    assert!(error_line(&ctl(&site.socket(), &["tracker", "dirty_log"])).contains("no dirty log"));
    for (args, target) in
        [(&["curve"][..], "/memtier/cold_curve"), (&["ws"], "/memtier/working_set"), (&["tracker"], "/memtier/tracker")]
    {
        let shown: Value = serde_json::from_str(&out(&site, &[args, &["--json"]].concat())).unwrap();
        assert_eq!(shown, site.expect(200, "GET", target, ""), "{args:?}");
    }
}

#[test]
fn ctl_draws_heat_in_the_terminal_and_into_files() {
    let site = Site::filled();
    let nothing = "no scan has finished yet, so there is no heat to draw: see ebb ctl scan";
    assert_eq!(error_line(&ctl(&site.socket(), &["heat"])), nothing);
    let site = scanned();
    let text = out(&site, &["heat", "--width", "60"]);
    assert!(text.is_ascii(), "no terminal, no colours: {text}");
    let hot = |mark: char| text.lines().filter(|line| line.contains(&mark.to_string().repeat(6))).count();
    assert_eq!((hot('@'), hot('%')), (3, 1), "16 of 192 buckets in one scan, 8 in the next, 6 to a line:\n{text}");
    assert!(text.contains("    4 MiB ") && text.contains("0.0 s"), "{text}");
    assert!(out(&site, &["heat", "--color", "always"]).contains("\x1b[38;5;"));
    let (svg, png) = (site.path("heat.svg"), site.path("heat.png"));
    let (svg_name, png_name) = (svg.to_str().unwrap(), png.to_str().unwrap());
    let said = out(&site, &["heat", "--svg", svg_name, "--png", png_name, "--width", "700"]);
    assert_eq!(said, format!("heat map written to {svg_name}\nheat map written to {png_name}\n"));
    assert!(std::fs::read_to_string(&svg).unwrap().contains("guest physical address"));
    assert_eq!(&std::fs::read(&png).unwrap()[..8], b"\x89PNG\r\n\x1a\n");
    let shown: Value = serde_json::from_str(&out(&site, &["heat", "--json", "--svg", svg_name])).unwrap();
    assert_eq!(shown["rows"].as_array().unwrap().len(), 3);
    let line = error_line(&ctl(&site.socket(), &["heat", "--png", "/nonexistent/heat.png"]));
    assert!(line.starts_with("cannot write /nonexistent/heat.png: No such file"), "{line}");
}

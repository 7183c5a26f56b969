//! The tiers' part of the API, over real tiers.

use api::client::Body;
use memtier::units::PAGE_SIZE;
use serde_json::{Value, json};

use crate::support::{PAGES, Site, fault, page_addresses};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes of the idle bitmap: frames up to the last region's end, in chunks of 64.
const BITMAP: usize = 1280 / 8;

#[test]
fn before_the_start_and_without_tiering_the_tiers_are_refused_in_words() {
    let requests = [
        ("GET", "/memtier", ""),
        ("GET", "/memtier/report", ""),
        ("GET", "/memtier/swap_enable", ""),
        ("POST", "/memtier/scans", r#"{"loops": 1, "sleep_ms": 0}"#),
        ("GET", "/memtier/scans/1", ""),
        ("DELETE", "/memtier/scans/1", ""),
        ("GET", "/memtier/idle_bitmap", ""),
        ("GET", "/memtier/cold_curve", ""),
        ("GET", "/memtier/working_set", ""),
        ("GET", "/memtier/heat", ""),
        ("GET", "/memtier/refaults", ""),
        ("GET", "/memtier/ages", ""),
        ("GET", "/memtier/ages?format=binary", ""),
        ("GET", "/memtier/idle_pages", ""),
        ("GET", "/memtier/tracker", ""),
        ("PUT", "/memtier/tracker", r#"{"tracker": "auto"}"#),
        ("POST", "/memtier/swap_pages", r#"{"ranges": []}"#),
        ("POST", "/memtier/reclaim", r#"{"bytes": 1}"#),
        ("GET", "/memtier/swap_areas", ""),
        ("DELETE", "/memtier/swap_areas/0", ""),
        ("GET", "/memtier/locks", ""),
        ("POST", "/memtier/locks", r#"{"ranges": []}"#),
        ("DELETE", "/memtier/locks", r#"{"ranges": []}"#),
    ];
    let site = Site::waiting();
    for (method, target, body) in requests {
        let message = site.refused(400, method, target, body);
        assert_eq!(message, "this is not possible before the guest is started", "{method} {target}");
    }
    let site = Site::untiered();
    let area = r#"{"path": "s", "size": 1048576}"#;
    assert_eq!(
        site.refused(400, "PUT", "/memtier/swap_areas", area),
        "swap areas need a tracker, and the tracker is off"
    );
    site.expect(204, "PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    for (method, target, body) in requests {
        let message = site.refused(400, method, target, body);
        assert_eq!(message, "memory tiering is off for this guest", "{method} {target}");
    }
    site.refused(400, "PUT", "/memtier/swap_areas", area);
}

#[test]
fn the_status_adds_up_and_follows_the_guest() {
    let site = Site::running();
    let sum = |status: &Value| {
        let states = ["resident", "swapped", "zero", "untouched", "discarded", "poisoned"];
        states.iter().map(|s| status[format!("{s}_pages")].as_u64().unwrap()).sum::<u64>()
    };
    let fresh = site.expect(200, "GET", "/memtier", "");
    assert_eq!((fresh["guest_pages"].as_u64(), fresh["untouched_pages"].as_u64()), (Some(PAGES), Some(PAGES)));
    assert_eq!((sum(&fresh), &fresh["tracker"], &fresh["page_size"]), (PAGES, &json!("unmap"), &json!(4096)));
    site.guest().fill();
    let full = site.expect(200, "GET", "/memtier", "");
    assert_eq!((full["resident_pages"].as_u64(), sum(&full)), (Some(PAGES), PAGES));
    for key in ["limits", "counters", "locked_pages", "pinned_pages", "swap_enable", "fault_latency"] {
        assert!(full.get(key).is_some(), "{key} is missing");
    }
    let report = site.expect(200, "GET", "/memtier/report", "");
    assert_eq!(
        (report["guest_bytes"].as_u64(), report["resident_bytes"].as_u64()),
        (Some(PAGES * PAGE), Some(PAGES * PAGE))
    );
}

#[test]
fn the_switch_keeps_its_state_when_it_is_not_understood() {
    let site = Site::running();
    let get = || String::from_utf8(site.send("GET", "/memtier/swap_enable", "").1).unwrap();
    for (word, state) in [("true", "true"), ("0", "false"), ("1\n", "true"), ("false\n", "false"), ("true", "true")] {
        site.expect_body(204, "PUT", "/memtier/swap_enable", Body::Text(word.to_owned()));
        assert_eq!(get(), state);
    }
    for word in ["", "TRUE", "off", " false", "false\n\n", "2"] {
        let answer = site.expect_body(400, "PUT", "/memtier/swap_enable", Body::Text(word.to_owned()));
        assert_eq!(fault(&answer), "swap_enable takes true, 1, false or 0");
        assert_eq!(get(), "true");
    }
    let curl = b"PUT /memtier/swap_enable HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1\r\n\r\n0";
    assert!(site.raw(curl).starts_with("HTTP/1.1 204"));
    assert_eq!(get(), "false");
}

pub fn finished(site: &Site, id: u64) -> Value {
    loop {
        let report = site.expect(200, "GET", &format!("/memtier/scans/{id}"), "");
        if report["state"] != "running" {
            return report;
        }
    }
}

#[test]
fn a_scan_is_started_watched_and_remembered() {
    let site = Site::running();
    site.guest().fill();
    let started = site.expect(202, "POST", "/memtier/scans", r#"{"loops": 2, "interval_ms": 1, "sleep_ms": 1}"#);
    let id = started["id"].as_u64().unwrap();
    let report = finished(&site, id);
    assert_eq!((&report["state"], &report["plan"]["loops"]), (&json!("done"), &json!(2)));
    let loops = report["loops"].as_array().unwrap();
    assert_eq!(loops.len(), 2);
    for seen in loops {
        assert_eq!(
            (seen["idle"].as_u64(), seen["accessed"].as_u64()),
            (Some(PAGES), Some(0)),
            "nobody touched anything"
        );
        assert!(seen["duration_us"].as_u64().unwrap() >= 1000);
    }
    // Cancelling what has ended changes nothing.
    assert_eq!(site.expect(200, "DELETE", &format!("/memtier/scans/{id}"), "")["state"], "done");
}

#[test]
fn scans_that_cannot_be_are_refused() {
    let site = Site::running();
    for body in [
        r#"{"loops": 0, "sleep_ms": 1}"#,
        r#"{"loops": 121, "sleep_ms": 1}"#,
        r#"{"loops": 1, "sleep_ms": 1200001}"#,
        r#"{"loops": 1, "sleep_ms": 1, "interval_ms": 18446744073709551615}"#,
    ] {
        site.refused(400, "POST", "/memtier/scans", body);
    }
    assert_eq!(site.refused(404, "GET", "/memtier/scans/77", ""), "there is no scan 77");
    assert_eq!(site.refused(404, "DELETE", "/memtier/scans/77", ""), "there is no scan 77");
    let id = site.expect(202, "POST", "/memtier/scans", r#"{"loops": 1, "sleep_ms": 1000000}"#)["id"].as_u64().unwrap();
    site.refused(409, "POST", "/memtier/scans", r#"{"loops": 1, "sleep_ms": 1}"#);
    site.expect(200, "DELETE", &format!("/memtier/scans/{id}"), "");
    assert_eq!(finished(&site, id)["state"], "cancelled");
}

fn bitmap(site: &Site) -> Vec<u8> {
    let (status, bits) = site.send("GET", "/memtier/idle_bitmap", "");
    assert_eq!(status, 200);
    bits
}

fn is_idle(bits: &[u8], gfn: usize) -> bool {
    bits[gfn / 8] >> (gfn % 8) & 1 == 1
}

#[test]
fn the_idle_bitmap_shows_what_was_marked_and_not_touched_since() {
    let site = Site::running();
    site.guest().fill();
    let marked = site.expect_body(200, "PUT", "/memtier/idle_bitmap?offset=0", Body::Binary(vec![0xff; BITMAP]));
    assert_eq!(marked, json!({ "written": BITMAP }));
    let touched = [0, 3, 511, 1024, 1279];
    for gfn in touched {
        site.guest().read(gfn * PAGE);
    }
    let bits = bitmap(&site);
    assert_eq!(bits.len(), BITMAP);
    for gfn in 0..1280 {
        let memory = !(512..1024).contains(&gfn);
        let expected = memory && !touched.contains(&(gfn as u64));
        assert_eq!(is_idle(&bits, gfn), expected, "frame {gfn}");
    }
    let (_, part) = site.send("GET", "/memtier/idle_bitmap?offset=8&len=16", "");
    assert_eq!(part, bits[8..24]);
    let (_, rest) = site.send("GET", &format!("/memtier/idle_bitmap?offset=8&len={}", 1u64 << 40), "");
    assert_eq!(rest, bits[8..]);
}

#[test]
fn the_idle_bitmap_keeps_page_idles_contract_at_its_edges() {
    let site = Site::running();
    for query in ["offset=1", "offset=0&len=7", "offset=4&len=8", "len=1"] {
        let message = site.refused(400, "GET", &format!("/memtier/idle_bitmap?{query}"), "");
        assert!(message.ends_with("is not a multiple of 8 bytes"), "{message}");
    }
    let message = site.refused(400, "GET", "/memtier/idle_bitmap?offset=18446744073709551608&len=16", "");
    assert_eq!(message, "offset + len is beyond 64 bits");
    for offset in [BITMAP as u64, 1 << 40, u64::MAX - 7] {
        let answer = site.send("GET", &format!("/memtier/idle_bitmap?offset={offset}"), "");
        assert_eq!(answer, (200, vec![]), "reading at {offset}");
    }
    let put = |query: &str, len: usize| {
        site.send_body("PUT", &format!("/memtier/idle_bitmap{query}"), Body::Binary(vec![0; len])).0
    };
    assert_eq!(put("?offset=4", 8), 400);
    assert_eq!(put("", 7), 400);
    assert_eq!(put("?len=16", 8), 400);
    assert_eq!(put("?offset=18446744073709551608", 16), 400);
    assert_eq!(put(&format!("?offset={BITMAP}"), 8), 416);
    assert_eq!(put(&format!("?offset={}", 1u64 << 40), 8), 416);
    let over = Body::Binary(vec![0; 24]);
    let answer = site.expect_body(200, "PUT", &format!("/memtier/idle_bitmap?offset={}", BITMAP - 8), over);
    assert_eq!(answer, json!({ "written": 8 }), "the part before the end is taken");
}

fn sum(outcomes: &Value) -> u64 {
    let all = outcomes.as_object().unwrap();
    assert_eq!(all.len(), 7, "{outcomes}");
    all.values().map(|n| n.as_u64().unwrap()).sum()
}

#[test]
fn named_pages_leave_and_come_back_as_they_were() {
    let site = Site::filled();
    let before = site.guest().host_bytes();
    let ranges = json!({ "ranges": [{ "start": 0, "len": 512 * PAGE }, { "start": 1024 * PAGE, "len": 256 * PAGE }] });
    let outcomes = site.expect(200, "POST", "/memtier/swap_pages", &ranges.to_string());
    assert_eq!((outcomes["evicted"].as_u64(), sum(&outcomes)), (Some(PAGES), PAGES));
    assert!(site.guest().host_bytes() < before / 4, "{} of {before} bytes left", site.guest().host_bytes());
    let status = site.expect(200, "GET", "/memtier", "");
    assert_eq!(status["swapped_pages"].as_u64(), Some(PAGES));
    site.guest().verify();
    assert_eq!(site.expect(200, "GET", "/memtier", "")["resident_pages"].as_u64(), Some(PAGES));
}

#[test]
fn pages_can_be_named_one_address_a_line() {
    let site = Site::filled();
    let text = |lines: String| Body::Text(lines);
    let lines = page_addresses().take(100).map(|gpa| format!("{:#x}\n", gpa + 5)).collect();
    let outcomes = site.expect_body(200, "POST", "/memtier/swap_pages", text(lines));
    assert_eq!((outcomes["evicted"].as_u64(), sum(&outcomes)), (Some(100), 100));
    // One again, one in the hole, one far beyond.
    let outcomes = site.expect_body(200, "POST", "/memtier/swap_pages", text("0\n200000\n7fff000000000000".into()));
    assert_eq!((outcomes["absent"].as_u64(), sum(&outcomes)), (Some(3), 3));
    let refused = site.expect_body(400, "POST", "/memtier/swap_pages", text("1000\nnonsense\n".into()));
    assert_eq!(fault(&refused), "line 2: 'nonsense' is not a hexadecimal address");
    site.guest().verify();
}

#[test]
fn ranges_that_cannot_be_are_refused_and_nothing_is_done() {
    let site = Site::filled();
    for ranges in [
        r#"[{"start": 0, "len": 4096}, {"start": 1, "len": 4096}]"#,
        r#"[{"start": 0, "len": 4096}, {"start": 0, "len": 100}]"#,
        r#"[{"start": 0, "len": 4096}, {"start": 18446744073709547520, "len": 8192}]"#,
        r#"[{"start": 0, "len": 18446744073709551616}]"#,
        r#"[{"start": -4096, "len": 4096}]"#,
        r#"[{"start": 0}]"#,
        r#"[{"start": 0, "len": 4096, "end": 1}]"#,
        r#"{}"#,
    ] {
        for (method, target) in
            [("POST", "/memtier/swap_pages"), ("POST", "/memtier/locks"), ("DELETE", "/memtier/locks")]
        {
            site.refused(400, method, target, &format!(r#"{{"ranges": {ranges}}}"#));
        }
    }
    let status = site.expect(200, "GET", "/memtier", "");
    assert_eq!((status["resident_pages"].as_u64(), status["locked_pages"].as_u64()), (Some(PAGES), Some(0)));
    // A huge range costs nothing and is accounted for.
    let huge = format!(r#"{{"ranges": [{{"start": {}, "len": {}}}]}}"#, 1u64 << 40, 1u64 << 50);
    let outcomes = site.expect(200, "POST", "/memtier/swap_pages", &huge);
    assert_eq!(outcomes["absent"].as_u64(), Some((1 << 50) / PAGE));
}

#[test]
fn the_coldest_leave_first_and_no_more_than_asked() {
    let site = Site::filled();
    let id = site.expect(202, "POST", "/memtier/scans", r#"{"loops": 1, "sleep_ms": 0}"#)["id"].as_u64().unwrap();
    finished(&site, id);
    let reclaimed = site.expect(200, "POST", "/memtier/reclaim", &json!({ "bytes": 10 * PAGE }).to_string());
    assert_eq!((reclaimed["bytes"].as_u64(), reclaimed["outcomes"]["evicted"].as_u64()), (Some(10 * PAGE), Some(10)));
    let aged = site.expect(200, "POST", "/memtier/reclaim", r#"{"min_idle_scans": 2}"#);
    assert_eq!(aged["bytes"].as_u64(), Some(0), "nothing was idle in two scans");
    let aged = site.expect(200, "POST", "/memtier/reclaim", r#"{"min_idle_scans": 1}"#);
    assert_eq!(aged["bytes"].as_u64(), Some((PAGES - 10) * PAGE));
    let none = site.refused(400, "POST", "/memtier/reclaim", "{}");
    assert_eq!(none, "reclaim needs bytes, min_idle_scans or both");
    site.refused(400, "POST", "/memtier/reclaim", r#"{"min_idle_scans": 4294967295}"#);
    site.guest().verify();
}

#[test]
fn swap_areas_are_switched_on_listed_and_switched_off() {
    let site = Site::running();
    assert_eq!(site.expect(200, "GET", "/memtier/swap_areas", ""), json!([]));
    let area = |name: &str, more: Value| {
        let mut body = json!({ "path": site.path(name) });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let first = site.expect(201, "PUT", "/memtier/swap_areas", &area("a", json!({ "size": 4 << 20, "priority": 9 })));
    let id = first["id"].as_u64().unwrap();
    let list = site.expect(200, "GET", "/memtier/swap_areas", "");
    assert_eq!((list[0]["id"].as_u64(), list[0]["priority"].as_i64()), (Some(id), Some(9)));
    assert_eq!((&list[0]["type"], list[0]["used"].as_u64()), (&json!("file"), Some(0)));
    assert_eq!(site.expect(200, "GET", &format!("/memtier/swap_areas/{id}"), ""), list[0]);

    site.refused(409, "PUT", "/memtier/swap_areas", &area("a", json!({})));
    site.refused(400, "PUT", "/memtier/swap_areas", &area("missing", json!({})));
    site.refused(400, "PUT", "/memtier/swap_areas", &area("", json!({ "size": 1 << 20 })));
    site.refused(400, "PUT", "/memtier/swap_areas", &area("b", json!({ "size": 100 })));
    site.refused(400, "PUT", "/memtier/swap_areas", &area("b", json!({ "size": 1 << 20, "priority": 32768 })));
    site.refused(400, "PUT", "/memtier/swap_areas", &area("b", json!({ "size": 1 << 20, "priority": -1 })));
    for id in ["63", "64", "255", "256", "18446744073709551615"] {
        site.refused(404, "DELETE", &format!("/memtier/swap_areas/{id}"), "");
        site.refused(404, "GET", &format!("/memtier/swap_areas/{id}"), "");
    }
    site.guest().fill();
    site.expect(
        200,
        "POST",
        "/memtier/swap_pages",
        &format!(r#"{{"ranges": [{{"start": 0, "len": {}}}]}}"#, 64 * PAGE),
    );
    site.expect(204, "DELETE", &format!("/memtier/swap_areas/{id}"), "");
    assert_eq!(site.expect(200, "GET", "/memtier/swap_areas", ""), json!([]));
    assert_eq!(site.expect(200, "GET", "/memtier", "")["swapped_pages"].as_u64(), Some(0));
    site.guest().verify();
}

#[test]
fn areas_named_before_the_start_are_on_after_it() {
    let site = Site::waiting();
    let area = json!({ "path": site.path("swap"), "size": 4 << 20 }).to_string();
    site.expect(200, "PUT", "/memtier/swap_areas", &area);
    site.refused(400, "PUT", "/memtier/swap_areas", r#"{"path": "x", "priority": 40000}"#);
    site.refused(400, "PUT", "/memtier/swap_areas", r#"{"path": ""}"#);
    site.refused(400, "PUT", "/memtier/swap_areas", r#"{"size": 5}"#);
    site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "k"}"#);
    site.expect(204, "PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    let list = site.expect(200, "GET", "/memtier/swap_areas", "");
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["path"], json!(site.path("swap")));
}

#[test]
fn locked_ranges_come_back_and_stay() {
    let site = Site::filled();
    let range = |start: u64, pages: u64| json!({ "ranges": [{ "start": start * PAGE, "len": pages * PAGE }] });
    site.expect(200, "POST", "/memtier/swap_pages", &range(0, 16).to_string());
    site.expect(204, "POST", "/memtier/locks", &range(4, 8).to_string());
    assert_eq!(site.expect(200, "GET", "/memtier/locks", ""), range(4, 8));
    assert_eq!(site.expect(200, "GET", "/memtier", "")["swapped_pages"].as_u64(), Some(8));
    let outcomes = site.expect(200, "POST", "/memtier/swap_pages", &range(0, 16).to_string());
    assert_eq!((outcomes["locked"].as_u64(), outcomes["absent"].as_u64()), (Some(8), Some(8)));
    site.expect(204, "DELETE", "/memtier/locks", &range(4, 2).to_string());
    assert_eq!(site.expect(200, "GET", "/memtier/locks", ""), range(6, 6));
    site.refused(400, "POST", "/memtier/locks", &range(512, 1).to_string());
    site.guest().verify();
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let site = Site::filled();
    let socket = site.socket();
    std::thread::scope(|scope| {
        for worker in 0..24u64 {
            let socket = &socket;
            scope.spawn(move || {
                let client = api::client::Client::new(socket).unwrap();
                for round in 0..8 {
                    let start = (worker * 8 + round) * PAGE;
                    let body = json!({ "ranges": [{ "start": start, "len": 64 * PAGE }] }).to_string();
                    let evict = client.exchange(hyper::Method::POST, "/memtier/swap_pages", Body::Json(body)).unwrap();
                    assert_eq!(evict.0, 200);
                    assert_eq!(client.exchange(hyper::Method::GET, "/memtier", Body::Empty).unwrap().0, 200);
                }
            });
        }
    });
    site.guest().verify();
}

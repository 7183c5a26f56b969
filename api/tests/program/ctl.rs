//! `ebb ctl` against a server in this process.

use serde_json::{Value, json};

use crate::support::{PAGES, Site, ctl, ebb, error_line};

#[track_caller]
fn out(site: &Site, args: &[&str]) -> String {
    let output = ctl(&site.socket(), args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json_out(site: &Site, args: &[&str]) -> Value {
    serde_json::from_str(&out(site, &[args, &["--json"]].concat())).unwrap()
}

/// The row of a table that starts with this cell, its words.
#[track_caller]
fn row<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
    let line = table.lines().find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("no {first} in {table}"));
    line[first.len()..].split_whitespace().collect()
}

#[test]
fn status_and_report_show_where_the_pages_are() {
    let site = Site::filled();
    out(&site, &["evict", "--range", "0:1M"]);
    let text = out(&site, &["status"]);
    assert_eq!(row(&text, "guest"), ["768", "3", "MiB", "100.0%"]);
    assert_eq!(row(&text, "swapped"), ["256", "1", "MiB", "33.3%"]);
    assert_eq!(row(&text, "pages out"), ["256"]);
    assert!(text.contains(site.path("swap").to_str().unwrap()), "{text}");
    assert_eq!(json_out(&site, &["status"])["guest_pages"].as_u64(), Some(PAGES));
    let text = out(&site, &["report"]);
    assert_eq!(row(&text, "resident"), ["2", "MiB", "66.6%"]);
    assert_eq!(json_out(&site, &["report"])["swapped_bytes"].as_u64(), Some(1 << 20));
}

#[test]
fn a_scan_is_waited_for_with_progress_on_stderr() {
    let site = Site::filled();
    let output = ctl(&site.socket(), &["scan", "--loops", "3", "--interval", "1", "--sleep", "1ms", "--wait"]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert_eq!(row(&table, "3")[..3], ["0", "768", "100.0%"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("3 of 3 loops done"));
    let report = json_out(&site, &["scan", "--sleep", "0", "--wait"]);
    assert_eq!((&report["state"], &report["plan"]["loops"]), (&json!("done"), &json!(1)));
    assert!(json_out(&site, &["scan", "--sleep", "0"])["id"].is_u64());
}

#[test]
fn the_idle_bitmap_is_counted_or_shown() {
    let site = Site::filled();
    out(&site, &["scan", "--sleep", "0", "--wait"]);
    let text = out(&site, &["idle"]);
    assert_eq!(text, "768 of 768 resident pages are idle: 3 MiB of 3 MiB, 100.0%\n");
    assert_eq!(out(&site, &["idle", "summary"]), text);
    assert_eq!(json_out(&site, &["idle"])["idle_pages"].as_u64(), Some(PAGES));
    let words = out(&site, &["idle", "--offset", "0x38", "--len", "16"]);
    assert_eq!(words, "0x1c0  ffffffffffffffff\n0x200  0000000000000000\n");
    let words = json_out(&site, &["idle", "--offset", "56", "--len", "8"]);
    assert_eq!(words, json!({ "offset": 56, "len": 8, "words": ["0xffffffffffffffff"] }));
    let refused = ctl(&site.socket(), &["idle", "--offset", "1"]);
    assert_eq!(error_line(&refused), "offset 1 is not a multiple of 8 bytes");
}

#[test]
fn pages_leave_by_range_by_amount_and_altogether() {
    let site = Site::filled();
    let text = out(&site, &["evict", "--range", "0x1000:8K", "--range", "2M:4K"]);
    assert_eq!((row(&text, "evicted"), row(&text, "absent")), (vec!["2"], vec!["1"]));
    let text = out(&site, &["reclaim", "--bytes", "16K"]);
    assert!(text.starts_with("16 KiB left\n"), "{text}");
    assert_eq!(json_out(&site, &["reclaim", "--min-idle-scans", "3"])["bytes"].as_u64(), Some(0));
    let all = json_out(&site, &["evict", "--all"]);
    assert_eq!(all["outcomes"]["evicted"].as_u64(), Some(PAGES - 6));
    site.guest().verify();
}

#[test]
fn swap_areas_and_the_switch_are_changed() {
    let site = Site::running();
    let path = site.path("swap");
    let text = out(&site, &["swapon", path.to_str().unwrap(), "--size", "4M", "--priority", "3"]);
    assert_eq!(text, format!("swap area 0 is {}\n", path.display()));
    assert!(out(&site, &["status"]).contains("swap area  priority"));
    assert_eq!(out(&site, &["swapoff", "0"]), "swap area 0 is off\n");
    assert!(out(&site, &["status"]).contains("no swap areas"));
    assert!(error_line(&ctl(&site.socket(), &["swapoff", "5"])).contains('5'));
    for (word, state) in [("true", "true\n"), ("0", "false\n")] {
        assert_eq!(out(&site, &["swap-enable", word]), "");
        assert_eq!(out(&site, &["swap-enable"]), state);
    }
    assert_eq!(json_out(&site, &["swap-enable"]), json!(false));
    assert_eq!(error_line(&ctl(&site.socket(), &["swap-enable", "yes"])), "swap_enable takes true, 1, false or 0");
}

#[test]
fn a_relative_swap_path_is_that_of_the_person_who_types() {
    let site = Site::running();
    let elsewhere = tempfile::tempdir().unwrap();
    let output = ebb()
        .args(["ctl", "swapon", "mine", "--size", "1M", "--sock"])
        .arg(site.socket())
        .current_dir(elsewhere.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(elsewhere.path().join("mine").exists());
}

#[test]
fn without_a_server_the_sentence_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let line = error_line(&ctl(&path, &["status"]));
    assert_eq!(line, format!("there is no socket {}: is ebb running with --api-sock?", path.display()));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let line = error_line(&ctl(&path, &["status"]));
    assert_eq!(line, format!("nobody answers on socket {}: the ebb that made it has ended", path.display()));
    let site = Site::waiting();
    assert_eq!(error_line(&ctl(&site.socket(), &["status"])), "this is not possible before the guest is started");
}

#[test]
fn a_socket_must_be_named() {
    let output = ebb().args(["ctl", "status"]).output().unwrap();
    assert!(error_line(&output).starts_with("ctl needs --sock PATH"));
}

#[test]
fn flags_that_cannot_be_are_refused_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.sock");
    for args in [
        &["reclaim"][..],
        &["evict"],
        &["evict", "--all", "--range", "0:4K"],
        &["evict", "--range", "4K"],
        &["reclaim", "--bytes", "some"],
        &["scan", "--sleep", "1h"],
        &["swapon"],
        &["swapon", "x", "--priority", "40000"],
        &["swapoff", "-1"],
        &["idle", "summary", "--offset", "0"],
        &["dance"],
        &[],
    ] {
        let line = error_line(&ctl(&path, args));
        assert!(!line.contains("there is no socket"), "{args:?}: {line}");
    }
}

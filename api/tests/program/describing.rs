//! Firecracker's part of the API: describing, starting, pausing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use api::guest::GuestError;
use serde_json::{Value, json};
use vmm::config::{BootSource, ConsoleConfig, DiskConfig, EntryMode};

use crate::support::Site;

const START: &str = r#"{"action_type": "InstanceStart"}"#;

#[test]
fn a_client_of_firecracker_describes_and_starts_a_guest() {
    let site = Site::waiting();
    let info = site.expect(200, "GET", "/", "");
    assert_eq!(
        info,
        json!({ "app_name": "ebb", "id": "anonymous-instance", "state": "Not started",
                "vmm_version": env!("CARGO_PKG_VERSION") })
    );
    site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "k", "initrd_path": "i", "boot_args": "quiet"}"#);
    let machine =
        r#"{"vcpu_count": 2, "mem_size_mib": 512, "smt": false, "track_dirty_pages": false, "huge_pages": "None"}"#;
    site.expect(204, "PUT", "/machine-config", machine);
    let data = r#"{"drive_id": "data", "path_on_host": "d.img", "is_root_device": false, "is_read_only": true}"#;
    site.expect(204, "PUT", "/drives/data", data);
    let root = r#"{"drive_id": "root", "path_on_host": "r.img", "is_root_device": true, "is_read_only": false,
                   "cache_type": "Unsafe", "io_engine": "Sync", "rate_limiter": null, "partuuid": null}"#;
    site.expect(204, "PUT", "/drives/root", root);
    site.expect(204, "PUT", "/entropy", "{}");
    site.expect(204, "PUT", "/actions", START);

    let config = site.machine();
    assert_eq!((config.cpus, config.memory, config.entropy), (2, 512 << 20, true));
    let boot = BootSource {
        kernel: "k".into(),
        initrd: Some("i".into()),
        cmdline: Some("quiet root=/dev/vda rw".into()),
        entry: EntryMode::Linux,
    };
    assert_eq!(config.boot, boot);
    let disk = |path: &str, read_only| DiskConfig { path: path.into(), read_only };
    assert_eq!(config.disks, [disk("r.img", false), disk("d.img", true)]);
    assert_eq!(config.console, ConsoleConfig::Stdio);
    assert_eq!(site.expect(200, "GET", "/", "")["state"], "Running");
}

#[test]
fn after_the_start_the_description_is_closed() {
    let site = Site::running();
    for (target, body) in [
        ("/boot-source", r#"{"kernel_image_path": "k"}"#),
        ("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 1}"#),
        ("/drives/a", r#"{"drive_id": "a", "path_on_host": "p", "is_root_device": false}"#),
        ("/entropy", "{}"),
        ("/actions", START),
    ] {
        let message = site.refused(400, "PUT", target, body);
        assert_eq!(message, "this is not possible after the guest was started", "{target}");
    }
}

#[test]
fn a_refused_piece_changes_nothing() {
    let site = Site::waiting();
    site.expect(204, "PUT", "/machine-config", r#"{"vcpu_count": 3, "mem_size_mib": 100}"#);
    for (body, message) in [
        (r#"{"vcpu_count": 0, "mem_size_mib": 1}"#, "0 vCPUs asked for, 1 to 32 can be had"),
        (r#"{"vcpu_count": 33, "mem_size_mib": 1}"#, "33 vCPUs asked for, 1 to 32 can be had"),
        (r#"{"vcpu_count": 1, "mem_size_mib": 0}"#, "mem_size_mib 0 is not a possible memory size"),
        (
            r#"{"vcpu_count": 1, "mem_size_mib": 18446744073709551615}"#,
            "mem_size_mib 18446744073709551615 is not a possible memory size",
        ),
        (r#"{"vcpu_count": 1, "mem_size_mib": 1, "smt": true}"#, "'smt' is not supported with this value"),
        (
            r#"{"vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "T2"}"#,
            "'cpu_template' is not supported with this value",
        ),
        (
            r#"{"vcpu_count": 1, "mem_size_mib": 1, "huge_pages": "1G"}"#,
            "huge_pages: '1G' is not an option here; known: None or off, thp, 2M",
        ),
    ] {
        assert_eq!(site.refused(400, "PUT", "/machine-config", body), message);
    }
    let now = site.expect(200, "GET", "/machine-config", "");
    assert_eq!(now, json!({ "vcpu_count": 3, "mem_size_mib": 100, "smt": false, "track_dirty_pages": false }));
    site.expect(204, "PATCH", "/machine-config", r#"{"mem_size_mib": 200}"#);
    assert_eq!(site.expect(200, "GET", "/machine-config", "")["mem_size_mib"], 200);
    assert_eq!(site.expect(200, "GET", "/machine-config", "")["vcpu_count"], 3);
}

#[test]
fn drives_are_refused_by_name_and_replaced_in_place() {
    let site = Site::waiting();
    let drive =
        |id: &str, path: &str, root: bool| json!({ "drive_id": id, "path_on_host": path, "is_root_device": root });
    site.expect(204, "PUT", "/drives/a", &drive("a", "1", true).to_string());
    site.expect(204, "PUT", "/drives/b", &drive("b", "2", false).to_string());
    site.expect(204, "PUT", "/drives/a", &drive("a", "3", true).to_string());
    for (target, body, message) in [
        ("/drives/c", drive("d", "p", false), "the path names drive 'c', the body 'd'"),
        ("/drives/c", drive("c", "p", true), "drive 'c' can't be the root device, drive 'a' is"),
        ("/drives/c", drive("c", "", false), "drive 'c' has an empty path_on_host"),
        ("/drives/c-d", drive("c-d", "p", false), "drive_id 'c-d' is not 1 to 64 letters, digits and '_'"),
    ] {
        assert_eq!(site.refused(400, "PUT", target, &body.to_string()), message);
    }
    let limited = r#"{"drive_id": "c", "path_on_host": "p", "is_root_device": false, "rate_limiter": {"ops": {}}}"#;
    assert_eq!(site.refused(400, "PUT", "/drives/c", limited), "'rate_limiter' is not supported with this value");
    let drives = site.expect(200, "GET", "/vm/config", "")["drives"].clone();
    let paths: Vec<_> = drives.as_array().unwrap().iter().map(|d| d["path_on_host"].as_str().unwrap()).collect();
    assert_eq!(paths, ["3", "2"]);
}

#[test]
fn the_whole_description_can_be_read_back_and_used_as_a_file() {
    let site = Site::waiting();
    site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "k"}"#);
    let area = json!({ "path": "/s", "size": 1 << 20, "priority": 5 });
    assert_eq!(site.expect(200, "PUT", "/memtier/swap_areas", &area.to_string()), json!({ "id": 0 }));
    // The same file again replaces it.
    assert_eq!(site.expect(200, "PUT", "/memtier/swap_areas", &area.to_string()), json!({ "id": 0 }));
    let full = site.expect(200, "GET", "/vm/config", "");
    assert_eq!(full["memtier"], json!({ "tracker": "auto", "swap_areas": [area] }));
    assert_eq!(full["boot-source"], json!({ "kernel_image_path": "k" }));
    let path = site.path("vm.json");
    std::fs::write(&path, full.to_string()).unwrap();
    let draft = api::config::file::read(&path).unwrap();
    assert_eq!(draft.areas().len(), 1);
    assert_eq!(draft.boot.unwrap().kernel_image_path.to_str(), Some("k"));
}

#[test]
fn a_start_without_a_kernel_says_so() {
    let site = Site::waiting();
    let message = site.refused(400, "PUT", "/actions", START);
    assert!(message.starts_with("no kernel is set"), "{message}");
}

#[test]
fn a_failed_start_can_be_mended_and_tried_again() {
    let fail = AtomicBool::new(true);
    let site = Site::with_launch(Box::new(move |_| {
        if fail.swap(false, Ordering::Relaxed) { Err(GuestError::new("no such kernel")) } else { Ok(()) }
    }));
    site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "wrong"}"#);
    assert_eq!(site.refused(400, "PUT", "/actions", START), "no such kernel");
    assert_eq!(site.expect(200, "GET", "/", "")["state"], "Not started");
    site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "right"}"#);
    site.expect(204, "PUT", "/actions", START);
    assert_eq!(site.machine().boot.kernel.to_str(), Some("right"));
}

#[test]
fn requests_are_answered_while_a_guest_is_being_built() {
    let (go, wait) = mpsc::channel();
    let (begun, has_begun) = mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let site = Site::with_launch(Box::new(move |_| {
        begun.send(()).unwrap();
        wait.lock().unwrap().recv().map_err(GuestError::new)
    }));
    site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "k"}"#);
    let socket = site.socket();
    let start = std::thread::spawn(move || {
        let client = api::client::Client::new(&socket).unwrap();
        client.exchange(hyper::Method::PUT, "/actions", api::client::Body::Json(START.to_owned())).unwrap()
    });
    has_begun.recv().unwrap();
    assert_eq!(site.expect(200, "GET", "/", "")["state"], "Not started");
    for (target, body) in [("/actions", START), ("/boot-source", r#"{"kernel_image_path": "other"}"#)] {
        assert_eq!(site.refused(400, "PUT", target, body), "the guest is being started");
    }
    assert_eq!(site.refused(400, "GET", "/memtier", ""), "the guest is being started");
    go.send(()).unwrap();
    assert_eq!(start.join().unwrap().0, 204);
    assert_eq!(site.expect(200, "GET", "/", "")["state"], "Running");
}

#[test]
fn pausing_and_resuming_twice_is_the_same_as_once() {
    let site = Site::waiting();
    let before = "this is not possible before the guest is started";
    assert_eq!(site.refused(400, "PATCH", "/vm", r#"{"state": "Paused"}"#), before);
    assert_eq!(site.refused(400, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#), before);
    let site = Site::running();
    for (state, shown) in [("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running"), ("Resumed", "Running")] {
        site.expect(204, "PATCH", "/vm", &json!({ "state": state }).to_string());
        assert_eq!(site.expect(200, "GET", "/", "")["state"], shown);
    }
    let message = site.refused(400, "PATCH", "/vm", r#"{"state": "Stopped"}"#);
    assert!(message.contains("Paused") && message.contains("Stopped"), "{message}");
    site.expect(204, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#);
    assert_eq!(site.expect(200, "GET", "/", "")["state"], "Exited");
    assert_eq!(
        site.refused(400, "PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
        "FlushMetrics is not supported"
    );
}

#[test]
fn the_description_of_the_api_has_every_path_and_every_schema_it_names() {
    let site = Site::waiting();
    let text = site.send("GET", "/openapi.json", "").1;
    let api: Value = serde_json::from_slice(&text).unwrap();
    let paths: Vec<_> = api["paths"].as_object().unwrap().keys().cloned().collect();
    for path in [
        "/",
        "/version",
        "/actions",
        "/vm",
        "/vm/config",
        "/boot-source",
        "/machine-config",
        "/drives/{drive_id}",
        "/entropy",
        "/memtier",
        "/memtier/swap_enable",
        "/memtier/scans",
        "/memtier/scans/{id}",
        "/memtier/idle_bitmap",
        "/memtier/swap_pages",
        "/memtier/reclaim",
        "/memtier/swap_areas",
        "/memtier/swap_areas/{id}",
        "/memtier/locks",
        "/memtier/report",
        "/memtier/cold_curve",
        "/memtier/working_set",
        "/memtier/heat",
        "/memtier/refaults",
        "/memtier/ages",
        "/memtier/idle_pages",
        "/memtier/tracker",
        "/openapi.json",
    ] {
        assert!(paths.iter().any(|p| p == path), "{path} is missing");
    }
    let text = String::from_utf8(text).unwrap();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(api["components"]["schemas"].get(name).is_some(), "{name} is not described");
    }
    assert_eq!(api["components"]["schemas"]["IdleBits"]["format"], "binary");
    assert_eq!(site.expect(200, "GET", "/version", "")["firecracker_version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_end_of_the_server_waits_for_nobody_and_removes_the_socket() {
    let mut site = Site::waiting();
    let mut idle = UnixStream::connect(site.socket()).unwrap();
    let mut halfway = UnixStream::connect(site.socket()).unwrap();
    halfway.write_all(b"PUT /boot-source HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    site.expect(200, "GET", "/", "");
    let begin = Instant::now();
    site.end();
    assert!(begin.elapsed() < 3 * api::rest::LAST_ANSWERS, "{:?}", begin.elapsed());
    assert!(!site.socket().exists());
    idle.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "the connection is closed");
}

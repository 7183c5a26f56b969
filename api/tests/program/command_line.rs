//! `ebb run` and `ebb check` as a user starts them.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use api::client::{Body, Client};
use hyper::Method;
use serde_json::Value;

use crate::support::{CRASH, RESET, SPIN, ctl, ebb, error_line, payload};

fn run(args: &[&str]) -> Output {
    ebb().arg("run").args(args).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn what_cannot_be_run_is_refused_in_one_line() {
    for (args, line) in [
        (&[][..], "nothing to run: give --kernel, --config or --api-sock"),
        (&["--api-sock", "x", "--initrd", "i"], "--initrd needs --kernel, or a boot-source in the --config file"),
        (
            &["--kernel", "k", "--cpus", "0"],
            "invalid value '0' for '--cpus <N>': 0 vCPUs asked for, 1 to 32 can be had",
        ),
        (
            &["--kernel", "k", "--cpus", "33"],
            "invalid value '33' for '--cpus <N>': 33 vCPUs asked for, 1 to 32 can be had",
        ),
        (
            &["--kernel", "k", "--cpus", "x"],
            "invalid value 'x' for '--cpus <N>': 'x' is not a number of vCPUs from 1 to 32",
        ),
        (
            &["--kernel", "k", "--memory", "lots"],
            "invalid value 'lots' for '--memory <SIZE>': 'lots' is not a size: digits and K, M or G expected, as in 512M",
        ),
        (
            &["--kernel", "k", "--swap", "s,size=1X"],
            "invalid value 's,size=1X' for '--swap <PATH[,size=SIZE][,priority=N]>': size: '1X' is not a size: digits and K, M or G expected, as in 512M",
        ),
        (
            &["--kernel", "k", "--disk", "d,rw"],
            "invalid value 'd,rw' for '--disk <PATH[,ro]>': 'rw' is not an option here; known: ro",
        ),
        (
            &["--kernel", "k", "--tracker", "x"],
            "invalid value 'x' for '--tracker <auto|unmap|page_idle|dirty_log|off>': 'x' is not an option here; known: auto, unmap, page_idle, dirty_log, off",
        ),
        (&["--kernel", "k", "--tracker", "off", "--swap", "s"], "swap areas need a tracker, and the tracker is off"),
        (&["--kernel", "k", "--swap", "s", "--swap", "s"], "swap area s is given twice"),
        (&["--kernel", "k", "--id", "a b"], "id 'a b' is not 1 to 64 letters, digits and '-'"),
        (&["--kernel"], "a value is required for '--kernel <FILE>' but none was supplied"),
        (&["--colour"], "unexpected argument '--colour' found"),
        (
            &["--kernel", "k", "--log-level", "loud=="],
            "'loud==' is not a log level or filter: off, error, warn, info, debug and trace are",
        ),
    ] {
        assert_eq!(error_line(&run(args)), line, "{args:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["run", "--help"], &["ctl", "--help"], &["check", "--help"], &["--version"]] {
        let output = ebb().args(args).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}");
        assert!(!output.stdout.is_empty());
    }
    let help = String::from_utf8(ebb().args(["run", "--help"]).output().unwrap().stdout).unwrap();
    for flag in [
        "--kernel",
        "--initrd",
        "--cmdline",
        "--cpus",
        "--memory",
        "--disk",
        "--swap",
        "--tracker",
        "--console",
        "--api-sock",
        "--config",
        "--id",
        "--no-entropy",
        "--log-level",
    ] {
        assert!(help.contains(flag), "{flag} is not in the help");
    }
    let output = ebb().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_file_that_is_wrong_is_refused_with_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    let shown = path.display();
    for (text, line) in [
        ("", format!("configuration {shown}: it is empty, a JSON object is expected")),
        (
            r#"{"machine-config": {"vcpu_count": 1, "mem_size_mib": 1, "turbo": true}}"#,
            format!("configuration {shown}, at machine-config.turbo: unknown field `turbo`"),
        ),
        (r#"{"balloon": {}}"#, format!("configuration {shown}, at balloon: unknown field `balloon`")),
        (
            r#"{"drives": [{"drive_id": "a", "path_on_host": 5, "is_root_device": true}]}"#,
            format!("configuration {shown}, at drives[0].path_on_host: invalid type: integer `5`"),
        ),
        (
            r#"{"memtier": {"swap_areas": [{"path": "s", "size": "1G"}]}}"#,
            format!("configuration {shown}, at memtier.swap_areas[0].size: invalid type: string \"1G\""),
        ),
        (
            r#"{"memtier": {"tracker": "magic"}}"#,
            format!(
                "configuration {shown}: tracker: 'magic' is not an option here; known: auto, unmap, page_idle, dirty_log, off"
            ),
        ),
        (
            r#"{"machine-config": {"vcpu_count": 99, "mem_size_mib": 1}}"#,
            format!("configuration {shown}: 99 vCPUs asked for, 1 to 32 can be had"),
        ),
        ("{}", "no kernel is set: give --kernel, boot-source in the file, or PUT /boot-source".to_owned()),
        ("[]", format!("configuration {shown}: a JSON object is expected")),
        ("{} {}", format!("configuration {shown}: trailing characters at line 1 column 4")),
    ] {
        std::fs::write(&path, text).unwrap();
        let found = error_line(&run(&["--config", path.to_str().unwrap()]));
        assert!(found.starts_with(&line), "{text}\n{found}\n{line}");
    }
    let line = error_line(&run(&["--config", "/nonexistent/vm.json"]));
    assert_eq!(line, "cannot read configuration /nonexistent/vm.json: No such file or directory (os error 2)");
    let line = error_line(&run(&["--config", "/dev/zero"]));
    assert_eq!(line, "configuration /dev/zero is larger than 1048576 bytes");
}

/// An `ebb run --api-sock` under way.
struct Waiting(Child);

impl Waiting {
    fn start(socket: &Path) -> Self {
        Self::start_with(socket, &[])
    }

    fn start_with(socket: &Path, args: &[&str]) -> Self {
        let mut command = ebb();
        command.args(["run", "--id", "sleeper", "--api-sock"]).arg(socket).args(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut waiting = Self(child);
        // Serving begins when the socket answers; a failed start ends the loop too.
        while !answers(socket) && waiting.0.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        waiting
    }

    fn signal(&mut self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.0.id()).unwrap();
        // SAFETY: a plain system call; the process is our child and not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn end(mut self) -> (std::process::ExitStatus, String) {
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.0.wait().unwrap(), text)
    }
}

fn answers(socket: &Path) -> bool {
    let client = Client::new(socket).unwrap();
    client.request(Method::GET, "/", Body::Empty).is_ok()
}

#[test]
fn a_waiting_ebb_ends_on_a_signal_and_takes_its_socket_along() {
    for (signal, name) in [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT"), (libc::SIGHUP, "SIGHUP")] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let mut waiting = Waiting::start(&socket);
        assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o7777, 0o600);
        waiting.signal(signal);
        let (status, text) = waiting.end();
        assert_eq!((status.code(), text.as_str()), (Some(1), format!("ebb: stopped by {name}\n").as_str()));
        assert!(!socket.exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
    }
}

#[test]
fn a_killed_ebb_does_not_keep_the_next_one_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let mut first = Waiting::start(&socket);
    first.signal(libc::SIGKILL);
    assert_eq!(first.end().0.signal(), Some(libc::SIGKILL));
    assert!(socket.exists(), "the dead one's socket is still there");
    let mut second = Waiting::start(&socket);
    let client = Client::new(&socket).unwrap();
    let info: Value = serde_json::from_slice(&client.request(Method::GET, "/", Body::Empty).unwrap()).unwrap();
    assert_eq!(info["id"], "sleeper");
    let third = run(&["--api-sock", socket.to_str().unwrap()]);
    assert_eq!(error_line(&third), format!("another process answers on socket {}", socket.display()));
    assert!(answers(&socket));
    second.signal(libc::SIGTERM);
    second.end();
}

#[test]
fn a_kernel_that_is_not_there_is_one_clear_line_and_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let output = run(&["--kernel", "/nonexistent/vmlinux", "--api-sock", socket.to_str().unwrap()]);
    let line = error_line(&output);
    assert!(line.contains("/nonexistent/vmlinux"), "{line}");
    assert!(!socket.exists());
}

/// A directory with a guest image in it.
fn guest(rest: &[u8]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("guest");
    std::fs::write(&image, payload(rest)).unwrap();
    let image = image.to_str().unwrap().to_owned();
    (directory, image)
}

#[test]
fn a_guest_that_resets_is_a_success_and_its_console_is_stdout() {
    let (_directory, image) = guest(&RESET);
    let output = run(&["--kernel", &image, "--memory", "32M"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    assert_eq!(output.stdout, b"hi\n");
}

#[test]
fn a_guest_that_crashes_is_a_failure() {
    let (directory, image) = guest(&CRASH);
    let log = directory.path().join("log");
    let output = run(&["--kernel", &image, "--memory", "32M", "--console", log.to_str().unwrap()]);
    assert_eq!(error_line(&output), "the guest crashed with a triple fault");
    assert_eq!(std::fs::read(log).unwrap(), b"hi\n");
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_closed_stdout_harms_neither_guest_nor_program() {
    let (_directory, image) = guest(&RESET);
    let mut command = ebb();
    command.args(["run", "--kernel", &image, "--memory", "32M"]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_running_guest_is_looked_at_paused_evicted_and_ended_by_a_signal() {
    let (directory, image) = guest(&SPIN);
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let socket = directory.path().join("api.sock");
    let swap = format!("{},size=32M", path("swap"));
    let args = ["--kernel", &image, "--memory", "32M", "--console", &path("log"), "--swap", &swap];
    let mut running = Waiting::start_with(&socket, &args);
    // The socket is there before the guest; until that is built, the tiers are not.
    while !ctl(&socket, &["status"]).status.success() {
        std::thread::yield_now();
    }
    let client = Client::new(&socket).unwrap();
    let state = || {
        let info = client.request(Method::GET, "/", Body::Empty).unwrap();
        serde_json::from_slice::<Value>(&info).unwrap()["state"].clone()
    };
    assert_eq!(state(), "Running");
    for (wanted, shown) in [("Paused", "Paused"), ("Resumed", "Running")] {
        let body = Body::Json(format!(r#"{{"state": "{wanted}"}}"#));
        client.request(Method::PATCH, "/vm", body).unwrap();
        assert_eq!(state(), shown);
    }
    let evicted = ctl(&socket, &["evict", "--all", "--json"]);
    let evicted: Value = serde_json::from_slice(&evicted.stdout).unwrap();
    assert!(evicted["outcomes"]["evicted"].as_u64().unwrap() > 0, "{evicted}");
    assert_eq!(evicted["outcomes"]["error"], 0);
    assert_eq!(state(), "Running");
    running.signal(libc::SIGTERM);
    let (status, text) = running.end();
    assert_eq!((status.code(), text.as_str()), (Some(1), "ebb: stopped by SIGTERM\n"));
    assert!(!socket.exists());
}

#[test]
fn a_client_starts_a_real_guest_and_the_program_ends_with_it() {
    let (directory, image) = guest(&RESET);
    let socket = directory.path().join("api.sock");
    let waiting = Waiting::start(&socket);
    let client = Client::new(&socket).unwrap();
    let put = |target: &str, body: Value| client.exchange(Method::PUT, target, Body::Json(body.to_string())).unwrap();
    let start = || put("/actions", serde_json::json!({ "action_type": "InstanceStart" }));
    put("/boot-source", serde_json::json!({ "kernel_image_path": "/nonexistent/kernel" }));
    let (status, refusal) = start();
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&refusal).contains("/nonexistent/kernel"));
    put("/boot-source", serde_json::json!({ "kernel_image_path": image }));
    assert_eq!(start().0, 204);
    let (status, text) = waiting.end();
    assert!(status.success(), "{text}");
    assert!(!socket.exists());
}

#[test]
fn a_reader_that_leaves_does_not_make_it_panic() {
    for args in [&["check"][..], &["check", "--json"], &["--help"]] {
        let mut child = ebb().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code <= 1), "{args:?}: {:?}", output.status);
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn check_says_of_each_thing_how_it_is_and_what_to_do() {
    let output = ebb().args(["check", "--json"]).output().unwrap();
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    for row in rows {
        let state = row["state"].as_str().unwrap();
        assert!(["ok", "missing", "warn"].contains(&state), "{row}");
        assert!(!row["what"].as_str().unwrap().is_empty() && !row["detail"].as_str().unwrap().is_empty(), "{row}");
        assert_eq!(row["mend"].is_null(), state == "ok", "{row}");
    }
    for what in [
        "KVM",
        "KVM kernel mode",
        "dirty_log tracker",
        "userfaultfd",
        "userfaultfd access",
        "memory locking",
        "PAGEMAP_SCAN",
        "page_idle tracker",
        "tracker by auto",
        "io_uring",
        "O_DIRECT on the swap path",
        "transparent huge pages",
        "2 MiB pages",
        "memory",
        "processors",
    ] {
        assert!(rows.iter().any(|row| row["what"] == what), "{what} is not looked at");
    }
    let missing = rows.iter().any(|row| row["state"] == "missing");
    assert_eq!(output.status.code(), Some(i32::from(missing)));
    let text = String::from_utf8(ebb().arg("check").output().unwrap().stdout).unwrap();
    assert!(text.lines().count() >= rows.len());
}

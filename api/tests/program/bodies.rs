//! What a client can send that is wrong, whatever the route.

use api::client::Body;
use api::rest::{BULK_LIMIT, JSON_LIMIT};

use crate::support::Site;

#[test]
fn paths_and_methods_that_are_not_there_are_refused_in_json() {
    let site = Site::running();
    assert_eq!(site.refused(404, "GET", "/nothing", ""), "there is no GET /nothing");
    assert_eq!(site.refused(404, "GET", "/memtier/", ""), "there is no GET /memtier/");
    assert_eq!(site.refused(404, "PUT", "/network-interfaces/eth0", "{}"), "there is no PUT /network-interfaces/eth0");
    assert_eq!(site.refused(405, "POST", "/memtier", "{}"), "/memtier does not take POST");
    assert_eq!(site.refused(405, "DELETE", "/", ""), "/ does not take DELETE");
    let answer = site.raw(b"POST /memtier HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.to_ascii_lowercase().contains("allow: get"), "{answer}");
}

#[test]
fn bodies_that_are_not_the_json_wanted_are_refused_with_the_place() {
    let site = Site::running();
    let target = "/memtier/scans";
    for (body, part) in [
        ("{", "EOF while parsing"),
        ("nonsense", "a JSON object is expected"),
        ("[]", "a JSON object is expected"),
        (r#"{"loops": 1}"#, "missing field `sleep_ms`"),
        (r#"{"loops": 1, "sleep_ms": 1, "colour": 2}"#, "colour: unknown field `colour`"),
        (r#"{"loops": -1, "sleep_ms": 1}"#, "loops: invalid value: integer `-1`"),
        (r#"{"loops": 4294967296, "sleep_ms": 1}"#, "loops: invalid value: integer `4294967296`"),
        (r#"{"loops": 1.5, "sleep_ms": 1}"#, "loops: invalid type: floating point `1.5`"),
        (r#"{"loops": "1", "sleep_ms": 1}"#, "loops: invalid type: string"),
        (r#"{"loops": 1, "loops": 1, "sleep_ms": 1}"#, "duplicate field `loops`"),
        (r#"{"loops": 1, "sleep_ms": 99999999999999999999}"#, "sleep_ms: "),
        (r#"{"loops": 1, "sleep_ms": 1} x"#, "trailing characters"),
        ("[1, 1, 1]", "a JSON object is expected"),
        (r#"{"loops": null, "sleep_ms": 1}"#, "loops: invalid type: null"),
    ] {
        let message = site.refused(400, "POST", target, body);
        assert!(message.contains(part), "{body}: {message}");
    }
    assert_eq!(site.refused(400, "POST", target, ""), "body: it is empty, a JSON object is expected");
    let deep = "[".repeat(10_000);
    let deep = format!(r#"{{"rate_limiter": {deep}"#);
    assert!(site.refused(400, "PUT", "/entropy", &deep).contains("recursion limit"), "deep nesting");
}

#[test]
fn bodies_that_are_not_utf_8_are_refused() {
    let site = Site::running();
    let mut request =
        b"PUT /boot-source HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 28\r\n\r\n".to_vec();
    request.extend_from_slice(b"{\"kernel_image_path\": \"\xff\xfe\"}\n\n");
    let answer = site.raw(&request);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("fault_message"), "{answer}");

    let mut request =
        b"PUT /memtier/swap_enable HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n".to_vec();
    request.extend_from_slice(b"\xff\xfe");
    let answer = site.raw(&request);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("fault_message"), "{answer}");
}

#[test]
fn content_types_that_do_not_fit_are_refused() {
    let site = Site::running();
    for (method, target, body, wanted) in [
        ("PUT", "/boot-source", Body::Text("{}".into()), "application/json"),
        ("POST", "/memtier/reclaim", Body::Binary(vec![]), "application/json"),
        ("PUT", "/memtier/swap_enable", Body::Json("true".into()), "text/plain"),
        ("PUT", "/memtier/idle_bitmap", Body::Json("[]".into()), "application/octet-stream"),
        ("POST", "/memtier/swap_pages", Body::Binary(vec![1]), "application/json or text/plain"),
    ] {
        let answer = site.expect_body(415, method, target, body);
        let message = crate::support::fault(&answer);
        assert!(message.ends_with(&format!("given, {wanted} expected")), "{target}: {message}");
    }
    let form = b"POST /memtier/reclaim HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 11\r\n\r\n{\"bytes\":0}";
    assert!(site.raw(form).starts_with("HTTP/1.1 200"), "what curl -d says unasked is taken for JSON");
    let typed = b"PUT /entropy HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}";
    assert!(site.raw(typed).contains("not possible after the guest was started"));
}

#[test]
fn bodies_beyond_the_limit_are_refused_announced_or_not() {
    let site = Site::running();
    let long = format!(r#"{{"ranges": [{}]}}"#, " ".repeat(JSON_LIMIT));
    for (method, target) in [("PUT", "/boot-source"), ("POST", "/memtier/swap_pages"), ("POST", "/memtier/locks")] {
        let message = site.refused(413, method, target, &long);
        assert_eq!(message, format!("the body is larger than {JSON_LIMIT} bytes"));
    }
    let chunk = "x".repeat(0xff00);
    let chunked = format!(
        "PUT /boot-source HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nff00\r\n{chunk}\r\n0\r\n\r\n"
    );
    let answer = site.raw(chunked.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("fault_message"), "{answer}");
    // Announced and never sent: refused without waiting for it.
    let announced = format!(
        "PUT /memtier/idle_bitmap HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        BULK_LIMIT + 8
    );
    assert!(site.raw(announced.as_bytes()).starts_with("HTTP/1.1 413"));
    let endless =
        "PUT /entropy HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4611686018427387904\r\n\r\n";
    assert!(site.raw(endless.as_bytes()).starts_with("HTTP/1.1 413"));
}

#[test]
fn paths_and_queries_that_cannot_be_read_are_refused_in_json() {
    let site = Site::running();
    for target in [
        "/memtier/scans/x",
        "/memtier/scans/-1",
        "/memtier/scans/18446744073709551616",
        "/memtier/scans/%ff",
        "/memtier/swap_areas/x",
        "/memtier/idle_bitmap?offset=x",
        "/memtier/idle_bitmap?offset=-8",
        "/memtier/idle_bitmap?offset=18446744073709551616",
        "/memtier/idle_bitmap?offset=%ff",
        "/memtier/idle_bitmap?start=0",
        "/memtier/idle_bitmap?offset=0&offset=8",
    ] {
        site.refused(400, "GET", target, "");
    }
    site.refused(400, "PUT", "/drives/%ff", r#"{"drive_id": "a", "path_on_host": "p", "is_root_device": false}"#);
}

#[test]
fn what_is_no_http_ends_the_connection_and_nothing_else() {
    let site = Site::running();
    for bytes in
        [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 100_000], b"\r\n\r\n\0"]
    {
        let answer = site.raw_and_no_more(bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    site.expect(200, "GET", "/", "");
}

//! One HTTP request over a Unix socket, for scripts on hosts that have nothing else: independent of `ebb ctl`, so that the two can't share a fault.
//!
//! Prints the body; exit status 0 for a 2xx answer, 1 for another (its status line goes to standard error), 2 when there was no answer. Promises:
//! sends exactly what it was given. Must never: follow, retry or guess.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// The answer's status code, status line and body.
fn request(socket: &str, method: &str, path: &str, body: &str) -> Result<(u16, String, Vec<u8>), String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| format!("{socket}: {error}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(300))).map_err(|error| error.to_string())?;
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()))
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| error.to_string())?;
    parse(&answer).ok_or_else(|| format!("no HTTP answer: {:?}", String::from_utf8_lossy(&answer)))
}

/// Splits an answer whose connection was closed at its end.
fn parse(answer: &[u8]) -> Option<(u16, String, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status_line = head.lines().next()?.to_owned();
    let code = status_line.split(' ').nth(1)?.parse().ok()?;
    Some((code, status_line, answer[end + 4..].to_vec()))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (socket, method, path, body) = match words[..] {
        [socket, method, path] => (socket, method, path, ""),
        [socket, method, path, body] => (socket, method, path, body),
        _ => {
            eprintln!("usage: ebb-http SOCKET METHOD PATH [JSON]");
            return ExitCode::from(2);
        }
    };
    match request(socket, method, path, body) {
        Ok((code, status_line, body)) => {
            let written = std::io::stdout().write_all(&body);
            if !(200..300).contains(&code) || written.is_err() {
                eprintln!("{status_line}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("ebb-http: {reason}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_into_status_and_body() {
        let parsed = parse(b"HTTP/1.1 204 No Content\r\na: b\r\n\r\n").expect("valid");
        assert_eq!(parsed, (204, "HTTP/1.1 204 No Content".to_owned(), vec![]));
        assert_eq!(parse(b"HTTP/1.1 400 Bad\r\n\r\n{}").expect("valid").2, b"{}");
        assert_eq!(parse(b"nonsense"), None);
    }
}

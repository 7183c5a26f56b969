//! A small HTTP client for ebb's socket.
//!
//! Promises: one request, one connection, one answer; every failure is a sentence that a person can act on. Must never: hold more than
//! [`MAX_ANSWER`] bytes of an answer.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// The most bytes of an answer.
pub const MAX_ANSWER: usize = 64 << 20;

/// Why a request has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket there.
    #[error("there is no socket {}: is ebb running with --api-sock?", .0.display())]
    NoSocket(PathBuf),
    /// A socket, and nobody behind it.
    #[error("nobody answers on socket {}: the ebb that made it has ended", .0.display())]
    NobodyThere(PathBuf),
    /// Connecting failed for another reason.
    #[error("cannot connect to socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The runtime could not be made.
    #[error("cannot start the client")]
    Start(#[source] io::Error),
    /// The connection broke, or what came was not HTTP.
    #[error("the connection to ebb broke")]
    Http(#[source] hyper::Error),
    /// The answer broke off or is too large.
    #[error("the answer could not be read: {0}")]
    Body(String),
    /// The server's refusal, in its words.
    #[error("{message}")]
    Fault {
        /// HTTP status.
        status: StatusCode,
        /// The server's `fault_message`.
        message: String,
    },
}

/// A body to send.
#[derive(Clone, Debug)]
pub enum Body {
    /// None.
    Empty,
    /// JSON.
    Json(String),
    /// Plain text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

/// A client of one socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    runtime: Runtime,
}

/// What the server sends with an error.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

impl Client {
    /// A client of the socket at `path`. Connects with each request.
    pub fn new(path: &Path) -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread().enable_io().build().map_err(ClientError::Start)?;
        Ok(Self { path: path.to_owned(), runtime })
    }

    /// Sends a request and gives the answer's body back, or the server's refusal as an error.
    pub fn request(&self, method: Method, target: &str, body: Body) -> Result<Bytes, ClientError> {
        let (status, bytes) = self.exchange(method, target, body)?;
        if status.is_success() {
            return Ok(bytes);
        }
        let message = match serde_json::from_slice(&bytes) {
            Ok(Fault { fault_message }) => fault_message,
            Err(_) => format!("ebb answered {status}"),
        };
        Err(ClientError::Fault { status, message })
    }

    /// Sends a request and gives status and body back, whatever the status.
    pub fn exchange(&self, method: Method, target: &str, body: Body) -> Result<(StatusCode, Bytes), ClientError> {
        self.runtime.block_on(self.converse(method, target, body))
    }

    async fn converse(&self, method: Method, target: &str, body: Body) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(self.path.clone()),
            io::ErrorKind::ConnectionRefused => ClientError::NobodyThere(self.path.clone()),
            _ => ClientError::Connect { path: self.path.clone(), source },
        })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(ClientError::Http)?;
        // Ends with the connection; its errors come back through the sender.
        tokio::spawn(connection);
        let request = build(method, target, body).map_err(|error| ClientError::Body(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(ClientError::Http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let bytes = body.map_err(|error| ClientError::Body(error.to_string()))?.to_bytes();
        Ok((status, bytes))
    }
}

fn build(method: Method, target: &str, body: Body) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let request = Request::builder().method(method).uri(target).header(header::HOST, "localhost");
    let (content_type, bytes) = match body {
        Body::Empty => return request.body(Full::default()),
        Body::Json(text) => ("application/json", Bytes::from(text)),
        Body::Text(text) => ("text/plain", Bytes::from(text)),
        Body::Binary(bytes) => ("application/octet-stream", Bytes::from(bytes)),
    };
    request.header(header::CONTENT_TYPE, content_type).body(Full::new(bytes))
}

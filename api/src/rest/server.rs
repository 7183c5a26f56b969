//! The API thread: one socket, one single-threaded runtime, all routes.
//!
//! Promises: the socket exists and is listened on when [`Server::start`] returns; dropping the server removes the socket and ends
//! the thread within twice [`LAST_ANSWERS`]. Must never: block the runtime's thread on the guest or its tiers.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::socket::{self, SocketError, SocketFile};
use crate::instance::Instance;

/// How long answers under way may take once the server is told to end.
pub const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Threads for calls that block: the guest's and its tiers'.
const BLOCKING_THREADS: usize = 16;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No thread or runtime.
    #[error("cannot start the API thread")]
    Thread(#[source] io::Error),
}

/// A running API server.
#[derive(Debug)]
pub struct Server {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: Option<SocketFile>,
}

impl Server {
    /// Listens on `path` and serves `instance` on a thread of its own.
    pub fn start(path: &Path, instance: Arc<Instance>) -> Result<Self, ServerError> {
        let (listener, socket) = socket::listen(path)?;
        listener.set_nonblocking(true).map_err(ServerError::Thread)?;
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("api-worker")
            .build()
            .map_err(ServerError::Thread)?;
        let (end, ended) = oneshot::channel();
        let serve = move || {
            serve(&runtime, listener, super::router(instance), ended);
            runtime.shutdown_timeout(LAST_ANSWERS);
        };
        let thread = thread::Builder::new().name("api".to_owned()).spawn(serve).map_err(ServerError::Thread)?;
        Ok(Self { end: Some(end), thread: Some(thread), socket: Some(socket) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The file goes while the socket still answers, so that no other start can take it for stale in between.
        drop(self.socket.take());
        // Dropping the sender is the signal.
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API thread ended with a panic");
        }
    }
}

fn serve(runtime: &Runtime, listener: std::os::unix::net::UnixListener, router: Router, ended: oneshot::Receiver<()>) {
    runtime.block_on(async move {
        let listener = match UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the API socket can't be served"),
        };
        let (graceful, stop) = oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            // An error means that the sender is gone, which is the same signal.
            let _ = stop.await;
        });
        let server = tokio::spawn(server.into_future());
        let _ = ended.await;
        drop(graceful);
        if tokio::time::timeout(LAST_ANSWERS, server).await.is_err() {
            tracing::info!("requests still under way were given up");
        }
    });
}

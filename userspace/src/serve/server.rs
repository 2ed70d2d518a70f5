//! The server of a daemon's control socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::protocol::{MAX_LINE, Request, Response};

/// The maximum number of connections that are served at a time. Further ones wait. Connections
/// whose request waits for the core do not count.
const MAX_CONNECTIONS: usize = 16;

/// The maximum number of requests that wait for the core. Further ones are refused.
const MAX_WAITING: usize = 1024;

/// How long a client may take to send its request, and to receive the response.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers requests.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// The response to a request.
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// A socket that listens. Its file stays when this value is dropped: it may be that of the next
/// daemon by then.
pub(crate) struct ControlSocket(UnixListener);

impl ControlSocket {
    /// Listens. A socket that an earlier daemon left is replaced: the caller holds the lock of the
    /// role.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        // Only root enters the directory, so no other user connects before the mode is set.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Serves connections. Never returns.
    pub(crate) async fn serve(self, handler: impl Handler) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let (handler, waiting) = (handler.clone(), Arc::clone(&waiting));
                    tokio::spawn(async move {
                        if let Err(error) = serve_one(stream, &handler, permit, &waiting).await {
                            debug!(%error, "a connection to the control socket failed");
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "cannot accept a connection to the control socket");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_one(
    mut stream: UnixStream,
    handler: &impl Handler,
    permit: OwnedSemaphorePermit,
    waiting: &Arc<Semaphore>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_LINE));
    timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let mut held = permit;
    let response = match serde_json::from_slice::<Request>(&line) {
        Err(error) => Response::Error(format!("unknown request: {error}")),
        Ok(request) if request.waits() && waiting.available_permits() == 0 => {
            Response::Error(format!("{MAX_WAITING} requests wait already; try again later"))
        }
        Ok(request) => {
            if request.waits() {
                // Cannot fail: a permit is available, and the semaphore is never closed.
                held = Arc::clone(waiting).try_acquire_owned().map_err(io::Error::other)?;
            }
            let mut closed = [0; 1];
            tokio::select! {
                response = handler.handle(request) => response,
                // A client that closes its end, or sends more, abandons its request.
                _ = reader.read(&mut closed) => return Ok(()),
            }
        }
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await??;
    drop(held);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as StdStream;
    use std::path::PathBuf;

    use super::super::protocol::ReloadOutcome;
    use super::*;

    #[derive(Clone)]
    struct Refusing;

    impl Handler for Refusing {
        async fn handle(&self, request: Request) -> Response {
            Response::Reload(ReloadOutcome::Refused(format!("{request:?}")))
        }
    }

    /// Reloads never end.
    #[derive(Clone)]
    struct Waiting;

    impl Handler for Waiting {
        async fn handle(&self, request: Request) -> Response {
            match request {
                Request::Reload => std::future::pending().await,
                Request::State => Response::Error("the state".to_owned()),
            }
        }
    }

    /// The response to some bytes.
    async fn answer(path: PathBuf, bytes: &'static [u8]) -> String {
        tokio::task::spawn_blocking(move || {
            let mut stream = StdStream::connect(path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(bytes).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn each_connection_gets_one_response() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        // Left by a daemon that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::listen(&path).unwrap();
        let server = tokio::spawn(socket.serve(Refusing));
        assert_eq!(
            answer(path.clone(), b"\"reload\"\n").await,
            "{\"reload\":{\"refused\":\"Reload\"}}\n"
        );
        assert!(answer(path.clone(), b"\"reboot\"\n").await.starts_with("{\"error\":\"unknown"));
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        // The file of a daemon that has ended.
        let refused = StdStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn requests_that_wait_delay_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        let server = tokio::spawn(ControlSocket::listen(&path).unwrap().serve(Waiting));
        let mut reloads = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"\"reload\"\n").await.unwrap();
            reloads.push(stream);
        }
        assert_eq!(answer(path, b"\"state\"\n").await, "{\"error\":\"the state\"}\n");
        drop(reloads);
        server.abort();
    }
}

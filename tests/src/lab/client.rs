//! The clients: short requests, UDP datagrams, large bodies, and connections that stay open.
//!
//! A client is a thread in the network namespace of its host, with a current-thread runtime.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::namespaces::Namespaces;
use super::server::{Pattern, ServerReply, read_pattern};
use super::topology::{IpVersion, LabHost};

/// Concurrent requests of one client.
const CONCURRENCY: usize = 16;
/// Transmissions of one datagram before its echo counts as missing.
const DATAGRAM_TRIES: u32 = 3;
/// Stored failure messages; further failures are only counted.
const MAX_FAILURES: usize = 10;

type RequestBody = Either<Empty<Bytes>, Pattern>;

/// The results of many requests.
#[derive(Clone, Debug, Default)]
pub struct Responses {
    /// Correct replies by backend.
    pub by_backend: BTreeMap<String, u64>,
    /// Requests without a correct reply.
    pub failed: u64,
    /// Messages of the first failures.
    pub failures: Vec<String>,
}

impl Responses {
    /// Requests with a correct reply.
    pub fn answered(&self) -> u64 {
        self.by_backend.values().sum()
    }

    /// All requests.
    pub fn sent(&self) -> u64 {
        self.answered() + self.failed
    }

    /// Replies of one backend.
    pub fn from(&self, backend: &str) -> u64 {
        self.by_backend.get(backend).copied().unwrap_or(0)
    }

    /// Adds one result.
    pub fn add(&mut self, result: Result<String>) {
        match result {
            Ok(backend) => *self.by_backend.entry(backend).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < MAX_FAILURES {
                    self.failures.push(format!("{error:#}"));
                }
            }
        }
    }

    /// Adds the results of other requests.
    pub fn merge(&mut self, other: Self) {
        for (backend, count) in other.by_backend {
            *self.by_backend.entry(backend).or_default() += count;
        }
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(MAX_FAILURES);
    }
}

/// Runs a future on a thread in the client's network namespace.
pub fn run_in<T: Send, F: Future<Output = Result<T>>>(
    namespaces: &Namespaces,
    client: &LabHost,
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    namespaces.within(client, || runtime()?.block_on(work()))
}

/// A runtime for one thread.
pub(super) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot create a runtime")
}

/// An HTTP/1.1 connection.
pub struct HttpConnection {
    sender: SendRequest<RequestBody>,
    local: SocketAddr,
    target: SocketAddr,
}

impl HttpConnection {
    /// Connects. A task on the same runtime drives the connection.
    pub async fn open(target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // An error of this task is also returned by the request in flight.
        tokio::spawn(connection);
        Ok(Self { sender, local, target })
    }

    async fn send(&mut self, method: Method, path: &str, body: RequestBody) -> Result<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.target.to_string());
        let request = request.body(body)?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "{path} returned {}", response.status());
        Ok(response.into_body())
    }

    /// Sends a request. The reply must contain this end of the connection as the client's address:
    /// no address translation.
    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<ServerReply> {
        let text = self.send(method, path, body).await?.collect().await?.to_bytes();
        let reply: ServerReply =
            serde_json::from_slice(&text).with_context(|| format!("{path}: invalid reply"))?;
        ensure!(
            reply.client == self.local,
            "{} received the request of {} from {}",
            reply.backend,
            self.local,
            reply.client
        );
        Ok(reply)
    }

    /// `GET /`: the name of the backend.
    pub async fn backend(&mut self) -> Result<String> {
        Ok(self.request(Method::GET, "/", Either::Left(Empty::new())).await?.backend)
    }

    /// `GET /sequence/N`: the name of the backend. The reply must contain the number.
    pub async fn sequence(&mut self, number: u64) -> Result<String> {
        let path = format!("/sequence/{number}");
        let reply = self.request(Method::GET, &path, Either::Left(Empty::new())).await?;
        ensure!(
            reply.sequence == number,
            "{} replied with number {} to {number}",
            reply.backend,
            reply.sequence
        );
        Ok(reply.backend)
    }

    /// Downloads that many bytes and verifies each.
    pub async fn download(&mut self, length: u64) -> Result<()> {
        let body =
            self.send(Method::GET, &format!("/bytes/{length}"), Either::Left(Empty::new())).await?;
        let (received, intact) = read_pattern(body).await?;
        ensure!(
            received == length && intact,
            "{received} of {length} bytes arrived, intact: {intact}"
        );
        Ok(())
    }

    /// Uploads that many bytes. The server verifies each.
    pub async fn upload(&mut self, length: u64) -> Result<()> {
        let body = Either::Right(Pattern::new(length));
        let ServerReply { received, intact, .. } =
            self.request(Method::POST, "/upload", body).await?;
        ensure!(
            received == length && intact,
            "{received} of {length} bytes arrived, intact: {intact}"
        );
        Ok(())
    }
}

/// Sends one HTTP request on a new connection; returns the name of the backend.
pub async fn request(target: SocketAddr, limit: Duration) -> Result<String> {
    let exchange = async { HttpConnection::open(target).await?.backend().await };
    timeout(limit, exchange)
        .await
        .with_context(|| format!("no reply from {target} within {limit:?}"))?
}

/// Sends one datagram from a new socket, again if there is no echo; returns the name of the
/// backend.
pub async fn datagram(target: SocketAddr, payload: &str, limit: Duration) -> Result<String> {
    let unspecified: SocketAddr = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(unspecified).await?;
    // A connected socket receives nothing from addresses other than the VIP.
    socket.connect(target).await?;
    let mut buffer = [0; 2048];
    for _ in 0..DATAGRAM_TRIES {
        socket.send(payload.as_bytes()).await?;
        if let Ok(received) = timeout(limit / DATAGRAM_TRIES, socket.recv(&mut buffer)).await {
            let text = std::str::from_utf8(&buffer[..received?])?;
            let (backend, echo) =
                text.split_once(' ').context("an echo without a backend's name")?;
            ensure!(echo == payload, "{backend} echoed `{echo}` instead of `{payload}`");
            return Ok(backend.into());
        }
    }
    bail!("no echo from {target} within {limit:?}")
}

/// A kind of request, each a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// An HTTP request on a new TCP connection.
    Http,
    /// A datagram from a new UDP socket.
    Echo,
}

impl RequestKind {
    /// The VIP that serves these requests.
    pub fn vip(self, version: IpVersion) -> SocketAddr {
        match self {
            Self::Http => version.web(),
            Self::Echo => version.echo(),
        }
    }
}

/// Sends `count` requests, several at a time.
pub async fn send_many(
    kind: RequestKind,
    target: SocketAddr,
    count: usize,
    limit: Duration,
) -> Result<Responses> {
    let mut workers = JoinSet::new();
    for worker in 0..CONCURRENCY {
        workers.spawn(async move {
            let mut responses = Responses::default();
            for number in (worker..count).step_by(CONCURRENCY) {
                responses.add(match kind {
                    RequestKind::Http => request(target, limit).await,
                    RequestKind::Echo => {
                        datagram(target, &format!("datagram {number}"), limit).await
                    }
                });
            }
            responses
        });
    }
    let mut total = Responses::default();
    while let Some(responses) = workers.join_next().await {
        total.merge(responses.context("a client's task panicked")?);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::server::serve;

    #[test]
    fn clients_and_servers_work_over_loopback_without_a_balancer() {
        runtime().unwrap().block_on(async {
            let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let server = tokio::spawn(async move { serve("web-1", &[free], &[free]).await });
            let limit = Duration::from_secs(5);
            let ready = async {
                while request(free, limit).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(limit, ready).await.expect("the server does not reply");
            for kind in [RequestKind::Http, RequestKind::Echo] {
                let sent = send_many(kind, free, 40, limit).await.unwrap();
                assert_eq!((sent.from("web-1"), sent.failed), (40, 0), "{:?}", sent.failures);
            }
            let mut connection = HttpConnection::open(free).await.unwrap();
            for number in [0, 7, 8] {
                assert_eq!(connection.sequence(number).await.unwrap(), "web-1");
            }
            connection.download(300_000).await.unwrap();
            connection.upload(300_000).await.unwrap();
            server.abort();
        });
    }

    #[test]
    fn a_closed_port_is_reported_as_a_failure() {
        let responses = runtime().unwrap().block_on(async {
            let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            send_many(RequestKind::Http, closed, 3, Duration::from_secs(2)).await.unwrap()
        });
        assert_eq!((responses.answered(), responses.failed), (0, 3));
        let failures = &responses.failures;
        assert!(failures[0].contains("cannot connect to 127.0.0.1:"), "{failures:?}");
    }
}

//! What the clients do: many short requests, datagrams, big bodies, and connections that stay open.
//!
//! Each client host gets a thread that enters its network namespace and a current-thread runtime
//! there, so results come back as values instead of through a pipe.

use super::namespaces::Namespaces;
use super::server::{Answer, Pattern, read_pattern};
use super::topology::Host;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests in flight at once from one client.
const CONCURRENCY: usize = 16;
/// Sends of one datagram before the echo counts as missing.
const DATAGRAM_TRIES: u32 = 3;
/// Messages of failures that are kept; the rest is counted only.
const FAILURES_KEPT: usize = 10;

type RequestBody = Either<Empty<Bytes>, Pattern>;

/// What became of many requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers by backend.
    pub answers: BTreeMap<String, u64>,
    /// Requests without a right answer.
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
}

impl Tally {
    /// Requests with a right answer.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Answers of one backend.
    pub fn of(&self, backend: &str) -> u64 {
        self.answers.get(backend).copied().unwrap_or(0)
    }

    /// Adds one result.
    pub fn add(&mut self, result: Result<String>) {
        match result {
            Ok(backend) => *self.answers.entry(backend).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < FAILURES_KEPT {
                    self.failures.push(format!("{error:#}"));
                }
            }
        }
    }

    /// Adds all of another tally.
    pub fn merge(&mut self, other: Self) {
        for (backend, count) in other.answers {
            *self.answers.entry(backend).or_default() += count;
        }
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(FAILURES_KEPT);
    }
}

/// Runs a future on a thread inside the client's network namespace.
pub fn on<T: Send, F: Future<Output = Result<T>>>(
    namespaces: &Namespaces,
    client: &Host,
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    namespaces.within(client, || runtime()?.block_on(work()))
}

/// A runtime for one thread.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")
}

/// An HTTP/1.1 connection.
pub struct Connection {
    sender: SendRequest<RequestBody>,
    local: SocketAddr,
    target: SocketAddr,
}

impl Connection {
    /// Connects; the future that drives the connection runs beside on the same runtime.
    pub async fn open(target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its end, good or bad, also shows as the result of the request in flight.
        tokio::spawn(connection);
        Ok(Self { sender, local, target })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<hyper::body::Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.target.to_string());
        let request = request.body(body)?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "{path} answered {}", response.status());
        Ok(response.into_body())
    }

    /// Sends a request and checks that the answer saw this end of the connection as its client,
    /// untranslated.
    async fn ask(&mut self, method: Method, path: &str, body: RequestBody) -> Result<Answer> {
        let text = self.send(method, path, body).await?.collect().await?.to_bytes();
        let answer: Answer =
            serde_json::from_slice(&text).with_context(|| format!("{path}: no sensible answer"))?;
        ensure!(
            answer.client == self.local,
            "{} saw the client {} as {}",
            answer.backend,
            self.local,
            answer.client
        );
        Ok(answer)
    }

    /// `GET /`: the name of the backend.
    pub async fn who(&mut self) -> Result<String> {
        Ok(self.ask(Method::GET, "/", Either::Left(Empty::new())).await?.backend)
    }

    /// `GET /sequence/N`: the name of the backend, which must have echoed the number.
    pub async fn sequence(&mut self, number: u64) -> Result<String> {
        let answer = self
            .ask(Method::GET, &format!("/sequence/{number}"), Either::Left(Empty::new()))
            .await?;
        ensure!(
            answer.sequence == number,
            "{} answered number {} to {number}",
            answer.backend,
            answer.sequence
        );
        Ok(answer.backend)
    }

    /// Downloads that many bytes and checks each.
    pub async fn download(&mut self, length: u64) -> Result<()> {
        let body =
            self.send(Method::GET, &format!("/bytes/{length}"), Either::Left(Empty::new())).await?;
        let (received, intact) = read_pattern(body).await?;
        ensure!(
            received == length && intact,
            "of {length} bytes {received} arrived, intact: {intact}"
        );
        Ok(())
    }

    /// Uploads that many bytes; the server checks each.
    pub async fn upload(&mut self, length: u64) -> Result<()> {
        let answer = self.ask(Method::POST, "/upload", Either::Right(Pattern::new(length))).await?;
        let Answer { received, intact, .. } = answer;
        ensure!(
            received == length && intact,
            "of {length} bytes {received} arrived, intact: {intact}"
        );
        Ok(())
    }
}

/// One request on a connection of its own; the name of the backend.
pub async fn request(target: SocketAddr, limit: Duration) -> Result<String> {
    let exchange = async { Connection::open(target).await?.who().await };
    timeout(limit, exchange)
        .await
        .with_context(|| format!("no answer from {target} within {limit:?}"))?
}

/// One datagram from a socket of its own, sent again when nothing comes back; the name of the
/// backend.
pub async fn datagram(target: SocketAddr, payload: &str, limit: Duration) -> Result<String> {
    let any: SocketAddr = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected: an answer from any address but the VIP is not delivered.
    socket.connect(target).await?;
    let mut buffer = [0; 2048];
    for _ in 0..DATAGRAM_TRIES {
        socket.send(payload.as_bytes()).await?;
        if let Ok(received) = timeout(limit / DATAGRAM_TRIES, socket.recv(&mut buffer)).await {
            let text = std::str::from_utf8(&buffer[..received?])?;
            let (backend, echo) = text.split_once(' ').context("an answer without a name")?;
            ensure!(echo == payload, "{backend} echoed `{echo}` for `{payload}`");
            return Ok(backend.into());
        }
    }
    bail!("no echo from {target} within {limit:?}")
}

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// An HTTP request on a TCP connection of its own.
    Tcp,
    /// A datagram from a socket of its own.
    Udp,
}

/// Sends `count` requests, each a flow of its own, several at a time.
pub async fn many(
    transport: Transport,
    target: SocketAddr,
    count: usize,
    limit: Duration,
) -> Result<Tally> {
    let mut workers = JoinSet::new();
    for worker in 0..CONCURRENCY {
        workers.spawn(async move {
            let mut tally = Tally::default();
            for number in (worker..count).step_by(CONCURRENCY) {
                tally.add(match transport {
                    Transport::Tcp => request(target, limit).await,
                    Transport::Udp => datagram(target, &format!("datagram {number}"), limit).await,
                });
            }
            tally
        });
    }
    let mut total = Tally::default();
    while let Some(tally) = workers.join_next().await {
        total.merge(tally.context("a client's task panicked")?);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::server::serve;

    /// The servers and clients of the lab against each other on the loopback interface, without a
    /// balancer.
    #[test]
    fn clients_and_servers_agree_on_loopback() {
        runtime().unwrap().block_on(async {
            let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let server = tokio::spawn(async move { serve("web-1", &[free], &[free]).await });
            let limit = Duration::from_secs(5);
            let patience = async {
                while request(free, limit).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(limit, patience).await.expect("the server does not answer");
            for transport in [Transport::Tcp, Transport::Udp] {
                let tally = many(transport, free, 40, limit).await.unwrap();
                assert_eq!((tally.of("web-1"), tally.failed), (40, 0), "{:?}", tally.failures);
            }
            let mut connection = Connection::open(free).await.unwrap();
            for number in [0, 7, 8] {
                assert_eq!(connection.sequence(number).await.unwrap(), "web-1");
            }
            connection.download(300_000).await.unwrap();
            connection.upload(300_000).await.unwrap();
            server.abort();
        });
    }

    #[test]
    fn a_closed_port_is_a_failure_in_words() {
        let tally = runtime().unwrap().block_on(async {
            let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            many(Transport::Tcp, closed, 3, Duration::from_secs(2)).await.unwrap()
        });
        assert_eq!((tally.answered(), tally.failed), (0, 3));
        assert!(tally.failures[0].contains("cannot connect to 127.0.0.1:"), "{:?}", tally.failures);
    }
}

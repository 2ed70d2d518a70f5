//! The servers on every backend: HTTP/1.1 and UDP echo. They are independent of Sluice.
//!
//! | request | reply |
//! | --- | --- |
//! | `GET /` | JSON: the backend's name and the client's address as the server sees it |
//! | `GET /sequence/N` | the same with `"sequence": N`; for connections that stay open |
//! | `GET /bytes/N` | N bytes of a known pattern |
//! | `POST /upload` | JSON: the number of received bytes, and whether they are the pattern |
//! | UDP datagram | the backend's name, a space, the datagram |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// The period of the pattern in bytes: a prime, so that a shift by a power of two is detected.
const PERIOD: u64 = 251;
/// Bytes of the pattern in one write.
const CHUNK: u64 = 64 << 10;
/// The pattern, long enough for a chunk at any phase.
static PATTERN: LazyLock<Bytes> =
    LazyLock::new(|| (0..PERIOD + CHUNK).map(|i| (i % PERIOD) as u8).collect());

/// `count` bytes of the infinite pattern from byte `at` on, at most a chunk.
fn pattern(at: u64, count: usize) -> Bytes {
    let phase = (at % PERIOD) as usize;
    PATTERN.slice(phase..phase + count)
}

/// The JSON reply of the HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReply {
    /// The backend's name.
    pub backend: String,
    /// The peer address of the backend's socket.
    pub client: SocketAddr,
    /// The number in `/sequence/N`; 0 for other requests.
    pub sequence: u64,
    /// Bytes received by `/upload`; 0 for other requests.
    pub received: u64,
    /// Whether the received bytes are the pattern; true for other requests.
    pub intact: bool,
}

/// A body of `length` bytes in which byte i is `i % 251`.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    at: u64,
    length: u64,
}

impl Pattern {
    /// A body of that many bytes.
    pub fn new(length: u64) -> Self {
        Self { at: 0, length }
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let count = CHUNK.min(self.length - self.at);
        if count == 0 {
            return Poll::Ready(None);
        }
        let bytes = pattern(self.at, count as usize);
        self.at += count;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.at)
    }
}

/// Reads a body to its end; returns its length and whether all of it is the pattern.
pub async fn read_pattern<B>(mut body: B) -> Result<(u64, bool), B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut length = 0;
    let mut intact = true;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            for piece in data.chunks(CHUNK as usize) {
                intact &= pattern(length, piece.len()) == piece;
                length += piece.len() as u64;
            }
        }
    }
    Ok((length, intact))
}

/// Serves until the process ends. The host may get the addresses `http` and `echo` later
/// (`IP_FREEBIND`).
pub async fn serve(name: &str, http: &[SocketAddr], echo: &[SocketAddr]) -> Result<()> {
    let name: Arc<str> = name.into();
    let mut tasks = JoinSet::new();
    for address in http {
        let socket = bind(*address, Type::STREAM)
            .with_context(|| format!("cannot listen on {address}/tcp"))?;
        socket.listen(1024)?;
        let listener = TcpListener::from_std(socket.into())?;
        tasks.spawn(accept(listener, Arc::clone(&name)));
    }
    for address in echo {
        let socket = bind(*address, Type::DGRAM)
            .with_context(|| format!("cannot listen on {address}/udp"))?;
        let socket = UdpSocket::from_std(socket.into())?;
        tasks.spawn(echo_datagrams(socket, Arc::clone(&name)));
    }
    println!("ready");
    tasks.join_all().await;
    Ok(())
}

fn bind(address: SocketAddr, kind: Type) -> Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

async fn accept(listener: TcpListener, name: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                tokio::spawn(serve_connection(stream, client, Arc::clone(&name)));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, client: SocketAddr, name: Arc<str>) {
    let service = service_fn(|request| reply_to(request, client, &name));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        // Includes clients that close the connection between requests. Failed requests are counted
        // by the client.
        eprintln!("{client}: {error}");
    }
}

type HttpResponse = Response<Either<Full<Bytes>, Pattern>>;

async fn reply_to(
    request: Request<Incoming>,
    client: SocketAddr,
    name: &str,
) -> Result<HttpResponse, hyper::Error> {
    let mut reply =
        ServerReply { backend: name.into(), client, sequence: 0, received: 0, intact: true };
    let (kind, number) =
        request.uri().path().trim_start_matches('/').split_once('/').unwrap_or_default();
    match (request.method(), request.uri().path(), kind, number.parse()) {
        (&Method::GET, "/", ..) => {}
        (&Method::GET, _, "sequence", Ok(sequence)) => reply.sequence = sequence,
        (&Method::GET, _, "bytes", Ok(length)) => {
            return Ok(Response::new(Either::Right(Pattern::new(length))));
        }
        (&Method::POST, "/upload", ..) => {
            (reply.received, reply.intact) = read_pattern(request.into_body()).await?
        }
        _ => {
            let text = "use GET /, GET /sequence/N, GET /bytes/N, POST /upload\n";
            let mut response = Response::new(Either::Left(Full::from(text)));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    }
    let mut text = serde_json::to_vec(&reply).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Either::Left(Full::from(text)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

async fn echo_datagrams(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let sent = match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                let echo = [name.as_bytes(), b" ", &buffer[..length]].concat();
                socket.send_to(&echo, client).await.map(|_| ())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            // An ICMP error about an earlier reply; the socket remains usable.
            eprintln!("echo: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn the_pattern_has_the_requested_length_and_reads_as_intact() {
        for length in [0, 1, 251, 65_536, 200_000] {
            assert_eq!(block_on(read_pattern(Pattern::new(length))).unwrap(), (length, true));
        }
    }

    #[test]
    fn a_changed_byte_is_detected() {
        let mut bytes: Vec<u8> = (0..1000_u64).map(|i| (i % PERIOD) as u8).collect();
        bytes[700] ^= 1;
        assert_eq!(block_on(read_pattern(Full::new(Bytes::from(bytes)))).unwrap(), (1000, false));
    }
}

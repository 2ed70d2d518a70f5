//! The client of a daemon's control socket.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{MAX_LINE, Request, Response};
use super::socket_path;
use crate::files::private;
use crate::role::Role;

/// Sends a request to the daemon of a role, and waits for its response for at most `timeout`.
/// `None` if no daemon listens.
pub(crate) fn call(
    instance: &str,
    role: Role,
    request: Request,
    timeout: Duration,
) -> anyhow::Result<Option<Response>> {
    let path = socket_path(instance, role);
    // Another user's socket in place of the daemon's could give any response.
    let is_private = path.parent().map_or(Ok(false), private::check_directory);
    let line = is_private.and_then(|_| connect(&path, timeout)).and_then(|stream| match stream {
        Some(stream) => exchange(stream, request, timeout).map(Some),
        None => Ok(None),
    });
    let line = line.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow!(
            "the `sluice {role}` daemon did not respond within {} s; its log shows what it does",
            timeout.as_secs()
        ),
        ErrorKind::PermissionDenied if !nix::unistd::geteuid().is_root() => {
            let text = format!("cannot connect to {} as this user; run it as root", path.display());
            anyhow::Error::new(error).context(text)
        }
        _ => anyhow!("cannot talk to the `sluice {role}` daemon at {}: {error}", path.display()),
    })?;
    let Some(line) = line else { return Ok(None) };
    if line.is_empty() {
        return Err(anyhow!("the `sluice {role}` daemon ended before it responded"));
    }
    let response = serde_json::from_slice(&line).with_context(|| {
        format!("the `sluice {role}` daemon sent an unknown response; is it of another version?")
    })?;
    Ok(Some(response))
}

/// Connects; `None` if no daemon listens. A daemon that accepts no connections is waited for.
fn connect(path: &Path, timeout: Duration) -> io::Result<Option<UnixStream>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout))?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(Some(OwnedFd::from(socket).into())),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn exchange(mut stream: UnixStream, request: Request, timeout: Duration) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut response = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut response)?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_daemon_that_accepts_no_connections_is_not_waited_for_longer_than_the_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        let timeout = Duration::from_millis(100);
        assert!(connect(&path, timeout).unwrap().is_none());
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path, timeout) {
                Ok(stream) => waiting.push(stream.unwrap()),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100, "no limit");
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        drop(UnixListener::from(OwnedFd::from(listener)));
        assert!(connect(&path, timeout).unwrap().is_none());
    }
}

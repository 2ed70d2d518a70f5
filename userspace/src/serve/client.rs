//! The client of a daemon's control socket.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

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
    is_private.with_context(|| format!("cannot connect to {}", path.display()))?;
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot connect to {}", path.display()));
        }
    };
    let line = exchange(stream, request, timeout).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow!(
            "the `sluice {role}` daemon did not respond within {} s; its log shows what it does",
            timeout.as_secs()
        ),
        _ => anyhow!("cannot talk to the `sluice {role}` daemon at {}: {error}", path.display()),
    })?;
    if line.is_empty() {
        return Err(anyhow!("the `sluice {role}` daemon ended before it responded"));
    }
    let response = serde_json::from_slice(&line).with_context(|| {
        format!("the `sluice {role}` daemon sent an unknown response; is it of another version?")
    })?;
    Ok(Some(response))
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

//! Severity levels of log lines for the journal of systemd.
//!
//! The journal reads a line on standard error that starts with `<N>` as one of severity N
//! (sd-daemon(3)). Without it, every line has the same severity.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The prefix of a warning, for the journal.
pub(crate) const WARNING: &str = "<4>";

/// The prefix of an error line, for the journal; empty otherwise.
pub fn error_prefix() -> &'static str {
    if stderr_is_journal() { "<3>" } else { "" }
}

/// Whether standard error is a stream to the journal.
pub(crate) fn stderr_is_journal() -> bool {
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, io::stderr()))
}

/// Whether a descriptor is the stream that `JOURNAL_STREAM` names by device and inode.
fn is_stream(stream: &str, descriptor: impl AsFd) -> bool {
    let named = stream.split_once(':').and_then(|(device, inode)| {
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    fstat(descriptor).is_ok_and(|found| named == Some((found.st_dev, found.st_ino)))
}

/// Formats events like `F`, after their severity.
pub(crate) struct WithSeverity<F>(pub(crate) F);

impl<S, N, F> FormatEvent<S, N> for WithSeverity<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", severity(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The severity of a level (syslog(3)).
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let found = fstat(&file).unwrap();
        assert!(is_stream(&format!("{}:{}", found.st_dev, found.st_ino), &file));
        assert!(!is_stream(&format!("{}:{}", found.st_dev, found.st_ino + 1), &file));
        assert!(!is_stream("", &file));
        assert!(!is_stream("journal", &file));
    }
}

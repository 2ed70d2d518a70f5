//! The log: standard error, written by a thread.
//!
//! A write to a pipe whose reader hangs does not return. The daemon must not wait for it, so lines
//! that the thread cannot take are lost, and counted.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::error::CliError;
use crate::files::input::no_thread;
use crate::journald::{self, WithSeverity};
use crate::text::escape;

/// The maximum number of lines that wait for the thread.
const MAX_WAITING: usize = 1_024;

/// How long the end of the process waits for the last lines.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The variable of the environment with the filter of events.
const VARIABLE: &str = "SLUICE_LOG";

/// The filter without the variable.
const DEFAULT_FILTER: &str = "info";

/// The log of this process, once it is started.
static LOG: OnceLock<LogWriter> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// All lines before it were written.
    Flush(SyncSender<()>),
}

/// Passes lines to the thread.
#[derive(Clone)]
struct LogWriter {
    sender: SyncSender<Message>,
    /// The number of lines that were lost and not reported yet.
    lost: Arc<AtomicU64>,
}

/// Starts the log: one line per event, level by `SLUICE_LOG` (default `info`). Does nothing if it
/// was started already.
pub(crate) fn start() -> Result<(), CliError> {
    if LOG.get().is_some() {
        return Ok(());
    }
    let warning = if journald::stderr_is_journal() { journald::WARNING } else { "WARN " };
    let writer = LogWriter::spawn(io::stderr(), warning).map_err(CliError::operation)?;
    let writer = LOG.get_or_init(|| writer);
    let wanted = std::env::var_os(VARIABLE).unwrap_or_default();
    let filter = filter(&wanted.to_string_lossy());
    let is_bad = filter.is_none();
    let filter = filter.unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| writer.clone())
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .fmt_fields(debug_fn(write_field).delimited(" "))
        // A failed write would be reported on standard error, which panics where that fails too.
        .log_internal_errors(false);
    // Fails if a subscriber was set already, as in tests. The journal adds times itself.
    let _ = match journald::stderr_is_journal() {
        true => log.without_time().with_level(false).map_event_format(WithSeverity).try_init(),
        false => log.try_init(),
    };
    if is_bad {
        warn!(
            "{VARIABLE} is not a level (error, warn, info, debug, trace, off) and not a list such as \
             info,sluice::daemon=debug: {wanted:?}; the level is {DEFAULT_FILTER}"
        );
    }
    Ok(())
}

/// The filter that a text describes; `None` for one that is not valid. The library takes any word
/// as the name of a module, which would silence everything else.
fn filter(text: &str) -> Option<EnvFilter> {
    let is_level = |directive: &str| directive.trim().parse::<LevelFilter>().is_ok();
    let is_known = |directive: &str| is_level(directive) || directive.contains(['=', '[']);
    match text {
        "" => Some(EnvFilter::new(DEFAULT_FILTER)),
        text if text.split(',').all(is_known) => EnvFilter::try_new(text).ok(),
        _ => None,
    }
}

/// Waits until the lines are written, but not for long. Called at the end of the process.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush_within(LAST_WAIT);
    }
}

/// Writes text to standard error, after the lines of the log; waits for it, but not for long. If it
/// cannot be written, it is lost, where `eprint!` would panic.
pub(crate) fn print_error(text: &str) {
    match LOG.get() {
        Some(log) => {
            _ = log.clone().write(text.as_bytes());
            log.flush_within(LAST_WAIT);
        }
        None => _ = io::stderr().write_all(text.as_bytes()),
    }
}

impl LogWriter {
    /// Starts the thread.
    fn spawn(output: impl Write + Send + 'static, warning: &'static str) -> io::Result<Self> {
        let (sender, messages) = sync_channel(MAX_WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        let run = move || write_lines(output, &messages, &counter, warning);
        thread::Builder::new().name("log".to_owned()).spawn(run).map_err(no_thread)?;
        Ok(Self { sender, lost })
    }

    fn flush_within(&self, limit: Duration) {
        let (sender, flushed) = sync_channel(1);
        // A full queue means that the thread is blocked.
        if self.sender.try_send(Message::Flush(sender)).is_ok() {
            let _ = flushed.recv_timeout(limit);
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Message::Line(line.to_vec())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the lines. `warning` is the head of a warning.
fn write_lines(
    mut output: impl Write,
    messages: &Receiver<Message>,
    lost: &AtomicU64,
    warning: &str,
) {
    for message in messages {
        match message {
            // A line that cannot be written is lost.
            Message::Line(line) => _ = output.write_all(&line),
            // The other end has a time limit.
            Message::Flush(flushed) => _ = flushed.send(()),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = "log lines were lost while standard error blocked";
            let line = format!("{warning}{text} lost={lost}\n");
            _ = output.write_all(line.as_bytes());
        }
    }
}

/// Writes a field of an event on one line, with control characters escaped: values contain file
/// names and errors of other programs.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" => writer.write_str(&escape(&value)),
        name => write!(writer, "{name}={}", escape(&value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_no_filter() {
        for text in ["", "info", "DEBUG", "warn,sluice::daemon=debug", "off", "[span]=trace"] {
            assert!(filter(text).is_some(), "{text}");
        }
        for text in ["verbose", "info,verbose", "sluice=loud", "7"] {
            assert!(filter(text).is_none(), "{text}");
        }
    }

    #[test]
    fn lines_are_lost_and_counted_while_the_output_blocks() {
        let (mut reader, output) = io::pipe().unwrap();
        let mut log = LogWriter::spawn(output, journald::WARNING).unwrap();
        let line = [b'x'; 1_024];
        // More than the pipe (64 KiB) and the queue hold.
        let lines = MAX_WAITING + 200;
        for _ in 0..lines {
            log.write_all(&line).unwrap();
        }
        log.flush_within(Duration::from_millis(10));
        drop(log);
        let mut written = String::new();
        io::Read::read_to_string(&mut reader, &mut written).unwrap();
        let text = "<4>log lines were lost while standard error blocked lost=";
        let (_, lost) = written.split_once(text).expect("the loss is reported");
        let lost: usize =
            lost.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
        assert!(lost > 0);
        assert_eq!(written.matches('x').count(), (lines - lost) * line.len());
    }
}

//! Log lines, as text or JSON, to standard error.
//!
//! Text of callers can be in an event: control characters are escaped before a line is written, so that nobody can
//! forge a line or drive a terminal. Who logs never waits for who reads (`lines`).

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::set_global_default;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

use super::lines::{Lines, MAX_QUEUED_BYTES};
use crate::config::{Log, LogFormat, LogLevel};

/// How long the end of the process, or a panic, waits for a reader of standard error; twice that when lines were dropped.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// The process has one standard error.
static LINES: Lines = Lines::new();
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts logging; called once, at start. A second call changes nothing.
///
/// # Errors
/// When the system refuses the thread that writes.
pub fn start(log: Log) -> io::Result<LastLines> {
    if STARTED.load(Ordering::Acquire) {
        return Ok(LastLines(()));
    }
    std::thread::Builder::new().name("log".to_owned()).spawn(|| {
        // An error, as it may be errors that are missing, and no level leaves it out.
        LINES.write_to(io::stderr(), |dropped| {
            tracing::error!(dropped, "log lines were dropped: standard error was not read");
        });
    })?;
    STARTED.store(true, Ordering::Release);
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let registry = tracing_subscriber::registry().with(level);
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false);
    // Only a second call can fail: a subscriber is there already, and stays. Records of the `log` crate are not taken:
    // cryptoki writes one as an error for each mechanism of the token that it does not know.
    let _ = match log.format {
        LogFormat::Text => set_global_default(registry.with(layer.with_writer(Escaping(&LINES)))),
        LogFormat::Json => set_global_default(registry.with(layer.json().with_writer(&LINES))),
    };
    Ok(LastLines(()))
}

/// Writes a line that is no event, its end included, and waits a bounded time until it is read: the process may end next.
pub fn tell(line: &str) {
    if STARTED.load(Ordering::Acquire) {
        LINES.push(line.as_bytes(), MAX_QUEUED_BYTES);
        finish();
    } else {
        // Nobody may read standard error any more: then there is nobody to tell.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Waits a bounded time until all lines so far are read: the process ends next.
pub fn finish() {
    // Whoever does not read does not keep the process.
    let _ = LINES.finish(LAST_LINES_TIMEOUT);
}

/// Returns how many lines were lost because nobody read standard error.
pub fn dropped_lines() -> u64 {
    LINES.dropped()
}

/// Calls [`finish`] when dropped; held by whoever ends the process.
#[must_use = "dropped at once, it waits for no later line"]
#[derive(Debug)]
pub struct LastLines(());

impl Drop for LastLines {
    fn drop(&mut self) {
        finish();
    }
}

/// Escapes control characters, the line end at the very end excepted. Takes whole events, one a call, and passes them on
/// so.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (body, end) = match event.strip_suffix(b"\n") {
            Some(body) => (body, &b"\n"[..]),
            None => (event, &b""[..]),
        };
        let text = String::from_utf8_lossy(body);
        if text.chars().any(char::is_control) {
            let mut escaped = String::with_capacity(text.len() + 16);
            for character in text.chars() {
                if character.is_control() {
                    escaped.extend(character.escape_default());
                } else {
                    escaped.push(character);
                }
            }
            let mut escaped = escaped.into_bytes();
            escaped.extend_from_slice(end);
            self.0.write_all(&escaped)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaping<M> {
    type Writer = Escaping<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaping(self.0.make_writer())
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        Escaping(self.0.make_writer_for(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str) -> String {
        let mut out = Escaping(Vec::new());
        out.write_all(event.as_bytes()).unwrap();
        String::from_utf8(out.0).unwrap()
    }

    #[test]
    fn a_forged_line_stays_inside_its_own() {
        assert_eq!(written("a\n2026 ERROR b\r\n"), "a\\n2026 ERROR b\\r\n");
    }

    #[test]
    fn terminal_sequences_are_escaped() {
        assert_eq!(written("\u{1b}[2J\u{9b}x\n"), "\\u{1b}[2J\\u{9b}x\n");
    }

    #[test]
    fn plain_lines_pass_unchanged() {
        assert_eq!(written("tenant=ä ok\n"), "tenant=ä ok\n");
    }
}

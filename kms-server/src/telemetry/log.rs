//! Log lines, as text or JSON, to standard error.
//!
//! Text of callers can be in an event: control characters are escaped before a line is written, so that nobody can
//! forge a line or drive a terminal.

use std::io::{self, Write};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::set_global_default;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging; called once, at start. A second call changes nothing.
pub fn start(log: Log) {
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
        LogFormat::Text => {
            set_global_default(registry.with(layer.with_writer(|| Escaping(io::stderr()))))
        }
        LogFormat::Json => set_global_default(registry.with(layer.json().with_writer(io::stderr))),
    };
}

/// Escapes control characters, the line end at the very end excepted. Takes whole events, one a call.
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
            self.0.write_all(escaped.as_bytes())?;
        } else {
            self.0.write_all(body)?;
        }
        self.0.write_all(end)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<'a, W: Write + Clone> MakeWriter<'a> for Escaping<W> {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self(self.0.clone())
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

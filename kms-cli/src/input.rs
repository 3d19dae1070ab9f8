//! What is read: plaintexts and envelopes from stdin or files, never from argv; `KEY=VALUE` pairs and periods.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::context::EncryptionContext;
use kms_core::envelope::{
    self, Envelope, InvalidEnvelope, MAX_ENVELOPE_BYTES, MAX_PLAINTEXT_BYTES,
};
use kms_core::secret::Plaintext;
use zeroize::Zeroizing;

use crate::error::CliError;

/// Means stdin or stdout where a path is expected.
pub const STREAM: &str = "-";
/// The longest text form of an envelope, with room for a line end.
pub const MAX_TEXT_BYTES: usize =
    envelope::TEXT_PREFIX.len() + MAX_ENVELOPE_BYTES.div_ceil(3) * 4 + MAX_TRAILING_BYTES;
/// White space that an editor or a terminal may add to a text form.
const MAX_TRAILING_BYTES: usize = 16;

/// Reads a plaintext of 1 byte to 64 KiB.
pub fn plaintext(path: Option<&Path>) -> Result<Plaintext, CliError> {
    let bytes = bounded(path, MAX_PLAINTEXT_BYTES, "plaintext")?;
    Ok(Plaintext::new(bytes.to_vec()))
}

/// Reads an envelope in its binary or its text form, and checks its header.
pub fn ciphertext(path: Option<&Path>) -> Result<Vec<u8>, CliError> {
    let bytes = bounded(path, MAX_TEXT_BYTES, "ciphertext")?;
    checked_ciphertext(&bytes)
}

/// Takes an envelope in either form, and checks its header.
pub fn checked_ciphertext(bytes: &[u8]) -> Result<Vec<u8>, CliError> {
    let binary = parse_ciphertext(bytes)?;
    Envelope::decode(&binary)?;
    Ok(binary)
}

/// Takes the binary form, or decodes the text form; does not look at the header.
pub fn parse_ciphertext(bytes: &[u8]) -> Result<Vec<u8>, InvalidEnvelope> {
    let prefix = envelope::TEXT_PREFIX.as_bytes();
    let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
    let trimmed = bytes.get(start..).unwrap_or_default();
    if !trimmed.starts_with(prefix) {
        return Ok(bytes.to_vec());
    }
    let text = std::str::from_utf8(trimmed).map_err(|_| InvalidEnvelope::Malformed)?;
    envelope::from_text(text.trim_end())
}

/// Reads a file or stdin to its end, at most `max` bytes and at least one. The buffer is wiped on drop and never grows.
pub fn bounded(
    path: Option<&Path>,
    max: usize,
    what: &'static str,
) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 1));
    let (source, failed) = open(path)?;
    source.take(max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() || bytes.len() > max {
        return Err(CliError::Length { what, length: bytes.len(), max });
    }
    Ok(bytes)
}

/// A source of bytes, and the error that a failed read of it is.
type Source = (Box<dyn Read>, Box<dyn Fn(io::Error) -> CliError>);

/// Opens a file, or stdin for `-`; without a path stdin too, but only when something is piped in.
pub fn open(path: Option<&Path>) -> Result<Source, CliError> {
    match path {
        Some(path) if path != Path::new(STREAM) => {
            let name = path.to_path_buf();
            let failed = move |cause| CliError::File { action: "read", path: name.clone(), cause };
            let file = File::open(path).map_err(&failed)?;
            Ok((Box::new(file), Box::new(failed)))
        }
        None if io::stdin().is_terminal() => Err(CliError::Terminal(
            "nothing is piped in: use --in FILE, or --in - to type it (it is shown)",
        )),
        _ => {
            let failed = |cause| CliError::Stream { action: "read standard input", cause };
            Ok((Box::new(io::stdin()), Box::new(failed)))
        }
    }
}

/// Splits `KEY=VALUE` at the first `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must look like KEY=VALUE".into()),
    }
}

/// Checks the pairs of `--bind`.
pub fn encryption_context(pairs: &[(String, String)]) -> Result<EncryptionContext, CliError> {
    Ok(EncryptionContext::from_caller(pairs.iter().cloned())?)
}

/// Milliseconds in each unit of a period, `ms` before `s`, which it ends with. A year has 365 days.
const UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("y", 365 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
];

/// Reads a period: a number and `ms`, `s`, `m`, `h`, `d` or `y`.
pub fn period(text: &str) -> Result<Duration, String> {
    match period_or_none(text)? {
        Duration::ZERO => Err("it must be longer than nothing".into()),
        period => Ok(period),
    }
}

/// Reads a period that may be none: `0s`.
pub fn period_or_none(text: &str) -> Result<Duration, String> {
    let wrong = || "it must be a number and one of ms, s, m, h, d, y: 90d".to_owned();
    let split = |(unit, length)| text.strip_suffix(unit).map(|number| (number, length));
    let (number, length): (&str, u64) = UNITS.into_iter().find_map(split).ok_or_else(wrong)?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(length).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads a time.
pub fn time(text: &str) -> Result<Timestamp, String> {
    let wrong =
        "it must be RFC 3339, with the offset, in milliseconds at most: 2027-01-31T08:00:00Z";
    Timestamp::parse(text).ok_or_else(|| wrong.to_owned())
}

/// Writes a period of whole seconds in the largest unit that divides it.
pub fn period_text(period: Duration) -> String {
    let millis = period.as_secs().saturating_mul(1000);
    let largest_first = UNITS.into_iter().skip(1).find(|(_, unit)| millis.is_multiple_of(*unit));
    match largest_first {
        Some((unit, length)) if millis > 0 => format!("{}{unit}", millis / length),
        _ => "0s".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn plaintext_of_64_kib_is_read_and_one_byte_more_or_none_refused() {
        let full = file(&vec![7; MAX_PLAINTEXT_BYTES]);
        assert_eq!(plaintext(Some(full.path())).unwrap().len(), MAX_PLAINTEXT_BYTES);
        for length in [0, MAX_PLAINTEXT_BYTES + 1] {
            let wrong = file(&vec![7; length]);
            assert!(matches!(plaintext(Some(wrong.path())), Err(CliError::Length { .. })));
        }
    }

    #[test]
    fn text_and_binary_forms_read_the_same_whatever_the_line_end() {
        let binary = b"KW\x01anything";
        let text = envelope::to_text(binary);
        for form in [text.clone(), format!("{text}\n"), format!("\r\n{text}\r\n")] {
            assert_eq!(parse_ciphertext(form.as_bytes()).unwrap(), binary);
        }
        assert_eq!(parse_ciphertext(binary).unwrap(), binary);
        assert_eq!(parse_ciphertext(b"hfenv1:a b"), Err(InvalidEnvelope::Malformed));
    }

    #[test]
    fn the_longest_text_form_fits_the_bound() {
        let longest = envelope::to_text(&vec![0; MAX_ENVELOPE_BYTES]);
        assert!(longest.len() + MAX_TRAILING_BYTES <= MAX_TEXT_BYTES);
    }

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err());
        assert!(pair("=a").is_err());
    }

    #[test]
    fn periods_read_back_as_they_are_written() {
        for text in ["90d", "1y", "36h", "5m", "7s"] {
            assert_eq!(period_text(period(text).unwrap()), text);
        }
        assert_eq!(period("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(period("0d"), Err("it must be longer than nothing".into()));
        assert_eq!(period_or_none("0s"), Ok(Duration::ZERO));
        for text in ["", "d", "0s", "-1d", "1w", "1.5h", "99999999999999999999y", "+1d"] {
            assert!(period(text).is_err(), "{text:?}");
        }
    }
}

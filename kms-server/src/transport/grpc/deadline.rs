//! How long a caller waits: the `grpc-timeout` header, capped.

use std::time::Duration;

use http::HeaderMap;

/// The header of a caller's deadline.
const HEADER: &str = "grpc-timeout";
/// The most digits of its number (gRPC over HTTP/2, "Timeout").
const MAX_DIGITS: usize = 8;

/// Returns how long the caller waits, at most `cap`. A missing or malformed header means `cap`.
pub(super) fn wait_of(headers: &HeaderMap, cap: Duration) -> Duration {
    asked(headers).map_or(cap, |wait| wait.min(cap))
}

/// Returns how long the caller says to wait; `None` when it does not say, or not in a form that is known.
pub(super) fn asked(headers: &HeaderMap) -> Option<Duration> {
    headers.get(HEADER).and_then(|value| value.to_str().ok()).and_then(parse)
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let digits_only = digits.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only || digits.is_empty() || digits.len() > MAX_DIGITS {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Duration = Duration::from_secs(30);

    fn wait(text: &'static str) -> Duration {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, text.parse().unwrap());
        wait_of(&headers, CAP)
    }

    #[test]
    fn every_unit_is_read() {
        assert_eq!(wait("7S"), Duration::from_secs(7));
        assert_eq!(wait("7m"), Duration::from_millis(7));
        assert_eq!(wait("7u"), Duration::from_micros(7));
        assert_eq!(wait("99999999n"), Duration::from_nanos(99_999_999));
        assert_eq!(parse("2M"), Some(Duration::from_mins(2)));
        assert_eq!(parse("99999999H"), Some(Duration::from_hours(99_999_999)));
    }

    #[test]
    fn the_cap_holds() {
        assert_eq!(wait("30S"), CAP);
        assert_eq!(wait("31S"), CAP);
        assert_eq!(wait("1H"), CAP);
        assert_eq!(wait_of(&HeaderMap::new(), CAP), CAP);
    }

    #[test]
    fn odd_texts_count_as_none() {
        for text in ["", "S", "1", "1s", "-1S", "+1S", "1 S", "100000000S", "1.5S"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse("\u{e4}"), None);
    }
}

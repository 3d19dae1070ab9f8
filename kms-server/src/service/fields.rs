//! Bounds of the fields of keys.

use std::collections::BTreeMap;
use std::time::Duration;

use kms_core::canonical::CanonicalWriter;
use kms_core::consumer::MAX_CONSUMER_DESCRIPTION_BYTES;
use kms_core::key::{
    MAX_CRYPTOPERIOD, MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_OWNER_BYTES,
    MAX_REASON_BYTES, MAX_RECIPIENT_USAGE_PERIOD, MAX_USAGE_BYTES, MIN_CRYPTOPERIOD,
};
use kms_core::lifecycle::{MAX_DESTRUCTION_WINDOW, MIN_DESTRUCTION_WINDOW};

use super::ServiceError;
use crate::keyring::CONTEXT_AUDIT_LABEL;

pub(super) fn check_owner(text: &str) -> Result<(), ServiceError> {
    check_text("owner", text, 1, MAX_OWNER_BYTES)
}

pub(super) fn check_usage(text: &str) -> Result<(), ServiceError> {
    check_text("usage", text, 1, MAX_USAGE_BYTES)
}

/// `least` is 0 where a reason may be left out.
pub(super) fn check_reason(text: &str, least: usize) -> Result<(), ServiceError> {
    check_text("reason", text, least, MAX_REASON_BYTES)
}

pub(super) fn check_consumer_description(text: &str) -> Result<(), ServiceError> {
    check_text("description", text, 1, MAX_CONSUMER_DESCRIPTION_BYTES)
}

pub(super) fn check_cryptoperiod(period: Duration) -> Result<(), ServiceError> {
    // Whole seconds: rows and their MACs hold no less.
    if (MIN_CRYPTOPERIOD..=MAX_CRYPTOPERIOD).contains(&period) && period.subsec_nanos() == 0 {
        return Ok(());
    }
    Err(ServiceError::field("cryptoperiod", "must be 1 hour to 10 years, in whole seconds"))
}

/// What a version protected must be processed for as long as it protects.
pub(super) fn check_recipient_usage(
    period: Duration,
    cryptoperiod: Duration,
) -> Result<(), ServiceError> {
    if (cryptoperiod..=MAX_RECIPIENT_USAGE_PERIOD).contains(&period) && period.subsec_nanos() == 0 {
        return Ok(());
    }
    let bounds = "must be the cryptoperiod to 30 years, in whole seconds";
    Err(ServiceError::field("recipient_usage_period", bounds))
}

/// A rotation that comes after the cryptoperiod is over would come too late.
pub(super) fn check_rotation(
    period: Option<Duration>,
    cryptoperiod: Duration,
) -> Result<(), ServiceError> {
    let Some(period) = period else { return Ok(()) };
    if period < MIN_CRYPTOPERIOD || period.subsec_nanos() != 0 {
        let bounds = "must be 1 hour to 10 years, in whole seconds";
        return Err(ServiceError::field("rotation_period", bounds));
    }
    if period > cryptoperiod {
        let problem = "must not be longer than the cryptoperiod";
        return Err(ServiceError::field("rotation_period", problem));
    }
    Ok(())
}

pub(super) fn check_destruction_window(window: Duration) -> Result<(), ServiceError> {
    if (MIN_DESTRUCTION_WINDOW..=MAX_DESTRUCTION_WINDOW).contains(&window)
        && window.subsec_nanos() == 0
    {
        return Ok(());
    }
    Err(ServiceError::field("window", "must be 7 to 365 days, in whole seconds"))
}

pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ServiceError> {
    if labels.len() > MAX_LABELS {
        return Err(ServiceError::field("labels", format!("must be at most {MAX_LABELS}")));
    }
    for (key, value) in labels {
        check_text("labels", key, 1, MAX_LABEL_KEY_BYTES)?;
        check_text("labels", value, 0, MAX_LABEL_VALUE_BYTES)?;
    }
    // Another value would be taken as none, and contexts that shall be hidden be logged in clear.
    let (reserved, allowed) = CONTEXT_AUDIT_LABEL;
    if labels.get(reserved).is_some_and(|value| value != allowed) {
        let problem = format!("`{reserved}` must be `{allowed}`, or not be there");
        return Err(ServiceError::field("labels", problem));
    }
    Ok(())
}

fn check_text(
    field: &'static str,
    text: &str,
    least: usize,
    most: usize,
) -> Result<(), ServiceError> {
    if !(least..=most).contains(&text.len()) {
        return Err(ServiceError::field(field, format!("must be {least} to {most} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(ServiceError::field(field, "must not contain control characters"));
    }
    Ok(())
}

/// Writes labels, for request hashes.
pub(super) fn write_labels(
    out: CanonicalWriter,
    labels: &BTreeMap<String, String>,
) -> CanonicalWriter {
    let out = out.number(labels.len() as u64);
    labels.iter().fold(out, |out, (key, value)| out.text(key).text(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_taken_at_their_bounds_and_refused_one_past() {
        assert!(check_owner(&"o".repeat(256)).is_ok());
        assert!(check_owner(&"o".repeat(257)).is_err());
        assert!(check_owner("").is_err());
        assert!(check_usage(&"u".repeat(1024)).is_ok());
        assert!(check_usage(&"u".repeat(1025)).is_err());
        assert!(check_reason(&"r".repeat(256), 1).is_ok());
        assert!(check_reason(&"r".repeat(257), 1).is_err());
        assert!(check_reason("", 0).is_ok());
        assert!(check_reason("", 1).is_err());
        assert!(check_owner("two\nlines").is_err());
        assert!(check_consumer_description(&"c".repeat(256)).is_ok());
        assert!(check_consumer_description(&"c".repeat(257)).is_err());
        assert!(check_consumer_description("").is_err());
    }

    #[test]
    fn cryptoperiods_are_taken_at_their_bounds_and_refused_one_past() {
        let second = Duration::from_secs(1);
        assert!(check_cryptoperiod(MIN_CRYPTOPERIOD).is_ok());
        assert!(check_cryptoperiod(MIN_CRYPTOPERIOD.saturating_sub(second)).is_err());
        assert!(check_cryptoperiod(MAX_CRYPTOPERIOD).is_ok());
        assert!(check_cryptoperiod(MAX_CRYPTOPERIOD + second).is_err());
        assert!(check_cryptoperiod(MIN_CRYPTOPERIOD + Duration::from_millis(1)).is_err());
    }

    #[test]
    fn recipient_usage_periods_are_taken_at_their_bounds_and_refused_one_past() {
        let (second, shortest) = (Duration::from_secs(1), Duration::from_hours(24));
        let check = |period| check_recipient_usage(period, shortest);
        assert!(check(shortest).is_ok());
        assert!(check(shortest.saturating_sub(second)).is_err());
        assert!(check(MAX_RECIPIENT_USAGE_PERIOD).is_ok());
        assert!(check(MAX_RECIPIENT_USAGE_PERIOD + second).is_err());
        assert!(check(shortest + Duration::from_millis(1)).is_err());
        let default = MAX_CRYPTOPERIOD + kms_core::key::DEFAULT_RECIPIENT_EXTENSION;
        assert!(check_recipient_usage(default, MAX_CRYPTOPERIOD).is_ok(), "the longest default");
    }

    #[test]
    fn rotation_periods_are_taken_at_their_bounds_and_refused_one_past() {
        let (second, cryptoperiod) = (Duration::from_secs(1), MAX_CRYPTOPERIOD);
        let check = |period| check_rotation(Some(period), cryptoperiod);
        assert!(check_rotation(None, cryptoperiod).is_ok());
        assert!(check(MIN_CRYPTOPERIOD).is_ok());
        assert!(check(MIN_CRYPTOPERIOD.saturating_sub(second)).is_err());
        assert!(check(MAX_CRYPTOPERIOD).is_ok());
        assert!(check(MAX_CRYPTOPERIOD + second).is_err());
        assert!(check(MIN_CRYPTOPERIOD + Duration::from_millis(1)).is_err());
        let short = Duration::from_hours(24);
        assert!(check_rotation(Some(short), short).is_ok());
        assert!(check_rotation(Some(short + second), short).is_err());
    }

    #[test]
    fn destruction_windows_are_taken_at_their_bounds_and_refused_one_past() {
        let second = Duration::from_secs(1);
        assert!(check_destruction_window(MIN_DESTRUCTION_WINDOW).is_ok());
        assert!(check_destruction_window(MIN_DESTRUCTION_WINDOW.saturating_sub(second)).is_err());
        assert!(check_destruction_window(MAX_DESTRUCTION_WINDOW).is_ok());
        assert!(check_destruction_window(MAX_DESTRUCTION_WINDOW + second).is_err());
        let broken = MIN_DESTRUCTION_WINDOW + Duration::from_millis(1);
        assert!(check_destruction_window(broken).is_err());
    }

    #[test]
    fn labels_are_taken_at_their_bounds_and_refused_one_past() {
        let labels = |n: usize| (0..n).map(|i| (format!("k{i}"), String::new())).collect();
        assert!(check_labels(&labels(32)).is_ok());
        assert!(check_labels(&labels(33)).is_err());
        let one = |key: usize, value: usize| {
            check_labels(&BTreeMap::from([("k".repeat(key), "v".repeat(value))]))
        };
        assert!(one(63, 255).is_ok());
        assert!(one(64, 0).is_err());
        assert!(one(1, 256).is_err());
        assert!(one(0, 0).is_err());
    }

    #[test]
    fn the_reserved_label_has_its_one_value() {
        let one = |key: &str, value: &str| {
            check_labels(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
        };
        assert!(one("context-audit", "HASHED").is_ok());
        for wrong in ["hashed", "HASHED ", "CLEAR", ""] {
            let refused = one("context-audit", wrong).unwrap_err();
            assert_eq!(refused.reason(), "FIELD_VIOLATION", "{wrong:?}");
        }
        assert!(one("context-audits", "hashed").is_ok());
    }
}

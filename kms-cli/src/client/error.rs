//! What can go wrong between us and the server, and what the server refused.

use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::connector::ConnectFailure;
use super::credentials::CredentialsError;
use crate::terminal::harmless;

/// The domain of every ErrorInfo that a Holdfast server sends.
pub const ERROR_DOMAIN: &str = "holdfast.dev";

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The caller's own certificate, key or CA file.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// There is no connection, or it broke.
    #[error("no connection to `{server}`: {failure}")]
    Connect {
        /// The server.
        server: String,
        /// Why.
        failure: ConnectFailure,
    },
    /// The call took longer than it may.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The server answered with an error.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// The server's answer is not what the contract says.
    #[error("the server's answer is not understood: {0}")]
    Answer(&'static str),
    /// A defect of ours.
    #[error("{0}")]
    Bug(&'static str),
}

/// An error that the server answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The reason of google.rpc.ErrorInfo; empty when there is none of our domain.
    pub reason: String,
    /// The text for people, made harmless for a terminal.
    pub message: String,
    /// How long the server asks to wait before trying again; `None` when trying again does not help.
    pub retry_delay: Option<Duration>,
    /// Which fields are wrong, and why.
    pub violations: Vec<(String, String)>,
    /// The id of the audit record, when the server gave one.
    pub event_id: Option<String>,
}

/// The metadata key under which the server returns the id of the audit record.
pub const EVENT_ID_METADATA: &str = "holdfast-event-id";

impl Refusal {
    /// Reads the details of a status.
    pub fn of(status: &Status) -> Self {
        let reason = status
            .get_details_error_info()
            .filter(|info| info.domain == ERROR_DOMAIN)
            .map(|info| harmless(&info.reason));
        let violations = status.get_details_bad_request().map(|bad| bad.field_violations);
        let event_id = status.metadata().get(EVENT_ID_METADATA);
        Self {
            code: status.code(),
            reason: reason.unwrap_or_default(),
            message: harmless(status.message()),
            retry_delay: status.get_details_retry_info().and_then(|retry| retry.retry_delay),
            violations: violations
                .unwrap_or_default()
                .into_iter()
                .map(|violation| (harmless(&violation.field), harmless(&violation.description)))
                .collect(),
            event_id: event_id.and_then(|id| id.to_str().ok()).map(harmless),
        }
    }
}

impl ClientError {
    /// Sorts a status from `server`: a broken connection, or an answer. Only what happened on our side of the wire has
    /// a cause below it.
    pub fn of(status: &Status, server: &str, timeout: Duration) -> Self {
        let Some(source) = status.source() else {
            return Self::Refused(Box::new(Refusal::of(status)));
        };
        if is_timeout(source) {
            return Self::Timeout(timeout);
        }
        Self::Connect { server: server.to_owned(), failure: ConnectFailure::find(source) }
    }

    /// Returns how long to wait before the same call may succeed; `None` when repeating it does not help.
    pub fn retry_delay(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_delay,
            Self::Connect { failure, .. } => match failure {
                ConnectFailure::Network(_) => Some(Duration::ZERO),
                ConnectFailure::Timeout(_)
                | ConnectFailure::ServerCertificate(_)
                | ConnectFailure::ClientCertificate(_)
                | ConnectFailure::Tls(_)
                | ConnectFailure::NotHttp2 => None,
            },
            Self::Credentials(_) | Self::Timeout(_) | Self::Answer(_) | Self::Bug(_) => None,
        }
    }
}

/// The channel wraps what says that time is over, once or more.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, FieldViolation};

    #[test]
    fn reason_delay_and_fields_are_read_from_the_details() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("HSM_SATURATED", ERROR_DOMAIN, std::collections::HashMap::new())
            .set_retry_info(Some(Duration::from_millis(250)))
            .set_bad_request(vec![FieldViolation::new("key", "too\nlong")]);
        let status =
            Status::with_error_details(Code::ResourceExhausted, "queue\x1b is full", details);
        let refusal = Refusal::of(&status);
        assert_eq!(refusal.reason, "HSM_SATURATED");
        assert_eq!(refusal.retry_delay, Some(Duration::from_millis(250)));
        assert_eq!(refusal.violations, [("key".to_owned(), "too\u{fffd}long".to_owned())]);
        assert_eq!(refusal.message, "queue\u{fffd} is full");
    }

    #[test]
    fn a_reason_of_another_domain_is_not_ours() {
        let mut details = ErrorDetails::new();
        details.set_error_info("KEY_NOT_FOUND", "example.com", std::collections::HashMap::new());
        let status = Status::with_error_details(Code::NotFound, "", details);
        assert_eq!(Refusal::of(&status).reason, "");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn a_call_that_takes_too_long_is_no_missing_connection_however_deep_that_is_said() {
        for depth in 0..3 {
            let mut cause: Box<dyn Error + Send + Sync> = Box::new(tonic::TimeoutExpired(()));
            for _ in 0..depth {
                cause = Box::new(Wrapped(cause));
            }
            let mut status = Status::unknown("");
            status.set_source(std::sync::Arc::from(cause));
            let error = ClientError::of(&status, "https://a:1", Duration::from_secs(2));
            assert!(matches!(error, ClientError::Timeout(_)), "{depth}: {error:?}");
        }
    }

    #[test]
    fn only_what_the_server_or_the_network_calls_retryable_is_retried() {
        let of = |status| ClientError::of(&status, "https://a:1", Duration::ZERO);
        let denied = of(Status::permission_denied("no"));
        assert_eq!(denied.retry_delay(), None);
        let reset = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(of(reset).retry_delay(), Some(Duration::ZERO));
    }
}

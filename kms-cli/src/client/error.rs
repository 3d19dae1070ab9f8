//! What can go wrong between us and the server, and what the server refused.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use kms_core::id::RequestId;
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
    /// A change was asked for, and no answer says whether it was made.
    #[error("{cause}; the change may have been made")]
    Unanswered {
        /// How to ask again without a second change.
        repeat: Repeat,
        /// Why there is no answer.
        cause: Box<ClientError>,
    },
    /// The server's answer is not what the contract says.
    #[error("the server's answer is not understood: {0}")]
    Answer(&'static str),
    /// A defect of ours.
    #[error("{0}")]
    Bug(&'static str),
}

/// What makes a command that asks for a change again the same request: the server knows it by its id, and takes it only
/// with the fields of the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The id.
    pub request_id: RequestId,
    /// The revision that was changed, where the request names one.
    pub revision: Option<u64>,
}

impl fmt::Display for Repeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--request-id {}", self.request_id)?;
        self.revision.map_or(Ok(()), |revision| write!(f, " --revision {revision}"))
    }
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
            let refusal = Refusal::of(status);
            // The other side keeps the time that we gave it, too, and may be the first to say that it is over.
            if refusal.reason.is_empty() && refusal.message == tonic::TimeoutExpired(()).to_string()
            {
                return Self::Timeout(timeout);
            }
            return Self::Refused(Box::new(refusal));
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
                | ConnectFailure::ServerCertificateTime(_)
                | ConnectFailure::ClientCertificate(_)
                | ConnectFailure::Tls(_)
                | ConnectFailure::NotHttp2 => None,
            },
            Self::Unanswered { cause, .. } => cause.retry_delay(),
            Self::Credentials(_) | Self::Timeout(_) | Self::Answer(_) | Self::Bug(_) => None,
        }
    }

    /// Says whether a call that was sent may have been done all the same. A Holdfast server gives its reason for what it
    /// did not do; whatever else answers in its place knows nothing of it.
    pub fn leaves_open(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Unanswered { .. } => true,
            // A connection that is opened anew and fails in TLS carried nothing.
            Self::Connect { failure, .. } => matches!(failure, ConnectFailure::Network(_)),
            Self::Refused(refusal) => match refusal.reason.as_str() {
                "OUTCOME_UNKNOWN" | "OPERATION_IN_PROGRESS" => true,
                "" => matches!(
                    refusal.code,
                    Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Unknown
                ),
                _ => false,
            },
            Self::Credentials(_) | Self::Answer(_) | Self::Bug(_) => false,
        }
    }

    /// Returns the failure itself, without what [`ClientError::Unanswered`] says of it.
    pub fn failure(&self) -> &Self {
        match self {
            Self::Unanswered { cause, .. } => cause.failure(),
            _ => self,
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

    #[test]
    fn a_server_that_is_the_first_to_see_that_time_is_over_tells_of_the_same() {
        let of = |status| ClientError::of(&status, "https://a:1", Duration::from_secs(2));
        let over = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        let over = Status::new(over.code(), over.message());
        assert!(matches!(of(over), ClientError::Timeout(_)));
        assert!(matches!(of(Status::cancelled("by hand")), ClientError::Refused(_)));
    }

    #[test]
    fn only_what_has_no_answer_of_a_holdfast_server_is_left_open() {
        let of = |code, reason| {
            let mut details = ErrorDetails::new();
            details.set_error_info(reason, ERROR_DOMAIN, std::collections::HashMap::new());
            let status = Status::with_error_details(code, "", details);
            ClientError::of(&status, "https://a:1", Duration::ZERO).leaves_open()
        };
        assert!(of(Code::Unavailable, "OUTCOME_UNKNOWN"));
        assert!(of(Code::Aborted, "OPERATION_IN_PROGRESS"));
        assert!(of(Code::Unavailable, "") && of(Code::Cancelled, ""), "a proxy, or a channel");
        assert!(!of(Code::Unavailable, "HSM_UNAVAILABLE") && !of(Code::PermissionDenied, ""));
        assert!(ClientError::Timeout(Duration::ZERO).leaves_open());
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

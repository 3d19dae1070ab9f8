//! Exit codes: the one table, shown by `kms --help` and docs/cli.md, and the map from a server's reasons to it.

use std::fmt::Write as _;

use tonic::Code;

/// How the process ends. The numbers are part of the interface: scripts branch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exit {
    /// Done.
    Success,
    /// A defect of ours, here or in the server.
    Bug,
    /// The command line is wrong.
    Usage,
    /// Not permitted, or not known to the server as anyone.
    Denied,
    /// No such key, version, or context.
    NotFound,
    /// A field or a ciphertext that cannot be right.
    BadInput,
    /// The key or version is in another state than the operation needs, or exists already.
    Precondition,
    /// Not now: busy, unavailable, or too slow; the same call may succeed later.
    Unavailable,
    /// Stored data or key material is not what it was: tell the operators.
    Integrity,
    /// No connection: network, TLS, certificates.
    Connection,
    /// A local file, context, certificate or key cannot be used.
    Local,
    /// The token or the server cannot do this.
    Unsupported,
    /// Done, except for items that failed and were left as they were.
    Partial,
    /// Interrupted by SIGINT or SIGTERM; no file is half written. What standard output was given stays given.
    Interrupted,
    /// Whoever read our output stopped reading.
    BrokenPipe,
}

impl Exit {
    /// Every code, in order.
    pub const ALL: [Self; 15] = [
        Self::Success,
        Self::Bug,
        Self::Usage,
        Self::Denied,
        Self::NotFound,
        Self::BadInput,
        Self::Precondition,
        Self::Unavailable,
        Self::Integrity,
        Self::Connection,
        Self::Local,
        Self::Unsupported,
        Self::Partial,
        Self::Interrupted,
        Self::BrokenPipe,
    ];

    /// Returns the number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Bug => 1,
            Self::Usage => 2,
            Self::Denied => 3,
            Self::NotFound => 4,
            Self::BadInput => 5,
            Self::Precondition => 6,
            Self::Unavailable => 7,
            Self::Integrity => 8,
            Self::Connection => 9,
            Self::Local => 10,
            Self::Unsupported => 11,
            Self::Partial => 12,
            Self::Interrupted => 130,
            Self::BrokenPipe => 141,
        }
    }

    /// Returns what the number means, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "done",
            Self::Bug => "a defect, here or in the server",
            Self::Usage => "the command line is wrong",
            Self::Denied => "not permitted, or not authenticated",
            Self::NotFound => "no such key, version or context",
            Self::BadInput => "bad input, or a ciphertext that does not open",
            Self::Precondition => "wrong state, exists already, or changed meanwhile",
            Self::Unavailable => "unavailable or busy; try again later",
            Self::Integrity => "integrity alarm: stored keys or data were changed",
            Self::Connection => "no connection: network or TLS",
            Self::Local => "a local file, context, certificate or key cannot be used",
            Self::Unsupported => "the server or its token cannot do this",
            Self::Partial => "done, except for items that failed and were left as they were",
            Self::Interrupted => "interrupted; no file is half written",
            Self::BrokenPipe => "the reader of the output went away",
        }
    }

    /// Says how a refused call ends the process: by its reason, and where that says nothing new by its gRPC code.
    pub fn of_refusal(reason: &str, code: Code) -> Self {
        match reason {
            "ACCESS_DENIED" | "CERT_UNTRUSTED" | "TOKEN_EXPIRED" | "MFA_REQUIRED"
            | "QUORUM_REQUIRED" => Self::Denied,
            "FIELD_VIOLATION" | "CIPHERTEXT_INVALID" | "ENVELOPE_UNSUPPORTED" => Self::BadInput,
            "KEY_NOT_FOUND" | "VERSION_NOT_FOUND" | "ALIAS_NOT_FOUND" | "IMPORT_JOB_NOT_FOUND" => {
                Self::NotFound
            }
            "KEY_INTEGRITY" => Self::Integrity,
            "MECHANISM_UNSUPPORTED" => Self::Unsupported,
            "HSM_UNAVAILABLE" | "HSM_SATURATED" | "SEALED" | "AUDIT_UNAVAILABLE"
            | "TENANT_QUOTA" | "QUEUE_DEADLINE" | "HSM_DEADLINE" => Self::Unavailable,
            _ => Self::of_code(code),
        }
    }

    /// Says how a gRPC code ends the process.
    pub const fn of_code(code: Code) -> Self {
        match code {
            Code::Ok => Self::Success,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::NotFound => Self::NotFound,
            Code::InvalidArgument | Code::OutOfRange => Self::BadInput,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Self::Precondition,
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Cancelled => Self::Unavailable,
            Code::DataLoss => Self::Integrity,
            Code::Unimplemented => Self::Unsupported,
            Code::Unknown | Code::Internal => Self::Bug,
        }
    }
}

/// Writes the table, one line a code.
pub fn table() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        let _ = writeln!(text, "  {:>3}  {}", exit.code(), exit.meaning());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ends_share_a_number() {
        let mut codes = Exit::ALL.map(Exit::code).to_vec();
        codes.dedup();
        assert_eq!(codes.len(), Exit::ALL.len());
        assert!(codes.is_sorted());
    }

    #[test]
    fn the_table_in_the_docs_is_the_one_of_the_program() {
        let docs = include_str!("../../docs/cli.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", exit.code(), exit.meaning());
            assert!(docs.contains(&row), "docs/cli.md lacks: {row}");
        }
    }

    #[test]
    fn reasons_win_over_codes_and_unknown_reasons_fall_back() {
        let cases = [
            ("CIPHERTEXT_INVALID", Code::InvalidArgument, Exit::BadInput),
            ("KEY_INTEGRITY", Code::DataLoss, Exit::Integrity),
            ("HSM_SATURATED", Code::ResourceExhausted, Exit::Unavailable),
            ("VERSION_SUSPENDED", Code::FailedPrecondition, Exit::Precondition),
            ("", Code::Unauthenticated, Exit::Denied),
            ("", Code::Internal, Exit::Bug),
            ("", Code::Unimplemented, Exit::Unsupported),
        ];
        for (reason, code, exit) in cases {
            assert_eq!(Exit::of_refusal(reason, code), exit, "{reason} {code:?}");
        }
    }
}

//! One trial after another, each a row; and the throw-away objects that trials use.

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use kms_core::clock::Clock;

use crate::doctor::connect::code;
use crate::doctor::report::{Need, Row, Verdict};
use crate::pkcs11::ckr::refuses;

/// Why a trial did not end well.
#[derive(Debug)]
pub(super) enum Finding {
    /// A call failed.
    Call(Error),
    /// The calls succeeded, but what they gave is wrong.
    Wrong(String),
}

impl From<Error> for Finding {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl Finding {
    /// Makes a finding from words.
    pub(super) fn wrong(what: &str) -> Self {
        Self::Wrong(what.to_owned())
    }

    fn text(&self) -> String {
        match self {
            Self::Call(error) => code(error),
            Self::Wrong(what) => what.clone(),
        }
    }
}

/// What a trial says when it went well.
pub(super) type Seen = Result<String, Finding>;

/// What a trial is about.
#[derive(Clone, Copy)]
pub(super) struct Trial {
    /// What is tried.
    pub(super) what: &'static str,
    /// Whether we can do without.
    pub(super) need: Need,
    /// What it means when it went well.
    pub(super) good: &'static str,
    /// What it means when it did not.
    pub(super) bad: &'static str,
}

/// A logged-in session to try things on, and the rows so far.
pub(super) struct Probe<'a> {
    pub(super) session: &'a Session,
    pub(super) clock: &'a dyn Clock,
    rows: Vec<Row>,
}

impl<'a> Probe<'a> {
    /// Starts without rows.
    pub(super) fn new(session: &'a Session, clock: &'a dyn Clock) -> Self {
        Self { session, clock, rows: Vec::new() }
    }

    /// Ends with all rows.
    pub(super) fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// Tries something and keeps the row.
    pub(super) fn attempt(&mut self, trial: Trial, body: impl FnOnce(&Session) -> Seen) {
        let seen = body(self.session);
        self.record(trial, seen);
    }

    /// Keeps the row of something that was tried.
    pub(super) fn record(&mut self, trial: Trial, seen: Seen) {
        let Trial { what, need, good, bad } = trial;
        let row = match seen {
            Ok(result) => Row { what, need, verdict: Verdict::Good, result, meaning: good },
            Err(finding) => {
                Row { what, need, verdict: Verdict::Bad, result: finding.text(), meaning: bad }
            }
        };
        self.rows.push(row);
    }
}

/// A session object that is destroyed when the trial is over, whatever its end.
pub(super) struct Throwaway<'a> {
    session: &'a Session,
    pub(super) handle: ObjectHandle,
}

impl<'a> Throwaway<'a> {
    /// Takes charge of an object.
    pub(super) fn of(session: &'a Session, handle: ObjectHandle) -> Self {
        Self { session, handle }
    }

    /// Generates an AES-256 session key with what `template` adds.
    pub(super) fn aes(session: &'a Session, template: &[Attribute]) -> Result<Self, Error> {
        let mut whole = vec![
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::ValueLen(32.into()),
        ];
        whole.extend_from_slice(template);
        let handle = session.generate_key(&Mechanism::AesKeyGen, &whole)?;
        Ok(Self::of(session, handle))
    }

    /// Imports a public pattern as a session key of `key_type` with what `template` adds.
    pub(super) fn import(
        session: &'a Session,
        key_type: KeyType,
        value: &[u8],
        template: &[Attribute],
    ) -> Result<Self, Error> {
        let mut whole = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(key_type),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Value(value.to_vec()),
        ];
        whole.extend_from_slice(template);
        Ok(Self::of(session, session.create_object(&whole)?))
    }
}

impl Drop for Throwaway<'_> {
    fn drop(&mut self) {
        // A session object dies with the session at the latest.
        let _ = self.session.destroy_object(self.handle);
    }
}

/// Turns "this must fail" around, where the input is at fault: any code of the module is what we want to see.
pub(super) fn fails<T>(outcome: Result<T, Error>, otherwise: &str) -> Seen {
    match outcome {
        Err(error @ Error::Pkcs11(..)) => Ok(format!("refused: {}", code(&error))),
        Err(other) => Err(Finding::Call(other)),
        Ok(_) => Err(Finding::wrong(otherwise)),
    }
}

/// Turns "this must be refused" around: a refusal by the object or its policy is what we want to see.
pub(super) fn refused<T>(outcome: Result<T, Error>, otherwise: &str) -> Seen {
    match outcome {
        Err(error) if refuses(&error) => Ok(format!("refused: {}", code(&error))),
        // Neither done nor refused: the input was looked at, or the call is not there.
        Err(error) => Err(Finding::Call(error)),
        Ok(_) => Err(Finding::wrong(otherwise)),
    }
}

//! The lane of slow calls: one thread that generates the RSA key pairs of import jobs, seconds each, beside everybody else.
//!
//! It opens a session for each job and closes it within its epoch. It makes token objects only, which are everybody's and
//! belong to no session; whatever it leaves behind by failing, the keeper destroys for whoever asked.

use std::sync::Arc;
use std::time::Instant;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use kms_core::domain;
use kms_core::import::{RsaSize, public_key_der};

use crate::error::HsmError;
use crate::hsm::ImportKeySpec;
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::durable::sync_tree;
use crate::pkcs11::gate::{Live, Refused};
use crate::pkcs11::job::{Answer, Reply};
use crate::pkcs11::keeper::probe::{decryption_is_refused, refused};
use crate::pkcs11::mechanism::{oaep, oaep_name};
use crate::pkcs11::shared::Shared;
use crate::pkcs11::template;
use crate::pkcs11::token;

/// Jobs that may wait for the lane: the last of them waits some ten seconds on SoftHSM.
pub(crate) const LANE_QUEUE: usize = 8;

/// The RSA mechanism that makes keys, for those whose token lacks it.
const KEY_PAIR_GEN: &str = "CKM_RSA_PKCS_KEY_PAIR_GEN";

/// What the lane takes from its queue.
#[derive(Debug)]
pub(crate) enum LaneTicket {
    /// A key pair to make.
    Generate { spec: ImportKeySpec, reply: Reply, deadline: Instant },
    /// The lane ends.
    Stop,
}

/// Serves until it is told to stop.
pub(crate) fn run(shared: &Arc<Shared>) {
    while let Ok(LaneTicket::Generate { spec, reply, deadline }) = shared.lane_out.recv() {
        serve(shared, &spec, reply, deadline);
    }
}

fn serve(shared: &Shared, spec: &ImportKeySpec, reply: Reply, deadline: Instant) {
    let now = shared.now();
    if now >= deadline {
        return reply.fail(HsmError::QueueDeadline);
    }
    if let Err(error) = shared.health.check_taken(|| now) {
        return reply.fail(error);
    }
    let inside = match shared.gate.enter(deadline, &*shared.clock) {
        Ok(inside) => inside,
        Err(Refused::Deadline) => return reply.fail(HsmError::QueueDeadline),
        Err(Refused::NotLive) => {
            shared.trouble("not connected");
            return reply.fail(shared.unavailable("not connected"));
        }
    };
    shared.lane_seat.begin(Some(reply), deadline, now);
    let made = in_session(shared, &inside.live, spec);
    drop(inside);
    let made = made.map(Answer::PublicKey).map_err(|failure| give_up(shared, failure));
    if let Some(reply) = shared.lane_seat.finish() {
        reply.send(made, None);
    }
}

fn in_session(shared: &Shared, live: &Live, spec: &ImportKeySpec) -> Result<Vec<u8>, Failure> {
    let session = live.context.open_rw_session_no_drop(live.slot)?;
    let made = generate(shared, &session, spec);
    let made = made.map_err(|failure| settle(&session, live, failure));
    if let Err(error) = session.close() {
        tracing::warn!(%error, "closing the session of the lane");
    }
    made
}

/// An ambiguous failure while a root still works is the job's own: most likely there was no room.
fn settle(session: &Session, live: &Live, failure: Failure) -> Failure {
    let Failure::Ambiguous(detail) = failure else { return failure };
    let mut roots = live.roots.values();
    let sings = roots
        .next()
        .is_some_and(|root| token::mac(session, root.mac, domain::ROOT_MAC_CHECK).is_ok());
    if !sings {
        return Failure::Device(detail);
    }
    let detail = format!("{detail}, while the roots answer: the token's storage may be full");
    Failure::Answer(HsmError::TokenFull { detail })
}

fn give_up(shared: &Shared, failure: Failure) -> HsmError {
    match failure {
        Failure::Answer(error) => error,
        Failure::Latch(reason) => {
            shared.health.latch(&reason);
            HsmError::Latched { reason }
        }
        other => {
            let detail = other.detail();
            shared.trouble(&detail);
            shared.unavailable(&detail)
        }
    }
}

fn generate(shared: &Shared, session: &Session, spec: &ImportKeySpec) -> Result<Vec<u8>, Failure> {
    let public = template::import_public(spec.size);
    let private = template::import_private(spec.id);
    let made = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private);
    let (public, private) = made.map_err(|error| unless_missing(error, KEY_PAIR_GEN))?;
    let tried = examine(session, spec, public, private);
    if let Err(error) = session.destroy_object(public) {
        tracing::warn!(%error, "destroying the public key of an import job");
    }
    let durable = tried.and_then(|der| match &shared.config.token_dir {
        Some(directory) => sync_tree(directory).map(|()| der).map_err(Failure::Answer),
        None => Ok(der),
    });
    durable.inspect_err(|_| {
        if let Err(error) = session.destroy_object(private) {
            tracing::error!(%error, "the key of a failed import job could not be destroyed");
        }
    })
}

/// Reads both keys back, tries what they must do, and what the private one must not.
fn examine(
    session: &Session,
    spec: &ImportKeySpec,
    public: ObjectHandle,
    private: ObjectHandle,
) -> Result<Vec<u8>, Failure> {
    let der = read_public(session, spec.size, public)?;
    let (types, expected) = template::expected_import_private(spec.id);
    let found = session.get_attributes(private, &types)?;
    if let Some(missing) = expected.iter().find(|attribute| !found.contains(attribute)) {
        let detail = format!("the token made the key of an import job without {missing:?}");
        return Err(Failure::Answer(HsmError::KeyIntegrity { detail }));
    }
    let mechanism = oaep(spec.hash);
    let trial = session.create_object(&template::import_trial())?;
    let wrapped = session.wrap_key(&mechanism, public, trial);
    session.destroy_object(trial)?;
    let wrapped = wrapped.map_err(|error| unless_missing(error, oaep_name(spec.hash)))?;
    if wrapped.len() != spec.size.bytes() {
        return Err(Failure::lie("C_WrapKey gave another length"));
    }
    let opened = session.unwrap_key(&mechanism, private, &wrapped, &template::import_kek());
    let opened = opened.map_err(|error| unless_missing(error, oaep_name(spec.hash)))?;
    session.destroy_object(opened)?;
    decryption_is_refused(session, "the key of an import job", private, (&mechanism, &wrapped))?;
    let signed = session.sign(&Mechanism::RsaPkcs, private, b"probe");
    refused("C_Sign with the key of an import job", signed)?;
    Ok(der)
}

fn read_public(session: &Session, size: RsaSize, public: ObjectHandle) -> Result<Vec<u8>, Failure> {
    let types = [AttributeType::Modulus, AttributeType::PublicExponent];
    let found = session.get_attributes(public, &types)?;
    let [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)] = found.as_slice()
    else {
        return Err(Failure::lie("an RSA public key without its numbers"));
    };
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let digits = modulus.get(zeros..).unwrap_or_default();
    let whole = digits.len() == size.bytes() && digits.first().is_some_and(|first| *first >= 0x80);
    let mut odd = exponent.iter().skip_while(|byte| **byte == 0);
    if !whole || !odd.by_ref().eq(template::RSA_EXPONENT.iter()) {
        return Err(Failure::lie("an RSA public key of another size or exponent"));
    }
    Ok(public_key_der(digits, exponent))
}

/// Tells a token that does not have a mechanism from one that fails.
fn unless_missing(error: Error, mechanism: &'static str) -> Failure {
    match error {
        Error::Pkcs11(
            RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::FunctionNotSupported
            // SoftHSM 2.6.1, of any hash but SHA-1.
            | RvError::ArgumentsBad,
            _,
        ) => Failure::Answer(HsmError::MechanismMissing { mechanism }),
        other => other.into(),
    }
}

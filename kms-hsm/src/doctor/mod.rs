//! The doctor: finds out what a token really can do, and what that means for us.
//!
//! Tries mechanisms with throw-away session objects instead of believing C_GetMechanismList, on sessions of its own.
//! Stands beside the request path: the CLI (`kms hsm doctor`) and ceremonies run it before a token is relied upon. It
//! must never create or change a token object, never try a PIN twice, and never run beside a provider in one process:
//! it initialises and finalises the module.

mod asymmetric;
mod capacity;
mod connect;
mod crypto;
mod policy;
mod probe;
mod report;
mod wrap;

use std::path::Path;

use kms_core::clock::Clock;
use kms_core::secret::Pin;

pub use crate::pkcs11::TokenSelector;

pub use report::{
    IvMode, Lane, Latency, ModuleFacts, Need, Refusal, Report, Row, TokenFacts, Verdict,
};

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DoctorError {
    /// The module cannot be loaded or initialised.
    #[error("the module `{module}` cannot be used: {detail}")]
    ModuleUnusable {
        /// Path of the module.
        module: String,
        /// What the loader or the module said.
        detail: String,
    },
    /// No token fits the selection.
    #[error("no token fits; there are: {present}")]
    TokenMissing {
        /// Labels and serial numbers of the tokens that are there.
        present: String,
    },
    /// Several tokens fit the selection.
    #[error("several tokens fit, choose one by its serial number: {present}")]
    TokenAmbiguous {
        /// Labels and serial numbers of the tokens that fit.
        present: String,
    },
    /// The token refused the PIN. It was tried once and is not tried again.
    #[error("the token refused the PIN; it was tried once")]
    PinRefused,
    /// The PIN is locked.
    #[error("the user PIN is locked; the security officer must unlock it")]
    PinLocked,
    /// One more wrong PIN would lock it: the doctor does not take that risk.
    #[error("the token allows one last try of the PIN; the doctor does not take it")]
    PinFinalTry,
    /// A call failed without which there is nothing to examine.
    #[error("{call} failed: {code}")]
    Call {
        /// What was called.
        call: &'static str,
        /// The code, `CKR_...`.
        code: String,
    },
}

/// Examines the token. Takes a second or two, and logs in once.
///
/// Without `token` the module must hold exactly one initialised token. A report with failed rows is still `Ok`: ask
/// [`Report::refusal`].
pub fn examine(
    module: &Path,
    token: Option<&TokenSelector>,
    pin: &Pin,
    clock: &dyn Clock,
) -> Result<Report, DoctorError> {
    let opened = connect::Opened::open(module)?;
    let report = opened.select(token).and_then(|slot| examine_slot(&opened, slot, pin, clock));
    // What was found counts, also when the module does not end well; only our own sessions were open.
    opened.finalize();
    report
}

fn examine_slot(
    opened: &connect::Opened,
    slot: cryptoki::slot::Slot,
    pin: &Pin,
    clock: &dyn Clock,
) -> Result<Report, DoctorError> {
    let (session, token) = opened.log_in(slot, pin)?;
    let mut probe = probe::Probe::new(&session, clock);
    let sessions = capacity::sessions(&mut probe, opened, slot);
    crypto::random(&mut probe);
    let (iv_mode, tag_failure) = crypto::gcm(&mut probe);
    crypto::hmac(&mut probe);
    wrap::key_wrap(&mut probe);
    policy::templates(&mut probe);
    wrap::unwrap_template(&mut probe);
    asymmetric::signatures(&mut probe);
    asymmetric::oaep(&mut probe);
    let latencies = capacity::latencies(&mut probe);
    let lanes = capacity::lanes(&mut probe, opened, slot, sessions);
    let recommended_workers = capacity::recommend(&lanes, sessions);
    let rows = probe.into_rows();
    session.close().map_err(|error| connect::call_failed("C_CloseSession", &error))?;
    Ok(Report {
        module: opened.facts()?,
        token,
        rows,
        iv_mode,
        tag_failure,
        max_sessions: sessions,
        latencies,
        lanes,
        recommended_workers,
    })
}

//! Authorization: may this principal do this, here?
//!
//! Stands between authn and service. Responsible for the seam [`Policy`] and for [`Permit`], the proof that policy was
//! asked and said yes: its fields are private, so nothing else can make one, and the keyring asks for it. Default is
//! deny. It must never look at state or key material.

mod action;
mod permit;
mod static_policy;
#[cfg(test)]
mod suite;

pub use action::*;
pub use permit::{Denied, Permit, Target, authorize};
pub use static_policy::{GrantConfig, InvalidPolicy, MAX_GRANTS, StaticPolicy};

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use kms_core::context::EncryptionContext;
use kms_core::name::{KeyName, TenantName};

use crate::authn::Principal;

/// Ids of the policies that decided. Shared, so that a decision allocates nothing.
pub type PolicyIds = Arc<[Arc<str>]>;

/// What policy is asked.
#[derive(Clone, Copy, Debug)]
pub struct AuthzRequest<'r> {
    /// Who.
    pub principal: &'r Principal,
    /// From where.
    pub source: SocketAddr,
    /// What.
    pub action: ActionKind,
    /// In which tenant; `None` asks whether in any.
    pub tenant: Option<&'r TenantName>,
    /// On which key, when there is one.
    pub key: Option<&'r KeyName>,
    /// With which encryption context, when there is one.
    pub context: Option<&'r EncryptionContext>,
}

/// What policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, by these policies.
    Allow(PolicyIds),
    /// No: by these policies, or by default when there is none.
    Deny(PolicyIds),
}

/// A policy engine. Implementations: [`StaticPolicy`]; Cedar to come.
pub trait Policy: Send + Sync + fmt::Debug + 'static {
    /// Decides. An engine that cannot decide denies.
    fn decide(&self, request: &AuthzRequest<'_>) -> Decision;

    /// Returns what identifies the policies in force; it changes whenever a decision could.
    fn revision(&self) -> Arc<str>;
}

//! Permits: proofs that policy said yes.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

use kms_core::context::EncryptionContext;
use kms_core::name::{KeyName, TenantName};

use super::{Action, AuthzRequest, Decision, Policy, PolicyIds};
use crate::authn::Principal;

/// What is to be acted on.
#[derive(Clone, Copy, Debug)]
pub struct Target<'r> {
    /// The tenant; `None` means any.
    pub tenant: Option<&'r TenantName>,
    /// The key.
    pub key: Option<&'r KeyName>,
    /// The encryption context.
    pub context: Option<&'r EncryptionContext>,
}

impl<'r> Target<'r> {
    /// Targets a key.
    pub fn key(name: &'r KeyName) -> Self {
        Self { tenant: Some(name.tenant()), key: Some(name), context: None }
    }

    /// Targets a key with an encryption context.
    pub fn crypto(name: &'r KeyName, context: &'r EncryptionContext) -> Self {
        Self { context: Some(context), ..Self::key(name) }
    }

    /// Targets a tenant.
    pub const fn tenant(tenant: &'r TenantName) -> Self {
        Self { tenant: Some(tenant), key: None, context: None }
    }

    /// Targets nothing in particular.
    pub const ANYWHERE: Target<'static> = Target { tenant: None, key: None, context: None };
}

/// The proof that policy allowed action `A` on a target.
///
/// Invariant: only [`authorize`] makes one; there is no other constructor, and the fields are private.
#[derive(Debug)]
pub struct Permit<'r, A: Action> {
    tenant: Option<&'r TenantName>,
    key: Option<&'r KeyName>,
    principal: Arc<str>,
    source: SocketAddr,
    policies: PolicyIds,
    revision: Arc<str>,
    action: PhantomData<A>,
}

impl<'r, A: Action> Permit<'r, A> {
    /// Returns the tenant it is for.
    pub const fn tenant(&self) -> Option<&'r TenantName> {
        self.tenant
    }

    /// Returns the key it is for.
    pub const fn key(&self) -> Option<&'r KeyName> {
        self.key
    }

    /// Returns whom it was given to.
    pub const fn principal(&self) -> &Arc<str> {
        &self.principal
    }

    /// Returns where the request came from.
    pub const fn source(&self) -> SocketAddr {
        self.source
    }

    /// Returns the policies that allowed it.
    pub const fn policies(&self) -> &PolicyIds {
        &self.policies
    }

    /// Returns the revision of the policies.
    pub const fn revision(&self) -> &Arc<str> {
        &self.revision
    }
}

/// Policy said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The policies that denied; none means by default.
    pub policies: PolicyIds,
    /// The revision of the policies.
    pub revision: Arc<str>,
}

/// Asks policy, and turns a yes into a permit.
///
/// # Errors
/// [`Denied`] when policy says no.
pub fn authorize<'r, A: Action>(
    policy: &dyn Policy,
    principal: &Principal,
    source: SocketAddr,
    target: Target<'r>,
) -> Result<Permit<'r, A>, Denied> {
    let Target { tenant, key, context } = target;
    let request = AuthzRequest { principal, source, action: A::KIND, tenant, key, context };
    // Read before deciding: a reload in between then shows as the older revision, never as one not asked.
    let revision = policy.revision();
    match policy.decide(&request) {
        Decision::Allow(policies) => {
            let principal = Arc::clone(&principal.id);
            let action = PhantomData;
            Ok(Permit { tenant, key, principal, source, policies, revision, action })
        }
        Decision::Deny(policies) => Err(Denied { policies, revision }),
    }
}

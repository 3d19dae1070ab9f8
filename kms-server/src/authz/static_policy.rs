//! A policy that is a table in the configuration: principal, tenant, actions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use kms_core::canonical::CanonicalWriter;
use kms_core::domain::POLICY_TABLE;
use kms_core::name::TenantName;
use serde::{Deserialize, Serialize};

use super::{ActionKind, ActionSet, AuthzRequest, Decision, Policy, PolicyIds};
use crate::authn::AuthnMethod;
use crate::authn::x509::{is_host_name, is_spiffe_id};

/// The most grants of a table: more belongs into a policy engine.
pub const MAX_GRANTS: usize = 10_000;
/// What the server may do by itself: roll over what is due, reconcile, and activate or destroy what was planned when its time
/// has come, and take away import jobs that have expired.
const INTERNAL_ACTIONS: [ActionKind; 6] = [
    ActionKind::CancelImportJob,
    ActionKind::RotateKey,
    ActionKind::ActivateKeyVersion,
    ActionKind::ScheduleKeyVersionDestruction,
    ActionKind::ScheduleKeyDestruction,
    ActionKind::RollOverRoot,
];

/// One `[[authz.grants]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantConfig {
    /// SPIFFE id, or DNS name in lower case, exactly as in the certificate.
    pub principal: String,
    /// Bare id of the tenant, without `tenants/`.
    pub tenant: String,
    /// What the principal may do there.
    pub actions: Vec<ActionKind>,
}

/// Why a table is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// More than [`MAX_GRANTS`].
    #[error("more than 10000 grants")]
    TooMany,
    /// The principal is a name that no certificate can have.
    #[error(
        "principal `{principal}` matches no certificate: write a SPIFFE id with a path \
         (`spiffe://example.org/app`), or a DNS name in lower case without wildcard"
    )]
    Principal {
        /// The text.
        principal: String,
    },
    /// The tenant is not a tenant id.
    #[error("tenant `{tenant}` of `{principal}` is not a tenant id")]
    Tenant {
        /// The principal.
        principal: String,
        /// The text.
        tenant: String,
    },
    /// No action.
    #[error("the grant of `{principal}` in tenant `{tenant}` has no actions")]
    NoActions {
        /// The principal.
        principal: String,
        /// The tenant.
        tenant: String,
    },
    /// An action twice.
    #[error("`{principal}` has action `{action}` twice in tenant `{tenant}`")]
    DuplicateAction {
        /// The principal.
        principal: String,
        /// The tenant.
        tenant: String,
        /// The action.
        action: &'static str,
    },
    /// Two grants for one principal and tenant.
    #[error("`{principal}` has two grants in tenant `{tenant}`; merge them")]
    DuplicateGrant {
        /// The principal.
        principal: String,
        /// The tenant.
        tenant: String,
    },
}

#[derive(Debug)]
struct Grant {
    actions: ActionSet,
    ids: PolicyIds,
}

/// Everything one principal may do.
#[derive(Debug, Default)]
struct Holdings {
    tenants: HashMap<TenantName, Grant>,
    anywhere: ActionSet,
}

/// The table, ready for lookups: two hash lookups a decision, no allocation.
#[derive(Debug)]
pub struct StaticPolicy {
    principals: HashMap<Box<str>, Holdings>,
    internal: ActionSet,
    internal_ids: PolicyIds,
    none: PolicyIds,
    revision: Arc<str>,
}

impl StaticPolicy {
    /// Checks a table and makes it ready. Grants get the ids `static-1`, `static-2`, ... in the order of principal, then
    /// tenant; the order in the file does not matter, to ids or to the revision.
    ///
    /// # Errors
    /// The first thing that is wrong; a table is taken whole or not at all.
    pub fn new(table: &[GrantConfig]) -> Result<Self, InvalidPolicy> {
        if table.len() > MAX_GRANTS {
            return Err(InvalidPolicy::TooMany);
        }
        let mut sorted = BTreeMap::new();
        for GrantConfig { principal, tenant, actions } in table {
            // A misspelt principal would be a grant that nobody has, and nobody is told of.
            if !is_spiffe_id(principal) && !is_host_name(principal) {
                return Err(InvalidPolicy::Principal { principal: principal.clone() });
            }
            let text = || (principal.clone(), tenant.clone());
            let name = TenantName::from_id(tenant).map_err(|_| {
                let (principal, tenant) = text();
                InvalidPolicy::Tenant { principal, tenant }
            })?;
            let mut set = ActionSet::default();
            for action in actions {
                if !set.insert(*action) {
                    let (principal, tenant) = text();
                    let action = action.as_str();
                    return Err(InvalidPolicy::DuplicateAction { principal, tenant, action });
                }
            }
            if set.is_empty() {
                let (principal, tenant) = text();
                return Err(InvalidPolicy::NoActions { principal, tenant });
            }
            if sorted.insert((principal.as_str(), name), set).is_some() {
                let (principal, tenant) = text();
                return Err(InvalidPolicy::DuplicateGrant { principal, tenant });
            }
        }
        Ok(Self::from_sorted(sorted))
    }

    fn from_sorted(sorted: BTreeMap<(&str, TenantName), ActionSet>) -> Self {
        let mut canonical = CanonicalWriter::new(POLICY_TABLE).number(sorted.len() as u64);
        let mut principals: HashMap<Box<str>, Holdings> = HashMap::new();
        for (number, ((principal, tenant), actions)) in (1_usize..).zip(sorted) {
            canonical = canonical.text(principal).text(tenant.id());
            for action in ActionKind::ALL.iter().filter(|action| actions.contains(**action)) {
                canonical = canonical.text(action.as_str());
            }
            canonical = canonical.bytes(&[]);
            let holdings = principals.entry(principal.into()).or_default();
            holdings.anywhere.extend(actions);
            let ids = Arc::from([Arc::from(format!("static-{number}"))]);
            holdings.tenants.insert(tenant, Grant { actions, ids });
        }
        let hash = digest(&SHA256, &canonical.finish());
        let mut internal = ActionSet::default();
        for action in INTERNAL_ACTIONS {
            internal.insert(action);
        }
        Self {
            principals,
            internal,
            internal_ids: Arc::from([Arc::from("internal")]),
            none: Arc::from([]),
            revision: data_encoding::HEXLOWER.encode(hash.as_ref()).into(),
        }
    }

    fn grant(&self, request: &AuthzRequest<'_>) -> Option<(ActionSet, &PolicyIds)> {
        match request.principal.method {
            // A certificate cannot say `internal`: the method is set by us, not read from the peer.
            AuthnMethod::Internal => Some((self.internal, &self.internal_ids)),
            AuthnMethod::Mtls => {
                let holdings = self.principals.get(&*request.principal.id)?;
                let Some(tenant) = request.tenant else {
                    return Some((holdings.anywhere, &self.none));
                };
                let grant = holdings.tenants.get(tenant)?;
                Some((grant.actions, &grant.ids))
            }
        }
    }
}

impl Policy for StaticPolicy {
    fn decide(&self, request: &AuthzRequest<'_>) -> Decision {
        match self.grant(request) {
            Some((actions, ids)) if actions.contains(request.action) => {
                Decision::Allow(Arc::clone(ids))
            }
            Some(_) | None => Decision::Deny(Arc::clone(&self.none)),
        }
    }

    fn revision(&self) -> Arc<str> {
        Arc::clone(&self.revision)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::super::suite::policy_suite;
    use super::super::{Permit, Target, Wrap, authorize};
    use super::*;
    use crate::authn::Principal;

    policy_suite!(StaticPolicy::new);

    fn grant(principal: &str, tenant: &str, actions: &[ActionKind]) -> GrantConfig {
        GrantConfig {
            principal: principal.into(),
            tenant: tenant.into(),
            actions: actions.to_vec(),
        }
    }

    fn mtls(id: &str) -> Principal {
        Principal { id: id.into(), method: AuthnMethod::Mtls }
    }

    fn here() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 1).into()
    }

    fn tenant(id: &str) -> TenantName {
        TenantName::from_id(id).unwrap()
    }

    #[test]
    fn a_permit_tells_what_it_is_for_and_by_which_policy() {
        let policy = StaticPolicy::new(&[
            grant("b", "t", &[ActionKind::Wrap]),
            grant("a", "t", &[ActionKind::Wrap]),
        ])
        .unwrap();
        let tenant = tenant("t");
        let permit: Permit<'_, Wrap> =
            authorize(&policy, &mtls("b"), here(), Target::tenant(&tenant)).unwrap();
        assert_eq!(permit.tenant(), Some(&tenant));
        assert_eq!(permit.policies().iter().map(|id| &**id).collect::<Vec<_>>(), ["static-2"]);
        assert_eq!(permit.revision(), &policy.revision());
    }

    #[test]
    fn the_revision_follows_the_content_and_not_the_order() {
        let (a, b) = (grant("a", "t", &[ActionKind::Wrap]), grant("b", "t", &[ActionKind::Wrap]));
        let revision = |table: &[GrantConfig]| StaticPolicy::new(table).unwrap().revision();
        assert_eq!(revision(&[a.clone(), b.clone()]), revision(&[b.clone(), a.clone()]));
        assert_ne!(revision(&[a.clone(), b]), revision(&[a]));
        assert_eq!(revision(&[]).len(), 64);
    }

    #[test]
    fn bad_tables_are_refused_each_with_its_error() {
        let wrap = [ActionKind::Wrap];
        let refused = |table: &[GrantConfig]| StaticPolicy::new(table).unwrap_err();
        assert!(matches!(refused(&[grant("a", "T", &wrap)]), InvalidPolicy::Tenant { .. }));
        assert!(matches!(refused(&[grant("a", "t", &[])]), InvalidPolicy::NoActions { .. }));
        let twice = [ActionKind::Wrap, ActionKind::Wrap];
        assert!(matches!(
            refused(&[grant("a", "t", &twice)]),
            InvalidPolicy::DuplicateAction { .. }
        ));
        let two = [grant("a", "t", &wrap), grant("a", "t", &[ActionKind::Unwrap])];
        assert!(matches!(refused(&two), InvalidPolicy::DuplicateGrant { .. }));
    }

    #[test]
    fn a_principal_that_a_certificate_can_name_is_taken_and_another_refused() {
        let take = |principal: &str| {
            StaticPolicy::new(&[grant(principal, "t", &[ActionKind::Wrap])]).map(drop)
        };
        let longest = format!("spiffe://td/{}", "p".repeat(2048 - 12));
        for principal in ["spiffe://td/a", "host.example", "host", &longest] {
            assert_eq!(take(principal), Ok(()), "{principal}");
        }
        let too_long = format!("{longest}p");
        let never = ["", "spiffe://td", "https://td/a", "Host.example", "*.example", "CN=a"];
        for principal in never.into_iter().chain([too_long.as_str()]) {
            let refused = InvalidPolicy::Principal { principal: principal.to_owned() };
            assert_eq!(take(principal), Err(refused));
        }
    }

    #[test]
    fn ten_thousand_grants_are_taken_and_one_more_refused() {
        let table = |n: usize| -> Vec<_> {
            (0..n).map(|i| grant(&format!("p{i}"), "t", &[ActionKind::Wrap])).collect()
        };
        assert!(StaticPolicy::new(&table(MAX_GRANTS)).is_ok());
        assert_eq!(StaticPolicy::new(&table(MAX_GRANTS + 1)).unwrap_err(), InvalidPolicy::TooMany);
    }

    #[test]
    fn unknown_actions_and_fields_do_not_parse() {
        let parse = toml::from_str::<GrantConfig>;
        assert!(parse("principal='a'\ntenant='t'\nactions=['wrap','wrap_pinned']").is_ok());
        assert!(parse("principal='a'\ntenant='t'\nactions=['wrp']").is_err());
        assert!(parse("principal='a'\ntenant='t'\nactions=['wrap']\nkeys=['*']").is_err());
    }
}

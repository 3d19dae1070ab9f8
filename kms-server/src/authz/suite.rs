//! The conformance suite: everything that is true of every [`Policy`].
//!
//! `policy_suite!(make)` makes one test of each function; `make` is a function that gives a policy in which exactly these
//! grants are made. A new function needs its name in the macro's list.

use std::net::{Ipv4Addr, SocketAddr};

use kms_core::name::TenantName;

use super::{
    ActionKind, ActivateKeyVersion, AuthzRequest, Decision, DiscardKeyVersion, GrantConfig, Policy,
    RotateKey, ScheduleKeyVersionDestruction, Target, Unwrap, Wrap, authorize,
};
use crate::authn::{AuthnMethod, Principal};

/// Makes a policy.
pub(super) type Make<'m> = &'m dyn Fn(&[GrantConfig]) -> Box<dyn Policy>;

/// Makes a test of each case for one engine.
macro_rules! policy_suite {
    ($make:expr) => {
        policy_suite!(@cases $make;
            anywhere_is_the_union_of_all_tenants,
            each_action_is_allowed_when_granted_and_denied_when_not,
            grants_in_two_tenants_do_not_mix,
            the_revision_stays_with_the_grants_and_changes_with_them,
            the_server_itself_may_do_what_is_due_and_a_certificate_named_internal_may_not,
            without_grants_everything_is_denied,
        );
    };
    (@cases $make:expr; $($name:ident),+ $(,)?) => {
        mod conformance {
            use super::*;

            $(
                #[test]
                fn $name() {
                    $crate::authz::suite::$name(&|grants| Box::new($make(grants).unwrap()));
                }
            )+
        }
    };
}
pub(super) use policy_suite;

fn grant(principal: &str, tenant: &str, actions: &[ActionKind]) -> GrantConfig {
    GrantConfig { principal: principal.into(), tenant: tenant.into(), actions: actions.to_vec() }
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

/// Asks for one action, in a tenant or in any.
fn allows(policy: &dyn Policy, who: &Principal, action: ActionKind, place: Option<&str>) -> bool {
    let tenant = place.map(tenant);
    let request = AuthzRequest {
        principal: who,
        source: here(),
        action,
        tenant: tenant.as_ref(),
        key: None,
        context: None,
    };
    matches!(policy.decide(&request), Decision::Allow(_))
}

pub(super) fn each_action_is_allowed_when_granted_and_denied_when_not(make: Make<'_>) {
    for action in ActionKind::ALL {
        let others: Vec<_> = ActionKind::ALL.iter().copied().filter(|it| it != action).collect();
        let policy = make(&[grant("a", "t", &[*action]), grant("b", "t", &others)]);
        let ask = |who: &str, place: &str| allows(&*policy, &mtls(who), *action, Some(place));
        assert!(ask("a", "t"), "{action:?} granted");
        assert!(!ask("b", "t"), "{action:?} not granted");
        assert!(!ask("a", "u"), "{action:?} in another tenant");
        assert!(!ask("c", "t"), "{action:?} by a stranger");
    }
}

pub(super) fn grants_in_two_tenants_do_not_mix(make: Make<'_>) {
    let (wrap, unwrap) = (ActionKind::Wrap, ActionKind::Unwrap);
    let policy = make(&[grant("a", "t", &[wrap]), grant("a", "u", &[unwrap])]);
    for (action, place, allowed) in
        [(wrap, "t", true), (unwrap, "t", false), (wrap, "u", false), (unwrap, "u", true)]
    {
        assert_eq!(
            allows(&*policy, &mtls("a"), action, Some(place)),
            allowed,
            "{action:?} {place}"
        );
    }
}

pub(super) fn without_grants_everything_is_denied(make: Make<'_>) {
    let policy = make(&[]);
    for action in ActionKind::ALL {
        assert!(!allows(&*policy, &mtls("a"), *action, Some("t")), "{action:?}");
        assert!(!allows(&*policy, &mtls("a"), *action, None), "{action:?} anywhere");
    }
    let tenant = tenant("t");
    let denied = authorize::<Wrap>(&*policy, &mtls("a"), here(), Target::tenant(&tenant));
    assert!(denied.unwrap_err().policies.is_empty(), "by default, not by a policy");
}

pub(super) fn anywhere_is_the_union_of_all_tenants(make: Make<'_>) {
    let policy = make(&[grant("a", "t", &[ActionKind::Wrap])]);
    assert!(authorize::<Wrap>(&*policy, &mtls("a"), here(), Target::ANYWHERE).is_ok());
    assert!(authorize::<Unwrap>(&*policy, &mtls("a"), here(), Target::ANYWHERE).is_err());
}

pub(super) fn the_server_itself_may_do_what_is_due_and_a_certificate_named_internal_may_not(
    make: Make<'_>,
) {
    let policy = make(&[]);
    let tenant = tenant("t");
    let own = Principal { id: "internal".into(), method: AuthnMethod::Internal };
    let target = Target::tenant(&tenant);
    assert!(authorize::<RotateKey>(&*policy, &own, here(), target).is_ok());
    assert!(authorize::<ScheduleKeyVersionDestruction>(&*policy, &own, here(), target).is_ok());
    assert!(authorize::<ActivateKeyVersion>(&*policy, &own, here(), target).is_ok());
    assert!(authorize::<DiscardKeyVersion>(&*policy, &own, here(), target).is_err());
    assert!(authorize::<Wrap>(&*policy, &own, here(), target).is_err());
    assert!(authorize::<RotateKey>(&*policy, &mtls("internal"), here(), target).is_err());
}

pub(super) fn the_revision_stays_with_the_grants_and_changes_with_them(make: Make<'_>) {
    let (wrap, unwrap) = (ActionKind::Wrap, ActionKind::Unwrap);
    let different = [
        vec![],
        vec![grant("a", "t", &[wrap])],
        vec![grant("b", "t", &[wrap])],
        vec![grant("a", "u", &[wrap])],
        vec![grant("a", "t", &[unwrap])],
        vec![grant("a", "t", &[wrap, unwrap])],
        vec![grant("a", "t", &[wrap]), grant("b", "t", &[wrap])],
    ];
    let revisions: Vec<_> = different.iter().map(|grants| make(grants).revision()).collect();
    for (number, grants) in different.iter().enumerate() {
        let same = revisions.iter().filter(|revision| **revision == revisions[number]).count();
        assert_eq!(same, 1, "{grants:?}");
        assert_eq!(make(grants).revision(), revisions[number], "{grants:?}");
    }
}

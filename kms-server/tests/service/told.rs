//! What records say beside who and what: reasons, versions, decisions, contexts, times.

use std::time::Duration;

use kms_core::audit::{Decision, LoggedContext, Phase};
use kms_core::context::EncryptionContext;
use kms_core::id::KeyVersion;
use kms_server::service::{ChangeVersionState, Rewrap, RotateKey};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const WRAP: &str = "kms.v1.CryptoService/Wrap";

#[tokio::test]
async fn reasons_stand_in_intent_and_outcome() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.records().len();
    let (name, reason) = (name(KEY), "quarterly".to_owned());
    let rotate = RotateKey { name, reason, request_id: fresh_id() };
    world.kms.rotate_key(&world.request("rotate"), rotate).await.unwrap();
    let change = |reason: &str| ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: reason.into(),
        request_id: fresh_id(),
    };
    world.kms.suspend_key_version(&world.request("s"), change("a leak?")).await.unwrap();
    world.kms.resume_key_version(&world.request("r"), change("no leak")).await.unwrap();
    let records = world.records().split_off(before);
    let reasons: Vec<_> = records.iter().map(|record| record.reason.as_deref().unwrap()).collect();
    assert_eq!(reasons, ["quarterly", "quarterly", "a leak?", "a leak?", "no leak", "no leak"]);
}

#[tokio::test]
async fn a_rewrap_tells_both_versions() {
    let world = World::new().await;
    world.create(KEY).await;
    let ciphertext = world.wrap(KEY).await.ciphertext;
    let item = || Rewrap { key: name(KEY), ciphertext: ciphertext.clone(), context: context("/a") };
    let versions = || (world.last().from_version, world.last().key_version);
    world.kms.rewrap(&world.request(WRAP), item()).await.unwrap();
    assert_eq!(versions(), (Some(KeyVersion::FIRST), Some(KeyVersion::FIRST)));
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("rotate"), rotate).await.unwrap();
    assert_eq!(world.last().reason, None, "none was given");
    world.kms.rewrap(&world.request(WRAP), item()).await.unwrap();
    assert_eq!(versions(), (Some(KeyVersion::FIRST), KeyVersion::FIRST.next()));
}

#[tokio::test]
async fn a_denied_call_tells_the_names_of_its_context_up_to_a_bound() {
    let world = World::new().await;
    world.create(KEY).await;
    let denied = async |pairs: &[(String, String)]| {
        let mut item = wrap(KEY, b"x");
        item.context = EncryptionContext::from_caller(pairs.to_vec()).unwrap();
        let request = world.request_of("spiffe://td/nobody", WRAP);
        world.kms.wrap(&request, item).await.unwrap_err();
        assert!(matches!(world.last().decision, Decision::Deny { .. }));
        world.last().context
    };
    let pair = |n: usize| (format!("{n:0>128}"), "a secret".to_owned());
    let names = |count: usize| Some(LoggedContext::Names((0..count).map(|n| pair(n).0).collect()));
    assert_eq!(denied(&[]).await, None);
    let pairs: Vec<_> = (0..5).map(pair).collect();
    assert_eq!(denied(&pairs[..4]).await, names(4), "512 bytes");
    assert_eq!(denied(&pairs).await, names(4), "one past");
}

#[tokio::test]
async fn times_are_told_of_generated_keys() {
    let world = World::new().await;
    world.faults.slow_generation(&world.clock, Duration::from_millis(7));
    world.create(KEY).await;
    let outcome = world.last();
    assert_eq!((outcome.phase, outcome.hsm_us), (Phase::Outcome, 7_000));
}

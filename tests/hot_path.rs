//! What a request costs the token: no search, no session, no login between two requests that found their key loaded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::calls::{new_key, pairs};
use common::{Client, Rig};
use kms_proto::v1 as proto;

/// Calls that a request may cause once its key is loaded. C_GenerateRandom fetches IVs in blocks.
const CHEAP: [&str; 7] = [
    "C_Encrypt",
    "C_EncryptInit",
    "C_Decrypt",
    "C_DecryptInit",
    "C_GenerateRandom",
    "C_Sign",
    "C_SignInit",
];
/// Rounds of each kind of request.
const ROUNDS: usize = 20;

/// Uses a key in every way that a request can. `old` was wrapped under an earlier version.
async fn use_key(client: &Client, key: &str, old: &[u8]) {
    let wrapped = client.wrap(key, b"secret", &[("row", "1")]).await.unwrap().ciphertext;
    assert_eq!(client.unwrap(key, &wrapped, &[("row", "1")]).await.unwrap(), b"secret");
    let data_key = proto::GenerateDataKeyRequest { key: key.to_owned(), ..Default::default() };
    client.crypto().generate_data_key(data_key).await.unwrap();
    let rewrap = proto::RewrapRequest {
        key: key.to_owned(),
        ciphertext: old.to_vec().into(),
        context: pairs(&[]),
    };
    assert!(client.crypto().rewrap(rewrap).await.unwrap().into_inner().changed);
    let item = proto::WrapRequest {
        key: key.to_owned(),
        plaintext: b"secret".to_vec().into(),
        context: pairs(&[]),
    };
    let batch = proto::BatchWrapRequest { items: vec![item; 10] };
    client.crypto().batch_wrap(batch).await.unwrap();
    let describe = proto::DescribeCiphertextRequest { ciphertext: wrapped };
    client.crypto().describe_ciphertext(describe).await.unwrap();
}

/// Counts calls by function, those that only ask for a length left out.
fn counts(calls: &[kms_testkit::faulty::Call]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in calls.iter().filter(|call| !call.query) {
        *counts.entry(call.function.clone()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn requests_on_loaded_keys_neither_search_nor_open_sessions_nor_log_in() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let mut resident = new_key("resident");
    resident.protection = proto::Protection::HsmResident.into();
    let resident = client.keys().create_key(resident).await.unwrap().into_inner().name;
    let mut keys = vec![];
    for key in [client.create("wrapped").await.name, resident] {
        let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;
        client.rotate(&key).await;
        use_key(&client, &key, &old).await;
        keys.push((key, old));
    }
    let mark = faulty.mark();
    for _ in 0..ROUNDS {
        for (key, old) in &keys {
            use_key(&client, key, old).await;
        }
    }
    let counts = counts(&faulty.calls_since(mark));
    // The keeper asks the token for a sign of life, beside the requests.
    let probes = BTreeSet::from(["C_GetSessionInfo", "C_GetTokenInfo"]);
    for function in counts.keys() {
        let allowed = CHEAP.contains(&function.as_str()) || probes.contains(function.as_str());
        assert!(allowed, "{function} on the path of a request: {counts:?}");
    }
    // Wrap, data key, rewrap and ten items: thirteen encryptions a key and round, each one C_Encrypt.
    assert_eq!(counts["C_Encrypt"], ROUNDS * keys.len() * 13, "{counts:?}");
    // Unwrap and rewrap; and what the data key and the rewrap gave is decrypted again.
    assert_eq!(counts["C_Decrypt"], ROUNDS * keys.len() * 4, "{counts:?}");
    assert_eq!(faulty.count_since(0, "C_Login"), 1, "one login for all");
    server.stop().await;
}

#[tokio::test]
async fn the_module_is_called_by_the_hsm_s_threads_alone() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("threads").await.name;
    let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    use_key(&client, &key, &old).await;
    // From the start of the server to its end. The log lies in the rig's directory.
    let _rig = server.stop().await;
    let calls = faulty.calls_since(0);
    let others: Vec<_> = calls.iter().filter(|call| !call.thread.starts_with("hsm-")).collect();
    assert_eq!(others, Vec::<&kms_testkit::faulty::Call>::new());
    for (thread, function) in [("hsm-keeper", "C_WrapKey"), ("hsm-worker", "C_Encrypt")] {
        let seen =
            |call: &kms_testkit::faulty::Call| call.thread == thread && call.function == function;
        assert!(calls.iter().any(seen), "{function} of {thread}");
    }
}

/// What only starting and mending may call.
const DEAR: [&str; 6] = [
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_OpenSession",
    "C_CloseSession",
    "C_Login",
];

/// Creates a key of either protection and returns its name.
async fn create(client: &Client, key_id: &str, protection: proto::Protection) -> String {
    let mut request = new_key(key_id);
    request.protection = protection.into();
    client.keys().create_key(request).await.unwrap().into_inner().name
}

fn assert_cheap(counts: &BTreeMap<String, usize>) {
    for function in DEAR {
        assert_eq!(counts.get(function), None, "{function}: {counts:?}");
    }
}

#[tokio::test]
async fn loading_a_key_searches_nothing() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let (mut keys, mut residents) = (vec![], vec![]);
    for number in 0..5 {
        keys.push(create(&client, &format!("load-{number}"), proto::Protection::HsmWrapped).await);
        let key_id = format!("resident-{number}");
        residents.push(create(&client, &key_id, proto::Protection::HsmResident).await);
    }
    let server = server.stop().await.start();
    let client = server.operator().await;
    let mark = faulty.mark();
    for key in keys.iter().chain(&residents) {
        client.wrap(key, b"x", &[]).await.unwrap();
    }
    let counts = counts(&faulty.calls_since(mark));
    assert_cheap(&counts);
    assert_eq!(counts["C_UnwrapKey"], keys.len(), "each key is loaded once: {counts:?}");
    for key in keys.iter().chain(&residents) {
        client.wrap(key, b"x", &[]).await.unwrap();
    }
    assert_eq!(faulty.count_since(mark, "C_UnwrapKey"), keys.len(), "and stays loaded");
    server.stop().await;
}

#[tokio::test]
async fn changes_and_lists_of_keys_neither_search_nor_open_sessions() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let mark = faulty.mark();
    let mut versions = 0;
    for protection in [proto::Protection::HsmWrapped, proto::Protection::HsmResident] {
        for number in 0..3 {
            let key_id = format!("change-{}-{number}", i32::from(protection));
            let key = create(&client, &key_id, protection).await;
            client.rotate(&key).await;
            client.keys().describe_key(proto::DescribeKeyRequest { name: key }).await.unwrap();
            versions += 2;
        }
    }
    let list = proto::ListKeysRequest {
        parent: format!("tenants/{}", common::TENANT),
        ..Default::default()
    };
    assert_eq!(client.keys().list_keys(list).await.unwrap().into_inner().keys.len(), 6);
    let counts = counts(&faulty.calls_since(mark));
    assert_cheap(&counts);
    assert_eq!(counts["C_GenerateKey"], versions, "{counts:?}");
    server.stop().await;
}

//! Every RPC of the contract, called without a principal, without permission, and with it: what is answered, and what
//! the audit log says of it. A new RPC without a case here fails the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::collections::BTreeSet;

use common::calls::{key_name, new_job, new_key, pairs};
use common::{
    Client, LIMIT, OPERATOR, OTHER_TENANT, Refusal, STRANGER, Server, TENANT, raw_call, request_id,
};
use kms_core::import::{self, ImportMethod};
use kms_proto::v1 as proto;
use kms_server::authz::{GrantConfig, Policy as _, StaticPolicy};
use kms_testkit::Pki;
use kms_testkit::deadline::eventually;
use kms_testkit::pki::Kind;
use prost::Message as _;
use serde_json::Value;
use tonic::{Code, Status};

/// Carries the id of a request, as in the audit log.
const EVENT_ID: &str = "holdfast-event-id";

/// The method whose messages are many: one item is one message.
const STREAM: &str = "kms.v1.CryptoService/RewrapStream";

/// A good call of one method.
struct Case {
    method: &'static str,
    message: Vec<u8>,
    /// So many items, in which refusals stand; the call itself is OK. None in a call without items.
    items: usize,
}

fn case(method: &'static str, message: &impl prost::Message) -> Case {
    let items = match method {
        STREAM => 1,
        _ if method.contains("/Batch") => 2,
        _ => 0,
    };
    Case { method, message: message.encode_to_vec(), items }
}

/// Returns a good call of every method, in an order in which each is permitted.
fn cases(key: &proto::Key, ciphertext: &[u8], jobs: &Jobs) -> Vec<Case> {
    let aliases = alias_cases(key, jobs);
    let cases = [crypto_cases(&key.name, ciphertext), key_cases(key, jobs), import_cases(jobs)];
    cases.into_iter().chain([aliases]).flatten().collect()
}

/// Import jobs: for a key, for a version of the subject, and one that is given up.
#[derive(Default)]
struct Jobs {
    key: proto::ImportJob,
    version: proto::ImportJob,
    spare: proto::ImportJob,
    /// One that is moved to another key, and one that is deleted.
    aliases: [proto::Alias; 2],
}

fn new_alias(alias_id: &str, key: &str) -> proto::CreateAliasRequest {
    proto::CreateAliasRequest {
        parent: format!("tenants/{TENANT}"),
        alias_id: alias_id.to_owned(),
        key: key.to_owned(),
        reason: "coverage".to_owned(),
        request_id: request_id(),
    }
}

fn alias_cases(key: &proto::Key, jobs: &Jobs) -> Vec<Case> {
    let [moved, deleted] = &jobs.aliases;
    let update = proto::UpdateAliasRequest {
        name: moved.name.clone(),
        key: key_name("target"),
        revision: moved.revision,
        reason: "coverage".to_owned(),
        request_id: request_id(),
    };
    let delete = proto::DeleteAliasRequest {
        name: deleted.name.clone(),
        revision: deleted.revision,
        reason: "coverage".to_owned(),
        request_id: request_id(),
    };
    let describe = proto::DescribeAliasRequest { name: moved.name.clone() };
    let list =
        proto::ListAliasesRequest { parent: format!("tenants/{TENANT}"), ..Default::default() };
    vec![
        case("kms.v1.KeyService/CreateAlias", &new_alias("third", &key.name)),
        case("kms.v1.KeyService/UpdateAlias", &update),
        case("kms.v1.KeyService/DeleteAlias", &delete),
        case("kms.v1.KeyService/DescribeAlias", &describe),
        case("kms.v1.KeyService/ListAliases", &list),
    ]
}

/// Seals a key as its owner does.
fn sealed(job: &proto::ImportJob) -> (Vec<u8>, Vec<u8>) {
    let key = b"an owner's key is 32 bytes long.";
    // Without a server there is no public key: only the methods are looked at then.
    import::seal(ImportMethod::RsaOaepSha1, &job.public_key, &job.name, key)
        .map(|sealed| (sealed.wrapped, sealed.check.to_bytes().to_vec()))
        .unwrap_or_default()
}

fn import_cases(jobs: &Jobs) -> Vec<Case> {
    let (wrapped_key, check_value) = sealed(&jobs.key);
    let proto::CreateKeyRequest {
        purpose,
        protection,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        labels,
        request_id: id,
        rotation_period,
        recipient_usage_period,
        ..
    } = new_key("imported");
    let import = proto::ImportKeyRequest {
        import_job: jobs.key.name.clone(),
        wrapped_key: wrapped_key.into(),
        purpose,
        protection,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        labels,
        request_id: id,
        rotation_period,
        recipient_usage_period,
        acknowledge_no_backup: false,
        check_value: check_value.into(),
    };
    let describe = proto::DescribeImportJobRequest { name: jobs.spare.name.clone() };
    let list = proto::ListImportJobsRequest { parent: format!("tenants/{TENANT}") };
    let cancel = proto::CancelImportJobRequest {
        name: jobs.spare.name.clone(),
        reason: "coverage".to_owned(),
        request_id: request_id(),
    };
    vec![
        case("kms.v1.KeyService/CreateImportJob", &new_job(&key_name("another"))),
        case("kms.v1.KeyService/DescribeImportJob", &describe),
        case("kms.v1.KeyService/ListImportJobs", &list),
        case("kms.v1.KeyService/CancelImportJob", &cancel),
        case("kms.v1.KeyService/ImportKey", &import),
    ]
}

fn crypto_cases(key: &str, ciphertext: &[u8]) -> Vec<Case> {
    let key = key.to_owned();
    let ciphertext: prost::bytes::Bytes = ciphertext.to_vec().into();
    let context = pairs(&[]);
    let wrap = proto::WrapRequest {
        key: key.clone(),
        plaintext: b"secret".to_vec().into(),
        context: context.clone(),
    };
    let unwrap = proto::UnwrapRequest {
        key: key.clone(),
        ciphertext: ciphertext.clone(),
        context: context.clone(),
    };
    let rewrap = proto::RewrapRequest {
        key: key.clone(),
        ciphertext: ciphertext.clone(),
        context: context.clone(),
    };
    let data_key =
        proto::GenerateDataKeyRequest { key, length_bytes: 32, context, without_plaintext: false };
    let describe = proto::DescribeCiphertextRequest { ciphertext };
    let random =
        proto::GenerateRandomRequest { length_bytes: 16, tenant: format!("tenants/{TENANT}") };
    let (wraps, unwraps) = (vec![wrap.clone(); 2], vec![unwrap.clone(); 2]);
    let reference = "row 1".to_owned();
    let streamed = proto::RewrapStreamRequest { reference, item: Some(rewrap.clone()) };
    let (rewraps, data_keys) = (vec![rewrap.clone(); 2], vec![data_key.clone(); 2]);
    vec![
        case("kms.v1.CryptoService/Wrap", &wrap),
        case("kms.v1.CryptoService/Unwrap", &unwrap),
        case("kms.v1.CryptoService/Rewrap", &rewrap),
        case("kms.v1.CryptoService/GenerateDataKey", &data_key),
        case("kms.v1.CryptoService/BatchWrap", &proto::BatchWrapRequest { items: wraps }),
        case("kms.v1.CryptoService/BatchUnwrap", &proto::BatchUnwrapRequest { items: unwraps }),
        case("kms.v1.CryptoService/BatchRewrap", &proto::BatchRewrapRequest { items: rewraps }),
        case(
            "kms.v1.CryptoService/BatchGenerateDataKey",
            &proto::BatchGenerateDataKeyRequest { items: data_keys },
        ),
        case(STREAM, &streamed),
        case("kms.v1.CryptoService/DescribeCiphertext", &describe),
        case("kms.v1.CryptoService/GenerateRandom", &random),
    ]
}

fn key_cases(key: &proto::Key, jobs: &Jobs) -> Vec<Case> {
    let name = || key.name.clone();
    let version = || format!("{}/versions/1", key.name);
    let reason = || "coverage".to_owned();
    let update = proto::UpdateKeyRequest {
        name: name(),
        revision: key.revision,
        update_mask: Some(prost_types::FieldMask { paths: vec!["owner".to_owned()] }),
        owner: "somebody else".to_owned(),
        request_id: request_id(),
        ..Default::default()
    };
    let rotate =
        proto::RotateKeyRequest { name: name(), reason: reason(), request_id: request_id() };
    // The key was rotated: what is staged is version 3, and after it 4.
    let stage = || proto::StageKeyVersionRequest {
        name: name(),
        activate_time: None,
        reason: reason(),
        request_id: request_id(),
    };
    let activate = proto::ActivateKeyVersionRequest {
        name: format!("{}/versions/3", key.name),
        reason: reason(),
        request_id: request_id(),
    };
    let discard = proto::DiscardKeyVersionRequest {
        name: format!("{}/versions/4", key.name),
        reason: reason(),
        request_id: request_id(),
    };
    let (wrapped_key, check_value) = sealed(&jobs.version);
    let import = proto::ImportKeyVersionRequest {
        import_job: jobs.version.name.clone(),
        wrapped_key: wrapped_key.into(),
        check_value: check_value.into(),
        activate_time: None,
        reason: reason(),
        request_id: request_id(),
    };
    let disable =
        proto::DisableKeyRequest { name: name(), reason: reason(), request_id: request_id() };
    let enable =
        proto::EnableKeyRequest { name: name(), reason: reason(), request_id: request_id() };
    let disable_again =
        proto::DisableKeyRequest { name: name(), reason: reason(), request_id: request_id() };
    let enable_again =
        proto::EnableKeyRequest { name: name(), reason: reason(), request_id: request_id() };
    let schedule_key = proto::ScheduleKeyDestructionRequest {
        name: name(),
        window: None,
        reason: reason(),
        request_id: request_id(),
        allow_recent_use: true,
        allow_consumers: false,
    };
    let cancel_key = proto::CancelKeyDestructionRequest {
        name: name(),
        reason: reason(),
        request_id: request_id(),
    };
    let suspend = proto::SuspendKeyVersionRequest {
        name: version(),
        reason: reason(),
        request_id: request_id(),
    };
    let resume = proto::ResumeKeyVersionRequest {
        name: version(),
        reason: reason(),
        request_id: request_id(),
    };
    // The key was rotated: version 1 is not the primary any more.
    let deactivate = proto::DeactivateKeyVersionRequest {
        name: version(),
        reason: reason(),
        request_id: request_id(),
    };
    let schedule = proto::ScheduleKeyVersionDestructionRequest {
        name: version(),
        window: None,
        allow_recent_use: true,
        allow_consumers: true,
        reason: reason(),
        request_id: request_id(),
    };
    let cancel = proto::CancelKeyVersionDestructionRequest {
        name: version(),
        reason: reason(),
        request_id: request_id(),
    };
    let compromise = proto::CompromiseKeyVersionRequest {
        name: version(),
        reason: reason(),
        request_id: request_id(),
    };
    let register = proto::RegisterConsumerRequest {
        parent: name(),
        consumer_id: "backup".to_owned(),
        description: reason(),
        request_id: request_id(),
    };
    let remove = proto::RemoveConsumerRequest {
        name: format!("{}/consumers/backup", key.name),
        reason: reason(),
        request_id: request_id(),
    };
    let history =
        proto::ListKeyHistoryRequest { parent: name(), page_size: 0, page_token: String::new() };
    let list = proto::ListKeysRequest {
        parent: format!("tenants/{TENANT}"),
        page_size: 0,
        page_token: String::new(),
        ..Default::default()
    };
    let versions =
        proto::ListKeyVersionsRequest { parent: name(), page_size: 0, page_token: String::new() };
    vec![
        case("kms.v1.KeyService/CreateKey", &new_key("another")),
        case("kms.v1.KeyService/DescribeKey", &proto::DescribeKeyRequest { name: name() }),
        case("kms.v1.KeyService/ListKeys", &list),
        case("kms.v1.KeyService/UpdateKey", &update),
        case("kms.v1.KeyService/RotateKey", &rotate),
        case("kms.v1.KeyService/StageKeyVersion", &stage()),
        case("kms.v1.KeyService/ActivateKeyVersion", &activate),
        case("kms.v1.KeyService/StageKeyVersion", &stage()),
        case("kms.v1.KeyService/DiscardKeyVersion", &discard),
        case("kms.v1.KeyService/ImportKeyVersion", &import),
        case("kms.v1.KeyService/DisableKey", &disable),
        case("kms.v1.KeyService/EnableKey", &enable),
        case("kms.v1.KeyService/DisableKey", &disable_again),
        case("kms.v1.KeyService/ScheduleKeyDestruction", &schedule_key),
        case("kms.v1.KeyService/CancelKeyDestruction", &cancel_key),
        case("kms.v1.KeyService/EnableKey", &enable_again),
        case(
            "kms.v1.KeyService/DescribeKeyVersion",
            &proto::DescribeKeyVersionRequest { name: version() },
        ),
        case("kms.v1.KeyService/ListKeyVersions", &versions),
        case("kms.v1.KeyService/SuspendKeyVersion", &suspend),
        case("kms.v1.KeyService/ResumeKeyVersion", &resume),
        case("kms.v1.KeyService/DeactivateKeyVersion", &deactivate),
        case("kms.v1.KeyService/ScheduleKeyVersionDestruction", &schedule),
        case("kms.v1.KeyService/CancelKeyVersionDestruction", &cancel),
        case("kms.v1.KeyService/CompromiseKeyVersion", &compromise),
        case("kms.v1.KeyService/RegisterConsumer", &register),
        case("kms.v1.KeyService/ListConsumers", &proto::ListConsumersRequest { parent: name() }),
        case("kms.v1.KeyService/RemoveConsumer", &remove),
        case("kms.v1.KeyService/ListKeyHistory", &history),
        case(
            "kms.v1.KeyService/GetVersionUsage",
            &proto::GetVersionUsageRequest { name: version() },
        ),
    ]
}

/// Returns every method of the contract.
fn contract() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "kms.v1") {
        // AdminService is on the admin listener; tests/restore.rs calls it there.
        for service in file.service.iter().filter(|service| service.name() != "AdminService") {
            for method in &service.method {
                methods.insert(format!("kms.v1.{}/{}", service.name(), method.name()));
            }
        }
    }
    methods
}

/// Makes the key that the cases are about.
async fn world(operator: &Client) -> Vec<Case> {
    let key = operator.create("subject").await;
    let wrapped = operator.wrap(&key.name, b"secret", &[]).await.unwrap();
    let job = async |key: &str| {
        operator.keys().create_import_job(new_job(key)).await.unwrap().into_inner()
    };
    operator.create("target").await;
    let alias = async |id: &str| {
        operator.keys().create_alias(new_alias(id, &key.name)).await.unwrap().into_inner()
    };
    let jobs = Jobs {
        aliases: [alias("first").await, alias("second").await],
        key: job(&key_name("imported")).await,
        version: job(&key.name).await,
        spare: job(&key.name).await,
    };
    // An alias changes the revision of its key.
    let describe = proto::DescribeKeyRequest { name: key.name.clone() };
    let key = operator.keys().describe_key(describe).await.unwrap().into_inner();
    cases(&key, &wrapped.ciphertext, &jobs)
}

/// What all batch answers have in common.
#[derive(Clone, PartialEq, prost::Message)]
struct BatchAnswer {
    #[prost(message, repeated, tag = "1")]
    items: Vec<BatchItem>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BatchItem {
    #[prost(message, optional, tag = "1")]
    status: Option<proto::ItemStatus>,
}

/// Returns the statuses of the items of any answer that has items.
fn item_statuses(method: &str, answer: &[u8]) -> Vec<(Code, String)> {
    let statuses = if method == STREAM {
        vec![proto::RewrapStreamResponse::decode(answer).unwrap().status]
    } else {
        let answer = BatchAnswer::decode(answer).unwrap();
        answer.items.into_iter().map(|item| item.status).collect()
    };
    let statuses = statuses.into_iter().map(Option::unwrap);
    statuses.map(|status| (Code::from(status.code), status.reason)).collect()
}

/// Returns the revision of the table of grants that a server was started with.
fn policy_revision(rig: &common::Rig) -> String {
    let grant = |grant: &common::rig::Grant| GrantConfig {
        principal: grant.principal.clone(),
        tenant: grant.tenant.clone(),
        actions: serde_json::from_value(serde_json::json!(grant.actions)).unwrap(),
    };
    let table: Vec<_> = rig.grants.iter().map(grant).collect();
    StaticPolicy::new(&table).unwrap().revision().to_string()
}

fn of_event<'r>(records: &'r [Value], event_id: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["event_id"] == event_id).collect()
}

fn event_id(metadata: &tonic::metadata::MetadataMap) -> String {
    metadata.get(EVENT_ID).expect("an event id").to_str().unwrap().to_owned()
}

#[test]
fn every_rpc_has_a_case() {
    let key = proto::Key { name: key_name("subject"), ..Default::default() };
    let covered: BTreeSet<_> =
        cases(&key, b"", &Jobs::default()).iter().map(|case| case.method.to_owned()).collect();
    assert_eq!(covered, contract());
}

#[tokio::test]
async fn permitted_calls_succeed_and_are_in_the_audit_log() {
    let server = Server::fresh();
    let operator = server.operator().await;
    for Case { method, message, items } in world(&operator).await {
        let answer = raw_call(&operator.channel, method, message).await;
        let answer = answer.unwrap_or_else(|status| panic!("{method}: {status:?}"));
        if items > 0 {
            let ok = vec![(Code::Ok, String::new()); items];
            assert_eq!(item_statuses(method, answer.get_ref()), ok, "{method}");
        }
        // The record was durable before the answer left.
        let records = server.records();
        let records = of_event(&records, &event_id(answer.metadata()));
        let last = records.last().unwrap_or_else(|| panic!("{method} left no record"));
        assert_eq!(last["result"], "OK", "{method}: {last}");
        assert_eq!(last["decision"]["effect"], "allow", "{method}: {last}");
        assert_eq!(last["policy_revision"], *policy_revision(&server.rig), "{method}: {last}");
        for record in &records {
            assert_eq!(record["operation"], method);
            assert_eq!(record["principal"], OPERATOR);
            assert_eq!(record["authn_method"], "mtls");
        }
        let expected = match (items, last["phase"].as_str().unwrap()) {
            (0, "outcome") => 2,
            (0, "complete") => 1,
            (items, "complete") => items,
            other => panic!("{method}: {other:?}"),
        };
        assert_eq!(records.len(), expected, "{method}: {records:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn calls_without_a_grant_are_refused_and_are_in_the_audit_log() {
    let server = Server::fresh();
    let cases = world(&server.operator().await).await;
    let stranger = server.client(&server.rig.stranger).await;
    for Case { method, message, items } in cases {
        let answer = raw_call(&stranger.channel, method, message).await;
        let id = if items > 0 {
            let answer = answer.unwrap_or_else(|status| panic!("{method}: {status:?}"));
            let denied = vec![(Code::PermissionDenied, "ACCESS_DENIED".to_owned()); items];
            assert_eq!(item_statuses(method, answer.get_ref()), denied, "{method}");
            event_id(answer.metadata())
        } else {
            let status = answer.map(drop).unwrap_err();
            Refusal::of(&status).is(Code::PermissionDenied, "ACCESS_DENIED");
            event_id(status.metadata())
        };
        let records = server.records();
        let records = of_event(&records, &id);
        assert_eq!(records.len(), items.max(1), "{method}: {records:?}");
        for record in records {
            assert_eq!(record["operation"], method);
            assert_eq!(record["principal"], STRANGER);
            assert_eq!(record["phase"], "complete");
            assert_eq!(record["result"], "ACCESS_DENIED", "{method}: {record}");
            assert_eq!(record["policy_revision"], *policy_revision(&server.rig), "{method}");
            assert_eq!(record["decision"]["effect"], "deny", "{method}: {record}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_grant_in_one_tenant_is_none_in_another() {
    let mut rig = common::Rig::new();
    rig.grants.retain(|grant| grant.tenant == TENANT);
    let neighbour = "spiffe://holdfast.test/neighbour";
    rig.grants.push(common::Grant::new(neighbour, OTHER_TENANT, &common::ACTIONS));
    let identity = rig.pki.issue_serial("neighbour", &Kind::Spiffe(neighbour), 102);
    let server = rig.start();
    let cases = world(&server.operator().await).await;
    let client = server.client(&identity).await;
    for Case { method, message, items } in cases {
        let answer = raw_call(&client.channel, method, message).await;
        if method == "kms.v1.CryptoService/DescribeCiphertext" {
            // May be asked by whoever may ask it anywhere; but what is not his looks unknown.
            let answer = proto::DescribeCiphertextResponse::decode(&answer.unwrap().get_ref()[..]);
            let answer = answer.unwrap();
            assert_eq!((answer.key_version.as_str(), answer.current), ("", false));
        } else if items > 0 {
            let denied = (Code::PermissionDenied, "ACCESS_DENIED".to_owned());
            assert_eq!(item_statuses(method, answer.unwrap().get_ref())[0], denied, "{method}");
        } else {
            let status = answer.map(drop).unwrap_err();
            Refusal::of(&status).is(Code::PermissionDenied, "ACCESS_DENIED");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn calls_without_a_principal_are_refused_and_are_in_the_audit_log() {
    let server = Server::fresh();
    let cases = world(&server.operator().await).await;
    let nameless = server.rig.pki.issue_serial("nameless", &Kind::WithoutSan, 103);
    let client = server.client(&nameless).await;
    for Case { method, message, .. } in &cases {
        let answer = raw_call(&client.channel, method, message.clone()).await;
        let status: Status = answer.map(drop).unwrap_err();
        Refusal::of(&status).is(Code::Unauthenticated, "CERT_NAMES_NOBODY");
        // Such records are written soon, not before the answer: nothing happened that they could be late for.
        eventually(LIMIT, &format!("the record of a refused {method}"), || {
            server.records().iter().any(|record| {
                record["operation"] == *method
                    && record["result"] == "CERT_NAMES_NOBODY"
                    && record["principal"] == ""
                    && record["authn_method"] == "none"
                    && record["decision"]["effect"] == "not_reached"
            })
        });
    }
    server.stop().await;
}

#[tokio::test]
async fn calls_without_a_certificate_of_ours_reach_no_method() {
    let server = Server::fresh();
    let cases = world(&server.operator().await).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Pki::create(elsewhere.path());
    let foreign = other.issue("operator", &Kind::Spiffe(OPERATOR));
    let before = server.records().len();
    for identity in [None, Some(&foreign)] {
        for Case { method, message, .. } in &cases {
            // The refusal of the handshake comes with the connection or with the first call.
            let Ok(client) = server.try_client(identity).await else { continue };
            let status = raw_call(&client.channel, method, message.clone()).await;
            let status = status.map(drop).unwrap_err();
            assert!(
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled),
                "{method}: {status:?}"
            );
        }
    }
    // Nothing came as far as to be audited, and the server is well.
    assert_eq!(server.records().len(), before);
    assert!(server.operator().await.wrap(&key_name("subject"), b"x", &[]).await.is_ok());
    server.stop().await;
}

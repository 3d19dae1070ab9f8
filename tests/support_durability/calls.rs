//! One call of each method, and calls that are refused: who serves them touches no file either.

use kms_core::import::{self, ImportMethod};
use kms_proto::v1 as proto;
use tonic::transport::Channel;

use crate::support_dev::{TENANT, new_key, request_id};

/// The methods, each with a result that the audit log tells of.
pub const TOLD: [(&str, &str); 48] = [
    ("CreateKey", "OK"),
    ("DescribeKey", "OK"),
    ("DescribeKey", "KEY_NOT_FOUND"),
    ("ListKeys", "OK"),
    ("UpdateKey", "OK"),
    ("RotateKey", "OK"),
    ("StageKeyVersion", "OK"),
    ("ActivateKeyVersion", "OK"),
    ("DiscardKeyVersion", "OK"),
    ("CreateImportJob", "OK"),
    ("DescribeImportJob", "OK"),
    ("ListImportJobs", "OK"),
    ("CancelImportJob", "OK"),
    ("ImportKey", "OK"),
    ("ImportKeyVersion", "OK"),
    ("RegisterConsumer", "OK"),
    ("ListConsumers", "OK"),
    ("RemoveConsumer", "OK"),
    ("CreateAlias", "OK"),
    ("UpdateAlias", "OK"),
    ("DeleteAlias", "OK"),
    ("DescribeAlias", "OK"),
    ("ListAliases", "OK"),
    ("DisableKey", "OK"),
    ("EnableKey", "OK"),
    ("ScheduleKeyDestruction", "OK"),
    ("CancelKeyDestruction", "OK"),
    ("DescribeKeyVersion", "OK"),
    ("ListKeyVersions", "OK"),
    ("SuspendKeyVersion", "OK"),
    ("ResumeKeyVersion", "OK"),
    ("DeactivateKeyVersion", "OK"),
    ("CompromiseKeyVersion", "OK"),
    ("ScheduleKeyVersionDestruction", "OK"),
    ("CancelKeyVersionDestruction", "OK"),
    ("ListKeyHistory", "OK"),
    ("GetVersionUsage", "OK"),
    ("Wrap", "OK"),
    ("Wrap", "KEY_DISABLED"),
    ("Unwrap", "OK"),
    ("Rewrap", "OK"),
    ("GenerateDataKey", "OK"),
    ("BatchWrap", "OK"),
    ("BatchUnwrap", "OK"),
    ("BatchRewrap", "OK"),
    ("BatchGenerateDataKey", "OK"),
    ("DescribeCiphertext", "OK"),
    ("GenerateRandom", "OK"),
];

/// Makes a request of a change.
macro_rules! change {
    ($request:ident, $name:expr $(, $field:ident: $value:expr)*) => {
        proto::$request {
            name: $name.clone(),
            reason: "test".to_owned(),
            request_id: request_id(),
            $($field: $value,)*
        }
    };
}

/// Makes the calls that keys in use see seldom or never, on a key of its own.
pub async fn make_all_others(channel: &Channel) {
    let mut keys = kms_testkit::client::key_client(channel);
    let request = new_key("other-calls", proto::Protection::HsmWrapped);
    let key = keys.create_key(request).await.unwrap().into_inner();
    let (revision, name) = (key.revision, key.name);
    crypto(channel, &name).await;
    let update = proto::UpdateKeyRequest {
        name: name.clone(),
        revision,
        update_mask: Some(prost_types::FieldMask { paths: vec!["usage".to_owned()] }),
        usage: "another".to_owned(),
        request_id: request_id(),
        ..Default::default()
    };
    keys.update_key(update).await.unwrap();
    versions(channel, &name).await;
    look(channel, &name).await;
    refused(channel, &name).await;
}

async fn versions(channel: &Channel, name: &String) {
    let mut keys = kms_testkit::client::key_client(channel);
    let version = |number: u32| format!("{name}/versions/{number}");
    keys.stage_key_version(change!(StageKeyVersionRequest, name, activate_time: None))
        .await
        .unwrap();
    keys.activate_key_version(change!(ActivateKeyVersionRequest, &version(2))).await.unwrap();
    keys.stage_key_version(change!(StageKeyVersionRequest, name, activate_time: None))
        .await
        .unwrap();
    keys.discard_key_version(change!(DiscardKeyVersionRequest, &version(3))).await.unwrap();
    imports(channel, name).await;
    let register = proto::RegisterConsumerRequest {
        parent: name.clone(),
        consumer_id: "backup".to_owned(),
        description: "test".to_owned(),
        request_id: request_id(),
    };
    let consumer = keys.register_consumer(register).await.unwrap().into_inner();
    let list = proto::ListConsumersRequest { parent: name.clone() };
    keys.list_consumers(list).await.unwrap();
    keys.remove_consumer(change!(RemoveConsumerRequest, &consumer.name)).await.unwrap();
    aliases(channel, name).await;
    keys.suspend_key_version(change!(SuspendKeyVersionRequest, &version(1))).await.unwrap();
    keys.resume_key_version(change!(ResumeKeyVersionRequest, &version(1))).await.unwrap();
    keys.deactivate_key_version(change!(DeactivateKeyVersionRequest, &version(1))).await.unwrap();
    let schedule = change!(
        ScheduleKeyVersionDestructionRequest,
        &version(1),
        window: None,
        allow_recent_use: true,
        allow_consumers: true
    );
    keys.schedule_key_version_destruction(schedule).await.unwrap();
    let cancel = change!(CancelKeyVersionDestructionRequest, &version(1));
    keys.cancel_key_version_destruction(cancel).await.unwrap();
    keys.compromise_key_version(change!(CompromiseKeyVersionRequest, &version(2))).await.unwrap();
}

/// An alias of the key is made, moved to the imported one, used and deleted.
async fn aliases(channel: &Channel, name: &String) {
    let mut keys = kms_testkit::client::key_client(channel);
    let create = proto::CreateAliasRequest {
        parent: TENANT.to_owned(),
        alias_id: "other-alias".to_owned(),
        key: name.clone(),
        reason: "test".to_owned(),
        request_id: request_id(),
    };
    let alias = keys.create_alias(create).await.unwrap().into_inner();
    let revision = alias.revision;
    let key = format!("{name}-imported");
    let update = change!(UpdateAliasRequest, &alias.name, key: key, revision: revision);
    let revision = keys.update_alias(update).await.unwrap().into_inner().revision;
    let describe = proto::DescribeAliasRequest { name: alias.name.clone() };
    keys.describe_alias(describe).await.unwrap();
    let list = proto::ListAliasesRequest { parent: TENANT.to_owned(), ..Default::default() };
    keys.list_aliases(list).await.unwrap();
    keys.delete_alias(change!(DeleteAliasRequest, &alias.name, revision: revision)).await.unwrap();
}

/// The key gets version 4, and another is made.
async fn imports(channel: &Channel, name: &String) {
    let mut keys = kms_testkit::client::key_client(channel);
    let other = format!("{name}-imported");
    let mut jobs = Vec::new();
    for parent in [name, &other, name] {
        let create = proto::CreateImportJobRequest {
            parent: parent.clone(),
            method: proto::ImportMethod::RsaOaepSha1.into(),
            rsa_bits: 0,
            lifetime: None,
            request_id: request_id(),
        };
        jobs.push(keys.create_import_job(create).await.unwrap().into_inner());
    }
    let [version, key, spare] = &jobs[..] else { panic!("three jobs") };
    let describe = proto::DescribeImportJobRequest { name: spare.name.clone() };
    keys.describe_import_job(describe).await.unwrap();
    let list = proto::ListImportJobsRequest { parent: TENANT.to_owned() };
    keys.list_import_jobs(list).await.unwrap();
    keys.cancel_import_job(change!(CancelImportJobRequest, &spare.name)).await.unwrap();
    let sealed = |job: &proto::ImportJob| {
        let bytes = b"an owner's key is 32 bytes long.";
        import::seal(ImportMethod::RsaOaepSha1, &job.public_key, &job.name, bytes).unwrap()
    };
    let (of_key, of_version) = (sealed(key), sealed(version));
    let like = new_key("imported", proto::Protection::HsmResident);
    let import = proto::ImportKeyRequest {
        import_job: key.name.clone(),
        wrapped_key: of_key.wrapped.into(),
        check_value: of_key.check.to_bytes().to_vec().into(),
        purpose: like.purpose,
        protection: like.protection,
        owner: like.owner,
        sensitivity: like.sensitivity,
        usage: like.usage,
        cryptoperiod: like.cryptoperiod,
        labels: like.labels,
        request_id: request_id(),
        rotation_period: None,
        recipient_usage_period: None,
        acknowledge_no_backup: like.acknowledge_no_backup,
    };
    keys.import_key(import).await.unwrap();
    let import = proto::ImportKeyVersionRequest {
        import_job: version.name.clone(),
        wrapped_key: of_version.wrapped.into(),
        check_value: of_version.check.to_bytes().to_vec().into(),
        activate_time: None,
        reason: "test".to_owned(),
        request_id: request_id(),
    };
    keys.import_key_version(import).await.unwrap();
}

async fn look(channel: &Channel, name: &str) {
    let mut keys = kms_testkit::client::key_client(channel);
    let (key, version) = (name.to_owned(), format!("{name}/versions/1"));
    keys.describe_key(proto::DescribeKeyRequest { name: key.clone() }).await.unwrap();
    let list = proto::ListKeysRequest { parent: TENANT.to_owned(), ..Default::default() };
    keys.list_keys(list).await.unwrap();
    let request = proto::DescribeKeyVersionRequest { name: version.clone() };
    keys.describe_key_version(request).await.unwrap();
    let list = proto::ListKeyVersionsRequest { parent: key.clone(), ..Default::default() };
    keys.list_key_versions(list).await.unwrap();
    let list = proto::ListKeyHistoryRequest { parent: key, ..Default::default() };
    keys.list_key_history(list).await.unwrap();
    keys.get_version_usage(proto::GetVersionUsageRequest { name: version }).await.unwrap();
}

async fn crypto(channel: &Channel, key: &str) {
    let mut crypto = kms_testkit::client::crypto_client(channel);
    let wrap = proto::WrapRequest { key: key.to_owned(), ..Default::default() };
    let wrap = proto::WrapRequest { plaintext: vec![7; 32].into(), ..wrap };
    let ciphertext = crypto.wrap(wrap).await.unwrap().into_inner().ciphertext;
    let (key, context) = (key.to_owned(), std::collections::HashMap::new());
    let item = proto::UnwrapRequest {
        key: key.clone(),
        ciphertext: ciphertext.clone(),
        context: context.clone(),
    };
    crypto.batch_unwrap(proto::BatchUnwrapRequest { items: vec![item] }).await.unwrap();
    let item = proto::RewrapRequest { key: key.clone(), ciphertext: ciphertext.clone(), context };
    crypto.batch_rewrap(proto::BatchRewrapRequest { items: vec![item] }).await.unwrap();
    let item = proto::GenerateDataKeyRequest { key, length_bytes: 32, ..Default::default() };
    let batch = proto::BatchGenerateDataKeyRequest { items: vec![item] };
    crypto.batch_generate_data_key(batch).await.unwrap();
    let describe = proto::DescribeCiphertextRequest { ciphertext };
    crypto.describe_ciphertext(describe).await.unwrap();
    let random = proto::GenerateRandomRequest { length_bytes: 32, tenant: TENANT.to_owned() };
    crypto.generate_random(random).await.unwrap();
}

async fn refused(channel: &Channel, name: &String) {
    let mut keys = kms_testkit::client::key_client(channel);
    let missing = proto::DescribeKeyRequest { name: format!("{name}-missing") };
    keys.describe_key(missing).await.unwrap_err();
    keys.disable_key(change!(DisableKeyRequest, name)).await.unwrap();
    let wrap = proto::WrapRequest { key: name.clone(), ..Default::default() };
    let wrap = proto::WrapRequest { plaintext: vec![7; 32].into(), ..wrap };
    kms_testkit::client::crypto_client(channel).wrap(wrap).await.unwrap_err();
    let allow = (None, true, false);
    let schedule = change!(ScheduleKeyDestructionRequest, name, window: allow.0,
        allow_recent_use: allow.1, allow_consumers: allow.2);
    keys.schedule_key_destruction(schedule).await.unwrap();
    keys.cancel_key_destruction(change!(CancelKeyDestructionRequest, name)).await.unwrap();
    keys.enable_key(change!(EnableKeyRequest, name)).await.unwrap();
}

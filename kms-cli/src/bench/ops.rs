//! The calls that are measured, made as cheaply as tonic allows: messages are built once and cloned by reference.

use std::sync::Arc;

use bytes::Bytes;
use kms_core::context::EncryptionContext;
use kms_core::name::{KeyName, KeySelector, TenantName};
use kms_core::secret::Plaintext;
use kms_proto::v1;
use kms_proto::v1::crypto_service_client::CryptoServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::engine::Call;
use super::{BenchError, Config};
use crate::client::keys::NewKey;
use crate::client::{Client, ClientError, Refusal};

/// Which call is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Op {
    /// Wrap one plaintext
    Wrap,
    /// Unwrap one ciphertext
    Unwrap,
    /// Draw one data key, with its plaintext
    Datakey,
    /// Wrap a batch of plaintexts
    Batch,
    /// Rewrap one ciphertext from the version before; rotates the bench keys once
    Rewrap,
}

impl Op {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Datakey => "datakey",
            Self::Batch => "batch",
            Self::Rewrap => "rewrap",
        }
    }
}

/// Owner of the keys that a bench makes; only such keys are used.
pub const OWNER: &str = "kms bench";

/// A key, and a ciphertext under it where the call needs one.
#[derive(Clone, Debug)]
pub struct Target {
    key: String,
    ciphertext: Bytes,
}

/// Makes the keys that are missing, and the ciphertexts that the call needs.
pub async fn prepare(
    client: &Client,
    config: &Config,
    tenant: &TenantName,
) -> Result<Arc<[Target]>, BenchError> {
    let mut targets = Vec::with_capacity(config.key_count);
    for index in 0..config.key_count {
        let name = KeyName::new(tenant.clone(), &format!("{}-{index}", config.key_prefix))?;
        ensure(client, &name).await?;
        let ciphertext = match config.op {
            Op::Unwrap | Op::Rewrap => {
                let plaintext = Plaintext::new(vec![0x5a; config.size_bytes]);
                let key = KeySelector::Key(name.clone());
                let wrapped = client.wrap(&key, &plaintext, &EncryptionContext::default()).await?;
                Bytes::from(wrapped.ciphertext)
            }
            Op::Wrap | Op::Datakey | Op::Batch => Bytes::new(),
        };
        if config.op == Op::Rewrap {
            client.rotate_key(&name, "kms bench".into(), new_request_id()).await?;
        }
        targets.push(Target { key: name.to_string(), ciphertext });
    }
    Ok(targets.into())
}

fn new_request_id() -> kms_core::id::RequestId {
    crate::verbs::request_id(&crate::args::key::RequestIdArg { request_id: None })
}

/// Makes a key, or takes one that an earlier bench made: never another key, which a bench would use up and rotate.
async fn ensure(client: &Client, name: &KeyName) -> Result<(), BenchError> {
    match client.describe_key(name).await {
        Ok(key) => return check_owner(name, &key.owner),
        // Unknown and forbidden may look alike; creating tells them apart.
        Err(ClientError::Refused(refusal))
            if matches!(refusal.code, Code::NotFound | Code::PermissionDenied) => {}
        Err(error) => return Err(error.into()),
    }
    let new = NewKey {
        name: name.clone(),
        owner: OWNER.into(),
        sensitivity: v1::Sensitivity::Low,
        usage: "load generator".into(),
        cryptoperiod: std::time::Duration::from_hours(365 * 24),
        recipient_usage_period: None,
        rotation_period: None,
        protection: v1::Protection::HsmWrapped,
        acknowledge_no_backup: false,
        labels: Vec::new(),
    };
    match client.create_key(new, new_request_id()).await {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(refusal)) if refusal.code == Code::AlreadyExists => {
            check_owner(name, &client.describe_key(name).await?.owner)
        }
        Err(error) => Err(error.into()),
    }
}

fn check_owner(name: &KeyName, owner: &str) -> Result<(), BenchError> {
    if owner == OWNER { Ok(()) } else { Err(BenchError::ForeignKey(name.clone())) }
}

/// Calls over one connection.
#[derive(Clone, Debug)]
pub struct Caller {
    client: CryptoServiceClient<Channel>,
    op: Op,
    targets: Arc<[Target]>,
    plaintext: Bytes,
    length_bytes: u32,
    batch_size: usize,
}

impl Caller {
    /// Makes a caller.
    pub fn new(channel: Channel, config: &Config, targets: Arc<[Target]>) -> Self {
        Self {
            client: CryptoServiceClient::new(channel),
            op: config.op,
            targets,
            plaintext: Bytes::from(vec![0x5a; config.size_bytes]),
            length_bytes: u32::try_from(config.size_bytes).unwrap_or(u32::MAX),
            batch_size: config.batch_size,
        }
    }

    fn wrap_request(&self, target: &Target) -> v1::WrapRequest {
        v1::WrapRequest {
            key: target.key.clone(),
            plaintext: self.plaintext.clone(),
            ..Default::default()
        }
    }
}

impl Call for Caller {
    async fn call(&mut self, number: u64) -> Result<u64, String> {
        let index = usize::try_from(number % self.targets.len().max(1) as u64).unwrap_or(0);
        let target = self.targets.get(index).ok_or_else(|| "NO_KEY".to_owned())?;
        let (key, ciphertext) = (target.key.clone(), target.ciphertext.clone());
        let done = match self.op {
            Op::Wrap => {
                let request = self.wrap_request(target);
                self.client.wrap(request).await.map(|_| 1)
            }
            Op::Unwrap => {
                let request = v1::UnwrapRequest { key, ciphertext, ..Default::default() };
                self.client.unwrap(request).await.map(|_| 1)
            }
            Op::Rewrap => {
                let request = v1::RewrapRequest { key, ciphertext, ..Default::default() };
                self.client.rewrap(request).await.map(|_| 1)
            }
            Op::Datakey => {
                let length_bytes = self.length_bytes;
                let request =
                    v1::GenerateDataKeyRequest { key, length_bytes, ..Default::default() };
                self.client.generate_data_key(request).await.map(|_| 1)
            }
            Op::Batch => {
                let item = self.wrap_request(target);
                let request = v1::BatchWrapRequest { items: vec![item; self.batch_size] };
                let answer = self.client.batch_wrap(request).await;
                return answer.map_err(reason).and_then(|answer| batch_items(answer.get_ref()));
            }
        };
        done.map_err(reason)
    }
}

/// A batch counts only when each of its items went well.
fn batch_items(answer: &v1::BatchWrapResponse) -> Result<u64, String> {
    for item in &answer.items {
        match &item.status {
            Some(status) if status.code != 0 => return Err(status.reason.clone()),
            _ if item.result.is_none() => return Err("NO_RESULT".into()),
            _ => {}
        }
    }
    Ok(answer.items.len() as u64)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn reason(status: Status) -> String {
    let refusal = Refusal::of(&status);
    if refusal.reason.is_empty() { format!("{:?}", refusal.code) } else { refusal.reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(code: i32, result: bool) -> v1::batch_wrap_response::Item {
        let status = v1::ItemStatus { code, reason: "WHY".into(), ..Default::default() };
        let result = result.then(v1::WrapResponse::default);
        v1::batch_wrap_response::Item { status: Some(status), result }
    }

    #[test]
    fn a_batch_counts_only_when_every_item_went_well() {
        let batch = |items| batch_items(&v1::BatchWrapResponse { items });
        assert_eq!(batch(vec![item(0, true), item(0, true)]), Ok(2));
        assert_eq!(batch(vec![item(0, true), item(3, false)]), Err("WHY".into()));
        assert_eq!(batch(vec![item(0, false)]), Err("NO_RESULT".into()));
    }

    #[test]
    fn an_error_without_a_reason_is_named_by_its_code() {
        assert_eq!(reason(Status::unavailable("x")), "Unavailable");
    }
}

//! Calls with the defaults that tests do not care about, and refusals ready to be compared.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use http::uri::PathAndQuery;
use kms_proto::v1 as proto;
use kms_proto::v1::crypto_service_client::CryptoServiceClient;
use kms_proto::v1::key_service_client::KeyServiceClient;
use prost::bytes::{Buf as _, BufMut as _};
use tokio_stream::StreamExt as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::{ERROR_DOMAIN, LIMIT, TENANT};

/// A connection, as whoever's certificate it was opened with.
#[derive(Clone, Debug)]
pub struct Client {
    pub channel: Channel,
}

impl Client {
    pub fn crypto(&self) -> CryptoServiceClient<Channel> {
        kms_testkit::client::crypto_client(&self.channel)
    }

    pub fn keys(&self) -> KeyServiceClient<Channel> {
        kms_testkit::client::key_client(&self.channel)
    }

    /// Creates a key and returns it.
    pub async fn create(&self, key_id: &str) -> proto::Key {
        self.keys().create_key(new_key(key_id)).await.unwrap().into_inner()
    }

    pub async fn wrap(
        &self,
        key: &str,
        plaintext: &[u8],
        context: &[(&str, &str)],
    ) -> Result<proto::WrapResponse, Status> {
        let plaintext = plaintext.to_vec().into();
        let request = proto::WrapRequest { key: key.into(), plaintext, context: pairs(context) };
        self.crypto().wrap(request).await.map(Response::into_inner)
    }

    pub async fn unwrap(
        &self,
        key: &str,
        ciphertext: &[u8],
        context: &[(&str, &str)],
    ) -> Result<Vec<u8>, Status> {
        let ciphertext = ciphertext.to_vec().into();
        let request = proto::UnwrapRequest { key: key.into(), ciphertext, context: pairs(context) };
        let answer = self.crypto().unwrap(request).await?;
        Ok(answer.into_inner().plaintext.to_vec())
    }

    pub async fn rotate(&self, key: &str) -> proto::RotateKeyResponse {
        let request = proto::RotateKeyRequest {
            name: key.into(),
            reason: String::new(),
            request_id: request_id(),
        };
        self.keys().rotate_key(request).await.unwrap().into_inner()
    }
}

/// A context from pairs.
pub fn pairs(context: &[(&str, &str)]) -> HashMap<String, String> {
    context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Asks for an import job, of a method that SoftHSM has.
pub fn new_job(key: &str) -> proto::CreateImportJobRequest {
    proto::CreateImportJobRequest {
        parent: key.to_owned(),
        method: proto::ImportMethod::RsaOaepSha1.into(),
        rsa_bits: 0,
        lifetime: None,
        request_id: request_id(),
    }
}

/// A request for a good key.
pub fn new_key(key_id: &str) -> proto::CreateKeyRequest {
    proto::CreateKeyRequest {
        parent: format!("tenants/{TENANT}"),
        key_id: key_id.to_owned(),
        purpose: proto::Purpose::Wrap.into(),
        protection: proto::Protection::HsmWrapped.into(),
        owner: "tests".to_owned(),
        sensitivity: proto::Sensitivity::Low.into(),
        usage: "behaviour tests".to_owned(),
        cryptoperiod: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        recipient_usage_period: None,
        labels: HashMap::new(),
        request_id: request_id(),
        rotation_period: None,
        acknowledge_no_backup: true,
    }
}

/// A request id that this process has not used: a UUID of version 4 by its form.
pub fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    format!("{process:08x}-0000-4000-8000-{number:012x}")
}

/// Returns the full name of a key of the tests' tenant.
pub fn key_name(key_id: &str) -> String {
    format!("tenants/{TENANT}/keys/{key_id}")
}

/// What a caller can see of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    pub message: String,
    /// The fields that `google.rpc.BadRequest` names.
    pub fields: Vec<String>,
    pub facts: HashMap<String, String>,
    pub retryable: bool,
}

impl Refusal {
    /// Reads a status, which must carry our ErrorInfo.
    pub fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
        assert_eq!(info.domain, ERROR_DOMAIN);
        let violations = details.bad_request().map(|bad| bad.field_violations.clone());
        let fields = violations.unwrap_or_default().into_iter().map(|violation| violation.field);
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            message: status.message().to_owned(),
            fields: fields.collect(),
            facts: info.metadata.clone(),
            retryable: details.retry_info().is_some(),
        }
    }

    /// Asserts code and reason.
    #[track_caller]
    pub fn is(&self, code: Code, reason: &str) -> &Self {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:?}");
        self
    }

    /// Asserts that it is a violation of `field`.
    #[track_caller]
    pub fn is_field(&self, field: &str) {
        self.is(Code::InvalidArgument, "FIELD_VIOLATION");
        assert_eq!(self.fields, [field], "{self:?}");
    }
}

/// Reads the refusal out of a result that must be one.
#[track_caller]
pub fn refusal<T: Debug>(result: Result<T, Status>) -> Refusal {
    match result {
        Ok(answer) => panic!("not refused: {answer:?}"),
        Err(status) => Refusal::of(&status),
    }
}

/// Calls the method `package.Service/Method` with a message of any bytes, and returns the bytes of the answer.
pub async fn raw_call(
    channel: &Channel,
    method: &str,
    message: Vec<u8>,
) -> Result<Response<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let path = PathAndQuery::try_from(format!("/{method}")).unwrap();
    let calling = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        grpc.unary(Request::new(message), path, RawCodec).await
    };
    kms_testkit::deadline::within(LIMIT, "an answer", calling).await
}

/// Calls a method with a message, if any, and never ends the request.
pub async fn unfinished_call(
    channel: &Channel,
    method: &str,
    message: Option<Vec<u8>>,
) -> Result<Response<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let path = PathAndQuery::try_from(format!("/{method}")).unwrap();
    let messages = tokio_stream::iter(message).chain(tokio_stream::pending());
    let calling = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        grpc.client_streaming(Request::new(messages), path, RawCodec).await
    };
    kms_testkit::deadline::within(LIMIT, "an answer", calling).await
}

/// Leaves messages as they are.
#[derive(Clone, Copy, Debug)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; src.remaining()];
        src.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

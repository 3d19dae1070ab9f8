//! The calls that are measured, over names that were chosen before.

use std::sync::Arc;

use bytes::Bytes;
use kms_cli::bench::Call;
use kms_proto::v1;
use kms_proto::v1::crypto_service_client::CryptoServiceClient;
use kms_proto::v1::key_service_client::KeyServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::echo::REQUEST_BYTES;

/// Keys on a page that is listed.
pub(super) const PAGE: u32 = 100;

/// What is called.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// DescribeKey, of these.
    Describe(Arc<[String]>),
    /// Wrap, with these.
    Wrap(Arc<[String]>),
    /// ListKeys of a tenant, from these places on.
    List(String, Arc<[String]>),
}

/// Makes the calls over one connection.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    channel: Channel,
    what: What,
}

impl Caller {
    pub(super) fn new(channel: Channel, what: What) -> Self {
        Self { channel, what }
    }
}

fn pick(of: &[String], number: u64) -> Result<String, String> {
    let index = usize::try_from(number % of.len().max(1) as u64).unwrap_or(0);
    of.get(index).cloned().ok_or_else(|| "NOTHING".into())
}

impl Call for Caller {
    async fn call(&mut self, number: u64) -> Result<u64, String> {
        let channel = self.channel.clone();
        let said = |status: Status| format!("{:?}: {}", status.code(), status.message());
        match &self.what {
            What::Describe(names) => {
                let request = v1::DescribeKeyRequest { name: pick(names, number)? };
                KeyServiceClient::new(channel).describe_key(request).await.map_err(said)?;
                Ok(1)
            }
            What::Wrap(names) => {
                let request = v1::WrapRequest {
                    key: pick(names, number)?,
                    plaintext: Bytes::from_static(&[0x5a; REQUEST_BYTES]),
                    ..Default::default()
                };
                CryptoServiceClient::new(channel).wrap(request).await.map_err(said)?;
                Ok(1)
            }
            What::List(parent, tokens) => {
                let request = v1::ListKeysRequest {
                    parent: parent.clone(),
                    page_size: PAGE,
                    page_token: pick(tokens, number)?,
                    ..Default::default()
                };
                let page = KeyServiceClient::new(channel).list_keys(request).await.map_err(said)?;
                let keys = page.get_ref().keys.len();
                if keys == 0 { Err("EMPTY".into()) } else { Ok(keys as u64) }
            }
        }
    }
}

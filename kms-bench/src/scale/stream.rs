//! RewrapStream beside batches of Unwrap and Wrap, and the server's memory over a long stream.

use bytes::Bytes;
use kms_core::clock::{Clock as _, SystemClock};
use kms_core::name::TenantName;
use kms_proto::v1;
use kms_proto::v1::crypto_service_client::CryptoServiceClient;
use kms_proto::v1::key_service_client::KeyServiceClient;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use super::seed::{self, Seeding};
use super::{MIN_KEYS, Place, Plan};
use crate::error::Error;
use crate::processes::Peer;
use crate::rounds::median;

/// Streams, and rounds, in flight at a time.
const LANES: u64 = 8;
/// Items of a batch.
const BATCH: usize = 100;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) vs_batch: f64,
    pub(super) items_per_second: f64,
    pub(super) rss_growth_mib: f64,
}

pub(super) fn measure(plan: &Plan, place: &Place) -> Result<Stream, Error> {
    let directory = place.seeded("streamed", Seeding { keys: MIN_KEYS, due: false })?;
    let peer = place.start(&directory)?;
    let tenant = peer.context.tenant_name()?;
    place.runtime.block_on(run(plan, &peer, &tenant))
}

async fn run(plan: &Plan, peer: &Peer, tenant: &TenantName) -> Result<Stream, Error> {
    let channel = kms_cli::client::channel(&peer.context).await?;
    let key = seed::name(tenant, 0)?.to_string();
    let old = old_envelope(&channel, &key).await?;
    let share = (plan.items / plan.windows as u64 / LANES).max(1);
    let rounds = (share / 10).max(BATCH as u64) / BATCH as u64;
    let (mut ratios, mut speeds, mut rss) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.windows {
        let streamed = lanes(|| stream(peer, &key, &old, share)).await?;
        rss.push(peer.rss_mib()?);
        let batched = lanes(|| batch(peer, &key, &old, rounds)).await?;
        ratios.push(streamed / batched);
        speeds.push(streamed);
    }
    let first = rss.first().copied().unwrap_or_default();
    let most = rss.iter().copied().fold(0.0, f64::max);
    Ok(Stream {
        vs_batch: median(&mut ratios),
        items_per_second: median(&mut speeds),
        rss_growth_mib: most - first,
    })
}

/// Runs all lanes at a time; returns items a second of all.
#[expect(clippy::cast_precision_loss, reason = "items are far below 2^52")]
async fn lanes<F>(lane: impl Fn() -> F) -> Result<f64, Error>
where
    F: Future<Output = Result<u64, Error>> + Send + 'static,
{
    let start = SystemClock.monotonic();
    let mut running = JoinSet::new();
    for _ in 0..LANES {
        running.spawn(lane());
    }
    let mut items = 0;
    while let Some(done) = running.join_next().await {
        items += done.map_err(|_| Error::Bug("a lane died"))??;
    }
    Ok(items as f64 / SystemClock.monotonic().saturating_duration_since(start).as_secs_f64())
}

fn refused(status: &Status) -> Error {
    Error::Child { what: "a rewrap", detail: status.message().to_owned() }
}

/// Wraps once, and rotates the key: each rewrap of it is a real one.
async fn old_envelope(channel: &Channel, key: &str) -> Result<Bytes, Error> {
    let request = v1::WrapRequest {
        key: key.to_owned(),
        plaintext: Bytes::from_static(&[0x5a; 32]),
        ..Default::default()
    };
    let wrapped = CryptoServiceClient::new(channel.clone()).wrap(request).await;
    let wrapped = wrapped.map_err(|status| refused(&status))?.into_inner().ciphertext;
    let request = v1::RotateKeyRequest {
        name: key.to_owned(),
        reason: "kms bench".into(),
        request_id: seed::request_id()?.to_string(),
    };
    let rotated = KeyServiceClient::new(channel.clone()).rotate_key(request).await;
    rotated.map_err(|status| refused(&status))?;
    Ok(wrapped)
}

fn stream(
    peer: &Peer,
    key: &str,
    old: &Bytes,
    items: u64,
) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
    let (context, key, old) = (peer.context.clone(), key.to_owned(), old.clone());
    async move {
        let channel = kms_cli::client::channel(&context).await?;
        let requests = (0..items).map(move |number| v1::RewrapStreamRequest {
            reference: number.to_string(),
            item: Some(v1::RewrapRequest {
                key: key.clone(),
                ciphertext: old.clone(),
                ..Default::default()
            }),
        });
        let answers = CryptoServiceClient::new(channel)
            .rewrap_stream(tokio_stream::iter(requests))
            .await
            .map_err(|status| refused(&status))?;
        let (mut answers, mut done) = (answers.into_inner(), 0);
        while let Some(answer) = answers.message().await.map_err(|status| refused(&status))? {
            let changed = answer.result.is_some_and(|result| result.changed);
            if answer.reference != done.to_string() || !changed {
                return Err(Error::Child {
                    what: "a stream",
                    detail: format!("answer {done} is `{}`: {:?}", answer.reference, answer.status),
                });
            }
            done += 1;
        }
        if done == items {
            return Ok(done);
        }
        Err(Error::Child { what: "a stream", detail: format!("{done} of {items} items came back") })
    }
}

fn batch(
    peer: &Peer,
    key: &str,
    old: &Bytes,
    rounds: u64,
) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
    let (context, key, old) = (peer.context.clone(), key.to_owned(), old.clone());
    async move {
        let mut client = CryptoServiceClient::new(kms_cli::client::channel(&context).await?);
        let item = v1::UnwrapRequest { key: key.clone(), ciphertext: old, ..Default::default() };
        let mut done = 0;
        for _ in 0..rounds {
            let request = v1::BatchUnwrapRequest { items: vec![item.clone(); BATCH] };
            let opened = client.batch_unwrap(request).await.map_err(|status| refused(&status))?;
            let opened = opened.into_inner().items.into_iter().filter_map(|item| item.result);
            let items: Vec<_> = opened
                .map(|opened| v1::WrapRequest {
                    key: key.clone(),
                    plaintext: opened.plaintext,
                    ..Default::default()
                })
                .collect();
            let request = v1::BatchWrapRequest { items };
            let wrapped = client.batch_wrap(request).await.map_err(|status| refused(&status))?;
            let wrapped = wrapped.into_inner().items;
            let wrapped = wrapped.iter().filter(|item| item.result.is_some()).count();
            if wrapped != BATCH {
                let detail = format!("{wrapped} of {BATCH} items went well");
                return Err(Error::Child { what: "a batch", detail });
            }
            done += wrapped as u64;
        }
        Ok(done)
    }
}

//! BatchRewrap: many envelopes of one key in one call, each with an outcome of its own.
//!
//! An item that may succeed later is sent again by itself, as [`super::retry`] does with whole calls.

use std::time::Duration;

use bytes::Bytes;
use kms_core::clock::{Clock as _, SystemClock};
use kms_core::context::EncryptionContext;
use kms_core::name::KeyName;
use kms_proto::v1::batch_rewrap_response::Item;
use kms_proto::v1::{BatchRewrapRequest, ItemStatus, RewrapRequest};
use tonic::Code;

use super::crypto::{Rewrapped, pairs};
use super::retry::{backoff, pause};
use super::{Client, ClientError, Refusal};
use crate::terminal::harmless;

/// The most items of one batch, as the contract has it.
pub const MAX_BATCH_ITEMS: usize = 1_000;

/// How one item of a batch went.
pub type Outcome = Result<Rewrapped, Box<Refusal>>;

impl Client {
    /// Re-protects envelopes of one key under its current primary; the outcomes are in the order of the envelopes.
    ///
    /// # Errors
    /// When the call as a whole has no answer, or one that is not understood. What is refused of single items is in their
    /// outcomes.
    pub async fn batch_rewrap(
        &self,
        key: &KeyName,
        ciphertexts: &[Bytes],
        context: &EncryptionContext,
    ) -> Result<Vec<Outcome>, ClientError> {
        let deadline = SystemClock.monotonic() + self.timeout();
        let mut outcomes = self.batch_rewrap_once(key, ciphertexts, context).await?;
        let mut attempt = 1;
        loop {
            let Some(wait) = longest_wait(&outcomes, attempt) else { return Ok(outcomes) };
            if wait >= deadline.saturating_duration_since(SystemClock.monotonic()) {
                return Ok(outcomes);
            }
            pause(wait).await;
            attempt += 1;
            let again = |outcome: &Outcome| matches!(outcome, Err(refusal) if refusal.retry_delay.is_some());
            let left: Vec<_> = outcomes
                .iter()
                .zip(ciphertexts)
                .filter(|(outcome, _)| again(outcome))
                .map(|(_, ciphertext)| ciphertext.clone())
                .collect();
            let mut new = self.batch_rewrap_once(key, &left, context).await?.into_iter();
            for outcome in outcomes.iter_mut().filter(|outcome| again(outcome)) {
                *outcome = new.next().ok_or(ClientError::Bug("fewer outcomes than items"))?;
            }
        }
    }

    async fn batch_rewrap_once(
        &self,
        key: &KeyName,
        ciphertexts: &[Bytes],
        context: &EncryptionContext,
    ) -> Result<Vec<Outcome>, ClientError> {
        let key = key.to_string();
        let item = |ciphertext: &Bytes| RewrapRequest {
            key: key.clone(),
            ciphertext: ciphertext.clone(),
            context: pairs(context),
        };
        let request = BatchRewrapRequest { items: ciphertexts.iter().map(item).collect() };
        let send = |request| async { self.crypto().batch_rewrap(request).await };
        let items = self.call(request, send).await?.items;
        if items.len() != ciphertexts.len() {
            return Err(ClientError::Answer("not as many outcomes as items"));
        }
        items.into_iter().map(outcome).collect()
    }
}

/// Says how long to wait before the items that may succeed later are sent again; `None` when there is none of them.
fn longest_wait(outcomes: &[Outcome], attempt: u32) -> Option<Duration> {
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    refused.filter_map(|refusal| backoff(&ClientError::Refused(refusal.clone()), attempt)).max()
}

fn outcome(item: Item) -> Result<Outcome, ClientError> {
    let status = item.status.ok_or(ClientError::Answer("an item has no status"))?;
    if status.code != i32::from(Code::Ok) {
        return Ok(Err(Box::new(refusal(&status))));
    }
    let result = item.result.ok_or(ClientError::Answer("an item has no result"))?;
    Ok(Ok(Rewrapped::of(result)?))
}

fn refusal(status: &ItemStatus) -> Refusal {
    let delay = u64::from(status.retry_delay_ms);
    Refusal {
        code: Code::from_i32(status.code),
        reason: harmless(&status.reason),
        message: harmless(&status.message),
        retry_delay: (delay > 0).then(|| Duration::from_millis(delay)),
        violations: Vec::new(),
        event_id: None,
    }
}

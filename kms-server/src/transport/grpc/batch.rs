//! Batches: each item is decoded, done and answered on its own.

use bytes::Bytes;
use kms_core::envelope::OVERHEAD_BYTES;
use kms_proto::v1::ItemStatus;
use prost::Message;

use super::bounds::{self, Bound, NotDecoded};
use crate::service::{
    BatchItems, BatchResults, GenerateDataKey, MAX_DATA_KEY_BYTES, Rewrap, ServiceError, Unwrap,
    Wrap,
};
use crate::transport::limits::MAX_MESSAGE_BYTES;
use crate::transport::status;

/// The most that a name of a version takes: tenant, key and number at their longest, and what stands between.
const MAX_VERSION_NAME_BYTES: usize = 8 + 63 + 6 + 63 + 10 + 10;
/// The most that an item takes beside its bytes: two names of versions, tags, lengths and status.
const ITEM_BYTES: usize = 2 * MAX_VERSION_NAME_BYTES + 64;
/// The most that an item takes that was refused: code, reason, and a text that repeats a name.
const REFUSED_ITEM_BYTES: usize = 1024;

/// Says how many bytes the result of an item has at most, without its names.
pub(super) trait Answered {
    /// Returns the bytes.
    fn answer_bytes(&self) -> usize;
}

impl Answered for Wrap {
    fn answer_bytes(&self) -> usize {
        self.plaintext.len() + OVERHEAD_BYTES
    }
}

impl Answered for Unwrap {
    fn answer_bytes(&self) -> usize {
        self.ciphertext.len()
    }
}

impl Answered for Rewrap {
    fn answer_bytes(&self) -> usize {
        self.ciphertext.len()
    }
}

impl Answered for GenerateDataKey {
    fn answer_bytes(&self) -> usize {
        2 * self.length_bytes.min(MAX_DATA_KEY_BYTES) + OVERHEAD_BYTES
    }
}

/// Makes a decoder of batches: each item on its own; one that is refused travels on as its error, to be audited with the
/// others. The service refuses what has too many items, of which no more are decoded than it takes to see that. What may
/// have an answer that is larger than a message is refused here, before any of it is done.
pub(super) fn decoder<M: Message + Default, D: Answered>(
    bounds: &'static [Bound],
    decode: impl Fn(M) -> Result<D, ServiceError>,
) -> impl FnOnce(Bytes) -> Result<BatchItems<D>, NotDecoded> {
    let decode = bounds::one(bounds, decode);
    move |message| {
        let decoded = bounds::items(&message)?.into_iter().map(decode);
        let items: BatchItems<D> = decoded
            .map(|item| match item {
                Ok(item) => Ok(Ok(item)),
                Err(NotDecoded::Refused(error)) => Ok(Err(error)),
                Err(NotDecoded::Malformed) => Err(NotDecoded::Malformed),
            })
            .collect::<Result<_, _>>()?;
        if answer_bytes(&items) > MAX_MESSAGE_BYTES {
            let text = "their answer may be larger than 4 MiB; send fewer or smaller ones";
            return Err(ServiceError::field("items", text).into());
        }
        Ok(items)
    }
}

/// Returns how many bytes the answer has at most; any item may still be refused.
fn answer_bytes<D: Answered>(items: &BatchItems<D>) -> usize {
    let one = |item: &Result<D, ServiceError>| {
        let result = item.as_ref().map_or(0, |item| item.answer_bytes() + ITEM_BYTES);
        result.max(REFUSED_ITEM_BYTES)
    };
    items.iter().map(one).sum()
}

/// Encodes each result with its status.
pub(super) fn encode<R, T, I>(
    results: BatchResults<R>,
    encode: impl Fn(R) -> T,
    item: impl Fn(Option<ItemStatus>, Option<T>) -> I,
) -> Vec<I> {
    let one = |result: Result<R, ServiceError>| match result {
        Ok(result) => item(Some(status::item_ok()), Some(encode(result))),
        Err(error) => item(Some(status::item(&error)), None),
    };
    results.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::{BatchUnwrapRequest, UnwrapRequest};

    use super::*;

    impl Answered for String {
        fn answer_bytes(&self) -> usize {
            self.len()
        }
    }

    fn decoded(message: Vec<u8>) -> Result<BatchItems<String>, NotDecoded> {
        let decode = |item: UnwrapRequest| match item.key.as_str() {
            "bad" => Err(ServiceError::field("key", "odd")),
            _ => Ok(item.key),
        };
        decoder(bounds::CONTEXT, decode)(message.into())
    }

    #[test]
    fn good_items_beside_bad_ones_keep_their_places() {
        let items = ["a", "bad", "b"]
            .map(|key| UnwrapRequest { key: key.to_owned(), ..Default::default() })
            .to_vec();
        let items = decoded(BatchUnwrapRequest { items }.encode_to_vec()).unwrap();
        let encoded = encode(items, |item| item, |status, result| (status.unwrap(), result));
        let seen: Vec<_> = encoded
            .iter()
            .map(|(status, result)| (status.code, status.reason.as_str(), result.as_deref()))
            .collect();
        assert_eq!(seen, [(0, "", Some("a")), (3, "FIELD_VIOLATION", None), (0, "", Some("b"))]);
    }

    #[test]
    fn a_batch_with_a_malformed_item_is_malformed() {
        assert!(matches!(decoded(vec![0x0a, 1, 0xff]), Err(NotDecoded::Malformed)));
    }

    #[test]
    fn a_batch_is_taken_up_to_the_largest_answer_and_refused_past_it() {
        let item = |bytes: usize| Ok("x".repeat(bytes));
        let few = vec![item(REFUSED_ITEM_BYTES); 1000];
        assert!(answer_bytes(&few) < MAX_MESSAGE_BYTES);
        let left = MAX_MESSAGE_BYTES - answer_bytes(&few);
        let message = |more: usize| {
            let sizes = (0..1000).map(|n| REFUSED_ITEM_BYTES + if n == 0 { more } else { 0 });
            let key = |bytes: usize| UnwrapRequest { key: "x".repeat(bytes), ..Default::default() };
            BatchUnwrapRequest { items: sizes.map(key).collect() }.encode_to_vec()
        };
        assert!(decoded(message(left)).is_ok());
        let refused = decoded(message(left + 1));
        let Err(NotDecoded::Refused(ServiceError::FieldViolation { field, .. })) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(field, "items");
    }
}

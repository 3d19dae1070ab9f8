//! Batches: each item is decoded, done and answered on its own.

use bytes::Bytes;
use kms_proto::v1::ItemStatus;
use prost::Message;

use super::bounds::{self, Bound, NotDecoded};
use crate::service::{BatchItems, BatchResults, ServiceError};
use crate::transport::status;

/// Makes a decoder of batches: each item on its own; one that is refused travels on as its error, to be audited with the
/// others. The service refuses what has too many items, of which no more are decoded than it takes to see that.
pub(super) fn decoder<M: Message + Default, D>(
    bounds: &'static [Bound],
    decode: impl Fn(M) -> Result<D, ServiceError>,
) -> impl FnOnce(Bytes) -> Result<BatchItems<D>, NotDecoded> {
    let decode = bounds::one(bounds, decode);
    move |message| {
        let decoded = bounds::items(&message)?.into_iter().map(decode);
        decoded
            .map(|item| match item {
                Ok(item) => Ok(Ok(item)),
                Err(NotDecoded::Refused(error)) => Ok(Err(error)),
                Err(NotDecoded::Malformed) => Err(NotDecoded::Malformed),
            })
            .collect()
    }
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
}

//! Batches: each item is decoded, done and answered on its own.

use kms_proto::v1::ItemStatus;

use crate::service::{BatchItems, BatchResults, ServiceError};
use crate::transport::status;

/// Decodes each item; what cannot be decoded travels on as its error, to be audited with the others.
pub(super) fn decode<M, D>(
    items: Vec<M>,
    decode: impl Fn(M) -> Result<D, ServiceError>,
) -> BatchItems<D> {
    items.into_iter().map(decode).collect()
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
    use super::*;

    #[test]
    fn good_items_beside_bad_ones_keep_their_places() {
        let items = decode(vec![1, 2, 3], |item| {
            if item == 2 { Err(ServiceError::field("key", "odd")) } else { Ok(item) }
        });
        let encoded = encode(items, |item| item * 10, |status, result| (status.unwrap(), result));
        let seen: Vec<_> = encoded
            .iter()
            .map(|(status, result)| (status.code, status.reason.as_str(), *result))
            .collect();
        assert_eq!(seen, [(0, "", Some(10)), (3, "FIELD_VIOLATION", None), (0, "", Some(30))]);
    }
}

//! The codec of batch requests: no more items are decoded than it takes to see that there are too many.
//!
//! A message of 4 MiB can hold two million empty items, which decoded take a hundred times that. So the items are
//! counted on the wire first, and what follows the first one too many is left undecoded. The service then refuses the
//! batch for its length as it does any other: after the caller is known, with a record.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::service::MAX_BATCH_ITEMS;

/// Number of the field `items`, the same in all batch requests.
const ITEMS_FIELD: usize = 1;
// Wire types of protobuf. Groups are no part of the contract.
const VARINT: usize = 0;
const FIXED_64: usize = 1;
const LENGTH_DELIMITED: usize = 2;
const FIXED_32: usize = 5;

/// [`ProstCodec`], bounded in the items it decodes.
#[derive(Debug)]
pub(super) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// The decoder of [`BoundedCodec`].
#[derive(Debug)]
pub(super) struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Shares the buffer of the message, as the fields of the items will.
        let mut message = buffer.copy_to_bytes(buffer.remaining());
        let length = bounded_length(&message).ok_or_else(malformed)?;
        message.truncate(length);
        U::decode(message).map(Some).map_err(|_| malformed())
    }
}

/// What tonic says of it too; `route` makes the typed status.
fn malformed() -> Status {
    Status::new(Code::Internal, "not a message of this type")
}

/// Returns how much of a message holds all of its items, or the first one too many; `None` when it is malformed.
fn bounded_length(message: &[u8]) -> Option<usize> {
    let mut rest = message;
    let mut items = 0_usize;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let (field, wire_type) = (key >> 3, key & 7);
        let skipped = match wire_type {
            VARINT => varint(&mut rest).map(|_| 0)?,
            FIXED_64 => 8,
            LENGTH_DELIMITED => varint(&mut rest)?,
            FIXED_32 => 4,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
        if field == ITEMS_FIELD {
            items += 1;
        }
        if items > MAX_BATCH_ITEMS {
            return Some(message.len() - rest.len());
        }
    }
    Some(message.len())
}

fn varint(rest: &mut &[u8]) -> Option<usize> {
    prost::decode_length_delimiter(rest).ok()
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::{BatchWrapRequest, WrapRequest};
    use proptest::prelude::*;

    use super::*;

    fn batch(items: usize) -> Vec<u8> {
        let item = WrapRequest { key: "tenants/t/keys/k".into(), ..WrapRequest::default() };
        BatchWrapRequest { items: vec![item; items] }.encode_to_vec()
    }

    fn decoded(message: &[u8]) -> usize {
        let length = bounded_length(message).unwrap();
        BatchWrapRequest::decode(&message[..length]).unwrap().items.len()
    }

    #[test]
    fn items_are_decoded_up_to_the_first_one_too_many() {
        let most = MAX_BATCH_ITEMS;
        for (sent, seen) in [(0, 0), (1, 1), (most, most), (most + 1, most + 1), (5000, most + 1)] {
            assert_eq!(decoded(&batch(sent)), seen, "{sent}");
        }
        assert_eq!(decoded(&[0x0a, 0].repeat(2 << 20)), most + 1);
    }

    #[test]
    fn items_count_however_their_key_is_written_and_whatever_stands_between() {
        // The key in two bytes; a varint, a fixed64, a string and a fixed32 of fields that are not ours.
        let between = [&[0x10, 1][..], &[0x19; 1], &[0; 8], &[0x22, 2, 7, 7], &[0x2d, 0, 0, 0, 0]];
        let item = [&[0x8a, 0, 0][..], &between.concat()].concat();
        assert_eq!(decoded(&item.repeat(MAX_BATCH_ITEMS)), MAX_BATCH_ITEMS);
        assert_eq!(decoded(&item.repeat(MAX_BATCH_ITEMS + 2)), MAX_BATCH_ITEMS + 1);
    }

    #[test]
    fn malformed_messages_are_refused_before_they_are_decoded() {
        let long = [&[0x0a][..], &[0xff; 10]].concat();
        let malformed: [&[u8]; 7] =
            [&[0x0a], &[0x0a, 1], &[0x0a, 0x80], &long, &[0x0b, 0x0c], &[0x0e], &[0x19, 0]];
        for message in malformed {
            assert_eq!(bounded_length(message), None, "{message:x?}");
        }
    }

    /// The field is where this module looks for it, in every request that has items.
    #[test]
    fn every_request_with_items_has_them_in_the_field_that_is_counted() {
        let set = prost_types::FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut found = Vec::new();
        for message in set.file.iter().flat_map(|file| &file.message_type) {
            let fields = message.field.iter().filter(|field| field.name() == "items");
            for field in fields.filter(|_| message.name().ends_with("Request")) {
                assert_eq!(usize::try_from(field.number()), Ok(ITEMS_FIELD), "{}", message.name());
                found.push(message.name().to_owned());
            }
        }
        found.sort();
        let bounded = ["GenerateDataKey", "Rewrap", "Unwrap", "Wrap"];
        assert_eq!(found, bounded.map(|name| format!("Batch{name}Request")));
    }

    proptest! {
        /// What prost accepts with few items is decoded whole; nothing that it would decode is beyond the bound.
        #[test]
        fn the_scan_agrees_with_prost(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            let whole = BatchWrapRequest::decode(message.as_slice());
            match (whole, bounded_length(&message)) {
                (Ok(_), Some(length)) => prop_assert_eq!(length, message.len()),
                // A group, which prost skips.
                (Ok(_), None) => prop_assert!(message.iter().any(|byte| byte & 7 == 3)),
                (Err(_), _) => {}
            }
        }
    }
}

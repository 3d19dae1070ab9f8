//! Tests of the scan: what it counts, and that it sees what the decoder sees.

use std::collections::{BTreeMap, BTreeSet};

use kms_proto::v1::{BatchWrapRequest, CreateKeyRequest, UpdateKeyRequest, WrapRequest};
use proptest::prelude::*;

use super::*;

const MALFORMED: &str = "malformed";

/// Returns what a check says: nothing, the field and the text, or that the message is malformed.
fn said<T>(checked: Result<T, NotDecoded>) -> Result<T, String> {
    checked.map_err(|error| match error {
        NotDecoded::Malformed => MALFORMED.to_owned(),
        NotDecoded::Refused(error) => error.to_string(),
    })
}

fn checked(message: &[u8], bounds: &[Bound]) -> Result<(), String> {
    said(check(message, bounds))
}

fn pairs(count: usize) -> Vec<u8> {
    let context = (0..count).map(|number| (format!("k{number}"), String::new())).collect();
    WrapRequest { context, ..WrapRequest::default() }.encode_to_vec()
}

#[test]
fn pairs_are_accepted_up_to_the_bound_and_refused_past_it() {
    let too_many = Err("`context`: more than 32 pairs".to_owned());
    assert_eq!(checked(&pairs(MAX_PAIRS), CONTEXT), Ok(()));
    assert_eq!(checked(&pairs(MAX_PAIRS + 1), CONTEXT), too_many);
    // Elsewhere, the same number means something else.
    assert_eq!(checked(&pairs(MAX_PAIRS + 1), NONE), Ok(()));
    let labels = |count: usize| (0..count).map(|number| (number.to_string(), "v".into())).collect();
    for (count, good) in [(MAX_LABELS, true), (MAX_LABELS + 1, false)] {
        let create = CreateKeyRequest { labels: labels(count), ..Default::default() };
        assert_eq!(checked(&create.encode_to_vec(), CREATE_KEY).is_ok(), good);
        let update = UpdateKeyRequest { labels: labels(count), ..Default::default() };
        assert_eq!(checked(&update.encode_to_vec(), UPDATE_KEY).is_ok(), good);
    }
}

#[test]
fn a_key_given_twice_is_refused_however_it_is_written() {
    let twice = Err("`context`: a key is given twice".to_owned());
    let a = [0x1a, 6, 0x0a, 1, b'a', 0x12, 1, b'x'];
    let b = [0x1a, 3, 0x0a, 1, b'b'];
    // The key last, and another one before it, which decoders forget.
    let late_a = [0x1a, 9, 0x0a, 1, b'b', 0x12, 1, b'y', 0x0a, 1, b'a'];
    let (empty, empty_too) = ([0x1a, 0], [0x1a, 2, 0x0a, 0]);
    assert_eq!(checked(&[&a[..], &b].concat(), CONTEXT), Ok(()));
    assert_eq!(checked(&[&a[..], &b, &a].concat(), CONTEXT), twice);
    assert_eq!(checked(&[&a[..], &late_a].concat(), CONTEXT), twice);
    assert_eq!(checked(&[&late_a[..], &b].concat(), CONTEXT), Ok(()));
    assert_eq!(checked(&[&empty[..], &empty_too].concat(), CONTEXT), twice);
}

#[test]
fn paths_are_counted_over_all_occurrences_of_the_mask() {
    let refused = Err("`update_mask`: must be at most 16 paths".to_owned());
    // A mask with one path of no bytes; decoders merge masks.
    let one = [0x1a, 2, 0x0a, 0];
    assert_eq!(checked(&one.repeat(MAX_MASK_PATHS), UPDATE_KEY), Ok(()));
    assert_eq!(checked(&one.repeat(MAX_MASK_PATHS + 1), UPDATE_KEY), refused);
    let many = [&[0x1a, 34][..], &[0x0a, 0].repeat(MAX_MASK_PATHS + 1)].concat();
    assert_eq!(checked(&many, UPDATE_KEY), refused);
}

#[test]
fn items_are_split_up_to_the_first_one_too_many() {
    let count = |message: Vec<u8>| items(&message.into()).unwrap().len();
    let most = MAX_BATCH_ITEMS;
    for (sent, seen) in [(0, 0), (1, 1), (most, most), (most + 1, most + 1), (5000, most + 1)] {
        let item = WrapRequest { key: "tenants/t/keys/k".into(), ..WrapRequest::default() };
        assert_eq!(count(BatchWrapRequest { items: vec![item; sent] }.encode_to_vec()), seen);
    }
    assert_eq!(count([0x0a, 0].repeat(2 << 20)), most + 1);
    // The key in two bytes; a varint, a fixed64, a string and a fixed32 of fields that are not ours.
    let between = [&[0x10, 1][..], &[0x19; 1], &[0; 8], &[0x22, 2, 7, 7], &[0x2d, 0, 0, 0, 0]];
    let item = [&[0x8a, 0, 0][..], &between.concat()].concat();
    assert_eq!(count(item.repeat(most)), most);
}

#[test]
fn malformed_messages_are_refused_before_they_are_decoded() {
    let long = [&[0x0a][..], &[0xff; 10]].concat();
    let malformed: [&[u8]; 8] =
        [&[0x0a], &[0x0a, 1], &[0x0a, 0x80], &long, &[0x0b, 0x0c], &[0x0e], &[0x19, 0], &[0x08]];
    for message in malformed {
        let malformed = Err(MALFORMED.to_owned());
        assert_eq!(checked(message, CONTEXT), malformed, "{message:x?}");
        let items = items(&Bytes::copy_from_slice(message));
        assert!(matches!(items, Err(NotDecoded::Malformed)), "{message:x?}");
    }
    // An item that is a number.
    assert!(matches!(items(&Bytes::from_static(&[0x08, 1])), Err(NotDecoded::Malformed)));
}

/// A repeated part of the contract: message, field, number.
type Part = (String, String, i32);

/// Returns all repeated parts of requests, those of messages in them included.
fn repeated_parts() -> BTreeSet<Part> {
    let set = prost_types::FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut parts = BTreeSet::new();
    for message in set.file.iter().flat_map(|file| &file.message_type) {
        let requests = message.name().ends_with("Request") || message.name() == "FieldMask";
        for field in message.field.iter().filter(|_| requests) {
            let mask = field.type_name() == ".google.protobuf.FieldMask";
            if mask || field.label() == prost_types::field_descriptor_proto::Label::Repeated {
                let (message, field_name) = (message.name().to_owned(), field.name().to_owned());
                parts.insert((message, field_name, field.number()));
            }
        }
    }
    parts
}

/// Everything that can repeat has a bound here, by the number that the contract gives it.
#[test]
fn every_repeated_part_of_a_request_is_bounded() {
    let context = ["Wrap", "Unwrap", "Rewrap", "GenerateDataKey"];
    let bounds = BTreeMap::from([
        ("CreateKeyRequest", CREATE_KEY),
        ("ImportKeyRequest", IMPORT_KEY),
        ("UpdateKeyRequest", UPDATE_KEY),
    ]);
    let mut expected = BTreeSet::from([("FieldMask".to_owned(), "paths".to_owned(), 1)]);
    for name in context {
        expected.insert((format!("Batch{name}Request"), "items".to_owned(), 1));
        expected.insert((format!("{name}Request"), "context".to_owned(), 3));
    }
    for (message, bounds) in bounds {
        for bound in bounds {
            let (Bound::Pairs { number, field } | Bound::Mask { number, field }) = *bound;
            let number = i32::try_from(number).unwrap();
            expected.insert((message.to_owned(), field.to_owned(), number));
        }
    }
    assert_eq!(repeated_parts(), expected);
}

/// A batch has nothing but its items: what else it had would not be decoded.
#[test]
fn batches_have_one_field() {
    let set = prost_types::FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).unwrap();
    let messages = set.file.iter().flat_map(|file| &file.message_type);
    let batches =
        messages.filter(|m| m.name().starts_with("Batch") && m.name().ends_with("Request"));
    assert!(batches.map(|message| message.field.len()).eq([1; 4]));
}

proptest! {
    /// What the decoder accepts is neither malformed for the scan, nor has it more pairs than were counted.
    #[test]
    fn the_scan_agrees_with_the_decoder(message in proptest::collection::vec(any::<u8>(), 0..64)) {
        let Ok(decoded) = WrapRequest::decode(message.as_slice()) else { return Ok(()) };
        match check(&message, CONTEXT) {
            Ok(()) => prop_assert!(decoded.context.len() <= MAX_PAIRS),
            Err(NotDecoded::Refused(_)) => {}
            // A group, which the decoder skips.
            Err(NotDecoded::Malformed) => prop_assert!(message.iter().any(|byte| byte & 7 == 3)),
        }
    }
}

#[test]
fn a_message_of_a_stream_is_split_and_two_items_or_odd_text_are_malformed() {
    let split = |bytes: &[u8]| stream_item(&Bytes::copy_from_slice(bytes));
    let whole = split(&[0x12, 2, 7, 8, 0x0a, 1, b'r', 0x1a, 1, 0]).unwrap();
    assert_eq!(whole, ("r".to_owned(), Bytes::from_static(&[7, 8])));
    assert_eq!(split(&[]).unwrap(), (String::new(), Bytes::new()));
    for bytes in [&[0x12, 0, 0x12, 0][..], &[0x0a, 1, 0xff], &[0x08, 1], &[0x12, 2, 7]] {
        assert!(matches!(split(bytes), Err(NotDecoded::Malformed)), "{bytes:?}");
    }
}

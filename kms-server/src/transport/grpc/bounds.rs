//! Bounds on what is decoded: counted on the wire, before memory is spent on it.
//!
//! A map entry of seven bytes takes fifteen times that when decoded, an empty text twelve times, an empty batch item a
//! hundred times. So the repeated parts of a message are counted first, and one past its bound is refused undecoded, with
//! the error and the record that the service would give. Duplicate keys are refused here too: decoded, a map has none.

use bytes::Bytes;
use kms_core::context::{self, InvalidContext};
use kms_core::key::MAX_LABELS;
use prost::Message;

use crate::service::{MAX_BATCH_ITEMS, ServiceError};

/// The most paths of an update mask: some more than there are fields to name.
pub(super) const MAX_MASK_PATHS: usize = 16;
/// Number of the field `items`, the same in all batch requests, which have no other.
const ITEMS: usize = 1;
/// Numbers of the fields of RewrapStreamRequest.
const REFERENCE: usize = 1;
const ITEM: usize = 2;
/// Number of the field `paths` of a FieldMask.
const PATHS: usize = 1;
/// Number of the key in an entry of a map.
const ENTRY_KEY: usize = 1;
/// The most pairs of any map.
const MAX_PAIRS: usize = context::MAX_PAIRS;
const _: () = assert!(MAX_LABELS == MAX_PAIRS, "one bound serves both maps");

/// A repeated part of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// A map with at most [`MAX_PAIRS`] pairs and no key twice.
    Pairs { number: usize, field: &'static str },
    /// A FieldMask with at most [`MAX_MASK_PATHS`] paths.
    Mask { number: usize, field: &'static str },
}

/// Of messages without repeated parts.
pub(super) const NONE: &[Bound] = &[];
/// Of everything that uses a key.
pub(super) const CONTEXT: &[Bound] = &[Bound::Pairs { number: 3, field: "context" }];
/// Of CreateKey.
pub(super) const CREATE_KEY: &[Bound] = &[Bound::Pairs { number: 9, field: "labels" }];
/// Of ImportKey.
pub(super) const IMPORT_KEY: &[Bound] = &[Bound::Pairs { number: 9, field: "labels" }];
/// Of UpdateKey.
pub(super) const UPDATE_KEY: &[Bound] =
    &[Bound::Mask { number: 3, field: "update_mask" }, Bound::Pairs { number: 7, field: "labels" }];

/// Why a message did not become a request.
#[derive(Debug)]
pub(super) enum NotDecoded {
    /// It is not a message of this type.
    Malformed,
    /// It is one, and says something that is refused.
    Refused(ServiceError),
}

impl From<ServiceError> for NotDecoded {
    fn from(error: ServiceError) -> Self {
        Self::Refused(error)
    }
}

/// Makes a decoder of one message.
pub(super) fn one<M: Message + Default, D>(
    bounds: &'static [Bound],
    decode: impl Fn(M) -> Result<D, ServiceError>,
) -> impl Fn(Bytes) -> Result<D, NotDecoded> {
    move |message| {
        check(&message, bounds)?;
        let message = M::decode(message).map_err(|_| NotDecoded::Malformed)?;
        Ok(decode(message)?)
    }
}

/// Splits a batch into the bytes of its items: all of them, or the first one too many, which is enough to refuse it.
pub(super) fn items(message: &Bytes) -> Result<Vec<Bytes>, NotDecoded> {
    let mut items = Vec::new();
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        if field.number != ITEMS {
            continue;
        }
        items.push(message.slice_ref(field.text.ok_or(NotDecoded::Malformed)?));
        if items.len() > MAX_BATCH_ITEMS {
            break;
        }
    }
    Ok(items)
}

/// Splits a message of a stream into its reference and the bytes of its item, which are decoded on their own.
pub(super) fn stream_item(message: &Bytes) -> Result<(String, Bytes), NotDecoded> {
    let (mut reference, mut item) = (&[][..], None);
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match (field.number, field.text) {
            (REFERENCE, Some(text)) => reference = text,
            // Decoders merge two occurrences; nobody sends two.
            (ITEM, Some(text)) if item.is_none() => item = Some(message.slice_ref(text)),
            (REFERENCE | ITEM, _) => return Err(NotDecoded::Malformed),
            _ => {}
        }
    }
    let reference = std::str::from_utf8(reference).map_err(|_| NotDecoded::Malformed)?;
    Ok((reference.to_owned(), item.unwrap_or_default()))
}

fn check(message: &[u8], bounds: &[Bound]) -> Result<(), NotDecoded> {
    for bound in bounds {
        match *bound {
            Bound::Pairs { number, field } => check_pairs(message, number, field)?,
            Bound::Mask { number, field } => check_mask(message, number, field)?,
        }
    }
    Ok(())
}

fn check_pairs(message: &[u8], number: usize, field: &'static str) -> Result<(), NotDecoded> {
    let refused = |why: InvalidContext| Err(ServiceError::field(field, why.to_string()).into());
    let mut keys: [&[u8]; MAX_PAIRS] = [&[]; MAX_PAIRS];
    let mut count = 0_usize;
    let mut fields = Fields(message);
    while let Some(entry) = fields.next()? {
        let (true, Some(text)) = (entry.number == number, entry.text) else { continue };
        let key = entry_key(text)?;
        if keys.iter().take(count).any(|seen| *seen == key) {
            return refused(InvalidContext::DuplicateKey);
        }
        let Some(place) = keys.get_mut(count) else {
            return refused(InvalidContext::TooManyPairs);
        };
        *place = key;
        count += 1;
    }
    Ok(())
}

/// Returns the key of a map entry: the last one that it has, as decoders take it, else the empty one.
fn entry_key(entry: &[u8]) -> Result<&[u8], NotDecoded> {
    let mut key: &[u8] = &[];
    let mut fields = Fields(entry);
    while let Some(field) = fields.next()? {
        if let (ENTRY_KEY, Some(text)) = (field.number, field.text) {
            key = text;
        }
    }
    Ok(key)
}

/// Occurrences of a message that is not repeated are merged by decoders, so their paths count together.
fn check_mask(message: &[u8], number: usize, field: &'static str) -> Result<(), NotDecoded> {
    let mut count = 0_usize;
    let mut fields = Fields(message);
    while let Some(mask) = fields.next()? {
        let (true, Some(text)) = (mask.number == number, mask.text) else { continue };
        let mut paths = Fields(text);
        while let Some(path) = paths.next()? {
            count += usize::from(path.number == PATHS);
            if count > MAX_MASK_PATHS {
                let text = format!("must be at most {MAX_MASK_PATHS} paths");
                return Err(ServiceError::field(field, text).into());
            }
        }
    }
    Ok(())
}

// Wire types of protobuf. Groups are no part of the contract.
const VARINT: usize = 0;
const FIXED_64: usize = 1;
const LENGTH_DELIMITED: usize = 2;
const FIXED_32: usize = 5;

/// One field on the wire; `text` when it is length-delimited.
struct Field<'m> {
    number: usize,
    text: Option<&'m [u8]>,
}

/// The fields of a message that are still to be looked at.
struct Fields<'m>(&'m [u8]);

impl<'m> Fields<'m> {
    fn next(&mut self) -> Result<Option<Field<'m>>, NotDecoded> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let (number, mut text) = (key >> 3, None);
        match key & 7 {
            VARINT => drop(self.varint()?),
            FIXED_64 => drop(self.split(8)?),
            LENGTH_DELIMITED => {
                let length = self.varint()?;
                text = Some(self.split(length)?);
            }
            FIXED_32 => drop(self.split(4)?),
            _ => return Err(NotDecoded::Malformed),
        }
        Ok(Some(Field { number, text }))
    }

    fn varint(&mut self) -> Result<usize, NotDecoded> {
        // Most keys and lengths are one byte.
        if let Some((&byte @ 0..0x80, rest)) = self.0.split_first() {
            self.0 = rest;
            return Ok(byte.into());
        }
        prost::decode_length_delimiter(&mut self.0).map_err(|_| NotDecoded::Malformed)
    }

    fn split(&mut self, length: usize) -> Result<&'m [u8], NotDecoded> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NotDecoded::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;

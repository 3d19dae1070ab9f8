//! Property tests of every codec: what is written reads back, and whatever is changed is refused.
#![allow(clippy::unwrap_used, reason = "test helpers: a failure here is a failed test")]

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use kms_core::context::EncryptionContext;
use kms_core::envelope::{self, Envelope, Header, InvalidEnvelope, MAX_PLAINTEXT_BYTES, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::key::CheckBlob;
use kms_core::name::{KeyName, VersionName};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

const KEY: [u8; 32] = [0x5a; 32];

fn cipher() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap())
}

fn seal(header: Header, context: &EncryptionContext, iv: [u8; 12], plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = plaintext.to_vec();
    let mut aad = header.aad(context);
    let nonce = Nonce::assume_unique_for_key(iv);
    cipher().seal_in_place_append_tag(nonce, Aad::from(aad.with_iv(&iv)), &mut sealed).unwrap();
    header.seal(&iv, &sealed)
}

/// Opens as the keyring does: the key is chosen by the caller, so that a changed uid cannot choose another.
fn open(bytes: &[u8], context: &EncryptionContext) -> Option<Vec<u8>> {
    let envelope = Envelope::decode(bytes).ok()?;
    let mut sealed = envelope.ciphertext_and_tag.to_vec();
    let mut aad = envelope.header.aad(context);
    let nonce = Nonce::assume_unique_for_key(envelope.iv);
    let opened = cipher().open_in_place(nonce, Aad::from(aad.with_iv(&envelope.iv)), &mut sealed);
    opened.ok().map(|plaintext| plaintext.to_vec())
}

fn header() -> impl Strategy<Value = Header> {
    (any::<[u8; 16]>(), 1..=u32::MAX).prop_map(|(uid, version)| Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_bytes(uid),
        version: KeyVersion::new(version).unwrap(),
    })
}

fn pairs() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map("[a-z\u{e9}\u{5bc6}]{1,20}", "\\PC{0,40}", 0..5)
}

proptest! {
    #[test]
    fn an_envelope_reads_back(header in header(), pairs in pairs(), iv: [u8; 12],
                              plaintext in vec(any::<u8>(), 1..200)) {
        let context = EncryptionContext::from_caller(pairs).unwrap();
        let bytes = seal(header, &context, iv, &plaintext);
        let decoded = Envelope::decode(&bytes).unwrap();
        prop_assert_eq!(decoded.header, header);
        prop_assert_eq!(decoded.iv, iv);
        prop_assert_eq!(open(&bytes, &context), Some(plaintext));
        prop_assert_eq!(envelope::from_text(&envelope::to_text(&bytes)), Ok(bytes));
    }

    #[test]
    fn every_truncation_is_refused(header in header(), iv: [u8; 12],
                                   plaintext in vec(any::<u8>(), 1..40)) {
        let context = EncryptionContext::default();
        let bytes = seal(header, &context, iv, &plaintext);
        for length in 0..bytes.len() {
            prop_assert_eq!(open(bytes.get(..length).unwrap(), &context), None);
        }
    }

    #[test]
    fn every_single_bit_flip_is_refused(header in header(), pairs in pairs(), iv: [u8; 12],
                                        plaintext in vec(any::<u8>(), 1..40)) {
        let context = EncryptionContext::from_caller(pairs).unwrap();
        let bytes = seal(header, &context, iv, &plaintext);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            *flipped.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
            prop_assert_eq!(open(&flipped, &context), None, "bit {}", bit);
        }
    }

    #[test]
    fn another_context_is_refused(header in header(), a in pairs(), b in pairs(), iv: [u8; 12]) {
        prop_assume!(a != b);
        let a = EncryptionContext::from_caller(a).unwrap();
        let b = EncryptionContext::from_caller(b).unwrap();
        prop_assert_eq!(open(&seal(header, &a, iv, b"x"), &b), None);
    }

    #[test]
    fn different_contexts_have_different_canonical_bytes(a in pairs(), b in pairs()) {
        prop_assume!(a != b);
        let bytes = |pairs| {
            let mut out = Vec::new();
            EncryptionContext::from_caller(pairs).unwrap().write_canonical(&mut out);
            out
        };
        prop_assert_ne!(bytes(a), bytes(b));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), text in "\\PC{0,100}") {
        let _ = Envelope::decode(&bytes);
        let _ = envelope::from_text(&text);
        let _ = CheckBlob::from_bytes(&bytes);
    }

    #[test]
    fn every_flip_in_the_text_form_is_refused_or_other_bytes(position in 0_usize..119, with: u8) {
        let header = Header {
            suite: Suite::Aes256Gcm, key_uid: KeyUid::from_bytes([1; 16]), version: KeyVersion::FIRST,
        };
        let context = EncryptionContext::default();
        let bytes = seal(header, &context, [2; 12], &[3; 32]);
        let mut text = envelope::to_text(&bytes).into_bytes();
        prop_assume!(text.get(position) != Some(&with));
        *text.get_mut(position).unwrap() = with;
        if let Ok(text) = String::from_utf8(text) {
            prop_assert_ne!(envelope::from_text(&text), Ok(bytes));
        }
    }

    #[test]
    fn check_blobs_read_back(iv: [u8; 12], sealed in vec(any::<u8>(), 0..64)) {
        let blob = CheckBlob { iv, ciphertext_and_tag: sealed };
        let read = CheckBlob::from_bytes(&blob.to_bytes());
        prop_assert_eq!(read, Some(blob));
    }

    #[test]
    fn names_read_back(tenant in "[a-z0-9][a-z0-9._-]{0,62}", key in "[a-z0-9][a-z0-9._-]{0,62}",
                       version in 1..=u32::MAX) {
        let text = format!("tenants/{tenant}/keys/{key}/versions/{version}");
        let name: VersionName = text.parse().unwrap();
        prop_assert_eq!(name.to_string(), text);
        let key: KeyName = name.key().to_string().parse().unwrap();
        prop_assert_eq!(&key, name.key());
    }

    #[test]
    fn arbitrary_names_never_panic(text in "\\PC{0,80}") {
        let _ = text.parse::<VersionName>();
        let _ = text.parse::<KeyName>();
    }
}

#[test]
fn the_longest_envelope_is_accepted_and_one_byte_more_refused() {
    let header = Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_bytes([1; 16]),
        version: KeyVersion::FIRST,
    };
    let longest = header.seal(&[0; 12], &vec![0; MAX_PLAINTEXT_BYTES + 16]);
    assert_eq!(longest.len(), envelope::MAX_ENVELOPE_BYTES);
    assert!(Envelope::decode(&longest).is_ok());
    let longer = header.seal(&[0; 12], &vec![0; MAX_PLAINTEXT_BYTES + 17]);
    assert_eq!(Envelope::decode(&longer), Err(InvalidEnvelope::Malformed));
}

#[test]
fn an_envelope_of_nothing_is_refused_and_of_one_byte_accepted() {
    let header = Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_bytes([1; 16]),
        version: KeyVersion::FIRST,
    };
    assert!(Envelope::decode(&header.seal(&[0; 12], &[0; 17])).is_ok());
    assert_eq!(Envelope::decode(&header.seal(&[0; 12], &[0; 16])), Err(InvalidEnvelope::Malformed));
}

#[test]
fn unknown_formats_and_suites_are_named() {
    let header = Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_bytes([1; 16]),
        version: KeyVersion::FIRST,
    };
    let bytes = header.seal(&[0; 12], &[0; 48]);
    let with = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        *changed.get_mut(at).unwrap() = value;
        Envelope::decode(&changed).map(|_| ())
    };
    for value in (0..=u8::MAX).filter(|value| *value != 1) {
        assert_eq!(with(2, value), Err(InvalidEnvelope::UnsupportedFormat(value)));
        assert_eq!(with(3, value), Err(InvalidEnvelope::UnsupportedSuite(value)));
    }
    assert_eq!(with(0, b'k'), Err(InvalidEnvelope::Malformed));
}

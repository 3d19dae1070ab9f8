//! Property tests of every codec: what is written reads back, and whatever is changed is refused.
#![allow(clippy::unwrap_used, reason = "test helpers: a failure here is a failed test")]

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use kms_core::context::EncryptionContext;
use kms_core::envelope::{self, Envelope, Header, InvalidEnvelope, MAX_PLAINTEXT_BYTES, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::key::{CheckBlob, RowMac};
use kms_core::manifest::RowSet;
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

/// Makes the check blob of a version, as a token does.
fn seal_check(key_uid: KeyUid, version: KeyVersion, iv: [u8; 12]) -> CheckBlob {
    let (mut sealed, mut aad) = (CheckBlob::PATTERN.to_vec(), CheckBlob::aad(key_uid, version));
    let nonce = Nonce::assume_unique_for_key(iv);
    cipher().seal_in_place_append_tag(nonce, Aad::from(aad.with_iv(&iv)), &mut sealed).unwrap();
    CheckBlob { iv, ciphertext_and_tag: sealed }
}

/// Says whether a stored check blob is that of a version.
fn checks(bytes: &[u8], key_uid: KeyUid, version: KeyVersion) -> bool {
    let Some(blob) = CheckBlob::from_bytes(bytes) else { return false };
    let (mut sealed, mut aad) = (blob.ciphertext_and_tag, CheckBlob::aad(key_uid, version));
    let nonce = Nonce::assume_unique_for_key(blob.iv);
    let opened = cipher().open_in_place(nonce, Aad::from(aad.with_iv(&blob.iv)), &mut sealed);
    opened.is_ok_and(|pattern| pattern == CheckBlob::PATTERN)
}

fn row_set<'r>(rows: impl IntoIterator<Item = &'r [u8; 32]>) -> RowSet {
    let mut set = RowSet::empty();
    for row in rows {
        set.insert(&RowMac(*row));
    }
    set
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
    fn every_truncation_of_the_text_form_is_refused(header in header(), iv: [u8; 12],
                                                    plaintext in vec(any::<u8>(), 1..40)) {
        let context = EncryptionContext::default();
        let text = envelope::to_text(&seal(header, &context, iv, &plaintext));
        for length in 0..text.len() {
            let read = envelope::from_text(text.get(..length).unwrap());
            prop_assert_eq!(read.ok().and_then(|bytes| open(&bytes, &context)), None);
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
    fn a_check_blob_cut_short_or_changed_or_of_another_version_is_refused(
        uid: [u8; 16], other: [u8; 16], version in 1..u32::MAX, iv: [u8; 12]
    ) {
        let (uid, version) = (KeyUid::from_bytes(uid), KeyVersion::new(version).unwrap());
        let bytes = seal_check(uid, version, iv).to_bytes();
        prop_assert!(checks(&bytes, uid, version));
        for length in 0..bytes.len() {
            prop_assert!(!checks(bytes.get(..length).unwrap(), uid, version), "{length} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            *flipped.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
            prop_assert!(!checks(&flipped, uid, version), "bit {}", bit);
        }
        let next = KeyVersion::new(version.get() + 1).unwrap();
        prop_assert!(!checks(&bytes, uid, next));
        let other = KeyUid::from_bytes(other);
        prop_assert!(other == uid || !checks(&bytes, other, version));
    }

    #[test]
    fn the_order_in_which_rows_come_and_go_does_not_matter(
        rows in vec(any::<[u8; 32]>(), 1..12), more in any::<[u8; 32]>(), order in any::<u64>()
    ) {
        prop_assume!(!rows.contains(&more));
        let whole = row_set(&rows);
        let mut shuffled = rows.clone();
        shuffled.sort_by_key(|row| row.iter().fold(order, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*byte)).rotate_left(7)
        }));
        prop_assert_eq!(row_set(&shuffled), whole.clone());
        prop_assert_eq!(RowSet::from_bytes(&whole.to_bytes()), Some(whole.clone()));
        // Taken out again, before or after others come, it leaves nothing behind.
        let mut late = row_set(rows.iter().chain([&more]));
        prop_assert_ne!(late.digest(), whole.digest());
        late.remove(&RowMac(more));
        let mut early = row_set([&more]);
        early.remove(&RowMac(more));
        for row in &rows {
            early.insert(&RowMac(*row));
        }
        prop_assert_eq!(&late, &whole);
        prop_assert_eq!(&early, &whole);
        for row in &shuffled {
            late.remove(&RowMac(*row));
        }
        prop_assert_eq!(late, RowSet::empty());
        // Twice is not once.
        prop_assert_ne!(row_set(rows.iter().chain(rows.first())), whole);
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

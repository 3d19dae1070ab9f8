//! Golden vectors of the envelope: made again here, and opened by an independent Python script.
//!
//! To add a vector, add its inputs to `inputs` and run the test with HOLDFAST_WRITE_GOLDEN=1. Changing an existing one is
//! a format change: it needs a changelog line and a compatibility test.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test helpers: a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::process::Command;

use aws_lc_rs::aead;
use data_encoding::HEXLOWER;
use kms_core::context::EncryptionContext;
use kms_core::envelope::{self, Envelope, Header, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use serde::{Deserialize, Serialize};

const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/envelopes.json");

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Golden {
    origin: String,
    vectors: Vec<Vector>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Vector {
    name: String,
    key: String,
    key_uid: String,
    version: u32,
    iv: String,
    context: BTreeMap<String, String>,
    plaintext: String,
    aad: String,
    envelope: String,
    text: String,
}

/// Name, version, context, plaintext.
type Input = (&'static str, u32, Vec<(String, String)>, Vec<u8>);

fn inputs() -> Vec<Input> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    vec![
        ("a 32-byte data key", 1, vec![], (0..32).collect()),
        ("one byte", 1, vec![], vec![0xa5]),
        ("the last version", u32::MAX, vec![], b"holdfast".to_vec()),
        (
            "a context, sorted by key bytes",
            7,
            vec![pair("z", "last"), pair("a", ""), pair("Z", "upper case sorts first")],
            b"secret".to_vec(),
        ),
        (
            "a context that is not ASCII",
            2,
            vec![pair("schl\u{fc}ssel", "\u{5bc6}\u{9470}")],
            vec![0; 100],
        ),
        (
            "the longest context",
            3,
            (0..8).map(|i| (i.to_string(), "v".repeat(1023))).collect(),
            vec![1; 16],
        ),
    ]
}

fn make(number: usize, input: Input) -> Vector {
    let (name, version, pairs, plaintext) = input;
    let byte = u8::try_from(number).unwrap();
    let key = [byte.wrapping_mul(37).wrapping_add(11); 32];
    let iv = [byte.wrapping_add(0x40); 12];
    let header = Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_random([byte.wrapping_add(0x10); 16]),
        version: KeyVersion::new(version).unwrap(),
    };
    let context = EncryptionContext::from_caller(pairs.clone()).unwrap();
    let mut aad = header.aad(&context);
    let aad = aad.with_iv(&iv).to_vec();
    let cipher = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &key).unwrap());
    let mut sealed = plaintext.clone();
    let nonce = aead::Nonce::assume_unique_for_key(iv);
    cipher.seal_in_place_append_tag(nonce, aead::Aad::from(&aad), &mut sealed).unwrap();
    let envelope = header.seal(&iv, &sealed);
    Vector {
        name: name.to_owned(),
        key: HEXLOWER.encode(&key),
        key_uid: HEXLOWER.encode(header.key_uid.as_bytes()),
        version,
        iv: HEXLOWER.encode(&iv),
        context: pairs.into_iter().collect(),
        plaintext: HEXLOWER.encode(&plaintext),
        aad: HEXLOWER.encode(&aad),
        text: envelope::to_text(&envelope),
        envelope: HEXLOWER.encode(&envelope),
    }
}

fn golden() -> Golden {
    serde_json::from_str(&std::fs::read_to_string(GOLDEN_PATH).unwrap()).unwrap()
}

#[test]
fn envelopes_are_byte_for_byte_those_of_the_golden_file() {
    let made = Golden {
        origin: "kms-core/tests/envelope_vectors.rs, AES-256-GCM of AWS-LC".to_owned(),
        vectors: inputs().into_iter().enumerate().map(|(i, input)| make(i, input)).collect(),
    };
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(&made).unwrap() + "\n";
        std::fs::write(GOLDEN_PATH, text).unwrap();
    }
    assert_eq!(made, golden());
}

#[test]
fn golden_envelopes_decode_to_their_fields() {
    for vector in golden().vectors {
        let bytes = HEXLOWER.decode(vector.envelope.as_bytes()).unwrap();
        let decoded = Envelope::decode(&bytes).unwrap();
        assert_eq!(HEXLOWER.encode(decoded.header.key_uid.as_bytes()), vector.key_uid);
        assert_eq!(decoded.header.version.get(), vector.version);
        assert_eq!(HEXLOWER.encode(&decoded.iv), vector.iv);
        assert_eq!(decoded.plaintext_len() * 2, vector.plaintext.len());
        assert_eq!(envelope::from_text(&vector.text), Ok(bytes));
    }
}

#[test]
fn a_32_byte_data_key_makes_84_bytes() {
    assert_eq!(golden().vectors[0].envelope.len(), 84 * 2);
}

#[test]
fn golden_envelopes_open_in_an_independent_implementation() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/decode_envelope.py");
    let output = Command::new("python3")
        .args([script, GOLDEN_PATH])
        .output()
        .expect("run python3; get it with `apt-get install python3`");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains(&format!("{} vectors opened", inputs().len())), "{text}");
}

//! AES key wrap with padding, and CKA_UNWRAP_TEMPLATE: how keys leave the token and come back.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::session::Session;

use crate::doctor::crypto::{decrypt, encrypt};
use crate::doctor::probe::{Finding, Probe, Seen, Throwaway, Trial, fails, refused};
use crate::doctor::report::Need;

/// A 32-byte key under KWP: 8 bytes more.
const WRAPPED_BYTES: usize = 40;

/// KWP (RFC 5649) of bytes 32 to 63 under bytes 0 to 31, made with `aes_key_wrap_with_padding` of pyca/cryptography 48.0.0.
const KWP_VECTOR: [u8; WRAPPED_BYTES] = [
    0x92, 0xf4, 0x8c, 0x52, 0x04, 0x5c, 0x08, 0x05, 0x0e, 0xc7, 0x96, 0xa5, 0xa9, 0x1c, 0x5d, 0xda,
    0xf7, 0xc6, 0x1c, 0xbd, 0xc9, 0x40, 0xad, 0xc8, 0xd3, 0xdc, 0x8a, 0x14, 0x4f, 0x61, 0x61, 0xa8,
    0xc5, 0xd3, 0x29, 0x9e, 0x32, 0x5f, 0x17, 0x50,
];

/// CKA_UNWRAP_TEMPLATE, which cryptoki 0.12.1 has no name for.
const CKA_UNWRAP_TEMPLATE: u64 = 0x4000_0212;

/// Returns the template of a key that wraps and unwraps with KWP only.
pub(super) fn wrapping_key() -> [Attribute; 4] {
    [
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Extractable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_KEY_WRAP_PAD]),
    ]
}

/// Returns the template of a key that may be wrapped once.
pub(super) fn wrappable_key() -> [Attribute; 3] {
    [Attribute::Encrypt(true), Attribute::Decrypt(true), Attribute::Extractable(true)]
}

/// Returns the template for unwrapping into a key that stays in the token.
pub(super) fn unwrapped_key(extractable: bool) -> [Attribute; 8] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

/// Tries KWP: the bytes, the way out and back, tampering, and that what comes back stays.
pub(super) fn key_wrap(probe: &mut Probe<'_>) {
    let trial = Trial {
        what: "CKM_AES_KEY_WRAP_PAD (0x210A)",
        need: Need::Needed,
        good: "keys are stored wrapped, and backups open on other tokens",
        bad: "keys cannot be stored wrapped (0x210B alone is not served: cryptoki 0.12.1 cannot name it)",
    };
    probe.attempt(trial, known_bytes);
    let trial = Trial {
        what: "wrap, unwrap, use",
        need: Need::Needed,
        good: "HSM_WRAPPED keys work",
        bad: "HSM_WRAPPED keys do not work",
    };
    probe.attempt(trial, out_and_back);
    let trial = Trial {
        what: "unwrap of a tampered blob",
        need: Need::Needed,
        good: "a tampered store is noticed",
        bad: "a tampered store would give other keys",
    };
    probe.attempt(trial, tampered);
    let trial = Trial {
        what: "EXTRACTABLE=false when unwrapping",
        need: Need::Needed,
        good: "a loaded key does not leave the token",
        bad: "a loaded key could leave the token",
    };
    probe.attempt(trial, stays);
}

fn known_bytes(session: &Session) -> Seen {
    let (low, high): (Vec<u8>, Vec<u8>) = ((0..32).collect(), (32..64).collect());
    let by = Throwaway::import(session, KeyType::AES, &low, &[Attribute::Wrap(true)])?;
    let key = Throwaway::import(session, KeyType::AES, &high, &[Attribute::Extractable(true)])?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle)?;
    if wrapped != KWP_VECTOR {
        return Err(Finding::Wrong(format!(
            "{} bytes that are not those of RFC 5649",
            wrapped.len()
        )));
    }
    Ok("the 40 bytes of RFC 5649".into())
}

fn out_and_back(session: &Session) -> Seen {
    let by = Throwaway::aes(session, &wrapping_key())?;
    let key = Throwaway::aes(session, &wrappable_key())?;
    let sealed = encrypt(session, key.handle, &mut [3; 12])?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle)?;
    if wrapped.len() != WRAPPED_BYTES {
        return Err(Finding::Wrong(format!("{} bytes instead of 40", wrapped.len())));
    }
    let back = unwrap(session, &by, &wrapped, false)?;
    decrypt(session, back.handle, &mut [3; 12], &sealed)?;
    Ok("the key that came back is the one that left".into())
}

fn tampered(session: &Session) -> Seen {
    let by = Throwaway::aes(session, &wrapping_key())?;
    let key = Throwaway::aes(session, &wrappable_key())?;
    let mut wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle)?;
    if let Some(first) = wrapped.first_mut() {
        *first ^= 1;
    }
    fails(unwrap(session, &by, &wrapped, false), "accepted")
}

fn stays(session: &Session) -> Seen {
    let by = Throwaway::aes(session, &wrapping_key())?;
    let key = Throwaway::aes(session, &wrappable_key())?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle)?;
    let back = unwrap(session, &by, &wrapped, false)?;
    let again = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, back.handle);
    refused(again, "it can be wrapped again")
}

fn unwrap<'a>(
    session: &'a Session,
    by: &Throwaway<'_>,
    wrapped: &[u8],
    extractable: bool,
) -> Result<Throwaway<'a>, cryptoki::error::Error> {
    let template = unwrapped_key(extractable);
    let handle = session.unwrap_key(&Mechanism::AesKeyWrapPad, by.handle, wrapped, &template)?;
    Ok(Throwaway::of(session, handle))
}

/// Tries CKA_UNWRAP_TEMPLATE {SENSITIVE, not EXTRACTABLE}.
pub(super) fn unwrap_template(probe: &mut Probe<'_>) {
    let trial = Trial {
        what: "CKA_UNWRAP_TEMPLATE",
        need: Need::Optional,
        good: "ceremony profile `locked` is possible: the token itself keeps unwrapped keys inside",
        bad: "ceremony profile `locked` is not possible",
    };
    probe.attempt(trial, |session| {
        let (sensitive, extractable) = ([1_u8], [0_u8]);
        let mut inner = raw_attribute(0x103, &sensitive);
        inner.extend(raw_attribute(0x162, &extractable));
        let mut template = wrapping_key().to_vec();
        let kind = AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE);
        template.push(Attribute::VendorDefined((kind, inner)));
        let by = Throwaway::aes(session, &template)?;
        let key = Throwaway::aes(session, &wrappable_key())?;
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle)?;
        unwrap(session, &by, &wrapped, false)?;
        fails(unwrap(session, &by, &wrapped, true), "not enforced")
    });
}

/// Returns the bytes of a CK_ATTRIBUTE that points to `value`, which must outlive the call that they are given to.
fn raw_attribute(kind: usize, value: &[u8]) -> Vec<u8> {
    let address = value.as_ptr().expose_provenance();
    [kind, address, value.len()].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

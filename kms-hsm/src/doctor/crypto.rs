//! Random numbers, AES-GCM, HMAC: what every request needs.

use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectHandle};
use cryptoki::session::Session;

use crate::doctor::connect::code;
use crate::doctor::probe::{Finding, Probe, Seen, Throwaway, Trial, fails};
use crate::doctor::report::{IvMode, Need};

const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const PLAINTEXT: &[u8; 32] = b"a data key of thirty-two octets.";
const AAD: &[u8] = b"kms doctor";

/// AES-256-GCM, test case 14 of McGrew and Viega, "The Galois/Counter Mode of Operation": all zero, 16 bytes.
const GCM_VECTOR: [u8; 32] = [
    0xce, 0xa7, 0x40, 0x3d, 0x4d, 0x60, 0x6b, 0x6e, 0x07, 0x4e, 0xc5, 0xd3, 0xba, 0xf3, 0x9d, 0x18,
    0xd0, 0xd1, 0xc8, 0xa7, 0x99, 0x99, 0x6b, 0xf0, 0x26, 0x5b, 0x98, 0xb5, 0xd4, 0x8a, 0xb9, 0x19,
];

/// HMAC-SHA-256 of [`HMAC_MESSAGE`] under 131 bytes 0xaa: RFC 4231 section 4.7. Shorter keys are refused by SoftHSM.
const HMAC_VECTOR: [u8; 32] = [
    0x60, 0xe4, 0x31, 0x59, 0x1e, 0xe0, 0xb6, 0x7f, 0x0d, 0x8a, 0x26, 0xaa, 0xcb, 0xf5, 0xb7, 0x7f,
    0x8e, 0x0b, 0xc6, 0x21, 0x37, 0x28, 0xc5, 0x14, 0x05, 0x46, 0x04, 0x0f, 0x0e, 0xe3, 0x7f, 0x54,
];
const HMAC_MESSAGE: &[u8] = b"Test Using Larger Than Block-Size Key - Hash Key First";

/// Returns the template of a key that encrypts and decrypts with GCM.
pub(super) fn gcm_key() -> [Attribute; 4] {
    [
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Extractable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]),
    ]
}

/// Encrypts with AES-GCM and a 128-bit tag.
pub(super) fn encrypt(
    session: &Session,
    key: ObjectHandle,
    iv: &mut [u8; IV_BYTES],
) -> Result<Vec<u8>, Error> {
    let parameters = GcmParams::new(iv, AAD, 128.into())?;
    session.encrypt(&Mechanism::AesGcm(parameters), key, PLAINTEXT)
}

/// Decrypts what [`encrypt`] gave.
pub(super) fn decrypt(
    session: &Session,
    key: ObjectHandle,
    iv: &mut [u8; IV_BYTES],
    sealed: &[u8],
) -> Result<Vec<u8>, Error> {
    let parameters = GcmParams::new(iv, AAD, 128.into())?;
    session.decrypt(&Mechanism::AesGcm(parameters), key, sealed)
}

/// Tries C_GenerateRandom.
pub(super) fn random(probe: &mut Probe<'_>) {
    let trial = Trial {
        what: "C_GenerateRandom",
        need: Need::Needed,
        good: "IVs and data keys come from the token",
        bad: "no source of IVs and data keys",
    };
    probe.attempt(trial, |session| {
        let (first, second) = (session.generate_random_vec(32)?, session.generate_random_vec(32)?);
        let constant = first.iter().all(|byte| Some(byte) == first.first());
        if first == second || constant {
            return Err(Finding::wrong("the same bytes again"));
        }
        Ok("32 bytes, twice, different".into())
    });
}

/// Tries key generation and AES-GCM. Returns who chooses the IV, and the code for a wrong tag.
pub(super) fn gcm(probe: &mut Probe<'_>) -> (IvMode, Option<String>) {
    let trial = Trial {
        what: "CKM_AES_KEY_GEN",
        need: Need::Needed,
        good: "keys are born in the token",
        bad: "no keys can be made",
    };
    let session = probe.session;
    let key = Throwaway::aes(session, &gcm_key());
    let key = match key {
        Ok(key) => {
            probe.record(trial, Ok("AES-256 session key".into()));
            key
        }
        Err(error) => {
            probe.record(trial, Err(error.into()));
            return (IvMode::Unknown, None);
        }
    };
    round_trip(probe, key.handle);
    vector(probe);
    let mode = iv_mode(probe, key.handle);
    (mode, wrong_tag(probe, key.handle))
}

fn round_trip(probe: &mut Probe<'_>, key: ObjectHandle) {
    let trial = Trial {
        what: "CKM_AES_GCM",
        need: Need::Needed,
        good: "data keys can be wrapped",
        bad: "nothing can be wrapped",
    };
    probe.attempt(trial, |session| {
        let sealed = encrypt(session, key, &mut [7; IV_BYTES])?;
        if decrypt(session, key, &mut [7; IV_BYTES], &sealed)? != PLAINTEXT {
            return Err(Finding::wrong("decrypts to something else"));
        }
        Ok("encrypts, and decrypts it again".into())
    });
}

fn vector(probe: &mut Probe<'_>) {
    let trial = Trial {
        what: "C_CreateObject of a public pattern",
        need: Need::Needed,
        good: "the check value of the root can be made; AES-GCM is the standard's",
        bad: "the identity of the root key cannot be checked",
    };
    probe.attempt(trial, |session| {
        let template = [Attribute::Encrypt(true)];
        let key = Throwaway::import(session, KeyType::AES, &[0; 32], &template)?;
        // A zero IV would be replaced by tokens that choose their own; the vector needs it as it is.
        let mut iv = [0; IV_BYTES];
        let parameters = GcmParams::new(&mut iv, &[], 128.into())?;
        let sealed = session.encrypt(&Mechanism::AesGcm(parameters), key.handle, &[0; 16])?;
        if iv == [0; IV_BYTES] && sealed != GCM_VECTOR {
            return Err(Finding::wrong("AES-GCM gives other bytes than the published vector"));
        }
        Ok("imported as a session object".into())
    });
}

fn iv_mode(probe: &mut Probe<'_>, key: ObjectHandle) -> IvMode {
    let session = probe.session;
    let outcome = observe_iv(session, key);
    let (mode, seen): (_, Seen) = match outcome {
        Ok(IvMode::Caller) => (IvMode::Caller, Ok("the caller's, taken as it is".into())),
        Ok(IvMode::TokenWritesBack) => (
            IvMode::TokenWritesBack,
            Err(Finding::wrong("the token replaces it and writes it back")),
        ),
        Ok(IvMode::TokenAppends) => {
            (IvMode::TokenAppends, Err(Finding::wrong("the token appends one of its own")))
        }
        Ok(IvMode::Unknown) => {
            (IvMode::Unknown, Err(Finding::wrong("the same IV gives different bytes")))
        }
        Err(error) => (IvMode::Unknown, Err(error.into())),
    };
    let trial = Trial {
        what: "IV of AES-GCM",
        need: Need::Needed,
        good: "random IVs are ours to draw, count and store",
        bad: "the envelope stores the IV that we drew; a token that takes another is not served yet",
    };
    probe.record(trial, seen);
    mode
}

fn observe_iv(session: &Session, key: ObjectHandle) -> Result<IvMode, Error> {
    let (mut first_iv, mut second_iv) = ([0; IV_BYTES], [0; IV_BYTES]);
    let first = encrypt(session, key, &mut first_iv)?;
    let second = encrypt(session, key, &mut second_iv)?;
    Ok(if first_iv != [0; IV_BYTES] || second_iv != [0; IV_BYTES] {
        IvMode::TokenWritesBack
    } else if first.len() > PLAINTEXT.len() + TAG_BYTES {
        IvMode::TokenAppends
    } else if first == second {
        IvMode::Caller
    } else {
        IvMode::Unknown
    })
}

fn wrong_tag(probe: &mut Probe<'_>, key: ObjectHandle) -> Option<String> {
    let mut tag_failure = None;
    let trial = Trial {
        what: "AES-GCM with a wrong tag",
        need: Need::Needed,
        good: "forged ciphertext is refused, and the session works on",
        bad: "forged ciphertext would be accepted, or costs the session",
    };
    let session = probe.session;
    let mut try_it = || -> Seen {
        let mut sealed = encrypt(session, key, &mut [9; IV_BYTES])?;
        if let Some(last) = sealed.last_mut() {
            *last ^= 1;
        }
        let outcome = decrypt(session, key, &mut [9; IV_BYTES], &sealed);
        tag_failure = outcome.as_ref().err().map(code);
        let seen = fails(outcome, "accepted")?;
        encrypt(session, key, &mut [10; IV_BYTES])?;
        Ok(seen)
    };
    let seen = try_it();
    probe.record(trial, seen);
    if tag_failure.as_deref() == Some("CKR_GENERAL_ERROR") {
        let trial = Trial {
            what: "code for a wrong tag",
            need: Need::Optional,
            good: "",
            bad: "a wrong tag looks like a fault of the device: canaries decide which it is",
        };
        probe.record(trial, Err(Finding::wrong("CKR_GENERAL_ERROR")));
    }
    tag_failure
}

/// Tries HMAC-SHA-256.
pub(super) fn hmac(probe: &mut Probe<'_>) {
    let template = || [Attribute::Sign(true), Attribute::Verify(true)];
    let trial = Trial {
        what: "CKM_GENERIC_SECRET_KEY_GEN",
        need: Need::Needed,
        good: "the root `mac` is born in the token",
        bad: "no root `mac` can be made: rows in the store cannot be protected",
    };
    probe.attempt(trial, |session| {
        let mut whole = vec![
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::ValueLen(32.into()),
            Attribute::AllowedMechanisms(vec![MechanismType::SHA256_HMAC]),
        ];
        whole.extend(template());
        let handle = session.generate_key(&Mechanism::GenericSecretKeyGen, &whole)?;
        let key = Throwaway::of(session, handle);
        let tag = session.sign(&Mechanism::Sha256Hmac, key.handle, AAD)?;
        session.verify(&Mechanism::Sha256Hmac, key.handle, AAD, &tag)?;
        Ok("32-byte secret, signs and verifies".into())
    });
    let trial = Trial {
        what: "CKM_SHA256_HMAC",
        need: Need::Needed,
        good: "rows in the store are protected by the token; the bytes are the standard's",
        bad: "rows in the store cannot be protected",
    };
    probe.attempt(trial, |session| {
        let key = Throwaway::import(session, KeyType::GENERIC_SECRET, &[0xaa; 131], &template())?;
        if session.sign(&Mechanism::Sha256Hmac, key.handle, HMAC_MESSAGE)? != HMAC_VECTOR {
            return Err(Finding::wrong("gives other bytes than the published vector"));
        }
        Ok("gives the bytes of RFC 4231".into())
    });
}

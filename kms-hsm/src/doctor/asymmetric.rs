//! Signatures and RSA-OAEP: for the audit log, tokens and imports.

use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::Attribute;
use cryptoki::session::Session;

use crate::doctor::probe::{Finding, Probe, Seen, Throwaway, Trial};
use crate::doctor::report::Need;

/// DER of the OID of curve P-256 (RFC 5480 section 2.1.1.1).
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// DER of the OID of Ed25519 (RFC 8410 section 3).
const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];
/// Both signatures are two numbers of 32 bytes.
const SIGNATURE_BYTES: usize = 64;
/// A digest for P-256, or a message for Ed25519.
const MESSAGE: &[u8; 32] = b"kms doctor: thirty-two bytes ...";

/// Tries Ed25519 and P-256.
pub(super) fn signatures(probe: &mut Probe<'_>) {
    let trial = Trial {
        what: "CKM_EDDSA (Ed25519)",
        need: Need::Optional,
        good: "audit checkpoints can be signed in the token",
        bad: "audit checkpoints cannot be signed in the token",
    };
    probe.attempt(trial, |session| {
        let scheme = EddsaParams::new(EddsaSignatureScheme::Pure);
        sign(session, &Mechanism::EccEdwardsKeyPairGen, &ED25519, &Mechanism::Eddsa(scheme))
    });
    let trial = Trial {
        what: "CKM_ECDSA (P-256)",
        need: Need::Optional,
        good: "service tokens can be signed in the token",
        bad: "service tokens cannot be signed in the token",
    };
    probe.attempt(trial, |session| {
        sign(session, &Mechanism::EccKeyPairGen, &P256, &Mechanism::Ecdsa)
    });
}

fn sign(
    session: &Session,
    generate: &Mechanism<'_>,
    curve: &[u8],
    mechanism: &Mechanism<'_>,
) -> Seen {
    let public =
        [Attribute::Token(false), Attribute::Verify(true), Attribute::EcParams(curve.to_vec())];
    let private = [
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    let (public, private) = session.generate_key_pair(generate, &public, &private)?;
    let (public, private) = (Throwaway::of(session, public), Throwaway::of(session, private));
    let signature = session.sign(mechanism, private.handle, MESSAGE)?;
    if signature.len() != SIGNATURE_BYTES {
        return Err(Finding::Wrong(format!("a signature of {} bytes", signature.len())));
    }
    session.verify(mechanism, public.handle, MESSAGE, &signature)?;
    Ok("signs and verifies".into())
}

/// Tries RSA-2048 with OAEP under SHA-1 and SHA-256.
pub(super) fn oaep(probe: &mut Probe<'_>) {
    let session = probe.session;
    let public = [
        Attribute::Token(false),
        Attribute::Encrypt(true),
        Attribute::ModulusBits(2048.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ];
    let private = [
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
    ];
    let pair = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private);
    let pair = pair.map(|(a, b)| (Throwaway::of(session, a), Throwaway::of(session, b)));
    let kinds = [
        (
            Trial {
                what: "CKM_RSA_PKCS_OAEP (SHA-1)",
                need: Need::Optional,
                good: "keys can be imported under RSA-OAEP with SHA-1",
                bad: "no import under RSA-OAEP with SHA-1",
            },
            MechanismType::SHA1,
            PkcsMgfType::MGF1_SHA1,
        ),
        (
            Trial {
                what: "CKM_RSA_PKCS_OAEP (SHA-256)",
                need: Need::Optional,
                good: "keys can be imported under RSA-OAEP with SHA-256",
                bad: "no import under RSA-OAEP with SHA-256",
            },
            MechanismType::SHA256,
            PkcsMgfType::MGF1_SHA256,
        ),
    ];
    for (trial, hash, mask) in kinds {
        let seen = match &pair {
            Ok((public, private)) => {
                let empty = PkcsOaepSource::empty();
                let mechanism = Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, empty));
                transport(session, &mechanism, public, private)
            }
            Err(_) => Err(Finding::wrong("no RSA-2048 key pair could be made")),
        };
        probe.record(trial, seen);
    }
}

fn transport(
    session: &Session,
    mechanism: &Mechanism<'_>,
    public: &Throwaway<'_>,
    private: &Throwaway<'_>,
) -> Seen {
    let sealed = session.encrypt(mechanism, public.handle, MESSAGE)?;
    if session.decrypt(mechanism, private.handle, &sealed)? != MESSAGE {
        return Err(Finding::wrong("decrypts to something else"));
    }
    Ok("encrypts, and decrypts it again".into())
}

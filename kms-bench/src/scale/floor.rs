//! What a root rollover asks of the bare token for one key; one session, one thread, nothing else of ours. In a process of its
//! own.
//!
//! The least is C_UnwrapKey, the check value, C_WrapKey, C_DestroyObject and two HMACs ([`Calls::LEAST`]). The server opens what
//! it wrapped once more before it is stored, and a key has more rows than one: [`Calls`] says how many of each.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use kms_core::clock::{Clock as _, SystemClock};
use kms_testkit::SoftHsm;

use crate::error::{Error, io};
use crate::processes::binary;
use crate::token::session;

/// Bytes of a row that is MACed.
const ROW_BYTES: usize = 300;
/// Bytes of the AAD of a check value.
const AAD_BYTES: usize = 40;
/// Bytes of the pattern of a check value.
const PATTERN_BYTES: usize = 32;

/// How many calls a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Times that a blob is opened, its check value compared, and the object destroyed.
    pub openings: u32,
    /// HMACs of rows, old and new.
    pub macs: u32,
}

impl Calls {
    /// With one row, and faith in C_WrapKey.
    pub const LEAST: Self = Self { openings: 1, macs: 2 };

    /// Those of a server that sealed so many rows a key.
    pub(super) fn served(rows_a_key: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few rows")]
        let macs = (2.0 * rows_a_key).round().clamp(2.0, 1_000.0) as u32;
        Self { openings: 2, macs }
    }
}

/// Measures it on a new token; returns keys a second.
pub(super) fn measure(directory: &Path, span: Duration, calls: Calls) -> Result<f64, Error> {
    let token = SoftHsm::create(directory);
    let mut command = Command::new(binary("kms-bench-token")?);
    command.arg("--rewrap").args(["--openings", &calls.openings.to_string()]);
    command.args(["--macs", &calls.macs.to_string()]);
    command.arg(kms_testkit::softhsm::module()).arg(span.as_millis().to_string());
    command.env("SOFTHSM2_CONF", token.configuration()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(io("start the token's process"))?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text).map_err(io("read from the token's process"))?;
    }
    child.wait().map_err(io("await the token's process"))?;
    let wrong = || Error::Child { what: "the token's process", detail: text.clone() };
    text.trim().parse().map_err(|_| wrong())
}

/// Returns how many keys a second the token re-wraps.
pub fn keys_per_second(module: &Path, span: Duration, calls: Calls) -> Result<f64, Error> {
    let session = session(module)?;
    // Roots are token objects, which SoftHSM reads from their files again for each call.
    let root = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::ValueLen(32.into()),
    ];
    let next = session.generate_key(&Mechanism::AesKeyGen, &root)?;
    let root = session.generate_key(&Mechanism::AesKeyGen, &root)?;
    let mac = session.generate_key(
        &Mechanism::GenericSecretKeyGen,
        &[
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Sign(true),
            Attribute::ValueLen(32.into()),
        ],
    )?;
    let key = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    let made = session.generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::Token(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(32.into()),
        ],
    )?;
    let blob = session.wrap_key(&Mechanism::AesKeyWrapPad, root, made)?;
    let (mut made_iv, mut iv) = ([7; 12], [7; 12]);
    let check = {
        let params = GcmParams::new(&mut made_iv, &[0x5a; AAD_BYTES], 128.into())?;
        session.encrypt(&Mechanism::AesGcm(params), made, &[0x5a; PATTERN_BYTES])?
    };
    let start = SystemClock.monotonic();
    let mut count = 0_u32;
    loop {
        for opening in 0..calls.openings {
            let opened = session.unwrap_key(&Mechanism::AesKeyWrapPad, root, &blob, &key)?;
            let params = GcmParams::new(&mut iv, &[0x5a; AAD_BYTES], 128.into())?;
            session.decrypt(&Mechanism::AesGcm(params), opened, &check)?;
            if opening == 0 {
                session.wrap_key(&Mechanism::AesKeyWrapPad, next, opened)?;
            }
            session.destroy_object(opened)?;
        }
        for _ in 0..calls.macs {
            session.sign(&Mechanism::Sha256Hmac, mac, &[0x5a; ROW_BYTES])?;
        }
        count += 1;
        let elapsed = SystemClock.monotonic().saturating_duration_since(start);
        if elapsed >= span {
            return Ok(f64::from(count) / elapsed.as_secs_f64());
        }
    }
}

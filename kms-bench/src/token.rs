//! The bare token: AES-GCM of 32 bytes under a session object, one session, one thread, nothing else of ours.
//!
//! Runs in a process of its own, as SoftHSM finds its token through the environment.

use std::path::Path;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use kms_core::clock::{Clock, SystemClock};
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN};

use crate::error::Error;

/// Bytes of the AAD of a wrap: the domain and the header.
const AAD_BYTES: usize = 11 + kms_core::envelope::HEADER_BYTES;

/// Bytes of an IV.
const IV_BYTES: usize = 12;
/// How many IVs one C_GenerateRandom gives: as many as the server's workers draw at once, so that neither is flattered.
const BLOCK_IVS: usize = 64;

/// Logs in to the bench's token.
pub(crate) fn session(module: &Path) -> Result<Session, Error> {
    let module = Pkcs11::new(module)?;
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let mut found = None;
    for slot in module.get_slots_with_initialized_token()? {
        if module.get_token_info(slot)?.label() == TOKEN_LABEL {
            found = Some(slot);
        }
    }
    let session = module.open_rw_session(found.ok_or(Error::Bug("the bench token is gone"))?)?;
    session.login(UserType::User, Some(&AuthPin::new(USER_PIN.into())))?;
    Ok(session)
}

/// Returns how many wraps of 32 bytes a second the token does on one lane: IVs drawn in blocks, then one encryption each.
pub fn items_per_second(module: &Path, span: Duration) -> Result<f64, Error> {
    let session = session(module)?;
    let key = session.generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::Token(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::ValueLen(32.into()),
        ],
    )?;
    session.get_attributes(key, &[AttributeType::KeyType])?;
    let start = SystemClock.monotonic();
    let mut count = 0_u32;
    let mut block = [0; IV_BYTES * BLOCK_IVS];
    loop {
        session.generate_random_slice(&mut block)?;
        for iv in block.chunks_exact_mut(IV_BYTES) {
            let params = GcmParams::new(iv, &[0x5a; AAD_BYTES], 128.into())?;
            session.encrypt(&Mechanism::AesGcm(params), key, &[0x5a; 32])?;
            count += 1;
        }
        let elapsed = SystemClock.monotonic().saturating_duration_since(start);
        if elapsed >= span {
            return Ok(f64::from(count) / elapsed.as_secs_f64());
        }
    }
}

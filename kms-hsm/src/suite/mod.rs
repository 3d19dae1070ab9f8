//! The conformance suite: what holds for every [`Hsm`], as functions that [`hsm_suite!`](crate::hsm_suite) turns into
//! tests of a provider.
//!
//! What holds for one provider only stands in that provider's own tests, which say why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "test code: a failure here is a failed test"
)]

pub mod bounds;
pub mod crypto;
pub mod import;
pub mod keys;
pub mod marks;
pub mod rewrap;
pub mod roots;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::envelope::{Aad, Iv};
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::key::{CkaId, Material, Protection};
use kms_core::root::RootPin;
use kms_core::secret::Plaintext;

use crate::error::HsmError;
use crate::hsm::{CryptoOp, CryptoOutput, Finished, GeneratedKey, Hsm, HsmKey, KeySource, KeySpec};

/// A device that providers can be started on, one after another.
pub trait Device {
    /// Starts a provider on the device. The one before has been closed.
    fn start(&self) -> Arc<dyn Hsm>;
}

/// A provider with an open root set.
#[derive(Debug)]
pub struct Bench {
    /// The provider.
    pub hsm: Arc<dyn Hsm>,
    /// The pin of its root set.
    pub pin: RootPin,
}

/// How long a step of the suite may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns a deadline that is far enough.
pub fn soon() -> Instant {
    SystemClock.monotonic() + PATIENCE
}

/// Starts a provider and makes and opens a root set.
pub fn bench(device: &dyn Device) -> Bench {
    let hsm = device.start();
    let pin = hsm.create_root(RootGeneration::FIRST, soon()).wait().expect("create a root set");
    hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open the root set");
    Bench { hsm, pin }
}

/// Starts another provider on the same device, with the same root set.
pub fn restart(device: &dyn Device, bench: Bench) -> Bench {
    bench.hsm.close();
    let Bench { hsm, pin } = bench;
    drop(hsm);
    let hsm = device.start();
    hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open the root set again");
    Bench { hsm, pin }
}

/// Returns a specification of a key; the number tells keys apart.
pub fn spec(number: u8, protection: Protection) -> KeySpec {
    KeySpec {
        key_uid: KeyUid::from_random([number; 16]),
        version: KeyVersion::FIRST,
        generation: RootGeneration::FIRST,
        protection,
        resident_id: CkaId([number; 16]),
    }
}

/// Returns where to load a generated key from.
pub fn source(spec: &KeySpec, generated: &GeneratedKey) -> KeySource {
    KeySource {
        key_uid: spec.key_uid,
        version: spec.version,
        generation: spec.generation,
        material: match &generated.wrapped {
            Some(blob) => Material::Wrapped(blob.clone()),
            None => Material::Resident(spec.resident_id),
        },
        check: generated.check.clone(),
    }
}

/// Returns an AAD; the text stands for the context.
pub fn aad(context: &str) -> Aad {
    Aad::from_prefix(context.as_bytes().to_vec())
}

impl Bench {
    /// Lists what can be resident keys.
    pub fn residents(&self) -> Result<Vec<CkaId>, HsmError> {
        self.hsm.list_token_keys(soon()).wait().map(|keys| keys.residents)
    }

    /// Generates an `HSM_WRAPPED` key.
    pub fn wrapped_key(&self, number: u8) -> GeneratedKey {
        let spec = spec(number, Protection::HsmWrapped);
        self.hsm.generate_key(spec, soon()).wait().expect("generate a wrapped key")
    }

    /// Generates an `HSM_RESIDENT` key.
    pub fn resident_key(&self, number: u8) -> GeneratedKey {
        let spec = spec(number, Protection::HsmResident);
        self.hsm.generate_key(spec, soon()).wait().expect("generate a resident key")
    }

    /// Encrypts.
    pub fn encrypt(&self, key: &HsmKey, context: &str, plaintext: &[u8]) -> (Iv, Vec<u8>) {
        let finished = self.hsm.crypt(encrypt_op(key, context, plaintext), soon()).wait();
        encrypted(finished.expect("encrypt"))
    }

    /// Decrypts.
    pub fn decrypt(
        &self,
        key: &HsmKey,
        context: &str,
        sealed: &(Iv, Vec<u8>),
    ) -> Result<Vec<u8>, HsmError> {
        self.hsm.crypt(decrypt_op(key, context, sealed), soon()).wait().map(decrypted)
    }
}

/// Makes an operation.
pub fn encrypt_op(key: &HsmKey, context: &str, plaintext: &[u8]) -> CryptoOp {
    let plaintext = Plaintext::new(plaintext.to_vec());
    CryptoOp::Encrypt { key: key.clone(), aad: aad(context), plaintext }
}

/// Makes an operation.
pub fn decrypt_op(key: &HsmKey, context: &str, sealed: &(Iv, Vec<u8>)) -> CryptoOp {
    CryptoOp::Decrypt {
        key: key.clone(),
        aad: aad(context),
        iv: sealed.0,
        ciphertext_and_tag: sealed.1.clone(),
    }
}

/// Takes what an encryption gave.
pub fn encrypted(finished: Finished) -> (Iv, Vec<u8>) {
    match finished.output {
        CryptoOutput::Encrypted { iv, ciphertext_and_tag } => (iv, ciphertext_and_tag.into_vec()),
        other => panic!("not a ciphertext: {other:?}"),
    }
}

/// Takes what a decryption gave.
pub fn decrypted(finished: Finished) -> Vec<u8> {
    match finished.output {
        CryptoOutput::Decrypted(plaintext) => plaintext.expose().to_vec(),
        other => panic!("not a plaintext: {other:?}"),
    }
}

/// Makes one test of every function of the suite.
///
/// `$run` is called with the full name of the test, as libtest knows it, and a function that takes the device.
#[macro_export]
macro_rules! hsm_suite {
    ($module:ident, $run:path) => {
        $crate::hsm_suite! { @tests $module, $run,
            crypto::encrypt_then_decrypt_gives_the_plaintext,
            crypto::every_encryption_has_an_iv_of_its_own,
            crypto::wrong_tag_context_iv_and_key_give_one_error,
            crypto::ciphertext_shorter_than_its_tag_gives_the_same_error,
            crypto::garbage_does_not_disturb_others,
            crypto::reencrypt_moves_to_another_key_and_context,
            crypto::reencrypt_of_garbage_is_refused,
            crypto::data_key_with_plaintext_opens_to_it,
            crypto::data_key_without_plaintext_hands_out_none,
            crypto::a_full_batch_answers_item_by_item_in_order,
            crypto::resident_and_wrapped_keys_work_alike,
            import::an_imported_key_is_the_one_that_was_sealed,
            import::the_key_of_an_import_job_survives_a_restart,
            import::an_import_key_is_used_up_by_what_does_not_open,
            import::a_tampered_second_step_is_refused,
            import::a_key_of_another_length_is_refused,
            import::a_check_value_that_does_not_fit_is_refused,
            import::the_key_of_an_import_job_is_destroyed,
            keys::a_loaded_key_is_the_generated_one,
            keys::a_key_survives_a_restart_of_the_provider,
            keys::a_wrapped_key_has_40_bytes,
            keys::a_flipped_blob_is_refused,
            keys::a_blob_of_another_length_is_refused,
            keys::a_check_value_of_another_key_is_refused,
            keys::a_flipped_check_value_is_refused,
            keys::dropping_a_key_while_jobs_use_it_is_safe,
            keys::dropping_the_last_clone_unloads_the_key,
            keys::every_wrapped_key_that_is_loaded_is_opened_once_and_counted,
            keys::resident_keys_are_listed_and_destroyed,
            keys::destroying_what_is_not_there_succeeds,
            keys::a_resident_id_is_not_taken_twice,
            keys::a_destroyed_resident_key_is_missing_not_latched,
            keys::a_key_of_a_root_that_is_not_open_is_refused,
            keys::a_key_of_another_provider_is_refused,
            marks::a_mark_takes_the_place_of_those_it_replaces_and_of_no_other,
            marks::a_mark_survives_a_restart_of_the_provider,
            marks::putting_a_mark_again_leaves_one,
            marks::a_mark_at_its_limit_and_one_past_it,
            rewrap::a_re_wrapped_key_is_the_same_key,
            rewrap::a_re_wrap_of_a_wrong_blob_is_refused_and_stops_no_other,
            rewrap::a_re_wrap_between_roots_that_are_not_open_is_refused,
            rewrap::re_wraps_at_their_limit_and_one_past_it,
            roots::mac_is_deterministic_and_separates_inputs,
            roots::mac_survives_a_restart_of_the_provider,
            roots::mac_of_a_root_that_is_not_open_is_refused,
            roots::another_mac_check_value_latches,
            roots::another_wrap_check_value_latches,
            roots::a_missing_root_object_latches,
            roots::another_serial_latches,
            roots::two_generations_are_open_side_by_side,
            roots::status_tells_no_roots_then_ready,
            bounds::random_at_its_limit_and_one_past_it,
            bounds::data_key_length_at_its_limits_and_past_them,
            bounds::a_batch_at_its_limit_and_one_past_it,
            bounds::a_job_whose_deadline_has_passed_is_not_done,
            bounds::after_close_everything_is_refused,
            bounds::timing_is_told,
        }
    };
    (@tests $module:ident, $run:path, $($file:ident :: $name:ident,)+) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let name = concat!(module_path!(), "::", stringify!($name));
                    let name = name.split_once("::").map_or(name, |(_, name)| name);
                    $run(name, $crate::suite::$file::$name);
                }
            )+
        }
    };
}

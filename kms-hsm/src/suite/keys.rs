//! Generation, loading, dropping and destroying of keys.

use kms_core::id::RootGeneration;
use kms_core::key::{CheckBlob, CkaId, Material, Protection, WrappedKey};

use super::{Bench, Device, bench, decrypted, encrypt_op, restart, soon, source, spec};
use crate::error::HsmError;
use crate::hsm::{HsmHealth, HsmKey, KeySource};

fn generated(bench: &Bench, number: u8) -> (KeySource, HsmKey) {
    let generated = bench.wrapped_key(number);
    (source(&spec(number, Protection::HsmWrapped), &generated), generated.key)
}

fn load(bench: &Bench, source: KeySource) -> Result<HsmKey, HsmError> {
    bench.hsm.load_key(source, soon()).wait()
}

fn assert_integrity(answer: &Result<HsmKey, HsmError>, what: &str) {
    assert!(matches!(answer, Err(HsmError::KeyIntegrity { .. })), "{what}: {answer:?}");
}

/// Sealed by one, opened by the other.
pub fn a_loaded_key_is_the_generated_one(device: &dyn Device) {
    let bench = bench(device);
    let (source, key) = generated(&bench, 1);
    let loaded = load(&bench, source).expect("load");
    let sealed = bench.encrypt(&key, "context", b"plaintext");
    assert_eq!(bench.decrypt(&loaded, "context", &sealed), Ok(b"plaintext".to_vec()));
}

/// Both protections.
pub fn a_key_survives_a_restart_of_the_provider(device: &dyn Device) {
    let mut bench = bench(device);
    for (number, protection) in [(1, Protection::HsmWrapped), (2, Protection::HsmResident)] {
        let spec = spec(number, protection);
        let generated = bench.hsm.generate_key(spec, soon()).wait().expect("generate");
        let source = source(&spec, &generated);
        let sealed = bench.encrypt(&generated.key, "context", b"plaintext");
        drop(generated);
        bench = restart(device, bench);
        let key = load(&bench, source).expect("load after the restart");
        assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
    }
}

/// RFC 5649 of a 32-byte key.
pub fn a_wrapped_key_has_40_bytes(device: &dyn Device) {
    let bench = bench(device);
    let (one, two) = (bench.wrapped_key(1), bench.wrapped_key(2));
    let blob = one.wrapped.expect("a blob");
    assert_eq!(blob.0.len(), 40);
    assert_ne!(Some(blob), two.wrapped);
    assert_eq!(bench.resident_key(3).wrapped, None);
}

/// Every byte.
pub fn a_flipped_blob_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let (source, _key) = generated(&bench, 1);
    let Material::Wrapped(WrappedKey(blob)) = source.material.clone() else { panic!("a blob") };
    for position in 0..blob.len() {
        let mut flipped = blob.clone();
        flipped[position] ^= 1;
        let material = Material::Wrapped(WrappedKey(flipped));
        let answer = load(&bench, KeySource { material, ..source.clone() });
        assert_integrity(&answer, &format!("byte {position}"));
    }
    assert!(load(&bench, source).is_ok(), "and the right one is still accepted");
}

/// Shorter, longer, empty.
pub fn a_blob_of_another_length_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let (source, _key) = generated(&bench, 1);
    for length in [0, 8, 16, 32, 39, 41, 48] {
        let material = Material::Wrapped(WrappedKey(vec![1; length]));
        let answer = load(&bench, KeySource { material, ..source.clone() });
        assert_integrity(&answer, &format!("{length} bytes"));
    }
}

/// Swapped rows.
pub fn a_check_value_of_another_key_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let (one, _one) = generated(&bench, 1);
    let (two, _two) = generated(&bench, 2);
    let swapped = KeySource { check: two.check.clone(), ..one.clone() };
    assert_integrity(&load(&bench, swapped), "check of another key");
    let other_uid = KeySource { key_uid: two.key_uid, ..one };
    assert_integrity(&load(&bench, other_uid), "uid of another key");
}

/// Every byte.
pub fn a_flipped_check_value_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let (source, _key) = generated(&bench, 1);
    let bytes = source.check.to_bytes();
    for position in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1;
        let check = CheckBlob::from_bytes(&flipped).expect("long enough");
        let answer = load(&bench, KeySource { check, ..source.clone() });
        assert_integrity(&answer, &format!("byte {position}"));
    }
}

/// The jobs hold the key.
pub fn dropping_a_key_while_jobs_use_it_is_safe(device: &dyn Device) {
    let bench = bench(device);
    for round in 0..20 {
        let (source, key) = generated(&bench, 1);
        let jobs: Vec<_> =
            (0..50).map(|_| bench.hsm.crypt(encrypt_op(&key, "context", b"x"), soon())).collect();
        drop(key);
        let again = load(&bench, source).expect("load");
        for job in jobs {
            let sealed = super::encrypted(job.wait().expect("done although the key was dropped"));
            let opened = bench.hsm.crypt(super::decrypt_op(&again, "context", &sealed), soon());
            assert_eq!(opened.wait().map(decrypted), Ok(b"x".to_vec()), "round {round}");
        }
    }
}

/// Counted.
pub fn dropping_the_last_clone_unloads_the_key(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let clone = key.clone();
    assert_eq!(bench.hsm.status().loaded_keys, 1);
    drop(key);
    assert_eq!(bench.hsm.status().loaded_keys, 1);
    drop(clone);
    assert_eq!(bench.hsm.status().loaded_keys, 0);
}

/// A key that is made was not stored; one that is loaded is opened once.
pub fn every_wrapped_key_that_is_loaded_is_opened_once_and_counted(device: &dyn Device) {
    let bench = bench(device);
    let (source, made) = generated(&bench, 1);
    drop(made);
    let before = bench.hsm.status().unwrapped_keys;
    for opened in 1..=3 {
        drop(load(&bench, source.clone()).expect("load"));
        assert_eq!(bench.hsm.status().unwrapped_keys - before, opened);
    }
}

/// Wrapped keys and roots are no resident keys.
pub fn resident_keys_are_listed_and_destroyed(device: &dyn Device) {
    let bench = bench(device);
    let _wrapped = bench.wrapped_key(9);
    assert_eq!(bench.residents(), Ok(vec![]));
    let _keys = [bench.resident_key(1), bench.resident_key(2)];
    let both = vec![CkaId([1; 16]), CkaId([2; 16])];
    assert_eq!(bench.residents(), Ok(both));
    assert_eq!(bench.hsm.destroy_resident(CkaId([1; 16]), soon()).wait(), Ok(()));
    assert_eq!(bench.residents(), Ok(vec![CkaId([2; 16])]));
}

/// Idempotent.
pub fn destroying_what_is_not_there_succeeds(device: &dyn Device) {
    let bench = bench(device);
    assert_eq!(bench.hsm.destroy_resident(CkaId([1; 16]), soon()).wait(), Ok(()));
}

/// Uniqueness is ours to keep: tokens allow duplicates.
pub fn a_resident_id_is_not_taken_twice(device: &dyn Device) {
    let bench = bench(device);
    let _key = bench.resident_key(1);
    let again = bench.hsm.generate_key(spec(1, Protection::HsmResident), soon()).wait();
    assert!(matches!(again, Err(HsmError::KeyIntegrity { .. })), "{again:?}");
}

/// The roots are there, so the token is.
pub fn a_destroyed_resident_key_is_missing_not_latched(device: &dyn Device) {
    let bench = bench(device);
    let spec = spec(1, Protection::HsmResident);
    let generated = bench.hsm.generate_key(spec, soon()).wait().expect("generate");
    let source = source(&spec, &generated);
    drop(generated);
    bench.hsm.destroy_resident(spec.resident_id, soon()).wait().expect("destroy");
    let answer = bench.hsm.load_key(source, soon()).wait();
    assert_eq!(answer.unwrap_err(), HsmError::ResidentMissing);
    assert_eq!(bench.hsm.status().health, HsmHealth::Ready);
}

/// Not open is not missing.
pub fn a_key_of_a_root_that_is_not_open_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let mut spec = spec(1, Protection::HsmWrapped);
    spec.generation = RootGeneration::new(2).expect("a generation");
    let answer = bench.hsm.generate_key(spec, soon()).wait();
    assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
    assert_eq!(bench.hsm.status().health, HsmHealth::Ready);
}

/// A mistake of ours must not reach the token.
pub fn a_key_of_another_provider_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let foreign = HsmKey::new(std::sync::Arc::new(4711_u32));
    let answer = bench.hsm.crypt(encrypt_op(&foreign, "context", b"x"), soon()).wait();
    assert!(matches!(answer, Err(HsmError::Bug { .. })), "{answer:?}");
}

//! Keys that change from one root to another.

use kms_core::id::RootGeneration;
use kms_core::key::{CheckBlob, Material, Protection, WrappedKey};
use kms_core::root::RootPin;

use super::{Bench, Device, bench, restart, soon, source, spec};
use crate::error::HsmError;
use crate::hsm::{HsmHealth, KeySource, MAX_REWRAPS};

type Rewrapped = Result<Vec<Result<WrappedKey, HsmError>>, HsmError>;

fn second() -> RootGeneration {
    RootGeneration::new(2).expect("a generation")
}

fn open_second(bench: &Bench) -> RootPin {
    let pin = bench.hsm.create_root(second(), soon()).wait().expect("create");
    bench.hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open");
    pin
}

fn rewrap(bench: &Bench, sources: &[KeySource]) -> Rewrapped {
    bench.hsm.rewrap_keys(sources.to_vec(), second(), soon()).wait()
}

fn wrapped(bench: &Bench, number: u8) -> KeySource {
    source(&spec(number, Protection::HsmWrapped), &bench.wrapped_key(number))
}

fn under_second(source: &KeySource, blob: &WrappedKey) -> KeySource {
    let material = Material::Wrapped(blob.clone());
    KeySource { generation: second(), material, ..source.clone() }
}

/// What the key sealed under the old root, it opens under the new one; the blob is another.
pub fn a_re_wrapped_key_is_the_same_key(device: &dyn Device) {
    let bench = bench(device);
    let generated = bench.wrapped_key(1);
    let old = source(&spec(1, Protection::HsmWrapped), &generated);
    let sealed = bench.encrypt(&generated.key, "context", b"plaintext");
    drop(generated);
    let pin = open_second(&bench);
    let blob =
        rewrap(&bench, std::slice::from_ref(&old)).expect("re-wrap").remove(0).expect("a blob");
    assert_eq!(blob.0.len(), 40);
    assert_ne!(Material::Wrapped(blob.clone()), old.material);
    let new = under_second(&old, &blob);
    let key = bench.hsm.load_key(new.clone(), soon()).wait().expect("load under the new root");
    assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
    drop(key);
    // The old blob is good as long as nobody replaced it, and neither is good under the other root.
    assert!(bench.hsm.load_key(old.clone(), soon()).wait().is_ok());
    for crossed in [
        KeySource { generation: second(), ..old },
        KeySource { generation: RootGeneration::FIRST, ..new.clone() },
    ] {
        let answer = bench.hsm.load_key(crossed, soon()).wait();
        assert!(matches!(answer, Err(HsmError::KeyIntegrity { .. })), "{answer:?}");
    }
    let bench = restart(device, bench);
    bench.hsm.open_roots(vec![pin], soon()).wait().expect("open the second again");
    let key = bench.hsm.load_key(new, soon()).wait().expect("load after a restart");
    assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
}

/// Its neighbours are wrapped, and it is told apart.
pub fn a_re_wrap_of_a_wrong_blob_is_refused_and_stops_no_other(device: &dyn Device) {
    let bench = bench(device);
    let good = [wrapped(&bench, 1), wrapped(&bench, 2)];
    let _pin = open_second(&bench);
    let Material::Wrapped(WrappedKey(mut flipped)) = good[0].material.clone() else {
        panic!("a blob")
    };
    flipped[20] ^= 1;
    let wrong = [
        KeySource { material: Material::Wrapped(WrappedKey(flipped)), ..good[0].clone() },
        KeySource { material: Material::Wrapped(WrappedKey(vec![1; 39])), ..good[0].clone() },
        KeySource { check: good[1].check.clone(), ..good[0].clone() },
        KeySource {
            check: CheckBlob { iv: good[0].check.iv, ciphertext_and_tag: vec![0; 48] },
            ..good[0].clone()
        },
    ];
    for wrong in wrong {
        let sources = [good[0].clone(), wrong, good[1].clone()];
        let done = rewrap(&bench, &sources).expect("re-wrap");
        assert!(matches!(done[1], Err(HsmError::KeyIntegrity { .. })), "{done:?}");
        for (source, blob) in [(&good[0], &done[0]), (&good[1], &done[2])] {
            let new = under_second(source, blob.as_ref().expect("a blob"));
            assert!(bench.hsm.load_key(new, soon()).wait().is_ok());
        }
    }
    assert_eq!(bench.hsm.status().health, HsmHealth::Ready);
    assert_eq!(bench.hsm.status().loaded_keys, 0);
}

/// Neither end may be closed.
pub fn a_re_wrap_between_roots_that_are_not_open_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let source = wrapped(&bench, 1);
    let answer = rewrap(&bench, std::slice::from_ref(&source));
    assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
    let _pin = open_second(&bench);
    let generation = RootGeneration::new(3).expect("a generation");
    let answer = rewrap(&bench, &[KeySource { generation, ..source }]);
    assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
    assert_eq!(bench.hsm.status().health, HsmHealth::Ready);
}

/// [`MAX_REWRAPS`], one more, none; and what has no blob.
pub fn re_wraps_at_their_limit_and_one_past_it(device: &dyn Device) {
    let bench = bench(device);
    let _pin = open_second(&bench);
    let one = wrapped(&bench, 1);
    let full = vec![one.clone(); MAX_REWRAPS];
    let done = rewrap(&bench, &full).expect("re-wrap");
    assert_eq!(done.len(), MAX_REWRAPS);
    // KWP is deterministic.
    assert!(done.iter().all(|blob| blob.is_ok() && *blob == done[0]), "{done:?}");
    let over = vec![one; MAX_REWRAPS + 1];
    assert!(matches!(rewrap(&bench, &over), Err(HsmError::Bug { .. })));
    assert_eq!(rewrap(&bench, &[]), Ok(vec![]));
    let resident = source(&spec(2, Protection::HsmResident), &bench.resident_key(2));
    assert!(matches!(rewrap(&bench, &[resident]), Err(HsmError::Bug { .. })));
}

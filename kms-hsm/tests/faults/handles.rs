//! Handle numbers restart after C_Finalize: neither an old session nor an old key handle may meet a new one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kms_hsm::{Hsm as _, HsmHealth};
use kms_testkit::faulty::Call;
use kms_testkit::{Faulty, deadline};

use crate::rig::{LIMIT, with_rig};

/// CKR_SESSION_HANDLE_INVALID.
const SESSION_HANDLE_INVALID: u64 = 0xb3;

#[test]
fn an_old_session_never_closes_a_new_one() {
    with_rig("handles::an_old_session_never_closes_a_new_one", |rig, faulty| {
        let key = rig.key(1).key;
        for _ in 0..5 {
            // Both workers have a session of the old epoch.
            let pending = [(); 16].map(|()| rig.submit(&key, crate::rig::soon()));
            assert!(pending.into_iter().all(|answer| answer.wait().is_ok()));
            let before = rig.hsm.status().reconnects;
            let mark = faulty.mark();
            rig.lose_module(faulty, &key, &[]);
            deadline::eventually(LIMIT, "a reconnect", || rig.hsm.status().reconnects > before);
            faulty.heal();
            rig.await_recovery(&key);
            // Each worker meets the new epoch with an old session in hand: slow calls bring both to work.
            faulty.script(&["C_EncryptInit * delay 5ms"]);
            let pending = [(); 16].map(|()| rig.submit(&key, crate::rig::soon()));
            assert!(pending.into_iter().all(|answer| answer.wait().is_ok()));
            let mut calls = faulty.calls_since(mark);
            let new = calls.iter().rposition(|call| call.function == "C_Initialize").unwrap();
            calls.drain(..new);
            assert!(calls.iter().all(|call| call.rv != SESSION_HANDLE_INVALID), "{calls:?}");
            assert!(calls.iter().all(|call| call.function != "C_CloseSession"), "{calls:?}");
        }
    });
}

#[test]
fn an_old_key_handle_never_names_another_key() {
    with_rig("handles::an_old_key_handle_never_names_another_key", |rig, faulty| {
        let keys: Vec<_> = (1..=8).map(|number| rig.key(number)).collect();
        let before: Vec<_> = keys.iter().map(|key| rig.encrypt(&key.key).unwrap()).collect();
        for turn in 0..4 {
            let reconnects = rig.hsm.status().reconnects;
            rig.lose_module(faulty, &keys[0].key, &[]);
            deadline::eventually(LIMIT, "ready", || rig.health() == HsmHealth::Ready);
            assert!(rig.hsm.status().reconnects > reconnects);
            faulty.heal();
            // In another order than before: the same handle numbers are given to other keys.
            for place in (0..keys.len()).map(|place| (place * 3 + turn) % keys.len()) {
                let sealed = rig.encrypt(&keys[place].key).unwrap();
                // Another object of the same key must open it, and so must each old ciphertext.
                let fresh = rig.load(&keys[place].source).unwrap();
                assert_eq!(rig.decrypt(&fresh, &sealed), Ok(()), "key {place}");
                assert_eq!(rig.decrypt(&keys[place].key, &before[place]), Ok(()), "key {place}");
            }
        }
    });
}

#[test]
fn jobs_in_flight_during_reconnects_are_never_answered_wrongly() {
    with_rig(
        "handles::jobs_in_flight_during_reconnects_are_never_answered_wrongly",
        |rig, faulty| {
            let keys: Vec<_> = (1..=4).map(|number| rig.key(number).key).collect();
            let stop = AtomicBool::new(false);
            let done = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for key in &keys {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            // `decrypt` panics on a wrong plaintext, and a wrong key would give CiphertextInvalid.
                            match rig.round_trip(key) {
                                Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                                Err(error) => assert_eq!(
                                    error.retry(),
                                    kms_core::fault::Retry::Later,
                                    "{error:?}"
                                ),
                            }
                        }
                    });
                }
                for _ in 0..10 {
                    let before = rig.hsm.status().reconnects;
                    faulty.script(&[
                        "C_EncryptInit 1 return CKR_CRYPTOKI_NOT_INITIALIZED",
                        "C_GetTokenInfo 1 return CKR_CRYPTOKI_NOT_INITIALIZED",
                    ]);
                    deadline::eventually(LIMIT, "a reconnect", || {
                        rig.hsm.status().reconnects > before
                    });
                    let so_far = done.load(Ordering::Relaxed);
                    deadline::eventually(LIMIT, "work", || {
                        done.load(Ordering::Relaxed) > so_far + 8
                    });
                }
                stop.store(true, Ordering::Relaxed);
            });
            rig.assert_not_fatal();
        },
    );
}

#[test]
fn keys_are_evicted_under_load_without_a_misleading_error() {
    with_rig("handles::keys_are_evicted_under_load_without_a_misleading_error", |rig, faulty| {
        let start = faulty.mark();
        let sources: Vec<_> = (1..=6).map(|number| rig.key(number).source).collect();
        deadline::eventually(LIMIT, "all keys released", || objects_since(faulty, start) == 0);
        let mark = faulty.mark();
        std::thread::scope(|scope| {
            for start in 0..4 {
                let sources = &sources;
                scope.spawn(move || {
                    for turn in 0..60 {
                        let source = &sources[(start + turn) % sources.len()];
                        let key = rig.load(source).unwrap();
                        // The handle is dropped while the job is still queued.
                        let pending = rig.submit(&key, crate::rig::soon());
                        drop(key);
                        pending.wait().unwrap();
                    }
                });
            }
        });
        deadline::eventually(LIMIT, "all keys released", || objects_since(faulty, start) == 0);
        assert_eq!(rig.hsm.status().loaded_keys, 0);
        assert_eq!(faulty.count_since(mark, "C_UnwrapKey"), 240);
        let failed: Vec<_> =
            faulty.calls_since(mark).into_iter().filter(|call| call.rv != 0).collect();
        assert_eq!(failed, []);
        assert_eq!(rig.health(), HsmHealth::Ready);
    });
}

/// Counts the objects that were made and not destroyed since `mark`.
fn objects_since(faulty: &Faulty, mark: usize) -> isize {
    let made = ["C_GenerateKey", "C_UnwrapKey", "C_CreateObject", "C_CopyObject"];
    let one = |call: &Call| match call.function.as_str() {
        _ if call.rv != 0 => 0,
        "C_DestroyObject" => -1,
        function => isize::from(made.contains(&function)),
    };
    faulty.calls_since(mark).iter().map(one).sum()
}

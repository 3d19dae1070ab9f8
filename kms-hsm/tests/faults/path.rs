//! What a request's path calls, and what it never does.

use std::collections::BTreeSet;

use kms_core::id::RootGeneration;
use kms_core::key::Protection;
use kms_hsm::{CryptoOp, Hsm as _};

use crate::rig::{aad, soon, with_rig};

#[test]
fn requests_never_find_open_or_log_in() {
    with_rig("path::requests_never_find_open_or_log_in", |rig, faulty| {
        let wrapped = rig.key(1).key;
        let resident = rig.try_key(2, Protection::HsmResident).unwrap().key;
        let mark = faulty.mark();
        for _ in 0..150 {
            for key in [&wrapped, &resident] {
                rig.round_trip(key).unwrap();
                let operation = CryptoOp::GenerateDataKey {
                    key: key.clone(),
                    aad: aad(),
                    length_bytes: 32,
                    with_plaintext: true,
                };
                rig.hsm.crypt(operation, soon()).wait().unwrap();
            }
            rig.hsm.mac(RootGeneration::FIRST, vec![b"row".to_vec()], soon()).wait().unwrap();
            rig.hsm.random(32, soon()).wait().unwrap();
        }
        let calls = faulty.calls_since(mark);
        let names: BTreeSet<_> = calls.iter().map(|call| call.function.as_str()).collect();
        let allowed = [
            "C_Decrypt",
            "C_DecryptInit",
            "C_Encrypt",
            "C_EncryptInit",
            "C_GenerateRandom",
            "C_Sign",
            "C_SignInit",
        ];
        assert_eq!(names, BTreeSet::from(allowed));
        assert_eq!(faulty.count_since(0, "C_Login"), 1);
        assert_eq!(faulty.count_since(0, "C_Initialize"), 1);
    });
}

#[test]
fn loading_a_key_never_finds() {
    with_rig("path::loading_a_key_never_finds", |rig, faulty| {
        let wrapped = rig.key(1).source;
        let resident = rig.try_key(2, Protection::HsmResident).unwrap().source;
        let mark = faulty.mark();
        for source in [&wrapped, &resident].repeat(20) {
            rig.round_trip(&rig.load(source).unwrap()).unwrap();
        }
        for function in ["C_FindObjectsInit", "C_FindObjects", "C_OpenSession", "C_Login"] {
            assert_eq!(faulty.count_since(mark, function), 0, "{function}");
        }
    });
}

#[test]
fn sessions_belong_to_one_thread_each() {
    with_rig("path::sessions_belong_to_one_thread_each", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        let pending: Vec<_> = (0..400).map(|_| rig.submit(&key, soon())).collect();
        for answer in pending {
            answer.wait().unwrap();
        }
        let calls = faulty.calls_since(mark);
        let sessions: BTreeSet<_> = calls
            .iter()
            .filter(|call| call.function == "C_Encrypt")
            .map(|call| call.session)
            .collect();
        assert!(sessions.len() <= 2, "one a worker: {sessions:?}");
        // In each session, C_EncryptInit and C_Encrypt alternate: no two threads are in one.
        for session in sessions {
            let own: Vec<_> = calls
                .iter()
                .filter(|call| call.session == session && !call.query)
                .filter(|call| call.function.starts_with("C_Encrypt"))
                .map(|call| call.function.as_str())
                .collect();
            let pairs = own.chunks(2).all(|pair| pair == ["C_EncryptInit", "C_Encrypt"]);
            assert!(pairs, "session {session} is shared");
        }
    });
}

#[test]
fn closing_ends_everything_in_order() {
    kms_testkit::isolated_faulty("path::closing_ends_everything_in_order", |_, faulty| {
        let rig = crate::rig::Rig::start();
        let key = rig.key(1).key;
        rig.round_trip(&key).unwrap();
        rig.hsm.close();
        assert!(rig.encrypt(&key).is_err());
        assert_eq!(faulty.count_since(0, "C_Finalize"), 1);
        let calls = faulty.calls_since(0);
        assert_eq!(calls.last().map(|call| call.function.as_str()), Some("C_Finalize"));
        rig.assert_not_fatal();
    });
}

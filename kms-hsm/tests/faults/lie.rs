//! Row "Byzantine": wrong lengths, wrong bytes, a random generator that repeats itself.

use std::collections::HashSet;

use kms_core::id::RootGeneration;
use kms_core::key::Protection;
use kms_hsm::{CryptoOp, CryptoOutput, Hsm as _, HsmError};

use crate::rig::{aad, soon, with_rig};

#[test]
fn a_wrong_length_is_never_handed_out() {
    with_rig("lie::a_wrong_length_is_never_handed_out", |rig, faulty| {
        let key = rig.key(1).key;
        let sealed = rig.encrypt(&key).unwrap();
        for rule in ["C_Encrypt 1 short", "C_Encrypt 1 return CKR_BUFFER_TOO_SMALL"] {
            faulty.script(&[rule]);
            let answer = rig.encrypt(&key);
            assert!(
                matches!(answer, Err(HsmError::Unavailable { .. } | HsmError::Bug { .. })),
                "{rule}: {answer:?}"
            );
            faulty.heal();
            rig.await_recovery(&key);
        }
        faulty.script(&["C_Decrypt 1 short"]);
        assert!(rig.decrypt(&key, &sealed).is_err());
        faulty.heal();
        rig.await_recovery(&key);
        assert_eq!(rig.decrypt(&key, &sealed), Ok(()));
    });
}

#[test]
fn an_output_that_is_too_long_is_never_handed_out() {
    with_rig("lie::an_output_that_is_too_long_is_never_handed_out", |rig, faulty| {
        let key = rig.key(1).key;
        let sealed = rig.encrypt(&key).unwrap();
        let unavailable = |answer: Result<(), HsmError>, rule: &str| {
            let Err(HsmError::Unavailable { detail, .. }) = &answer else {
                panic!("{rule}: {answer:?}");
            };
            assert!(detail.contains("length"), "{rule}: refused for another reason: {detail}");
            faulty.heal();
            rig.await_recovery(&key);
        };
        let long = |rule: &'static str| {
            faulty.script(&[rule]);
            rule
        };

        let rule = long("C_Encrypt 1 long");
        unavailable(rig.encrypt(&key).map(drop), rule);
        let rule = long("C_Decrypt 1 long");
        unavailable(rig.decrypt(&key, &sealed), rule);
        let rule = long("C_Sign 1 long");
        let mac = rig.hsm.mac(RootGeneration::FIRST, vec![vec![1]], soon()).wait();
        unavailable(mac.map(drop), rule);
        let rule = long("C_WrapKey 1 long");
        unavailable(rig.try_key(7, Protection::HsmWrapped).map(drop), rule);
        let rule = long("C_Encrypt * long");
        unavailable(rig.try_key(7, Protection::HsmResident).map(drop), rule);
        assert_eq!(rig.residents(), Ok(vec![]), "the refused key left nothing");
        assert_eq!(rig.decrypt(&key, &sealed), Ok(()));
    });
}

#[test]
fn a_token_that_draws_its_own_iv_is_not_believed() {
    with_rig("lie::a_token_that_draws_its_own_iv_is_not_believed", |rig, faulty| {
        let key = rig.key(1).key;
        // Whoever kept the IV that was asked for could never decrypt what the token made.
        faulty.script(&["C_EncryptInit 1 anyiv"]);
        let answer = rig.encrypt(&key);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        faulty.heal();
        rig.await_recovery(&key);
    });
}

#[test]
fn wrong_bytes_of_a_data_key_are_never_handed_out() {
    with_rig("lie::wrong_bytes_of_a_data_key_are_never_handed_out", |rig, faulty| {
        let key = rig.key(1).key;
        let data_key = |with_plaintext| CryptoOp::GenerateDataKey {
            key: key.clone(),
            aad: aad(),
            length_bytes: 32,
            with_plaintext,
        };
        for rule in ["C_Encrypt 1 flip", "C_Encrypt 1 constant", "C_Decrypt 1 flip"] {
            for with_plaintext in [true, false] {
                faulty.script(&[rule]);
                let answer = rig.hsm.crypt(data_key(with_plaintext), soon()).wait();
                assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rule}: {answer:?}");
                faulty.heal();
                rig.await_recovery(&key);
            }
        }
    });
}

#[test]
fn wrong_bytes_of_a_reencryption_are_never_handed_out() {
    with_rig("lie::wrong_bytes_of_a_reencryption_are_never_handed_out", |rig, faulty| {
        let (from, to) = (rig.key(1).key, rig.key(2).key);
        let (iv, ciphertext_and_tag) = rig.encrypt(&from).unwrap();
        let reencrypt = || CryptoOp::Reencrypt {
            from: from.clone(),
            from_aad: aad(),
            iv,
            ciphertext_and_tag: ciphertext_and_tag.clone(),
            to: to.clone(),
            to_aad: aad(),
        };
        // The second decryption is the one that looks at what was made.
        for rule in ["C_Encrypt 1 flip", "C_Decrypt 2 flip"] {
            faulty.script(&[rule]);
            let answer = rig.hsm.crypt(reencrypt(), soon()).wait();
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rule}: {answer:?}");
            faulty.heal();
            rig.await_recovery(&to);
        }
        let made = rig.hsm.crypt(reencrypt(), soon()).wait().unwrap();
        assert_eq!(rig.decrypt(&to, &crate::rig::sealed(made)), Ok(()));
    });
}

#[test]
fn wrong_bytes_of_an_encryption_are_found_where_that_is_asked_for() {
    let test = "lie::wrong_bytes_of_an_encryption_are_found_where_that_is_asked_for";
    kms_testkit::isolated_faulty(test, |_, faulty| {
        let rig = crate::rig::Rig::start_with(|config| config.verify_encrypt = true);
        let key = rig.key(1).key;
        faulty.script(&["C_Encrypt 1 flip"]);
        let answer = rig.encrypt(&key);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        faulty.heal();
        rig.await_recovery(&key);
    });
}

#[test]
fn a_key_that_was_wrapped_or_checked_wrongly_is_not_acknowledged() {
    with_rig(
        "lie::a_key_that_was_wrapped_or_checked_wrongly_is_not_acknowledged",
        |rig, faulty| {
            let kept = rig.key(1).key;
            for (rule, protection) in [
                ("C_WrapKey * flip", Protection::HsmWrapped),
                ("C_Encrypt * flip", Protection::HsmWrapped),
                ("C_Encrypt * flip", Protection::HsmResident),
                ("C_UnwrapKey * return CKR_WRAPPED_KEY_INVALID", Protection::HsmWrapped),
            ] {
                faulty.script(&[rule]);
                let answer = rig.try_key(7, protection).map(drop);
                assert!(answer.is_err(), "{rule} {protection:?}");
                faulty.heal();
                rig.await_recovery(&kept);
                // What a failed creation left on the token is not in the way of the next.
                for orphan in rig.residents().unwrap() {
                    rig.hsm.destroy_resident(orphan, soon()).wait().unwrap();
                }
            }
            rig.round_trip(&rig.key(7).key).unwrap();
        },
    );
}

#[test]
fn a_flipped_plaintext_of_a_check_blob_is_no_good_key() {
    with_rig("lie::a_flipped_plaintext_of_a_check_blob_is_no_good_key", |rig, faulty| {
        let key = rig.key(1);
        faulty.script(&["C_Decrypt 1 flip"]);
        let answer = rig.load(&key.source);
        assert!(matches!(answer, Err(HsmError::KeyIntegrity { .. })), "{answer:?}");
        faulty.heal();
        rig.round_trip(&rig.load(&key.source).unwrap()).unwrap();
    });
}

#[test]
fn a_constant_random_generator_gives_no_iv_twice() {
    with_rig("lie::a_constant_random_generator_gives_no_iv_twice", |rig, faulty| {
        let key = rig.key(1).key;
        faulty.script(&["C_GenerateRandom * constant"]);
        let mut ivs = HashSet::new();
        let mut refused = 0;
        for _ in 0..300 {
            match rig.encrypt(&key) {
                Ok((iv, _)) => assert!(ivs.insert(iv), "an IV was used twice"),
                Err(HsmError::Unavailable { .. }) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(refused > 0);
        faulty.heal();
        rig.await_recovery(&key);
    });
}

#[test]
fn a_constant_random_generator_gives_no_data_key_twice() {
    with_rig("lie::a_constant_random_generator_gives_no_data_key_twice", |rig, faulty| {
        let key = rig.key(1).key;
        faulty.script(&["C_GenerateRandom * constant"]);
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let operation = CryptoOp::GenerateDataKey {
                key: key.clone(),
                aad: aad(),
                length_bytes: 32,
                with_plaintext: true,
            };
            if let Ok(finished) = rig.hsm.crypt(operation, soon()).wait() {
                let CryptoOutput::DataKey { plaintext: Some(plaintext), .. } = finished.output
                else {
                    panic!("no data key");
                };
                assert!(seen.insert(plaintext.expose().to_vec()), "a data key was given out twice");
            }
        }
        faulty.heal();
        rig.await_recovery(&key);
    });
}

#[test]
fn a_constant_random_generator_gives_no_random_bytes_twice() {
    with_rig("lie::a_constant_random_generator_gives_no_random_bytes_twice", |rig, faulty| {
        let key = rig.key(1).key;
        // Each draw meets a closed breaker, so that it is the draw itself that is judged.
        for length in [16, 32, 1024] {
            faulty.script(&["C_GenerateRandom * constant"]);
            let answer = rig.hsm.random(length, soon()).wait().map(|bytes| bytes.len());
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{length}: {answer:?}");
            faulty.heal();
            rig.await_recovery(&key);
        }
    });
}

/// Row "RNG failure": what needs random bytes is refused, and all works again afterwards.
#[test]
fn a_random_generator_that_fails_gives_no_iv_and_no_bytes() {
    with_rig("lie::a_random_generator_that_fails_gives_no_iv_and_no_bytes", |rig, faulty| {
        let key = rig.key(1).key;
        let sealed = rig.encrypt(&key).unwrap();
        for code in ["CKR_RANDOM_NO_RNG", "CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR"] {
            let rule = format!("C_GenerateRandom * return {code}");
            faulty.script(&[&rule]);
            let answer = rig.hsm.random(32, soon()).wait().map(|bytes| bytes.len());
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{code}: {answer:?}");
            faulty.heal();
            rig.await_recovery(&key);
            // IVs drawn before the failure are good until they are used up; no one is used twice.
            faulty.script(&[&rule]);
            let mut ivs = HashSet::new();
            let mut refused = 0;
            for _ in 0..300 {
                match rig.encrypt(&key) {
                    Ok((iv, _)) => assert!(ivs.insert(iv), "{code}: an IV was used twice"),
                    Err(HsmError::Unavailable { .. }) => refused += 1,
                    Err(other) => panic!("{code}: {other:?}"),
                }
            }
            assert!(refused > 0, "{code}");
            faulty.heal();
            rig.await_recovery(&key);
            assert_eq!(rig.decrypt(&key, &sealed), Ok(()), "{code}");
        }
        rig.assert_not_fatal();
    });
}

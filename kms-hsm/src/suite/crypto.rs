//! Encryption, decryption, re-encryption, data keys, batches.

use kms_core::envelope::TAG_BYTES;

use super::{Device, aad, bench, decrypt_op, decrypted, encrypt_op, encrypted, soon};
use crate::error::HsmError;
use crate::hsm::{CryptoOp, CryptoOutput, MAX_BATCH};

/// A round trip, at several lengths.
pub fn encrypt_then_decrypt_gives_the_plaintext(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    for length in [1, 15, 16, 17, 32, 1024, 64 * 1024] {
        let plaintext = vec![7; length];
        let sealed = bench.encrypt(&key, "context", &plaintext);
        assert_eq!(sealed.1.len(), length + TAG_BYTES);
        assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(plaintext));
    }
}

/// More encryptions than a block of IVs holds.
pub fn every_encryption_has_an_iv_of_its_own(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let mut ivs: Vec<_> = (0..300).map(|_| bench.encrypt(&key, "context", b"x").0).collect();
    ivs.sort_unstable();
    ivs.dedup();
    assert_eq!(ivs.len(), 300);
}

/// One indistinguishable answer.
pub fn wrong_tag_context_iv_and_key_give_one_error(device: &dyn Device) {
    let bench = bench(device);
    let (key, other) = (bench.wrapped_key(1).key, bench.wrapped_key(2).key);
    let sealed = bench.encrypt(&key, "context", b"plaintext");
    for position in 0..sealed.1.len() {
        let mut flipped = sealed.clone();
        flipped.1[position] ^= 1;
        let answer = bench.decrypt(&key, "context", &flipped);
        assert_eq!(answer, Err(HsmError::CiphertextInvalid), "byte {position}");
    }
    let mut other_iv = sealed.clone();
    other_iv.0[0] ^= 1;
    let invalid = Err(HsmError::CiphertextInvalid);
    assert_eq!(bench.decrypt(&key, "context", &other_iv), invalid);
    assert_eq!(bench.decrypt(&key, "Context", &sealed), invalid);
    assert_eq!(bench.decrypt(&other, "context", &sealed), invalid);
    assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
}

/// Every truncation.
pub fn ciphertext_shorter_than_its_tag_gives_the_same_error(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let sealed = bench.encrypt(&key, "context", b"x");
    for length in 0..sealed.1.len() {
        let cut = (sealed.0, sealed.1[..length].to_vec());
        let answer = bench.decrypt(&key, "context", &cut);
        assert_eq!(answer, Err(HsmError::CiphertextInvalid), "{length} bytes");
    }
}

/// A client that sends garbage must not switch the service off.
pub fn garbage_does_not_disturb_others(device: &dyn Device) {
    let bench = bench(device);
    let (key, other) = (bench.wrapped_key(1).key, bench.wrapped_key(2).key);
    let sealed = bench.encrypt(&other, "context", b"good");
    for _ in 0..200 {
        let garbage = ([9; 12], vec![9; 48]);
        let answer = bench.decrypt(&key, "context", &garbage);
        assert_eq!(answer, Err(HsmError::CiphertextInvalid));
        assert_eq!(bench.decrypt(&other, "context", &sealed), Ok(b"good".to_vec()));
    }
}

/// Only the new key and context open it then.
pub fn reencrypt_moves_to_another_key_and_context(device: &dyn Device) {
    let bench = bench(device);
    let (from, to) = (bench.wrapped_key(1).key, bench.wrapped_key(2).key);
    let (iv, ciphertext_and_tag) = bench.encrypt(&from, "old", b"plaintext");
    let operation = CryptoOp::Reencrypt {
        from: from.clone(),
        from_aad: aad("old"),
        iv,
        ciphertext_and_tag,
        to: to.clone(),
        to_aad: aad("new"),
    };
    let moved = encrypted(bench.hsm.crypt(operation, soon()).wait().expect("re-encrypt"));
    assert_eq!(bench.decrypt(&to, "new", &moved), Ok(b"plaintext".to_vec()));
    assert_eq!(bench.decrypt(&from, "old", &moved), Err(HsmError::CiphertextInvalid));
    assert_eq!(bench.decrypt(&to, "old", &moved), Err(HsmError::CiphertextInvalid));
}

/// The refusal beside it.
pub fn reencrypt_of_garbage_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let operation = CryptoOp::Reencrypt {
        from: key.clone(),
        from_aad: aad("old"),
        iv: [0; 12],
        ciphertext_and_tag: vec![0; 48],
        to: key,
        to_aad: aad("new"),
    };
    let answer = bench.hsm.crypt(operation, soon()).wait();
    assert_eq!(answer.unwrap_err(), HsmError::CiphertextInvalid);
}

/// What is handed out is what is wrapped.
pub fn data_key_with_plaintext_opens_to_it(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let operation = CryptoOp::GenerateDataKey {
            key: key.clone(),
            aad: aad("context"),
            length_bytes: 32,
            with_plaintext: true,
        };
        let output = bench.hsm.crypt(operation, soon()).wait().expect("a data key").output;
        let CryptoOutput::DataKey { plaintext: Some(plaintext), iv, ciphertext_and_tag } = output
        else {
            panic!("not a data key with plaintext: {output:?}")
        };
        let opened = bench.decrypt(&key, "context", &(iv, ciphertext_and_tag.into_vec()));
        assert_eq!(opened.as_deref(), Ok(plaintext.expose()));
        assert_eq!(plaintext.len(), 32);
        seen.push(opened);
    }
    assert_ne!(seen[0], seen[1]);
}

/// The wrapped form alone.
pub fn data_key_without_plaintext_hands_out_none(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let operation = CryptoOp::GenerateDataKey {
        key: key.clone(),
        aad: aad("context"),
        length_bytes: 24,
        with_plaintext: false,
    };
    let output = bench.hsm.crypt(operation, soon()).wait().expect("a data key").output;
    let CryptoOutput::DataKey { plaintext: None, iv, ciphertext_and_tag } = output else {
        panic!("not a data key without plaintext: {output:?}")
    };
    let opened =
        bench.decrypt(&key, "context", &(iv, ciphertext_and_tag.into_vec())).expect("opens");
    assert_eq!(opened.len(), 24);
}

/// Bad items among good ones; each its own answer.
pub fn a_full_batch_answers_item_by_item_in_order(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let seal: Vec<_> = (0..MAX_BATCH)
        .map(|n| encrypt_op(&key, "context", format!("item {n}").as_bytes()))
        .collect();
    let sealed = bench.hsm.crypt_batch(seal, soon()).wait().expect("a batch");
    let sealed: Vec<_> = sealed.into_iter().map(|item| encrypted(item.expect("sealed"))).collect();
    let open: Vec<_> = sealed
        .iter()
        .enumerate()
        .map(|(n, item)| decrypt_op(&key, if n % 7 == 3 { "other" } else { "context" }, item))
        .collect();
    let opened = bench.hsm.crypt_batch(open, soon()).wait().expect("a batch");
    assert_eq!(opened.len(), MAX_BATCH);
    for (n, item) in opened.into_iter().enumerate() {
        let item = item.map(decrypted);
        if n % 7 == 3 {
            assert_eq!(item, Err(HsmError::CiphertextInvalid), "item {n}");
        } else {
            assert_eq!(item, Ok(format!("item {n}").into_bytes()), "item {n}");
        }
    }
}

/// Protection decides where a key lives, not what it does.
pub fn resident_and_wrapped_keys_work_alike(device: &dyn Device) {
    let bench = bench(device);
    for key in [bench.wrapped_key(1).key, bench.resident_key(2).key] {
        let sealed = bench.encrypt(&key, "context", b"plaintext");
        assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
        let wrong = bench.decrypt(&key, "other", &sealed);
        assert_eq!(wrong, Err(HsmError::CiphertextInvalid));
    }
}

//! Bounds, deadlines, closing.

use kms_core::clock::{Clock as _, SystemClock};

use super::{Device, aad, bench, encrypt_op, soon};
use crate::error::HsmError;
use crate::hsm::{CryptoOp, MAX_BATCH, MAX_RANDOM_BYTES};

/// None, some, the most, one more.
pub fn random_at_its_limit_and_one_past_it(device: &dyn Device) {
    let bench = bench(device);
    let draw = |length| bench.hsm.random(length, soon()).wait();
    assert_eq!(draw(MAX_RANDOM_BYTES).expect("the most").len(), MAX_RANDOM_BYTES);
    assert_ne!(draw(32).expect("some"), draw(32).expect("some"));
    assert!(matches!(draw(MAX_RANDOM_BYTES + 1), Err(HsmError::Bug { .. })));
}

/// 16 to 1,024 bytes.
pub fn data_key_length_at_its_limits_and_past_them(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let draw = |length_bytes| {
        let (key, aad) = (key.clone(), aad("context"));
        let operation = CryptoOp::GenerateDataKey { key, aad, length_bytes, with_plaintext: false };
        bench.hsm.crypt(operation, soon()).wait()
    };
    for length in [16, 1024] {
        assert!(draw(length).is_ok(), "{length}");
    }
    for length in [0, 15, 1025] {
        assert!(matches!(draw(length), Err(HsmError::Bug { .. })), "{length}");
    }
}

/// One item too many is refused as a whole.
pub fn a_batch_at_its_limit_and_one_past_it(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let batch = |count| {
        let operations = (0..count).map(|_| encrypt_op(&key, "context", b"x")).collect();
        bench.hsm.crypt_batch(operations, soon()).wait()
    };
    assert_eq!(batch(0).expect("an empty batch").len(), 0);
    assert_eq!(batch(MAX_BATCH).expect("the most").len(), MAX_BATCH);
    assert!(matches!(batch(MAX_BATCH + 1), Err(HsmError::Bug { .. })));
}

/// Late is not done, for workers and keeper alike.
pub fn a_job_whose_deadline_has_passed_is_not_done(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let past = SystemClock.monotonic();
    let late = |answer: HsmError| assert_eq!(answer, HsmError::QueueDeadline);
    late(bench.hsm.crypt(encrypt_op(&key, "context", b"x"), past).wait().unwrap_err());
    let batch = vec![encrypt_op(&key, "context", b"x")];
    late(bench.hsm.crypt_batch(batch, past).wait().unwrap_err());
    late(bench.hsm.random(16, past).wait().unwrap_err());
    let spec = super::spec(2, kms_core::key::Protection::HsmResident);
    late(bench.hsm.generate_key(spec, past).wait().unwrap_err());
    assert_eq!(bench.residents(), Ok(vec![]), "nothing was made");
}

/// Every method answers.
pub fn after_close_everything_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    bench.hsm.close();
    bench.hsm.close();
    let gone = |answer: HsmError| {
        assert!(matches!(answer, HsmError::Unavailable { .. }), "{answer:?}");
    };
    gone(bench.hsm.crypt(encrypt_op(&key, "context", b"x"), soon()).wait().unwrap_err());
    gone(bench.hsm.random(16, soon()).wait().unwrap_err());
    gone(bench.residents().unwrap_err());
    gone(bench.hsm.open_roots(vec![bench.pin], soon()).wait().unwrap_err());
}

/// For the audit record.
pub fn timing_is_told(device: &dyn Device) {
    let bench = bench(device);
    let key = bench.wrapped_key(1).key;
    let before = SystemClock.monotonic();
    let finished = bench.hsm.crypt(encrypt_op(&key, "context", b"x"), soon()).wait();
    let timing = finished.expect("encrypt").timing;
    let elapsed = SystemClock.monotonic().saturating_duration_since(before);
    assert!(timing.in_hsm > std::time::Duration::ZERO);
    assert!(timing.queued + timing.in_hsm <= elapsed, "{timing:?} in {elapsed:?}");
}

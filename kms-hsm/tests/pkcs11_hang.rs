//! Those who wait behind a hung call, and long jobs that do not hang; on the faulty module.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::id::RootGeneration;
use kms_core::key::Protection;
use kms_core::secret::Pin;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::suite::{Bench, encrypt_op, soon, source, spec};
use kms_hsm::{Hsm, HsmError};
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN};
use kms_testkit::{Faulty, faulty, isolated_faulty};

/// A deadline that only a hang misses, and far below every budget.
const PATIENCE: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

fn with_one_worker(test: &str, worker_hang: Duration, body: impl FnOnce(&Bench, &Faulty)) {
    isolated_faulty(test, |_, faulty| {
        let selector = TokenSelector::Label(TOKEN_LABEL.into());
        let mut config = Pkcs11Config::new(faulty::module(), selector);
        config.workers = 1;
        config.token_dir = Some(kms_testkit::softhsm::token_dir());
        config.budgets.worker_hang = worker_hang;
        let pin = Pin::new(USER_PIN.into());
        let hsm = Pkcs11Hsm::start(config, pin, Arc::new(SystemClock)).expect("start");
        let hsm: Arc<dyn Hsm> = Arc::new(hsm);
        let pin = hsm.create_root(RootGeneration::FIRST, soon()).wait().expect("create");
        hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open");
        body(&Bench { hsm, pin }, faulty);
        faulty.heal();
    });
}

#[test]
fn a_job_behind_the_only_hung_worker_is_answered_at_its_deadline() {
    let test = "a_job_behind_the_only_hung_worker_is_answered_at_its_deadline";
    with_one_worker(test, LONG, |bench, faulty| {
        let key = bench.wrapped_key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_Encrypt 1 hang"]);
        let start = SystemClock.monotonic();
        let hung = bench.hsm.crypt(encrypt_op(&key, "c", b"x"), start + PATIENCE);
        faulty.await_hang(mark, "C_Encrypt", LONG);
        let behind = bench.hsm.crypt(encrypt_op(&key, "c", b"x"), start + PATIENCE * 2);
        let patient = bench.hsm.crypt(encrypt_op(&key, "c", b"x"), soon());
        assert_eq!(hung.wait().unwrap_err(), HsmError::CallDeadline);
        assert_eq!(behind.wait().unwrap_err(), HsmError::QueueDeadline);
        assert!(SystemClock.monotonic() - start < LONG, "long before the worker is written off");
        faulty.heal();
        assert!(patient.wait().is_ok(), "who has time is served when the hang is over");
    });
}

#[test]
fn work_behind_a_hung_keeper_is_answered_at_its_deadline() {
    let test = "work_behind_a_hung_keeper_is_answered_at_its_deadline";
    with_one_worker(test, LONG, |bench, faulty| {
        let generated = bench.wrapped_key(1);
        let source = source(&spec(1, Protection::HsmWrapped), &generated);
        let mark = faulty.mark();
        faulty.script(&["C_UnwrapKey 1 hang"]);
        let start = SystemClock.monotonic();
        let hung = bench.hsm.load_key(source.clone(), start + PATIENCE);
        faulty.await_hang(mark, "C_UnwrapKey", LONG);
        let behind = bench.hsm.load_key(source.clone(), start + PATIENCE * 2);
        let patient = bench.hsm.load_key(source, soon());
        assert_eq!(hung.wait().unwrap_err(), HsmError::CallDeadline);
        assert_eq!(behind.wait().unwrap_err(), HsmError::QueueDeadline);
        // Those who need no keeper are served meanwhile.
        let crypt = bench.hsm.crypt(encrypt_op(&generated.key, "c", b"x"), soon()).wait();
        assert!(crypt.is_ok(), "{crypt:?}");
        faulty.heal();
        assert!(patient.wait().is_ok());
    });
}

#[test]
fn a_long_batch_that_moves_on_does_not_hang() {
    let test = "a_long_batch_that_moves_on_does_not_hang";
    with_one_worker(test, Duration::from_millis(400), |bench, faulty| {
        let key = bench.wrapped_key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_EncryptInit * delay 50ms"]);
        let batch = (0..20).map(|_| encrypt_op(&key, "c", b"x")).collect();
        let items = bench.hsm.crypt_batch(batch, soon()).wait().expect("a batch of a second");
        assert!(items.iter().all(Result::is_ok));
        assert_eq!(faulty.count_since(mark, "C_OpenSession"), 0, "no worker was replaced");
        assert_eq!(bench.hsm.status().workers, 1);
    });
}

#[test]
fn a_batch_that_no_one_waits_for_is_ended() {
    let test = "a_batch_that_no_one_waits_for_is_ended";
    with_one_worker(test, LONG, |bench, faulty| {
        let key = bench.wrapped_key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_EncryptInit * delay 50ms"]);
        let batch = (0..100).map(|_| encrypt_op(&key, "c", b"x")).collect();
        let late = SystemClock.monotonic() + PATIENCE;
        let answer = bench.hsm.crypt_batch(batch, late).wait();
        assert_eq!(answer.unwrap_err(), HsmError::CallDeadline);
        assert!(bench.hsm.random(16, soon()).wait().is_ok(), "the worker is free again");
        assert!(faulty.count_since(mark, "C_EncryptInit") < 100);
    });
}

#[test]
fn garbage_costs_one_canary_in_its_time() {
    with_one_worker("garbage_costs_one_canary_in_its_time", LONG, |bench, faulty| {
        let key = bench.wrapped_key(1).key;
        let garbage = ([9; 12], vec![9; 48]);
        let start = SystemClock.monotonic();
        let mark = faulty.mark();
        for _ in 0..20 {
            let answer = bench.decrypt(&key, "c", &garbage);
            assert_eq!(answer, Err(HsmError::CiphertextInvalid));
        }
        // One canary a second by default; the box may be slow.
        let took = SystemClock.monotonic() - start;
        let canaries = 1 + usize::try_from(took.as_secs()).unwrap();
        assert!(faulty.count_since(mark, "C_DecryptInit") <= 20 + canaries);
    });
}

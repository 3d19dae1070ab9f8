//! What holds for the PKCS#11 provider only, on SoftHSM: queues and threads (the software token has none), a token that
//! goes and comes back, PINs, and what the token itself enforces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType};
use cryptoki::session::Session;
use kms_core::clock::{Clock as _, SystemClock};
use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, Protection};
use kms_core::secret::Pin;
use kms_hsm::error::LatchReason;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::suite::{Bench, decrypt_op, decrypted, encrypt_op, soon, source, spec};
use kms_hsm::{Hsm, HsmError, HsmHealth, TokenKeys};
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, module};
use kms_testkit::{SoftHsm, isolated};

fn config(token: &SoftHsm) -> Pkcs11Config {
    let selector = TokenSelector::Label(TOKEN_LABEL.into());
    let mut config = Pkcs11Config::new(module(), selector);
    config.token_dir = Some(token.token_dir());
    config.budgets.probe_first = Duration::from_millis(10);
    config.budgets.probe_max = Duration::from_millis(50);
    config
}

fn start(config: Pkcs11Config) -> Pkcs11Hsm {
    start_with(config, USER_PIN).expect("start")
}

fn start_with(config: Pkcs11Config, pin: &str) -> Result<Pkcs11Hsm, HsmError> {
    Pkcs11Hsm::start(config, Pin::new(pin.into()), Arc::new(SystemClock))
}

fn bench(config: Pkcs11Config) -> Bench {
    let hsm: Arc<dyn Hsm> = Arc::new(start(config));
    let pin = hsm.create_root(RootGeneration::FIRST, soon()).wait().expect("create a root set");
    hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open the root set");
    Bench { hsm, pin }
}

/// Waits for a health; the provider's own threads bring it about.
fn await_health(hsm: &dyn Hsm, wanted: impl Fn(&HsmHealth) -> bool) {
    let deadline = soon();
    while !wanted(&hsm.status().health) {
        assert!(SystemClock.monotonic() < deadline, "still {:?}", hsm.status().health);
        std::thread::yield_now();
    }
}

/// Opens a session of the test's own beside the provider: the module is shared by the process, and so is the login.
fn session() -> Session {
    let context = Pkcs11::new(module()).expect("load the module");
    // Initialised by the provider.
    let _ = context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slot = context.get_slots_with_initialized_token().expect("slots")[0];
    context.open_rw_session(slot).expect("session")
}

#[test]
fn a_wrong_pin_latches_after_one_attempt() {
    isolated("a_wrong_pin_latches_after_one_attempt", |token| {
        let hsm = start_with(config(token), "wrong-pin-1234").expect("start");
        let reason = LatchReason::PinRefused;
        assert_eq!(hsm.status().health, HsmHealth::Latched(reason.clone()));
        for _ in 0..3 {
            let answer = hsm.create_root(RootGeneration::FIRST, soon()).wait();
            assert_eq!(answer, Err(HsmError::Latched { reason: reason.clone() }));
        }
        assert_eq!(hsm.status().reconnects, 0, "nothing was tried again");
    });
}

#[test]
fn a_missing_module_is_refused_at_start() {
    isolated("a_missing_module_is_refused_at_start", |token| {
        let config = Pkcs11Config { module: "/nonexistent/p11.so".into(), ..config(token) };
        let answer = start_with(config, USER_PIN);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
    });
}

#[test]
fn a_token_that_is_absent_is_unavailable_until_it_comes() {
    isolated("a_token_that_is_absent_is_unavailable_until_it_comes", |token| {
        let selector = TokenSelector::Label("later".into());
        let hsm = start(Pkcs11Config { token: selector, ..config(token) });
        assert!(matches!(hsm.status().health, HsmHealth::Unavailable(_)));
        let answer = hsm.random(16, soon()).wait();
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        // Made elsewhere and moved in: softhsm2-util itself fails when another process reads the directory meanwhile.
        let elsewhere = SoftHsm::create(&token.root().join("elsewhere"));
        elsewhere.init_token("later");
        for made in std::fs::read_dir(elsewhere.token_dir()).expect("list") {
            let made = made.expect("entry");
            let place = token.token_dir().join(made.file_name());
            std::fs::rename(made.path(), place).expect("bring the token");
        }
        await_health(&hsm, |health| *health == HsmHealth::NoRoots);
        assert!(hsm.random(16, soon()).wait().is_ok());
    });
}

/// SoftHSM does not sync its files, and without the directory nobody else can.
#[test]
fn softhsm_without_its_directory_is_latched_and_shown_no_pin() {
    isolated("softhsm_without_its_directory_is_latched_and_shown_no_pin", |token| {
        let hsm = start(Pkcs11Config { token_dir: None, ..config(token) });
        let HsmHealth::Latched(reason) = hsm.status().health else { panic!("not latched") };
        assert!(matches!(reason, LatchReason::TokenDirUnknown { .. }), "{reason}");
        assert!(reason.to_string().contains("set hsm.token_dir"), "{reason}");
        let root = hsm.create_root(RootGeneration::FIRST, soon()).wait();
        assert_eq!(root, Err(HsmError::Latched { reason }));
        hsm.close();
        assert_eq!(start(config(token)).status().health, HsmHealth::NoRoots);
    });
}

#[test]
fn a_token_whose_file_a_killed_login_left_empty_is_put_back() {
    isolated("a_token_whose_file_a_killed_login_left_empty_is_put_back", |token| {
        let entries: Vec<_> = std::fs::read_dir(token.token_dir()).expect("list").collect();
        let file = entries[0].as_ref().expect("entry").path().join("token.object");
        start(config(token)).close();
        // What SoftHSM leaves between truncating and writing.
        std::fs::write(&file, b"").expect("truncate");
        let elsewhere = Some(token.root().join("elsewhere"));
        let unguarded = start(Pkcs11Config { token_dir: elsewhere, ..config(token) });
        assert!(matches!(unguarded.status().health, HsmHealth::Unavailable(_)));
        unguarded.close();
        let hsm = start(config(token));
        assert_eq!(hsm.status().health, HsmHealth::NoRoots);
        assert!(hsm.random(16, soon()).wait().is_ok());
    });
}

#[test]
fn two_tokens_with_one_label_are_refused_and_a_serial_decides() {
    isolated("two_tokens_with_one_label_are_refused_and_a_serial_decides", |token| {
        let serial = {
            let hsm = start(config(token));
            hsm.status().token_serial
        };
        token.init_token(TOKEN_LABEL);
        let hsm = start(config(token));
        assert!(matches!(hsm.status().health, HsmHealth::Unavailable(_)));
        drop(hsm);
        let hsm =
            start(Pkcs11Config { token: TokenSelector::Serial(serial.clone()), ..config(token) });
        assert_eq!(hsm.status().health, HsmHealth::NoRoots);
        assert_eq!(hsm.status().token_serial, serial);
    });
}

#[test]
fn a_token_that_goes_is_unavailable_and_its_keys_work_when_it_is_back() {
    isolated("a_token_that_goes_is_unavailable_and_its_keys_work_when_it_is_back", |token| {
        let bench = bench(config(token));
        let wrapped = bench.wrapped_key(1);
        let resident = bench.resident_key(2);
        let of_wrapped = bench.encrypt(&wrapped.key, "context", b"one");
        let of_resident = bench.encrypt(&resident.key, "context", b"two");
        let away = token.root().join("away");
        std::fs::rename(token.token_dir(), &away).expect("take the token away");

        let answer = bench.decrypt(&resident.key, "context", &of_resident);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        assert!(matches!(bench.hsm.status().health, HsmHealth::Unavailable(_)));
        let answer = bench.hsm.create_root(RootGeneration::FIRST, soon()).wait();
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "no root is made: {answer:?}");

        std::fs::rename(&away, token.token_dir()).expect("bring the token back");
        await_health(&*bench.hsm, |health| *health == HsmHealth::Ready);
        assert_eq!(bench.decrypt(&wrapped.key, "context", &of_wrapped), Ok(b"one".to_vec()));
        assert_eq!(bench.decrypt(&resident.key, "context", &of_resident), Ok(b"two".to_vec()));
        assert!(bench.hsm.status().reconnects > 0);
    });
}

#[test]
fn a_root_destroyed_behind_our_back_latches() {
    isolated("a_root_destroyed_behind_our_back_latches", |token| {
        let bench = bench(config(token));
        let session = session();
        let label = Attribute::Label(b"holdfast-mac-1".to_vec());
        let found = session.find_objects(&[label]).expect("find");
        session.destroy_object(found[0]).expect("destroy");
        let answer = bench.hsm.mac(RootGeneration::FIRST, vec![vec![1]], soon()).wait();
        let reason = LatchReason::RootMissing { role: "mac", generation: 1 };
        assert_eq!(answer, Err(HsmError::Latched { reason: reason.clone() }));
        assert_eq!(bench.hsm.status().health, HsmHealth::Latched(reason));
    });
}

#[test]
fn a_key_object_destroyed_behind_our_back_is_loaded_again() {
    isolated("a_key_object_destroyed_behind_our_back_is_loaded_again", |token| {
        let bench = bench(config(token));
        let key = bench.wrapped_key(1).key;
        let sealed = bench.encrypt(&key, "context", b"plaintext");
        let session = session();
        let keys =
            session.find_objects(&[Attribute::Token(false), Attribute::KeyType(KeyType::AES)]);
        for object in keys.expect("find") {
            session.destroy_object(object).expect("destroy");
        }
        assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
        let batch = (0..10).map(|_| decrypt_op(&key, "context", &sealed)).collect();
        for item in bench.hsm.crypt_batch(batch, soon()).wait().expect("a batch") {
            assert_eq!(item.map(decrypted), Ok(b"plaintext".to_vec()));
        }
    });
}

#[test]
fn a_lost_login_is_restored_without_the_caller_noticing() {
    isolated("a_lost_login_is_restored_without_the_caller_noticing", |token| {
        let bench = bench(config(token));
        let key = bench.wrapped_key(1).key;
        let sealed = bench.encrypt(&key, "context", b"plaintext");
        session().logout().expect("log out behind the provider's back");
        assert_eq!(bench.decrypt(&key, "context", &sealed), Ok(b"plaintext".to_vec()));
        let mac = bench.hsm.mac(RootGeneration::FIRST, vec![vec![1]], soon()).wait();
        assert!(mac.is_ok(), "{mac:?}");
    });
}

#[test]
fn a_module_finalized_behind_our_back_is_initialised_again() {
    isolated("a_module_finalized_behind_our_back_is_initialised_again", |token| {
        let bench = bench(config(token));
        let key = bench.wrapped_key(1).key;
        let sealed = bench.encrypt(&key, "context", b"plaintext");
        let context = Pkcs11::new(module()).expect("load the module");
        context.finalize().expect("finalize behind the provider's back");
        let deadline = soon();
        loop {
            match bench.decrypt(&key, "context", &sealed) {
                Ok(plaintext) => break assert_eq!(plaintext, b"plaintext"),
                Err(HsmError::Unavailable { .. }) => {
                    assert!(SystemClock.monotonic() < deadline, "{:?}", bench.hsm.status());
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_full_queue_is_refused_at_once() {
    isolated("a_full_queue_is_refused_at_once", |token| {
        let bench = bench(Pkcs11Config { workers: 1, queue_capacity: 4, ..config(token) });
        let key = bench.wrapped_key(1).key;
        let batch = || (0..1000).map(|_| encrypt_op(&key, "context", b"x")).collect::<Vec<_>>();
        let answers: Vec<_> = (0..50).map(|_| bench.hsm.crypt_batch(batch(), soon())).collect();
        let (mut done, mut saturated) = (0, 0);
        for answer in answers {
            match answer.wait() {
                Ok(items) => {
                    assert!(items.iter().all(Result::is_ok));
                    done += 1;
                }
                Err(HsmError::Saturated { .. }) => saturated += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(done >= 4 && saturated >= 1, "{done} done, {saturated} refused");
        let again = bench.hsm.crypt(encrypt_op(&key, "context", b"x"), soon()).wait();
        assert!(again.is_ok(), "and when it has drained, jobs are taken again");
    });
}

#[test]
fn a_job_that_expires_in_the_queue_is_not_done() {
    isolated("a_job_that_expires_in_the_queue_is_not_done", |token| {
        let bench = bench(Pkcs11Config { workers: 1, ..config(token) });
        let key = bench.wrapped_key(1).key;
        let batch = || (0..1000).map(|_| encrypt_op(&key, "context", b"x")).collect::<Vec<_>>();
        let ahead: Vec<_> = (0..10).map(|_| bench.hsm.crypt_batch(batch(), soon())).collect();
        let soon_over = SystemClock.monotonic() + Duration::from_millis(5);
        let late = bench.hsm.crypt(encrypt_op(&key, "context", b"x"), soon_over).wait();
        assert_eq!(late.unwrap_err(), HsmError::QueueDeadline);
        assert!(ahead.into_iter().all(|batch| batch.wait().is_ok()));
    });
}

#[test]
fn closing_finishes_what_was_taken() {
    isolated("closing_finishes_what_was_taken", |token| {
        let bench = bench(Pkcs11Config { workers: 1, ..config(token) });
        let key = bench.wrapped_key(1).key;
        let jobs: Vec<_> =
            (0..500).map(|_| bench.hsm.crypt(encrypt_op(&key, "c", b"x"), soon())).collect();
        bench.hsm.close();
        for job in jobs {
            assert!(job.wait().is_ok());
        }
        assert_eq!(bench.hsm.status().workers, 0);
    });
}

/// What the token itself enforces, asked by another session than the provider's own probes.
#[test]
fn forbidden_uses_are_refused_by_the_token() {
    isolated("forbidden_uses_are_refused_by_the_token", |token| {
        let bench = bench(config(token));
        let (_wrapped, _resident) = (bench.wrapped_key(1).key, bench.resident_key(2).key);
        let session = session();
        let find = |attributes: &[Attribute]| session.find_objects(attributes).expect("find");
        let wrap = find(&[Attribute::Label(b"holdfast-wrap-1".to_vec())])[0];
        let mac = find(&[Attribute::Label(b"holdfast-mac-1".to_vec())])[0];
        let keys = find(&[Attribute::KeyType(KeyType::AES), Attribute::Encrypt(true)]);
        assert_eq!(keys.len(), 2, "one session object and one token object");
        for object in keys.iter().copied().chain([wrap, mac]) {
            let value = session.get_attributes(object, &[AttributeType::Value]);
            assert!(value.map_or(true, |found| found.is_empty()), "no value is shown");
            let exported = session.wrap_key(&Mechanism::AesKeyWrapPad, wrap, object);
            assert!(exported.is_err(), "nothing sealed is wrapped");
            let opened = session.update_attributes(object, &[Attribute::Extractable(true)]);
            assert!(opened.is_err(), "sealed stays sealed");
            let usable = session.update_attributes(object, &[Attribute::Decrypt(true)]);
            assert!(usable.is_err(), "not modifiable");
        }
        let aes_cbc = Mechanism::AesCbc([0; 16]);
        assert!(session.wrap_key(&aes_cbc, wrap, keys[0]).is_err(), "one-way export by CBC");
        assert!(session.encrypt(&aes_cbc, keys[0], &[0; 16]).is_err(), "GCM only");
        assert!(session.sign(&Mechanism::Sha256Hmac, keys[0], b"x").is_err());
        assert!(session.encrypt(&Mechanism::AesEcb, wrap, &[0; 16]).is_err());
    });
}

#[test]
fn nothing_extractable_is_left_after_generation() {
    isolated("nothing_extractable_is_left_after_generation", |token| {
        let bench = bench(config(token));
        let _keys: Vec<_> = (0..5).map(|number| bench.wrapped_key(number)).collect();
        let session = session();
        assert_eq!(session.find_objects(&[Attribute::Extractable(true)]).expect("find"), []);
        assert_eq!(session.find_objects(&[Attribute::Token(false)]).expect("find").len(), 5);
    });
}

#[test]
fn a_dropped_key_leaves_no_object_behind() {
    isolated("a_dropped_key_leaves_no_object_behind", |token| {
        let bench = bench(config(token));
        for number in 0..10 {
            drop(bench.wrapped_key(number));
        }
        // The keeper takes its messages in order: after this answer all releases before it are done.
        bench.residents().expect("list");
        assert_eq!(session().find_objects(&[Attribute::Token(false)]).expect("find"), []);
    });
}

#[test]
fn loaded_keys_are_bounded_at_the_limit_and_one_past_it() {
    isolated("loaded_keys_are_bounded_at_the_limit_and_one_past_it", |token| {
        let bench = bench(Pkcs11Config { max_loaded_keys: 2, ..config(token) });
        let one = bench.wrapped_key(1);
        let _two = bench.wrapped_key(2);
        let three = bench.hsm.generate_key(spec(3, Protection::HsmWrapped), soon()).wait();
        assert!(matches!(three, Err(HsmError::TokenFull { .. })), "{three:?}");
        let source = source(&spec(1, Protection::HsmWrapped), &one);
        drop(one);
        assert!(bench.hsm.load_key(source, soon()).wait().is_ok(), "there is room again");
    });
}

#[test]
fn resident_keys_are_bounded_at_the_limit_and_one_past_it() {
    isolated("resident_keys_are_bounded_at_the_limit_and_one_past_it", |token| {
        let bounded = || Pkcs11Config { max_residents: 2, ..config(token) };
        let first = bench(bounded());
        let generate = |hsm: &dyn Hsm, number: u8| {
            hsm.generate_key(spec(number, Protection::HsmResident), soon()).wait()
        };
        first.resident_key(1);
        first.resident_key(2);
        let third = generate(&*first.hsm, 3);
        assert!(matches!(third, Err(HsmError::TokenFull { .. })), "{third:?}");
        assert_eq!(first.residents().map(|made| made.len()), Ok(2), "a refused key left nothing");
        first.wrapped_key(4);
        first.hsm.close();

        let hsm = start(bounded());
        hsm.open_roots(vec![first.pin], soon()).wait().expect("open");
        let third = generate(&hsm, 3);
        assert!(matches!(third, Err(HsmError::TokenFull { .. })), "counted anew: {third:?}");
        hsm.destroy_resident(CkaId([1; 16]), soon()).wait().expect("destroy");
        assert!(generate(&hsm, 3).is_ok(), "there is room again");
    });
}

/// SoftHSM does not fsync: what cannot be made durable is not acknowledged, and not left behind.
#[test]
fn what_cannot_be_synced_is_not_acknowledged() {
    isolated("what_cannot_be_synced_is_not_acknowledged", |token| {
        let bench = bench(config(token));
        bench.hsm.close();
        let gone = Some(token.root().join("gone"));
        let hsm = start(Pkcs11Config { token_dir: gone, ..config(token) });
        hsm.open_roots(vec![bench.pin], soon()).wait().expect("open");
        let root = hsm.create_root(RootGeneration::new(2).expect("a generation"), soon()).wait();
        assert!(matches!(root, Err(HsmError::Unavailable { .. })), "{root:?}");
        let key = hsm.generate_key(spec(1, Protection::HsmResident), soon()).wait();
        assert!(matches!(key, Err(HsmError::Unavailable { .. })), "{key:?}");
        assert_eq!(hsm.list_token_keys(soon()).wait(), Ok(TokenKeys::default()));
        assert_eq!(session().find_objects(&[Attribute::Token(true)]).expect("find").len(), 2);
        let wrapped = hsm.generate_key(spec(2, Protection::HsmWrapped), soon()).wait();
        assert!(wrapped.is_ok(), "a wrapped key needs no token object: {wrapped:?}");
    });
}

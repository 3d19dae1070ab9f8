//! The faulty module itself: it forwards faithfully, and errs exactly as the script says.
//!
//! Every fault test leans on this module, so it is tested through cryptoki, as the provider uses it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Limit, Slot};
use cryptoki::types::AuthPin;
use kms_core::clock::{Clock as _, SystemClock};
use kms_testkit::softhsm::USER_PIN;
use kms_testkit::{Faulty, faulty, isolated_faulty};

const LIMIT: Duration = Duration::from_secs(20);

struct Token {
    context: Pkcs11,
    slot: Slot,
    session: Session,
}

impl Token {
    fn open() -> Self {
        let context = Pkcs11::new(faulty::module()).unwrap();
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slot = context.get_slots_with_initialized_token().unwrap().remove(0);
        let session = context.open_rw_session(slot).unwrap();
        session.login(UserType::User, Some(&AuthPin::new(USER_PIN.into()))).unwrap();
        Self { context, slot, session }
    }

    fn key(&self) -> ObjectHandle {
        let template = [
            Attribute::ValueLen(32.into()),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Token(false),
        ];
        self.session.generate_key(&Mechanism::AesKeyGen, &template).unwrap()
    }

    fn encrypt(&self, key: ObjectHandle, iv: &mut [u8; 12]) -> Result<Vec<u8>, Error> {
        let parameters = GcmParams::new(iv, b"aad", 128.into()).unwrap();
        self.session.encrypt(&Mechanism::AesGcm(parameters), key, b"plaintext")
    }

    fn decrypt(&self, key: ObjectHandle, iv: &mut [u8; 12], data: &[u8]) -> Result<Vec<u8>, Error> {
        let parameters = GcmParams::new(iv, b"aad", 128.into()).unwrap();
        self.session.decrypt(&Mechanism::AesGcm(parameters), key, data)
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> RvError {
    match result {
        Err(Error::Pkcs11(code, _)) => code,
        other => panic!("expected a return value, not {other:?}"),
    }
}

#[test]
fn without_a_script_it_forwards_and_writes_a_log() {
    isolated_faulty("without_a_script_it_forwards_and_writes_a_log", |_, faulty| {
        let token = Token::open();
        let key = token.key();
        let mark = faulty.mark();
        let sealed = token.encrypt(key, &mut [1; 12]).unwrap();
        assert_eq!(token.decrypt(key, &mut [1; 12], &sealed).unwrap(), b"plaintext");
        let calls = faulty.calls_since(mark);
        let names: Vec<_> = calls.iter().map(|call| (call.function.as_str(), call.query)).collect();
        assert_eq!(
            names,
            [
                ("C_EncryptInit", false),
                ("C_Encrypt", true),
                ("C_Encrypt", false),
                ("C_DecryptInit", false),
                ("C_Decrypt", true),
                ("C_Decrypt", false),
            ]
        );
        assert!(calls.iter().all(|call| call.rv == 0 && call.session == token.session.handle()));
        assert_eq!(faulty.count_since(0, "C_Login"), 1);
    });
}

#[test]
fn calls_fail_by_number_and_counts_start_with_each_script() {
    isolated_faulty("calls_fail_by_number_and_counts_start_with_each_script", |_, faulty| {
        let token = Token::open();
        let mut number = [0; 8];
        let mut draw = || token.session.generate_random_slice(&mut number);
        faulty.script(&[
            "C_GenerateRandom 2 return CKR_DEVICE_ERROR",
            "C_GenerateRandom 4-5 return 0x5",
        ]);
        assert!(draw().is_ok());
        assert_eq!(code(draw()), RvError::DeviceError);
        assert!(draw().is_ok());
        assert_eq!(code(draw()), RvError::GeneralError);
        assert_eq!(code(draw()), RvError::GeneralError);
        assert!(draw().is_ok());
        faulty.script(&["C_GenerateRandom 2+ return CKR_FUNCTION_FAILED"]);
        assert!(draw().is_ok());
        assert_eq!(code(draw()), RvError::FunctionFailed);
        assert_eq!(code(draw()), RvError::FunctionFailed);
        faulty.heal();
        assert!(draw().is_ok());
    });
}

#[test]
fn output_is_falsified_as_told() {
    isolated_faulty("output_is_falsified_as_told", |_, faulty| {
        let token = Token::open();
        let key = token.key();
        let honest = token.encrypt(key, &mut [2; 12]).unwrap();
        let lied = |rule: &str| {
            faulty.script(&[rule]);
            token.encrypt(key, &mut [2; 12]).unwrap()
        };
        let mut flipped = honest.clone();
        *flipped.first_mut().unwrap() ^= 1;
        assert_eq!(lied("C_Encrypt * flip"), flipped);
        assert_eq!(lied("C_Encrypt * short"), honest.split_last().unwrap().1);
        assert_eq!(lied("C_Encrypt * constant"), vec![0x5a; honest.len()]);
        faulty.script(&["C_GenerateRandom * constant"]);
        assert_eq!(token.session.generate_random_vec(8).unwrap(), [0x5a; 8]);
    });
}

#[test]
fn a_lost_reply_leaves_the_effect() {
    isolated_faulty("a_lost_reply_leaves_the_effect", |_, faulty| {
        let token = Token::open();
        let count = || token.session.find_objects(&[]).unwrap().len();
        let before = count();
        faulty.script(&["C_GenerateKey 1 lose CKR_DEVICE_ERROR"]);
        let template = [Attribute::ValueLen(32.into()), Attribute::Token(false)];
        let made = token.session.generate_key(&Mechanism::AesKeyGen, &template);
        assert_eq!(code(made), RvError::DeviceError);
        assert_eq!(count(), before + 1);
        faulty.script(&["C_FindObjects * empty"]);
        assert_eq!(count(), 0);
    });
}

#[test]
fn a_hang_lasts_until_the_script_changes() {
    isolated_faulty("a_hang_lasts_until_the_script_changes", |_, faulty| {
        let token = Token::open();
        let mark = faulty.mark();
        faulty.script(&["C_GenerateRandom 1 hang"]);
        let session = token.context.open_rw_session(token.slot).unwrap();
        let hung =
            std::thread::spawn(move || session.generate_random_vec(8).map(|drawn| drawn.len()));
        faulty.await_hang(mark, "C_GenerateRandom", LIMIT);
        // Others go on meanwhile.
        assert_eq!(token.session.generate_random_vec(8).unwrap().len(), 8);
        assert!(!hung.is_finished());
        faulty.heal();
        assert_eq!(hung.join().unwrap().unwrap(), 8);
    });
}

#[test]
fn the_token_is_described_as_told() {
    isolated_faulty("the_token_is_described_as_told", |_, faulty| {
        let token = Token::open();
        faulty.script(&["C_GetTokenInfo * serial 0123456789abcdef", "C_GetTokenInfo * sessions 3"]);
        let info = token.context.get_token_info(token.slot).unwrap();
        assert_eq!(info.serial_number(), "0123456789abcdef");
        assert!(matches!(info.max_session_count(), Limit::Max(3)));
    });
}

#[test]
fn a_token_that_draws_its_own_iv_writes_it_back() {
    isolated_faulty("a_token_that_draws_its_own_iv_writes_it_back", |_, faulty| {
        let token = Token::open();
        let key = token.key();
        faulty.script(&["C_EncryptInit * iv"]);
        let (mut first, mut second) = ([0; 12], [0; 12]);
        let sealed = token.encrypt(key, &mut first).unwrap();
        token.encrypt(key, &mut second).unwrap();
        assert_ne!(first, second);
        assert_eq!(token.decrypt(key, &mut first, &sealed).unwrap(), b"plaintext");
    });
}

#[test]
fn a_delayed_call_comes_later_and_is_done() {
    isolated_faulty("a_delayed_call_comes_later_and_is_done", |_, faulty| {
        let token = Token::open();
        faulty.script(&["C_GenerateRandom 1 delay 300ms"]);
        let start = SystemClock.monotonic();
        assert_eq!(token.session.generate_random_vec(8).unwrap().len(), 8);
        assert!(SystemClock.monotonic() - start >= Duration::from_millis(300));
    });
}

#[test]
#[should_panic(expected = "signal: 11 (SIGSEGV)")]
fn it_crashes_the_process() {
    isolated_faulty("it_crashes_the_process", |_, faulty| {
        faulty.script(&["C_GenerateRandom 1 crash"]);
        let _ = Token::open().session.generate_random_vec(8);
    });
}

#[test]
#[should_panic(expected = "exit status: 137")]
fn it_ends_the_process() {
    isolated_faulty("it_ends_the_process", |_, faulty| {
        faulty.script(&["C_GenerateRandom 1 exit 137"]);
        let _ = Token::open().session.generate_random_vec(8);
    });
}

#[test]
#[should_panic(expected = "unknown action: C_Encrypt 1 explode")]
fn a_script_without_sense_ends_the_process() {
    isolated_faulty("a_script_without_sense_ends_the_process", |_, faulty: &Faulty| {
        faulty.script(&["C_Encrypt 1 explode"]);
        Token::open();
    });
}

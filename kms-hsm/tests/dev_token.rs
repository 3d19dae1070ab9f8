//! The dev token: made once, completed when it was left half made, never made twice.

use kms_core::secret::Pin;
use kms_hsm::dev::{DevTokenError, init_token};
use kms_testkit::softhsm::{SO_PIN, TOKEN_LABEL, USER_PIN, module};

fn pin(text: &str) -> Pin {
    Pin::new(text.to_owned())
}

#[test]
fn a_new_token_is_made_once() {
    kms_testkit::isolated("a_new_token_is_made_once", |token| {
        let make = || init_token(&module(), "holdfast-dev", &pin("so-1234"), &pin("user-1234"));
        let first = make().unwrap();
        let files = || std::fs::read_dir(token.token_dir()).unwrap().count();
        let before = files();
        assert_eq!(make().unwrap(), first);
        assert_eq!(files(), before);
    });
}

#[test]
fn a_token_that_is_complete_is_left_alone() {
    kms_testkit::isolated("a_token_that_is_complete_is_left_alone", |token| {
        let files = || std::fs::read_dir(token.token_dir()).unwrap().count();
        let before = files();
        let serial = init_token(&module(), TOKEN_LABEL, &pin(SO_PIN), &pin(USER_PIN)).unwrap();
        assert!(!serial.is_empty());
        assert_eq!(files(), before);
    });
}

#[test]
fn two_tokens_with_the_label_are_refused() {
    kms_testkit::isolated("two_tokens_with_the_label_are_refused", |token| {
        token.init_token(TOKEN_LABEL);
        let made = init_token(&module(), TOKEN_LABEL, &pin(SO_PIN), &pin(USER_PIN));
        assert!(matches!(made, Err(DevTokenError::Ambiguous { .. })), "{made:?}");
    });
}

#[test]
fn a_label_of_32_bytes_is_accepted_and_33_refused() {
    kms_testkit::isolated("a_label_of_32_bytes_is_accepted_and_33_refused", |_| {
        let make = |label: &str| init_token(&module(), label, &pin("so-1234"), &pin("user-1234"));
        assert!(make(&"l".repeat(32)).is_ok());
        assert!(matches!(make(&"l".repeat(33)), Err(DevTokenError::Label)));
    });
}

#[test]
fn a_module_that_is_not_there_is_named() {
    let made = init_token("/nowhere.so".as_ref(), "x", &pin("so-1234"), &pin("user-1234"));
    assert!(matches!(made, Err(DevTokenError::Module { .. })), "{made:?}");
}

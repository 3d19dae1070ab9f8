//! The conformance suite on SoftHSM, each test in a process with a token of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use kms_core::clock::SystemClock;
use kms_core::secret::Pin;
use kms_hsm::Hsm;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::suite::Device;
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, module};
use kms_testkit::{SoftHsm, isolated};

struct OnSoftHsm<'a>(&'a SoftHsm);

impl Device for OnSoftHsm<'_> {
    fn start(&self) -> Arc<dyn Hsm> {
        let token = TokenSelector::Label(TOKEN_LABEL.into());
        let mut config = Pkcs11Config::new(module(), token);
        config.token_dir = Some(self.0.token_dir());
        let pin = Pin::new(USER_PIN.into());
        Arc::new(Pkcs11Hsm::start(config, pin, Arc::new(SystemClock)).expect("start"))
    }
}

fn run(test: &str, body: fn(&dyn Device)) {
    isolated(test, |token| body(&OnSoftHsm(token)));
}

kms_hsm::hsm_suite!(softhsm, super::run);

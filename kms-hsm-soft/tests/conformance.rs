//! The conformance suite on the software token.

use std::sync::Arc;

use kms_core::clock::SystemClock;
use kms_hsm::Hsm;
use kms_hsm::suite::Device;
use kms_hsm_soft::{SoftDevice, SoftToken};

struct OnSoftDevice(SoftDevice);

impl Device for OnSoftDevice {
    fn start(&self) -> Arc<dyn Hsm> {
        Arc::new(SoftToken::new(self.0.clone(), Arc::new(SystemClock)))
    }
}

fn run(_test: &str, body: fn(&dyn Device)) {
    body(&OnSoftDevice(SoftDevice::new("soft-0001")));
}

kms_hsm::hsm_suite!(software_token, super::run);

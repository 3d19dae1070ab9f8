//! Root sets: MACs, pins, latches.

use kms_core::id::RootGeneration;
use kms_core::key::CkaId;
use kms_core::root::RootPin;

use super::{Device, bench, restart, soon};
use crate::error::{HsmError, LatchReason};
use crate::hsm::HsmHealth;

/// In order, and each its own.
pub fn mac_is_deterministic_and_separates_inputs(device: &dyn Device) {
    let bench = bench(device);
    let inputs = vec![b"one".to_vec(), b"two".to_vec(), b"one".to_vec(), vec![]];
    let macs = bench.hsm.mac(RootGeneration::FIRST, inputs, soon()).wait().expect("macs");
    assert_eq!(macs.len(), 4);
    assert_eq!(macs[0], macs[2]);
    assert_ne!(macs[0], macs[1]);
    assert_ne!(macs[0], macs[3]);
}

/// The same key is found again.
pub fn mac_survives_a_restart_of_the_provider(device: &dyn Device) {
    let bench = bench(device);
    let inputs = || vec![b"one".to_vec()];
    let before = bench.hsm.mac(RootGeneration::FIRST, inputs(), soon()).wait().expect("mac");
    let bench = restart(device, bench);
    let after = bench.hsm.mac(RootGeneration::FIRST, inputs(), soon()).wait().expect("mac");
    assert_eq!(before, after);
}

/// Refused, not computed with another root.
pub fn mac_of_a_root_that_is_not_open_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let second = RootGeneration::new(2).expect("a generation");
    let answer = bench.hsm.mac(second, vec![vec![1]], soon()).wait();
    assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
}

fn assert_latches(device: &dyn Device, edit: fn(&mut RootPin), expected: &LatchReason) {
    let bench = bench(device);
    let mut pin = bench.pin.clone();
    edit(&mut pin);
    let latched = HsmError::Latched { reason: expected.clone() };
    assert_eq!(bench.hsm.open_roots(vec![pin], soon()).wait(), Err(latched.clone()));
    assert_eq!(bench.hsm.status().health, HsmHealth::Latched(expected.clone()));
    // Nothing passes any more, not even with the right pin.
    let again = bench.hsm.open_roots(vec![bench.pin], soon()).wait();
    assert_eq!(again, Err(latched.clone()));
    assert_eq!(bench.hsm.random(16, soon()).wait().unwrap_err(), latched);
}

/// Another key under the same CKA_ID.
pub fn another_mac_check_value_latches(device: &dyn Device) {
    let reason = LatchReason::RootChanged { role: "mac", generation: 1 };
    assert_latches(device, |pin| pin.mac_check[31] ^= 1, &reason);
}

/// Another key under the same CKA_ID.
pub fn another_wrap_check_value_latches(device: &dyn Device) {
    let reason = LatchReason::RootChanged { role: "wrap", generation: 1 };
    assert_latches(device, |pin| pin.wrap_check[0] ^= 1, &reason);
}

/// Never "not found", and never a reason to create one.
pub fn a_missing_root_object_latches(device: &dyn Device) {
    let reason = LatchReason::RootMissing { role: "wrap", generation: 1 };
    assert_latches(device, |pin| pin.wrap_id = CkaId([0xee; 16]), &reason);
}

/// Another token.
pub fn another_serial_latches(device: &dyn Device) {
    let bench = bench(device);
    let mut pin = bench.pin.clone();
    pin.token_serial = "0123456789abcdef".into();
    let answer = bench.hsm.open_roots(vec![pin], soon()).wait();
    let reason = LatchReason::OtherToken {
        found: bench.pin.token_serial,
        pinned: "0123456789abcdef".into(),
    };
    assert_eq!(answer, Err(HsmError::Latched { reason }));
}

/// As root rollover needs it.
pub fn two_generations_are_open_side_by_side(device: &dyn Device) {
    let bench = bench(device);
    let second = RootGeneration::new(2).expect("a generation");
    let pin = bench.hsm.create_root(second, soon()).wait().expect("create");
    assert_ne!(pin.wrap_check, bench.pin.wrap_check);
    bench.hsm.open_roots(vec![pin], soon()).wait().expect("open");
    let mac = |generation| bench.hsm.mac(generation, vec![vec![1]], soon()).wait().expect("mac");
    assert_ne!(mac(RootGeneration::FIRST), mac(second));
}

/// From start to open roots.
pub fn status_tells_no_roots_then_ready(device: &dyn Device) {
    let hsm = device.start();
    assert_eq!(hsm.status().health, HsmHealth::NoRoots);
    let pin = hsm.create_root(RootGeneration::FIRST, soon()).wait().expect("create");
    assert_eq!(hsm.status().health, HsmHealth::NoRoots, "creating does not open");
    assert_eq!(pin.token_serial, hsm.status().token_serial);
    hsm.open_roots(vec![pin], soon()).wait().expect("open");
    assert_eq!(hsm.status().health, HsmHealth::Ready);
    assert!(hsm.status().workers > 0);
}

//! What looks like a key on the token and is none of ours is listed, whatever a crash has left of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kms_core::clock::SystemClock;
use kms_core::id::RootGeneration;
use kms_core::key::CkaId;
use kms_core::root::RootPin;
use kms_core::secret::Pin;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::suite::{Bench, soon};
use kms_hsm::{Hsm, Stray, TokenKeys};
use kms_testkit::isolated;
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, module};

/// SoftHSM writes a generation number, then each attribute as type, kind and value: eight bytes each for CKA_CLASS.
const GENERATION_AND_CLASS: u64 = 8 + 24;
/// CKA_TOKEN and CKA_PRIVATE follow, with values of one byte.
const AND_TOKEN_AND_PRIVATE: u64 = GENERATION_AND_CLASS + 17 + 17;

fn start() -> Arc<dyn Hsm> {
    let config = Pkcs11Config::new(module(), TokenSelector::Label(TOKEN_LABEL.into()));
    let pin = Pin::new(USER_PIN.into());
    Arc::new(Pkcs11Hsm::start(config, pin, Arc::new(SystemClock)).expect("start"))
}

fn with_root() -> Bench {
    let hsm = start();
    let pin = hsm.create_root(RootGeneration::FIRST, soon()).wait().expect("create");
    hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open");
    Bench { hsm, pin }
}

fn list_anew(pin: &RootPin) -> TokenKeys {
    let hsm = start();
    hsm.open_roots(vec![pin.clone()], soon()).wait().expect("open");
    let listed = hsm.list_token_keys(soon()).wait().expect("list");
    hsm.close();
    listed
}

fn files_below(directory: &Path) -> BTreeSet<PathBuf> {
    let list = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    list(directory).flat_map(|token| list(&token).collect::<Vec<_>>()).collect()
}

fn is_object(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "object")
}

#[test]
fn a_torn_key_file_is_listed() {
    isolated("a_torn_key_file_is_listed", |token| {
        let bench = with_root();
        let _kept = bench.resident_key(1);
        for (number, length) in [(2, GENERATION_AND_CLASS), (3, AND_TOKEN_AND_PRIVATE)] {
            let before = files_below(&token.token_dir());
            let _torn = bench.resident_key(number);
            let after = files_below(&token.token_dir());
            let mut made = after.difference(&before).filter(|path| is_object(path));
            let file = std::fs::OpenOptions::new().write(true).open(made.next().unwrap()).unwrap();
            file.set_len(length).unwrap();
        }
        bench.hsm.close();
        let without_id = Stray { id: vec![] };
        let expected = TokenKeys {
            residents: vec![CkaId([1; 16])],
            strays: vec![without_id.clone(), without_id],
        };
        assert_eq!(list_anew(&bench.pin), expected);
    });
}

#[test]
fn a_key_file_that_was_left_half_made_is_listed() {
    isolated("a_key_file_that_was_left_half_made_is_listed", |token| {
        let bench = with_root();
        let before = files_below(&token.token_dir());
        let _half_made = bench.resident_key(1);
        let after = files_below(&token.token_dir());
        bench.hsm.close();
        // SoftHSM begins with the defaults of all attributes: no CKA_ID, and CKA_TOKEN=false.
        for path in after.difference(&before).filter(|path| is_object(path)) {
            let mut bytes = std::fs::read(path).unwrap();
            let token_value = usize::try_from(GENERATION_AND_CLASS).unwrap() + 16;
            assert_eq!(bytes.get(token_value), Some(&0xff), "CKA_TOKEN=true");
            *bytes.get_mut(token_value).unwrap() = 0;
            bytes.truncate(usize::try_from(AND_TOKEN_AND_PRIVATE).unwrap());
            std::fs::write(path, bytes).unwrap();
        }
        let strays = vec![Stray { id: vec![] }];
        assert_eq!(list_anew(&bench.pin), TokenKeys { residents: vec![], strays });
    });
}

#[test]
fn a_root_pair_that_nobody_pinned_is_listed() {
    isolated("a_root_pair_that_nobody_pinned_is_listed", |_| {
        let bench = with_root();
        let _session_object = bench.wrapped_key(1);
        let second = RootGeneration::new(2).unwrap();
        let unpinned = bench.hsm.create_root(second, soon()).wait().unwrap();
        let mut strays = [unpinned.wrap_id, unpinned.mac_id].map(|id| Stray { id: id.0.to_vec() });
        strays.sort();
        let listed = bench.hsm.list_token_keys(soon()).wait().unwrap();
        assert_eq!(listed, TokenKeys { residents: vec![], strays: strays.to_vec() });
        bench.hsm.open_roots(vec![unpinned], soon()).wait().unwrap();
        assert_eq!(bench.hsm.list_token_keys(soon()).wait(), Ok(TokenKeys::default()));
    });
}

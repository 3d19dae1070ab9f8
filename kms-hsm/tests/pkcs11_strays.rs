//! What looks like a key on the token and is none of ours is listed, whatever a crash has left of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kms_core::clock::SystemClock;
use kms_core::id::RootGeneration;
use kms_core::import::{OaepHash, RsaSize};
use kms_core::key::{CkaId, Protection};
use kms_core::root::RootPin;
use kms_core::secret::Pin;
use kms_hsm::hsm::{MAX_IMPORT_KEYS, MAX_STRAYS};
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::suite::{Bench, soon, source, spec};
use kms_hsm::{Hsm, HsmError, ImportKeySpec, Stray, TokenKeys};
use kms_testkit::isolated;
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, module};

/// SoftHSM writes a generation number, then each attribute as type, kind and value: eight bytes each for CKA_CLASS.
const GENERATION_AND_CLASS: u64 = 8 + 24;
/// CKA_TOKEN and CKA_PRIVATE follow, with values of one byte.
const AND_TOKEN_AND_PRIVATE: u64 = GENERATION_AND_CLASS + 17 + 17;

fn start() -> Arc<dyn Hsm> {
    start_with(|_| {})
}

fn start_with(change: impl FnOnce(&mut Pkcs11Config)) -> Arc<dyn Hsm> {
    let mut config = Pkcs11Config::new(module(), TokenSelector::Label(TOKEN_LABEL.into()));
    config.token_dir = Some(kms_testkit::softhsm::token_dir());
    change(&mut config);
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
            import_keys: vec![],
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
        assert_eq!(
            list_anew(&bench.pin),
            TokenKeys { residents: vec![], import_keys: vec![], strays }
        );
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
        assert_eq!(
            listed,
            TokenKeys { residents: vec![], import_keys: vec![], strays: strays.to_vec() }
        );
        bench.hsm.open_roots(vec![unpinned], soon()).wait().unwrap();
        assert_eq!(bench.hsm.list_token_keys(soon()).wait(), Ok(TokenKeys::default()));
    });
}

#[test]
fn strays_are_listed_up_to_the_limit_and_not_one_past_it() {
    isolated("strays_are_listed_up_to_the_limit_and_not_one_past_it", |token| {
        let bench = with_root();
        let before = files_below(&token.token_dir());
        let _torn = bench.resident_key(1);
        let after = files_below(&token.token_dir());
        bench.hsm.close();
        let made = after.difference(&before).find(|path| is_object(path)).unwrap();
        let mut torn = std::fs::read(made).unwrap();
        torn.truncate(usize::try_from(GENERATION_AND_CLASS).unwrap());
        for number in 0..MAX_STRAYS {
            std::fs::write(made.with_file_name(format!("torn-{number}.object")), &torn).unwrap();
        }
        // With what is no stray yet, they are as many as may be.
        assert_eq!(list_anew(&bench.pin).strays.len(), MAX_STRAYS);
        std::fs::write(made, &torn).unwrap();
        let listed = list_anew(&bench.pin);
        assert_eq!((listed.residents.len(), listed.strays.len()), (0, MAX_STRAYS));
    });
}

#[test]
fn private_keys_are_listed_up_to_the_limit_and_not_one_past_it() {
    isolated("private_keys_are_listed_up_to_the_limit_and_not_one_past_it", |token| {
        let bench = with_root();
        let before = files_below(&token.token_dir());
        let job =
            ImportKeySpec { id: CkaId([7; 16]), size: RsaSize::Bits3072, hash: OaepHash::Sha1 };
        bench.hsm.create_import_key(job, soon()).wait().unwrap();
        let after = files_below(&token.token_dir());
        bench.hsm.close();
        let made = after.difference(&before).find(|path| is_object(path)).unwrap();
        let copy = |number: usize| {
            let name = format!("copy-{number}.object");
            std::fs::copy(made, made.with_file_name(name)).unwrap();
        };
        (2..MAX_IMPORT_KEYS).for_each(copy);
        assert_eq!(list_anew(&bench.pin).import_keys.len(), MAX_IMPORT_KEYS - 1);
        for number in [MAX_IMPORT_KEYS, MAX_IMPORT_KEYS + 1] {
            copy(number);
            let listed = list_anew(&bench.pin);
            assert_eq!(listed.import_keys, vec![CkaId([7; 16]); MAX_IMPORT_KEYS], "{number}");
            assert_eq!((listed.residents.len(), listed.strays.len()), (0, 0), "{number}");
        }
    });
}

#[test]
fn a_key_that_was_not_looked_for_is_not_called_missing() {
    isolated("a_key_that_was_not_looked_for_is_not_called_missing", |_| {
        let bench = with_root();
        let keys = [bench.resident_key(1), bench.resident_key(2)];
        let sources = [1, 2].map(|number| spec(number, Protection::HsmResident));
        let sources = [source(&sources[0], &keys[0]), source(&sources[1], &keys[1])];
        bench.hsm.destroy_resident(CkaId([2; 16]), soon()).wait().unwrap();
        let gone = sources[1].clone();
        let third = bench.resident_key(3);
        drop((keys, third));
        bench.hsm.close();
        // Two keys are there: at the limit all were looked at, one past it one was not.
        for (most, missing) in [(2, true), (1, false)] {
            let hsm = start_with(|config| config.max_token_keys = most);
            hsm.open_roots(vec![bench.pin.clone()], soon()).wait().unwrap();
            let answer = hsm.load_key(gone.clone(), soon()).wait().unwrap_err();
            assert_eq!(answer == HsmError::ResidentMissing, missing, "{most}: {answer:?}");
            assert_eq!(matches!(answer, HsmError::TokenFull { .. }), !missing, "{answer:?}");
            hsm.close();
        }
    });
}

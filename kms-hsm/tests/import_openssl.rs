//! An owner who has nothing but `openssl` can seal a key: the commands of docs/formats.md, "Import", run as they stand there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::import::{ImportCheck, ImportMethod, OaepHash, RsaSize};
use kms_core::key::{CkaId, Protection};
use kms_core::secret::Pin;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::{Hsm as _, ImportKeySpec, KeyImport, KeySpec};
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, module};
use kms_testkit::{SoftHsm, isolated};

const FORMATS: &str = include_str!("../../docs/formats.md");

fn soon() -> std::time::Instant {
    SystemClock.monotonic() + std::time::Duration::from_secs(30)
}

/// Runs the commands that stand under a heading of the page, in a directory.
fn run_recipe(heading: &str, directory: &Path) {
    let (_, rest) = FORMATS.split_once(heading).expect("the heading is there");
    let (_, rest) = rest.split_once("```sh\n").expect("commands follow");
    let (commands, _) = rest.split_once("```").expect("and end");
    let script = format!("set -eu\n{commands}");
    let output = Command::new("bash").arg("-c").arg(script).current_dir(directory).output();
    let output = output.expect("run bash");
    assert!(output.status.success(), "{heading}: {}", String::from_utf8_lossy(&output.stderr));
}

fn start(token: &SoftHsm) -> Pkcs11Hsm {
    let mut config = Pkcs11Config::new(module(), TokenSelector::Label(TOKEN_LABEL.into()));
    config.token_dir = Some(token.token_dir());
    let pin = Pin::new(USER_PIN.into());
    let hsm = Pkcs11Hsm::start(config, pin, Arc::new(SystemClock)).unwrap();
    let pin = hsm.create_root(RootGeneration::FIRST, soon()).wait().unwrap();
    hsm.open_roots(vec![pin], soon()).wait().unwrap();
    hsm
}

#[test]
fn what_openssl_seals_is_imported() {
    isolated("what_openssl_seals_is_imported", |token| {
        let openssl = Command::new("openssl").arg("version").output();
        assert!(openssl.is_ok(), "openssl is missing: `scripts/setup.sh test` installs it");
        let hsm = start(token);
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("key.bin"), b"an imported key has 32 bytes, so").unwrap();
        std::fs::write(file("job.name"), "tenants/t/keys/k/importJobs/j").unwrap();
        for (number, method, heading) in [
            (1, ImportMethod::RsaOaepSha1, "#### One step"),
            (2, ImportMethod::RsaOaepSha1AesKwp, "#### Two steps"),
        ] {
            let id = CkaId([number; 16]);
            let job = ImportKeySpec { id, size: RsaSize::Bits3072, hash: OaepHash::Sha1 };
            let public = hsm.create_import_key(job, soon()).wait().unwrap();
            std::fs::write(file("job.der"), public).unwrap();
            run_recipe(heading, directory.path());
            run_recipe("#### Check value", directory.path());
            let check = std::fs::read(file("check.bin")).unwrap();
            let import = KeyImport {
                spec: KeySpec {
                    key_uid: KeyUid::from_bytes([number; 16]),
                    version: KeyVersion::FIRST,
                    generation: RootGeneration::FIRST,
                    protection: Protection::HsmWrapped,
                    resident_id: id,
                },
                job,
                method,
                wrapped: std::fs::read(file("sealed.bin")).unwrap(),
                check: ImportCheck::from_bytes(&check).expect("28 bytes"),
                check_aad: ImportCheck::aad("tenants/t/keys/k/importJobs/j"),
            };
            let imported = hsm.import_key(import, soon()).wait();
            assert!(imported.is_ok(), "{heading}: {imported:?}");
        }
        hsm.close();
    });
}

//! Import of sealed keys.

use kms_core::import::{self, ImportCheck, ImportMethod, OaepHash, RsaSize};
use kms_core::key::{CkaId, Protection};

use super::{Bench, Device, bench, restart, soon, source, spec};
use crate::error::HsmError;
use crate::hsm::{GeneratedKey, ImportKeySpec, KeyImport};

const JOB: &str = "tenants/t/keys/k/importJobs/j";
const KEY: [u8; 32] = *b"an imported key has 32 bytes, so";

/// SHA-1 is what every token of ours has.
fn job(number: u8) -> ImportKeySpec {
    ImportKeySpec { id: CkaId([number; 16]), size: RsaSize::Bits3072, hash: OaepHash::Sha1 }
}

fn create(bench: &Bench, job: ImportKeySpec) -> Vec<u8> {
    bench.hsm.create_import_key(job, soon()).wait().expect("create the key of an import job")
}

fn sealed(job: ImportKeySpec, public: &[u8], method: ImportMethod) -> KeyImport {
    let sealed = import::seal(method, public, JOB, &KEY).expect("seal");
    KeyImport {
        spec: spec(1, Protection::HsmWrapped),
        job,
        method,
        wrapped: sealed.wrapped,
        check: sealed.check,
        check_aad: ImportCheck::aad(JOB),
    }
}

fn run(bench: &Bench, import: KeyImport) -> Result<GeneratedKey, HsmError> {
    bench.hsm.import_key(import, soon()).wait()
}

fn import_keys(bench: &Bench) -> Vec<CkaId> {
    bench.hsm.list_token_keys(soon()).wait().expect("list").import_keys
}

/// Nothing of a refused import is there: no key of the job, no resident key, no loaded key.
fn assert_nothing_left(bench: &Bench) {
    assert_eq!(import_keys(bench), []);
    let listed = bench.hsm.list_token_keys(soon()).wait().expect("list");
    assert_eq!((listed.residents, listed.strays), (vec![], vec![]));
    assert_eq!(bench.hsm.status().loaded_keys, 0);
}

/// With either protection, by either way of SHA-1, and with SHA-256 where the token has it.
pub fn an_imported_key_is_the_one_that_was_sealed(device: &dyn Device) {
    let mut bench = bench(device);
    let protections = [Protection::HsmWrapped, Protection::HsmResident];
    let ways = protections.into_iter().flat_map(|protection| {
        ImportMethod::ALL.into_iter().map(move |method| (protection, method))
    });
    for (number, (protection, method)) in (1..).zip(ways) {
        let job = ImportKeySpec { hash: method.hash(), ..job(number) };
        let public = match bench.hsm.create_import_key(job, soon()).wait() {
            Ok(public) => public,
            Err(HsmError::MechanismMissing { mechanism }) => {
                assert_eq!(
                    (method.hash(), mechanism),
                    (OaepHash::Sha256, "CKM_RSA_PKCS_OAEP with SHA-256")
                );
                assert_eq!(import_keys(&bench), [], "and no key of it is left");
                continue;
            }
            Err(other) => panic!("{method}: {other}"),
        };
        let import = KeyImport { spec: spec(number, protection), ..sealed(job, &public, method) };
        let spec = import.spec;
        let imported = run(&bench, import).expect("import");
        assert_eq!(
            imported.wrapped.as_ref().map(|blob| blob.0.len()),
            match protection {
                Protection::HsmWrapped => Some(40),
                Protection::HsmResident => None,
            }
        );
        assert_eq!(import_keys(&bench), [], "the key of the job is used up");
        // That it is the owner's key, the check value has shown.
        let source = source(&spec, &imported);
        let text = bench.encrypt(&imported.key, "context", b"plaintext");
        drop(imported);
        bench = restart(device, bench);
        let key = bench.hsm.load_key(source, soon()).wait().expect("load");
        assert_eq!(bench.decrypt(&key, "context", &text), Ok(b"plaintext".to_vec()), "{method}");
    }
}

/// An owner may come days later.
pub fn the_key_of_an_import_job_survives_a_restart(device: &dyn Device) {
    let bench = bench(device);
    let public = create(&bench, job(1));
    let bench = restart(device, bench);
    assert_eq!(import_keys(&bench), [job(1).id]);
    assert!(run(&bench, sealed(job(1), &public, ImportMethod::RsaOaepSha1)).is_ok());
}

/// Tampered, cut, of another job, of another method: one error, and the job is used up.
pub fn an_import_key_is_used_up_by_what_does_not_open(device: &dyn Device) {
    let bench = bench(device);
    let edits: [fn(&mut KeyImport); 5] = [
        |import| import.wrapped[17] ^= 1,
        |import| import.wrapped.truncate(383),
        |import| import.wrapped.push(0),
        |import| import.wrapped.fill(0),
        |import| import.method = ImportMethod::RsaOaepSha1AesKwp,
    ];
    for (number, edit) in (1..).zip(edits) {
        let job = job(number);
        let public = create(&bench, job);
        let mut import = sealed(job, &public, ImportMethod::RsaOaepSha1);
        let whole = import.clone();
        edit(&mut import);
        assert_eq!(run(&bench, import).unwrap_err(), HsmError::ImportMaterialInvalid, "{number}");
        assert_eq!(run(&bench, whole).unwrap_err(), HsmError::ImportKeyMissing, "{number}");
        assert_nothing_left(&bench);
    }
    let (one, other) = (create(&bench, job(8)), create(&bench, job(9)));
    assert_ne!(one, other);
    let mixed = sealed(job(9), &one, ImportMethod::RsaOaepSha1);
    assert_eq!(run(&bench, mixed).unwrap_err(), HsmError::ImportMaterialInvalid);
    assert_eq!(import_keys(&bench), [job(8).id], "the other job is as it was");
}

/// The KWP part of two steps.
pub fn a_tampered_second_step_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let public = create(&bench, job(1));
    let mut import = sealed(job(1), &public, ImportMethod::RsaOaepSha1AesKwp);
    let last = import.wrapped.len() - 1;
    import.wrapped[last] ^= 1;
    assert_eq!(run(&bench, import).unwrap_err(), HsmError::ImportMaterialInvalid);
    assert_nothing_left(&bench);
}

/// SoftHSM pads 31 bytes to 32, and takes any length for an AES key.
pub fn a_key_of_another_length_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let protections = [Protection::HsmWrapped, Protection::HsmResident];
    for (number, length) in (1..).zip([16, 24, 31, 33, 64]) {
        let job = job(number);
        let public = create(&bench, job);
        let key = [&KEY[..], &KEY].concat();
        let wrapped = import::wrap(ImportMethod::RsaOaepSha1, &public, &key[..length]).unwrap();
        let mut import = sealed(job, &public, ImportMethod::RsaOaepSha1);
        import.wrapped = wrapped;
        import.spec.protection = protections[usize::from(number) % 2];
        // As whoever knows that a token pads would have it.
        let mut padded = [0; 32];
        padded[..length.min(32)].copy_from_slice(&key[..length.min(32)]);
        import.check = ImportCheck::compute(&padded, [7; 12], JOB).unwrap();
        assert_eq!(run(&bench, import).unwrap_err(), HsmError::ImportKeyLength, "{length} bytes");
        assert_nothing_left(&bench);
    }
}

/// Of another key, of another job, flipped.
pub fn a_check_value_that_does_not_fit_is_refused(device: &dyn Device) {
    let bench = bench(device);
    let edits: [fn(&mut KeyImport); 4] = [
        |import| import.check = ImportCheck::compute(&[9; 32], [7; 12], JOB).unwrap(),
        |import| import.check_aad = ImportCheck::aad("tenants/t/keys/k/importJobs/i"),
        |import| import.check.iv[0] ^= 1,
        |import| import.check.tag[15] ^= 1,
    ];
    for (number, edit) in (1..).zip(edits) {
        let job = job(number);
        let public = create(&bench, job);
        let mut import = sealed(job, &public, ImportMethod::RsaOaepSha1);
        if number % 2 == 0 {
            import.spec.protection = Protection::HsmResident;
        }
        edit(&mut import);
        assert_eq!(run(&bench, import).unwrap_err(), HsmError::ImportCheckMismatch, "{number}");
        assert_nothing_left(&bench);
    }
}

/// What was never there is destroyed as well.
pub fn the_key_of_an_import_job_is_destroyed(device: &dyn Device) {
    let bench = bench(device);
    let public = create(&bench, job(1));
    bench.hsm.destroy_import_key(job(1).id, soon()).wait().expect("destroy");
    bench.hsm.destroy_import_key(job(1).id, soon()).wait().expect("destroy what is gone");
    let import = sealed(job(1), &public, ImportMethod::RsaOaepSha1);
    assert_eq!(run(&bench, import).unwrap_err(), HsmError::ImportKeyMissing);
    assert_nothing_left(&bench);
}

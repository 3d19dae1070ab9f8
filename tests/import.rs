//! Import over the wire, on SoftHSM: what `openssl` and `kms` seal becomes a key, and nothing of it is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod common;

use std::path::Path;
use std::process::Command;

use common::calls::new_job;
use common::{Client, Rig, Server, refusal, request_id};
use kms_core::import::{self, ImportMethod};
use kms_proto::v1 as proto;
use tonic::{Code, Response, Status};

const FORMATS: &str = include_str!("../docs/formats.md");
const KEY: &[u8; 32] = b"an owner's key is 32 bytes long.";

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

async fn job(client: &Client, key: &str, method: proto::ImportMethod) -> proto::ImportJob {
    let request = proto::CreateImportJobRequest { method: method.into(), ..new_job(key) };
    client.keys().create_import_job(request).await.unwrap().into_inner()
}

/// Asks for a key of what is sealed.
fn import(
    job: &proto::ImportJob,
    protection: proto::Protection,
    (wrapped, check): (Vec<u8>, Vec<u8>),
) -> proto::ImportKeyRequest {
    proto::ImportKeyRequest {
        import_job: job.name.clone(),
        wrapped_key: wrapped.into(),
        check_value: check.into(),
        purpose: proto::Purpose::Wrap.into(),
        protection: protection.into(),
        owner: "somebody".to_owned(),
        sensitivity: proto::Sensitivity::High.into(),
        usage: "tests".to_owned(),
        cryptoperiod: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        recipient_usage_period: None,
        acknowledge_no_backup: true,
        labels: std::collections::HashMap::new(),
        rotation_period: None,
        request_id: request_id(),
    }
}

fn sealed(job: &proto::ImportJob, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let method = ImportMethod::parse(job.method().as_str_name()).unwrap();
    let made = import::seal(method, &job.public_key, &job.name, KEY).unwrap();
    let wrapped = import::wrap(method, &job.public_key, bytes).unwrap();
    (wrapped, made.check.to_bytes().to_vec())
}

async fn send(client: &Client, request: proto::ImportKeyRequest) -> Result<proto::Key, Status> {
    client.keys().import_key(request).await.map(Response::into_inner)
}

async fn version(client: &Client, name: String) -> proto::KeyVersion {
    let request = proto::DescribeKeyVersionRequest { name };
    client.keys().describe_key_version(request).await.unwrap().into_inner()
}

fn token_files(rig: &Rig) -> usize {
    let mut found = 0;
    for token in std::fs::read_dir(rig.path("tokens")).unwrap() {
        let files = std::fs::read_dir(token.unwrap().path()).unwrap();
        let is_object =
            |name: &Path| name.extension().is_some_and(|extension| extension == "object");
        found += files.filter(|file| is_object(&file.as_ref().unwrap().path())).count();
    }
    found
}

/// The recipe of docs/formats.md and docs/operations.md, with the server's own names and keys.
#[tokio::test]
async fn what_openssl_seals_to_a_job_of_the_server_becomes_a_key() {
    let server = Server::shared();
    let client = server.operator().await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::write(file("key.bin"), KEY).unwrap();
    for (id, protection, method, heading) in [
        (
            "by-openssl-1",
            proto::Protection::HsmWrapped,
            proto::ImportMethod::RsaOaepSha1,
            "#### One step",
        ),
        (
            "by-openssl-2",
            proto::Protection::HsmResident,
            proto::ImportMethod::RsaOaepSha1AesKwp,
            "#### Two steps",
        ),
    ] {
        let key = common::calls::key_name(id);
        let job = job(&client, &key, method).await;
        assert_eq!((job.method(), job.rsa_bits), (method, 3072));
        std::fs::write(file("job.der"), &job.public_key).unwrap();
        std::fs::write(file("job.name"), &job.name).unwrap();
        run_recipe(heading, directory.path());
        run_recipe("#### Check value", directory.path());
        let read = |name: &str| std::fs::read(file(name)).unwrap();
        let request = import(&job, protection, (read("sealed.bin"), read("check.bin")));
        let made = send(&client, request.clone()).await.unwrap();
        assert_eq!((made.name.as_str(), made.protection()), (key.as_str(), protection));
        let told = version(&client, format!("{key}/versions/1")).await;
        assert_eq!((told.origin(), told.local), (proto::Origin::Imported, false));
        let ciphertext = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
        assert_eq!(client.unwrap(&key, &ciphertext, &[]).await.unwrap(), b"secret");
        // The same request again, and another with the same job.
        assert_eq!(send(&client, request.clone()).await.unwrap(), made);
        let replayed = proto::ImportKeyRequest { request_id: request_id(), ..request };
        let refused = refusal(send(&client, replayed).await);
        refused.is(Code::NotFound, "IMPORT_JOB_NOT_FOUND");
    }
}

/// Two imports of one key, under two names, on two protections: each opens nothing of the other, and its check value says that it
/// is the owner's.
#[tokio::test]
async fn generated_versions_follow_imported_ones_and_are_told_apart() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("mixed").await.name;
    let job = job(&client, &key, proto::ImportMethod::RsaOaepSha1AesKwp).await;
    let (wrapped_key, check_value) = sealed(&job, KEY);
    let request = proto::ImportKeyVersionRequest {
        import_job: job.name,
        wrapped_key: wrapped_key.into(),
        check_value: check_value.into(),
        activate_time: None,
        reason: "brought".to_owned(),
        request_id: request_id(),
    };
    let staged = client.keys().import_key_version(request).await.unwrap().into_inner();
    assert_eq!(staged.version.unwrap().state(), proto::VersionState::PreActivation);
    let rotate = || proto::RotateKeyRequest {
        name: key.clone(),
        reason: String::new(),
        request_id: request_id(),
    };
    // The first rotation takes the staged version, the second makes one.
    for (number, origin) in [(2, proto::Origin::Imported), (3, proto::Origin::Generated)] {
        let rotated = client.keys().rotate_key(rotate()).await.unwrap().into_inner();
        let made = rotated.version.unwrap();
        assert_eq!((made.version, made.origin()), (number, origin));
        assert_eq!(made.local, origin == proto::Origin::Generated);
        let wrapped = client.wrap(&key, b"secret", &[]).await.unwrap();
        assert_eq!(wrapped.key_version, format!("{key}/versions/{number}"));
        assert_eq!(client.unwrap(&key, &wrapped.ciphertext, &[]).await.unwrap(), b"secret");
    }
    let old = version(&client, format!("{key}/versions/1")).await;
    assert_eq!((old.origin(), old.local), (proto::Origin::Generated, true));
}

#[tokio::test]
async fn bad_imports_are_told_apart_and_leave_nothing_on_the_token() {
    let server = Server::fresh();
    let client = server.operator().await;
    let before = token_files(&server.rig);
    let key = common::calls::key_name("bad");
    let protections = [proto::Protection::HsmWrapped, proto::Protection::HsmResident];
    let two_steps = proto::ImportMethod::RsaOaepSha1AesKwp;
    let flipped = |(mut wrapped, check): (Vec<u8>, Vec<u8>), at: usize| {
        wrapped[at] ^= 1;
        (wrapped, check)
    };
    for (number, length, expected) in [
        (0, 32, "IMPORT_MATERIAL_INVALID"),
        (1, 32, "IMPORT_MATERIAL_INVALID"),
        (2, 31, "FIELD_VIOLATION IMPORT_KEY_LENGTH"),
        (3, 16, "FIELD_VIOLATION IMPORT_KEY_LENGTH"),
        (4, 32, "IMPORT_CHECK_MISMATCH"),
        (5, 32, "IMPORT_CHECK_MISMATCH"),
    ] {
        let method = if length == 32 { two_steps } else { proto::ImportMethod::RsaOaepSha1 };
        let job = job(&client, &key, method).await;
        let bytes = if number < 4 {
            *KEY
        } else {
            *b"another key, also of 32 bytes....".first_chunk().unwrap()
        };
        let mut given = sealed(&job, &bytes[..length]);
        match number {
            0 => given = flipped(given, 7),
            1 => given = flipped(given, 384 + 39),
            _ => {}
        }
        let request = import(&job, protections[number % 2], given);
        let refused = refusal(send(&client, request).await);
        assert_eq!(refused.code, Code::InvalidArgument, "{number}: {refused:?}");
        assert!(expected.contains(&refused.reason), "{number}: {refused:?}");
        // The private key is gone with the answer; the row, when it is given up.
        assert_eq!(token_files(&server.rig), before, "{number}");
        let whole = import(&job, protections[number % 2], sealed(&job, KEY));
        refusal(send(&client, whole).await).is(Code::FailedPrecondition, "IMPORT_JOB_LOST");
        let cancel = proto::CancelImportJobRequest {
            name: job.name,
            reason: "test".to_owned(),
            request_id: request_id(),
        };
        client.keys().cancel_import_job(cancel).await.unwrap();
    }
    let missing = proto::DescribeKeyRequest { name: key };
    refusal(client.keys().describe_key(missing).await).is(Code::NotFound, "KEY_NOT_FOUND");
    let rig = server.stop().await;
    let report: serde_json::Value = serde_json::from_slice(&rig.verify_store().stdout).unwrap();
    assert_eq!((&report["agrees"], &report["import_jobs"]), (&true.into(), &0.into()));
}

#[tokio::test]
async fn sha1_takes_the_word_of_the_operator_and_sha256_a_token_that_has_it() {
    let mut rig = Rig::new();
    rig.allow_sha1 = false;
    let server = rig.start();
    let client = server.operator().await;
    let key = common::calls::key_name("k");
    let before = token_files(&server.rig);
    for (method, code, reason) in [
        (proto::ImportMethod::RsaOaepSha1, Code::FailedPrecondition, "IMPORT_METHOD_REFUSED"),
        (proto::ImportMethod::RsaOaepSha1AesKwp, Code::FailedPrecondition, "IMPORT_METHOD_REFUSED"),
        // SoftHSM 2.6.1 has it not: gone when it has.
        (proto::ImportMethod::RsaOaepSha256, Code::Unimplemented, "MECHANISM_UNSUPPORTED"),
        (proto::ImportMethod::RsaOaepSha256AesKwp, Code::Unimplemented, "MECHANISM_UNSUPPORTED"),
    ] {
        let request = proto::CreateImportJobRequest { method: method.into(), ..new_job(&key) };
        let refused = refusal(client.keys().create_import_job(request).await);
        assert_eq!((refused.code, &*refused.reason), (code, reason), "{method:?}");
    }
    assert_eq!(token_files(&server.rig), before);
    server.stop().await;
}

#[tokio::test]
async fn fields_of_import_jobs_are_taken_at_their_bounds_and_refused_one_past() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = common::calls::key_name("bounds");
    let lifetime = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let wrong = [
        proto::CreateImportJobRequest { lifetime: lifetime(299), ..new_job(&key) },
        proto::CreateImportJobRequest { lifetime: lifetime(259_201), ..new_job(&key) },
        proto::CreateImportJobRequest { lifetime: lifetime(-1), ..new_job(&key) },
        proto::CreateImportJobRequest { rsa_bits: 2048, ..new_job(&key) },
        proto::CreateImportJobRequest { method: 0, ..new_job(&key) },
        proto::CreateImportJobRequest { method: 5, ..new_job(&key) },
        proto::CreateImportJobRequest { request_id: String::new(), ..new_job(&key) },
        new_job("tenants/acme"),
    ];
    for request in wrong {
        let text = format!("{request:?}");
        let refused = refusal(client.keys().create_import_job(request).await);
        assert_eq!(refused.reason, "FIELD_VIOLATION", "{text}");
    }
    for seconds in [300, 259_200] {
        let request =
            proto::CreateImportJobRequest { lifetime: lifetime(seconds), ..new_job(&key) };
        let made = client.keys().create_import_job(request).await.unwrap().into_inner();
        let life = made.expire_time.unwrap().seconds - made.create_time.unwrap().seconds;
        assert_eq!(life, seconds);
        let (wrapped, check) = sealed(&made, KEY);
        for (wrapped, check) in [
            (wrapped[..383].to_vec(), check.clone()),
            ([&wrapped[..], &[0]].concat(), check.clone()),
            (wrapped.clone(), check[..27].to_vec()),
            (wrapped.clone(), [&check[..], &[0]].concat()),
        ] {
            let request = import(&made, proto::Protection::HsmWrapped, (wrapped, check));
            let refused = refusal(send(&client, request).await);
            refused.is(Code::InvalidArgument, "FIELD_VIOLATION");
        }
        let cancel = proto::CancelImportJobRequest {
            name: made.name,
            reason: "test".to_owned(),
            request_id: request_id(),
        };
        client.keys().cancel_import_job(cancel).await.unwrap();
    }
}

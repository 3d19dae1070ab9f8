//! What `kms import-job` and the imports of `kms key` read, send and show.

use kms_core::import::{self, ImportMethod};

use super::online::World;

const KEY: &[u8; 32] = b"an owner's key is 32 bytes long.";
const JOB: &str = "tenants/t1/keys/k/importJobs/0a";
const ABOUT: [&str; 8] =
    ["--owner", "o", "--sensitivity", "low", "--usage", "u", "--cryptoperiod", "90d"];
const JSON: [&str; 2] = ["--output", "json"];

#[test]
fn jobs_are_created_described_listed_and_cancelled() {
    let world = World::new();
    let file = world.path("job.der");
    let create = [
        "import-job",
        "create",
        "k",
        "--method",
        "rsa-oaep-sha1-aes-kwp",
        "--rsa-bits",
        "4096",
        "--lifetime",
        "72h",
        "--public-key-out",
        file.to_str().unwrap(),
    ];
    let created = world.kms(&[&create, &JSON[..]].concat(), b"").json();
    assert_eq!(created["name"], JOB);
    assert_eq!(created["method"], "RSA_OAEP_SHA1_AES_KWP");
    assert_eq!(
        (&created["rsa_bits"], &created["expire_time"]),
        (&4096.into(), &"1970-01-04T00:00:00.000Z".into())
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"a public key");
    let again = world.kms(&create, b"");
    assert_eq!(again.code, 10, "the file is there: {}", again.stderr);
    let plain = world.kms(&[&["import-job", "create", "k"], &JSON[..]].concat(), b"").json();
    assert_eq!((&plain["method"], &plain["rsa_bits"]), (&"RSA_OAEP_SHA256".into(), &3072.into()));
    assert_eq!(plain["expire_time"], "1970-01-02T00:00:00.000Z", "24 hours");
    for name in ["k/importJobs/0a", JOB] {
        let words = [&["import-job", "describe", name], &JSON[..]].concat();
        assert_eq!(world.kms(&words, b"").json()["name"], JOB);
    }
    let listed = world.kms(&[&["import-job", "list"], &JSON[..]].concat(), b"").json();
    assert_eq!(listed["import_jobs"][0]["name"], JOB);
    assert!(world.kms(&["import-job", "list"], b"").text().contains("RSA_OAEP_SHA1_AES_KWP"));
    let cancel = ["import-job", "cancel", "k/importJobs/0a", "--reason", "moved"];
    assert_eq!(world.kms(&[&cancel, &JSON[..]].concat(), b"").json()["name"], JOB);
    for wrong in ["k", "k/importJobs/", "k/importJobs/A", "a/b/importJobs/0a", "k/versions/1"] {
        assert_eq!(world.kms(&["import-job", "describe", wrong], b"").code, 2, "{wrong}");
    }
    assert_eq!(world.kms(&["import-job", "cancel", JOB], b"").code, 2, "a reason must be given");
}

#[test]
fn a_key_is_sealed_here_from_stdin_a_file_or_a_descriptor() {
    let world = World::new();
    let file = world.path("key.bin");
    std::fs::write(&file, KEY).unwrap();
    let told = format!("{} true", String::from_utf8_lossy(KEY));
    let from_file = ["--in", file.to_str().unwrap()];
    for (more, stdin) in [
        (&[][..], &KEY[..]),
        (&["--in", "-"], KEY),
        (&["--in", "/dev/fd/0"], KEY),
        (&from_file, b""),
    ] {
        let words = [&["key", "import", "k/importJobs/0a"], &ABOUT[..], more, &JSON].concat();
        let imported = world.kms(&words, stdin);
        assert_eq!(imported.json()["usage"], *told, "{more:?}: {}", imported.stderr);
        assert_eq!(imported.json()["name"], "tenants/t1/keys/k");
    }
    let version = ["key", "import-version", JOB, "--reason", "r"];
    let version = [&version[..], &["--activate-at", "2027-01-31T08:00:00Z"], &JSON[..]].concat();
    let staged = world.kms(&version, KEY).json();
    assert_eq!(staged["key"]["usage"], *told);
    assert_eq!(
        (&staged["version"]["origin"], &staged["version"]["local"]),
        (&"IMPORTED".into(), &false.into())
    );
    assert_eq!(staged["version"]["activate_time"], "2027-01-31T08:00:00.000Z");
}

fn expecting<'w>(words: &[&'w str], fingerprint: &'w str) -> Vec<&'w str> {
    [words, &["--public-key-sha256", fingerprint]].concat()
}

#[test]
fn a_key_is_sealed_to_the_public_key_that_was_told_by_another_way_and_to_no_other() {
    let world = World::new();
    let file = world.path("job.der");
    let describe = ["import-job", "describe", JOB, "--public-key-out", file.to_str().unwrap()];
    let described = world.kms(&[&describe, &JSON[..]].concat(), b"").json();
    let fingerprint = described["public_key_sha256"].as_str().unwrap().to_owned();
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(&file).unwrap());
    assert_eq!(fingerprint, data_encoding::HEXLOWER.encode(digest.as_ref()), "as `sha256sum`");
    let shown = world.kms(&["import-job", "describe", JOB], b"");
    assert!(shown.text().contains(&fingerprint), "{}", shown.text());
    let new = [&["key", "import", JOB], &ABOUT[..]].concat();
    let version = vec!["key", "import-version", JOB, "--reason", "r"];
    let last = if fingerprint.ends_with('0') { "1" } else { "0" };
    let (short, _) = fingerprint.split_at(63);
    let other = format!("{short}{last}");
    for words in [new, version] {
        let before = world.fake.script().request_ids.len();
        let refused = world.kms(&expecting(&words, &other), KEY);
        assert_eq!(refused.code, 8, "{}", refused.stderr);
        for told in ["PUBLIC_KEY_MISMATCH", &fingerprint, &other, "nothing was sealed or sent"] {
            assert!(refused.stderr.contains(told), "{told}: {}", refused.stderr);
        }
        assert!(refused.stderr.contains("tell the operators"), "{}", refused.stderr);
        assert_eq!(world.fake.script().request_ids.len(), before, "nothing was sent");
        for right in [fingerprint.clone(), fingerprint.to_uppercase()] {
            let run = world.kms(&expecting(&words, &right), KEY);
            assert_eq!(run.code, 0, "{}", run.stderr);
        }
        assert_eq!(world.kms(&expecting(&words, short), KEY).code, 2, "a digit is missing");
        let sealed = ["--sealed", "x", "--check", "y"];
        let both = [&expecting(&words, &fingerprint)[..], &sealed].concat();
        assert_eq!(world.kms(&both, b"").code, 2, "it was sealed elsewhere");
    }
}

#[test]
fn what_was_sealed_elsewhere_is_sent_as_it_is() {
    let world = World::new();
    let public = world.path("job.der");
    let describe = ["import-job", "describe", JOB, "--public-key-out", public.to_str().unwrap()];
    assert_eq!(world.kms(&describe, b"").code, 0);
    let public = std::fs::read(public).unwrap();
    let sealed = import::seal(ImportMethod::RsaOaepSha256, &public, JOB, KEY).unwrap();
    let (wrapped, check) = (world.path("sealed.bin"), world.path("check.bin"));
    std::fs::write(&wrapped, sealed.wrapped).unwrap();
    std::fs::write(&check, sealed.check.to_bytes()).unwrap();
    let (wrapped, check) = (wrapped.to_str().unwrap(), check.to_str().unwrap());
    let words = ["key", "import-version", JOB, "--reason", "r", "--sealed", wrapped];
    let with_check = [&words[..], &["--check", check], &JSON].concat();
    let imported = world.kms(&with_check, b"");
    assert_eq!(imported.json()["key"]["usage"], format!("{} true", String::from_utf8_lossy(KEY)));
    assert_eq!(world.kms(&words, b"").code, 2, "a check value belongs to it");
    let both = [&with_check[..], &["--in", "-"]].concat();
    assert_eq!(world.kms(&both, KEY).code, 2, "one or the other");
    for length in [27, 29] {
        std::fs::write(check, vec![0; length]).unwrap();
        let run = world.kms(&with_check, b"");
        assert_eq!(run.code, 5, "{length}: {}", run.stderr);
    }
}

#[test]
fn keys_of_wrong_lengths_and_weak_ones_are_not_sent() {
    let world = World::new();
    let words = ["key", "import-version", JOB, "--reason", "r"];
    for (key, reason) in [
        (&[][..], "LENGTH"),
        (&KEY[..31], "LENGTH"),
        (&[&KEY[..], b"\n"].concat(), "LENGTH"),
        (&[0; 32], "IMPORT_KEY_WEAK"),
        (&[0xff; 32], "IMPORT_KEY_WEAK"),
    ] {
        let run = world.kms(&words, key);
        assert_eq!(run.code, 5, "{}", run.stderr);
        assert!(run.stderr.contains(reason), "{}", run.stderr);
        assert!(!run.stderr.contains("owner's"), "the key is not shown: {}", run.stderr);
    }
}

//! Tests of reading, layering and checking.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kms_core::clock::Timestamp;
use x509_parser::prelude::FromDer as _;

use super::*;
use crate::authz::ActionKind;
use crate::dev::pki::{Authority, LeafName};
use crate::transport::tls::TlsError;

pub(super) const NOW: Timestamp = Timestamp::from_unix_ms(1_700_000_000_000);
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/holdfast.sample.toml");

fn parse(text: &str) -> Result<Config, toml::de::Error> {
    toml::from_str(text)
}

/// A configuration whose files exist, in `directory`.
pub(super) fn good(directory: &Path) -> Config {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).unwrap();
    let authority = Authority::create("test", NOW).unwrap();
    let name = LeafName::Server { spiffe_id: "spiffe://td/s".into(), addresses: vec![] };
    let server = authority.issue(&name).unwrap();
    let mut config = Config::default();
    config.tls.certificate = directory.join("server.pem");
    config.tls.private_key = directory.join("server.key");
    config.tls.client_ca = directory.join("ca.pem");
    std::fs::write(&config.tls.certificate, &server.certificate_pem).unwrap();
    std::fs::write(&config.tls.private_key, server.private_key_pem.as_bytes()).unwrap();
    std::fs::set_permissions(&config.tls.private_key, std::fs::Permissions::from_mode(0o600))
        .unwrap();
    std::fs::write(&config.tls.client_ca, &authority.credential().certificate_pem).unwrap();
    config.hsm.module = directory.join("ca.pem");
    config.store.path = directory.join("store.db");
    config.audit.directory = directory.join("audit");
    config
}

fn problems(config: &Config) -> Vec<Problem> {
    check(config, NOW)
}

fn keys(config: &Config) -> Vec<&'static str> {
    problems(config).into_iter().map(|problem| problem.key).collect()
}

/// Expects one problem, and returns its key and its cause.
pub(super) fn only(config: &Config, now: Timestamp) -> (&'static str, Cause) {
    let mut problems = check(config, now);
    let problem = problems.pop().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    (problem.key, problem.cause)
}

#[test]
fn the_sample_equals_the_defaults() {
    let sample = Config::load(Path::new(SAMPLE), &Flags::default()).unwrap();
    assert_eq!(sample, Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn the_sample_names_every_key_in_its_section() {
    let text = std::fs::read_to_string(SAMPLE).unwrap();
    let sample: toml::Table = text.parse().unwrap();
    let all = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(names(&sample, 2), names(&all, 2));
    // What has no default stands there as a comment.
    for (name, absent) in [
        ("hsm]", &["token_serial", "token_dir"][..]),
        ("store.postgres]", &["password", "certificate", "private_key"]),
    ] {
        let section = text.split("\n[").find(|section| section.starts_with(name)).unwrap();
        for key in absent {
            assert!(section.contains(&format!("\n# {key} = ")), "{name} {key}");
        }
    }
    // And is as it should be when the mark of the comment is taken away.
    let shown = ["token_serial", "token_dir", "password", "certificate", "private_key"];
    let marked = shown
        .iter()
        .fold(text, |text, key| text.replace(&format!("\n# {key} = "), &format!("\n{key} = ")));
    let config = parse(&marked).unwrap();
    assert!(config.hsm.token_serial.is_some() && config.hsm.token_dir.is_some());
    let PostgresSection { password, certificate, private_key, .. } = config.store.postgres;
    assert_eq!(password, Some(SecretPlace::Credential("db-password".into())));
    assert!(certificate.is_some() && private_key.is_some());
}

/// The names of all keys of a table; tables within it count as sections to this depth.
fn names(table: &toml::Table, depth: usize) -> BTreeSet<String> {
    let of = |(name, value): (&String, &toml::Value)| match value.as_table() {
        Some(inner) if depth > 0 => {
            names(inner, depth - 1).into_iter().map(|key| format!("{name}.{key}")).collect()
        }
        _ => vec![name.clone()],
    };
    table.iter().flat_map(of).collect()
}

/// The comment is all that operators see of the names.
#[test]
fn the_sample_lists_every_action() {
    let text = std::fs::read_to_string(SAMPLE).unwrap();
    let comment = text.replace("\n#", "");
    let part = |from: &str, to: &str| {
        let (_, rest) = comment.split_once(from).unwrap();
        rest.split_once(to).unwrap().0.to_owned()
    };
    let methods = part("the methods in snake_case (", ")");
    let permissions = part("and the permissions ", ".");
    let listed: Vec<_> = [methods, permissions]
        .iter()
        .flat_map(|part| part.split(','))
        .map(|name| name.trim().split(' ').next().unwrap_or_default().to_owned())
        .collect();
    let mut sorted = listed.clone();
    sorted.sort();
    let mut all: Vec<_> = ActionKind::ALL.iter().map(|kind| kind.as_str().to_owned()).collect();
    all.sort();
    assert_eq!(sorted, all);
}

#[test]
fn unknown_keys_and_sections_are_refused() {
    assert!(parse("[listen]\nadress = \"127.0.0.1:1\"").is_err());
    assert!(parse("[lisen]").is_err());
    assert!(parse("[[authz.grants]]\nprincipal = \"a\"\ntenant = \"b\"").is_err());
    assert!(parse("[hsm]\npin = { env = \"PIN\" }").is_err());
}

#[test]
fn a_pin_that_stands_in_the_file_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    for line in [
        "[hsm]\npin = \"SECRET99\"",
        "[hsm]\npin = SECRET99",
        "[hsm]\npin = \"SECRET99",
        "[hsm]\npin = 5599 SECRET99",
        "[hsm]\npin = { value = \"SECRET99\" }",
        "[hsm]\npin = { file = [\"SECRET99\"] }",
        "[hsm]\npin = [\n\"SECRET99\",\n]",
        "[hsm]\npin = {\n file = 1, other = \"SECRET99\" }",
        "[hsm]\npin = \"\"\"\nSECRET99",
        "[hsm]\npin = \"\"\"\nSECRET99\"\"\"",
        "[hsm]\nuser_pin = \"SECRET99\"",
        "[listen]\npin = \"SECRET99\"",
        "[listen]\npin = \"\"\"\nSECRET99\"\"\" 1",
        "hsm.pin = \"SECRET99\"",
        "hsm = { pin = \"SECRET99\" }",
        "[hsm.pin]\nfile = 1 # SECRET99",
    ] {
        std::fs::write(&path, line).unwrap();
        let told = Config::load(&path, &Flags::default()).unwrap_err().to_string();
        assert!(!told.contains("SECRET99") && !told.contains("5599"), "{line}: {told}");
        assert!(told.contains("c.toml: line "), "{line}: {told}");
    }
    // What belongs there is told instead, and what else is wrong in the section.
    std::fs::write(&path, "[hsm]\npin = \"SECRET99\"").unwrap();
    let told = Config::load(&path, &Flags::default()).unwrap_err().to_string();
    assert!(told.contains("line 2: hsm.pin takes one place"), "{told}");
    std::fs::write(&path, "[hsm]\n\nworkers = \"many\"").unwrap();
    let told = Config::load(&path, &Flags::default()).unwrap_err().to_string();
    assert!(told.contains("line 3: invalid type"), "{told}");
    // What cannot be a PIN is shown.
    std::fs::write(&path, "[listen]\nping = 77").unwrap();
    let told = Config::load(&path, &Flags::default()).unwrap_err().to_string();
    assert!(told.contains("ping = 77"), "{told}");
}

#[test]
fn flags_win_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    std::fs::write(&path, "[listen]\naddress = \"127.0.0.1:1\"\n[log]\nlevel = \"warn\"").unwrap();
    let flags = Flags {
        listen: Some("127.0.0.1:2".parse().unwrap()),
        admin_listen: Some("127.0.0.1:3".parse().unwrap()),
        log_format: Some(LogFormat::Json),
        log_level: None,
    };
    let config = Config::load(&path, &flags).unwrap();
    assert_eq!(config.listen.address.port(), 2);
    assert_eq!(config.admin.address.port(), 3);
    assert_eq!(config.log, Log { format: LogFormat::Json, level: LogLevel::Warn });
}

#[test]
fn a_file_that_is_missing_too_large_or_not_toml_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let load = || Config::load(&path, &Flags::default());
    assert!(matches!(load(), Err(ConfigError::Unreadable { .. })));
    std::fs::write(&path, "x = [").unwrap();
    assert!(matches!(load(), Err(ConfigError::Invalid { .. })));
    let comment = |bytes: u64| format!("#{}", "x".repeat(usize::try_from(bytes).unwrap() - 1));
    std::fs::write(&path, comment(MAX_CONFIG_BYTES)).unwrap();
    assert!(load().is_ok());
    std::fs::write(&path, comment(MAX_CONFIG_BYTES + 1)).unwrap();
    assert!(matches!(load(), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn a_good_configuration_has_no_problem() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(keys(&good(directory.path())), [""; 0]);
}

#[test]
fn every_problem_is_named_in_one_go() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    config.admin.address = "0.0.0.0:9443".parse().unwrap();
    config.admin.tls = false;
    config.admin.allowed_networks.clear();
    config.hsm.token_label = None;
    config.hsm.module = "/nowhere".into();
    config.store.path = "/nowhere/store.db".into();
    config.limits.max_streams = 0;
    let expected = [
        "admin.tls",
        "admin.allowed_networks",
        "hsm.module",
        "hsm.token_serial",
        "store.path",
        "limits.max_streams",
    ];
    assert_eq!(keys(&config), expected);
}

#[test]
fn softhsm_needs_its_directory_and_other_modules_need_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    assert_eq!(keys(&config), [""; 0]);
    config.hsm.module = directory.path().join("libsofthsm2.so");
    std::fs::write(&config.hsm.module, "").unwrap();
    assert!(matches!(only(&config, NOW), ("hsm.token_dir", Cause::TokenDirNeeded)));
    config.hsm.token_dir = Some(directory.path().to_owned());
    assert_eq!(keys(&config), [""; 0]);
}

#[test]
fn plain_admin_is_accepted_on_loopback_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    config.admin.tls = false;
    assert_eq!(keys(&config), [""; 0]);
    config.admin.address = "192.0.2.1:9443".parse().unwrap();
    assert_eq!(keys(&config), ["admin.tls"]);
}

#[test]
fn a_key_of_another_certificate_is_a_problem() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = good(ours.path());
    config.tls.private_key = good(theirs.path()).tls.private_key;
    assert!(matches!(only(&config, NOW), ("tls", Cause::Tls(TlsError::KeyMismatch { .. }))));
}

#[test]
fn a_private_key_that_its_group_or_everyone_can_read_is_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let config = good(directory.path());
    for mode in [0o604, 0o640] {
        let open = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&config.tls.private_key, open).unwrap();
        let (key, cause) = only(&config, NOW);
        assert_eq!(key, "tls.private_key");
        assert!(matches!(cause, Cause::Tls(TlsError::Exposed { .. })), "{mode:o}");
    }
}

#[test]
fn each_tls_file_that_cannot_be_used_is_told_by_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    config.tls.client_ca = config.tls.private_key.clone();
    config.tls.certificate = "/nowhere".into();
    config.tls.crls = vec![config.tls.private_key.clone()];
    assert_eq!(keys(&config), ["tls.certificate", "tls.client_ca", "tls.crls"]);
    std::fs::write(&config.tls.private_key, "no key").unwrap();
    let expected = ["tls.certificate", "tls.private_key", "tls.client_ca", "tls.crls"];
    assert_eq!(keys(&config), expected);
}

#[test]
fn certificates_are_good_within_their_dates_and_a_tolerable_problem_outside() {
    const DAY_MS: i64 = 86_400_000;
    let directory = tempfile::tempdir().unwrap();
    let config = good(directory.path());
    // Dev certificates begin a day before the day on which they are made, and end 3650 days after it.
    let midnight_ms = NOW.as_unix_ms() / DAY_MS * DAY_MS;
    let (first, last) = (midnight_ms - DAY_MS, midnight_ms + 3650 * DAY_MS + 999);
    let at = |ms: i64| check(&config, Timestamp::from_unix_ms(ms));
    assert!(at(first).is_empty() && at(last).is_empty());
    let (early, late) = (at(first - 1), at(last + 1));
    for (problems, expected) in
        [(early, "is valid from 2023-11-13"), (late, "expired at 2033-11-11")]
    {
        let told: Vec<_> = problems.iter().map(|problem| problem.key).collect();
        assert_eq!(told, ["tls.certificate", "tls.client_ca"]);
        for problem in problems {
            assert!(problem.is_tolerable() && problem.to_string().contains(expected), "{problem}");
        }
    }
}

#[test]
fn a_revocation_list_is_good_until_its_next_update() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    let pki = kms_testkit::pki::Pki::create(&directory.path().join("other"));
    config.tls.crls = vec![pki.revoke("list", &[])];
    assert_eq!(keys(&config), [""; 0]);
    let list = std::fs::read(&config.tls.crls[0]).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&list).unwrap();
    let (_, parsed) =
        x509_parser::prelude::CertificateRevocationList::from_der(&pem.contents).unwrap();
    let ends = parsed.next_update().unwrap().timestamp() * 1000;
    let told = |ms: i64| -> Vec<_> {
        let problems = check(&config, Timestamp::from_unix_ms(ms));
        problems.into_iter().filter(|problem| problem.key == "tls.crls").collect()
    };
    assert!(told(ends - 1).is_empty());
    let expired = told(ends);
    assert!(matches!(expired[..], [Problem { cause: Cause::Tls(TlsError::Expired { .. }), .. }]));
}

#[test]
fn a_pin_file_of_its_owner_alone_is_good_and_one_that_others_may_use_is_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    let path = directory.path().join("pin");
    config.hsm.pin = SecretPlace::File(path.clone());
    assert!(matches!(
        only(&config, NOW),
        ("hsm.pin", Cause::Secret(SecretError::Unreadable { .. }))
    ));
    std::fs::write(&path, "1234\n").unwrap();
    for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        if good {
            assert_eq!(keys(&config), [""; 0], "{mode:o}");
        } else {
            let (key, cause) = only(&config, NOW);
            assert_eq!(key, "hsm.pin");
            assert!(
                matches!(cause, Cause::Secret(SecretError::Exposed { .. })),
                "{mode:o}: {cause}"
            );
            assert!(cause.to_string().contains("run `chmod 0600 "), "{cause}");
        }
    }
}

#[test]
fn directories_of_their_owner_alone_are_good_and_ones_that_others_may_use_are_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    let (store, audit) = (directory.path().join("store"), directory.path().join("audit"));
    config.store.path = store.join("store.db");
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let open_to = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open_to(&store, 0o700);
    open_to(&audit, 0o700);
    assert_eq!(keys(&config), [""; 0]);
    for mode in [0o755, 0o710, 0o701, 0o720] {
        for (path, expected) in [(&store, "store.path"), (&audit, "audit.directory")] {
            open_to(path, mode);
            let (key, cause) = only(&config, NOW);
            assert_eq!(key, expected);
            assert!(matches!(cause, Cause::DirectoryExposed { .. }), "{mode:o}: {cause}");
            assert!(cause.to_string().contains("run `chmod 0700`"), "{cause}");
            open_to(path, 0o700);
        }
    }
}

#[test]
fn listeners_on_one_port_are_a_problem_unless_the_port_is_free_to_choose() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    config.listen.address = "0.0.0.0:8443".parse().unwrap();
    config.admin.address = "127.0.0.1:8443".parse().unwrap();
    assert!(matches!(only(&config, NOW), ("admin.address", Cause::ListenersOverlap(_))));
    config.listen.address.set_port(0);
    config.admin.address.set_port(0);
    assert_eq!(keys(&config), [""; 0]);
}

#[test]
fn a_principal_that_no_certificate_can_name_is_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    let grant = |principal: &str| GrantConfig {
        principal: principal.to_owned(),
        tenant: "t".to_owned(),
        actions: vec![ActionKind::Wrap],
    };
    config.authz.grants = vec![grant("spiffe://td/app"), grant("host.example")];
    assert_eq!(keys(&config), [""; 0]);
    config.authz.grants.push(grant("CN=app"));
    let (key, cause) = only(&config, NOW);
    assert_eq!(key, "authz.grants");
    assert!(cause.to_string().starts_with("principal `CN=app` matches no certificate: write"));
}

#[test]
fn limits_are_accepted_at_their_bounds_and_refused_past_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = good(directory.path());
    config.limits.max_request_ms = 24 * 60 * 60 * 1000;
    config.limits.worker_threads = 256;
    config.hsm.workers = 64;
    config.hsm.queue_capacity = 65_536;
    assert_eq!(keys(&config), [""; 0]);
    config.limits.max_request_ms += 1;
    config.limits.worker_threads += 1;
    config.hsm.workers += 1;
    config.hsm.queue_capacity += 1;
    let expected =
        ["hsm.workers", "hsm.queue_capacity", "limits.max_request_ms", "limits.worker_threads"];
    assert_eq!(keys(&config), expected);
}

//! Tests of how PostgreSQL is reached: each bound at its limit and one past it, and what must never be shown.

use std::path::Path;

use kms_core::clock::Timestamp;
use kms_testkit::pki::{Identity, Kind, Pki};

use super::tests::{NOW, good, only};
use super::*;
use crate::transport::tls::TlsError;

/// A configuration on PostgreSQL whose files exist, in `directory`, with the identity of a client.
fn postgres(directory: &Path) -> (Config, Identity) {
    let mut config = good(directory);
    let pki = Pki::create(&directory.join("postgres"));
    config.store.engine = Engine::Postgres;
    // Of no effect on PostgreSQL, so it may be wrong.
    config.store.path = "/nowhere/store.db".into();
    config.store.postgres.server_ca = pki.ca();
    config.store.postgres.password = Some(SecretPlace::Credential("db-password".into()));
    (config, pki.issue("client", &Kind::Dns("client")))
}

fn keys(config: &Config) -> Vec<&'static str> {
    check(config, NOW).into_iter().map(|problem| problem.key).collect()
}

fn parse(text: &str) -> PostgresSection {
    toml::from_str(text).unwrap()
}

#[test]
fn a_good_section_has_no_problem_and_a_bad_one_matters_on_postgres_only() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    assert_eq!(keys(&config), [""; 0]);
    config.store.postgres = PostgresSection { pool_size: 0, ..PostgresSection::default() };
    let expected =
        ["store.postgres.password", "store.postgres.server_ca", "store.postgres.pool_size"];
    assert_eq!(keys(&config), expected);
    config.store.engine = Engine::Sqlite;
    assert_eq!(keys(&config), ["store.path"]);
}

#[test]
fn the_journal_is_beside_the_log_or_where_it_is_said_and_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    assert_eq!(config.journal_path(), directory.path().join("journal"));
    let place = directory.path().join("elsewhere");
    config.journal.path = Some(place.join("journal"));
    assert!(matches!(only(&config, NOW), ("journal.path", Cause::NoStoreDirectory)));
    std::fs::create_dir(&place).unwrap();
    for (mode, good) in [(0o700, true), (0o750, false)] {
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(mode)).unwrap();
        if good {
            assert_eq!(keys(&config), [""; 0]);
        } else {
            let (key, cause) = only(&config, NOW);
            assert_eq!(key, "journal.path");
            assert!(matches!(cause, Cause::DirectoryExposed { .. }), "{cause}");
        }
    }
}

#[test]
fn numbers_are_accepted_at_their_bounds_and_refused_past_them() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    for (port, pool, wait_ms) in [(1, 1, 1), (65_535, 64, 600_000)] {
        config.store.postgres.port = port;
        config.store.postgres.pool_size = pool;
        config.store.postgres.connect_timeout_ms = wait_ms;
        config.store.postgres.statement_timeout_ms = wait_ms;
        assert_eq!(keys(&config), [""; 0]);
    }
    for (pool, wait_ms) in [(0, 0), (65, 600_001)] {
        config.store.postgres.port = 0;
        config.store.postgres.pool_size = pool;
        config.store.postgres.connect_timeout_ms = wait_ms;
        config.store.postgres.statement_timeout_ms = wait_ms;
        let expected = [
            "store.postgres.port",
            "store.postgres.pool_size",
            "store.postgres.connect_timeout_ms",
            "store.postgres.statement_timeout_ms",
        ];
        assert_eq!(keys(&config), expected);
    }
}

#[test]
fn names_are_as_long_as_postgres_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    for good in ["a".repeat(63), "with space".to_owned()] {
        config.store.postgres.database.clone_from(&good);
        config.store.postgres.user = good;
        assert_eq!(keys(&config), [""; 0]);
    }
    for bad in [String::new(), "a".repeat(64), "with\nbreak".to_owned()] {
        config.store.postgres.database.clone_from(&bad);
        config.store.postgres.user = bad;
        assert_eq!(keys(&config), ["store.postgres.database", "store.postgres.user"]);
    }
}

#[test]
fn a_host_is_a_name_an_address_or_a_directory_and_what_is_none_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    let socket = directory.path().to_str().unwrap().to_owned();
    for good in ["db.example.org", "db-1", "192.0.2.7", "::1", &"a".repeat(253), &socket] {
        config.store.postgres.host = good.to_owned();
        assert_eq!(keys(&config), [""; 0], "{good}");
    }
    let url = "postgres://holdfast:SECRET99@db.example.org";
    for bad in ["", url, "u:SECRET99@db", "db/SECRET99", &"a".repeat(254)] {
        config.store.postgres.host = bad.to_owned();
        let (key, cause) = only(&config, NOW);
        assert_eq!(key, "store.postgres.host");
        assert!(matches!(cause, Cause::HostName), "{bad}: {cause}");
        assert!(!cause.to_string().contains("SECRET99"));
    }
    config.store.postgres.host = "/nowhere/run".into();
    assert!(matches!(only(&config, NOW), ("store.postgres.host", Cause::NotADirectory(_))));
}

#[test]
fn only_a_loopback_address_goes_without_tls_and_only_when_that_is_said() {
    for (host, tls, encrypted) in [
        ("localhost", PostgresTls::Required, true),
        ("127.0.0.1", PostgresTls::DisabledOnLoopback, false),
        ("/run/postgresql", PostgresTls::Required, false),
    ] {
        let section = PostgresSection { host: host.into(), tls, ..PostgresSection::default() };
        assert_eq!((section.is_encrypted(), section.tls_files().is_some()), (encrypted, encrypted));
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    config.store.postgres.tls = PostgresTls::DisabledOnLoopback;
    config.store.postgres.server_ca = "/nowhere".into();
    for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1"] {
        config.store.postgres.host = host.into();
        assert_eq!(keys(&config), [""; 0], "{host}");
    }
    for host in ["db.example.org", "192.0.2.7", "localhost.example.org", "::"] {
        config.store.postgres.host = host.into();
        let (key, cause) = only(&config, NOW);
        assert_eq!(key, "store.postgres.tls");
        assert!(matches!(cause, Cause::DatabaseExposed), "{host}: {cause}");
    }
    assert!(parse("tls = \"disabled_on_loopback\"").tls == PostgresTls::DisabledOnLoopback);
    for other in ["disabled", "prefer", "required_without_verification"] {
        assert!(toml::from_str::<PostgresSection>(&format!("tls = \"{other}\"")).is_err());
    }
}

#[test]
fn a_certificate_comes_with_its_key_over_tls_and_stands_for_a_password() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, client) = postgres(directory.path());
    config.store.postgres.password = None;
    assert!(matches!(only(&config, NOW), ("store.postgres.password", Cause::NothingProven)));
    config.store.postgres.certificate = Some(client.certificate);
    assert!(matches!(only(&config, NOW), ("store.postgres.private_key", Cause::HalfAnIdentity)));
    config.store.postgres.private_key = Some(client.key.clone());
    assert_eq!(keys(&config), [""; 0]);
    let other = good(tempfile::tempdir().unwrap().path());
    assert!(!other.tls.private_key.exists());
    config.store.postgres.private_key = Some(config.tls.private_key.clone());
    let (key, cause) = only(&config, NOW);
    assert_eq!(key, "store.postgres.private_key");
    assert!(matches!(cause, Cause::Tls(TlsError::KeyMismatch { .. })), "{cause}");
    config.store.postgres.private_key = Some(client.key);
    config.store.postgres.tls = PostgresTls::DisabledOnLoopback;
    let (key, cause) = only(&config, NOW);
    assert_eq!(key, "store.postgres.certificate");
    assert!(matches!(cause, Cause::IdentityWithoutTls), "{cause}");
}

#[test]
fn a_ca_that_ran_out_is_a_warning_and_one_that_is_missing_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    config.store.postgres.server_ca = config.tls.client_ca.clone();
    let late = Timestamp::from_unix_ms(NOW.as_unix_ms() + 4000 * 86_400_000);
    let told: Vec<_> = check(&config, late)
        .into_iter()
        .filter(|problem| problem.key == "store.postgres.server_ca")
        .collect();
    assert!(matches!(told[..], [Problem { cause: Cause::Tls(TlsError::Expired { .. }), .. }]));
    assert!(told[0].is_tolerable());
    config.store.postgres.server_ca = "/nowhere".into();
    let (key, cause) = only(&config, NOW);
    assert_eq!(key, "store.postgres.server_ca");
    assert!(matches!(cause, Cause::Tls(TlsError::Unreadable { .. })), "{cause}");
}

#[test]
fn a_password_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _) = postgres(directory.path());
    let path = directory.path().join("password");
    std::fs::write(&path, "pass word\n").unwrap();
    config.store.postgres.password = Some(SecretPlace::File(path.clone()));
    for (mode, good) in [(0o600, true), (0o640, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        if good {
            assert_eq!(keys(&config), [""; 0]);
        } else {
            let (key, cause) = only(&config, NOW);
            assert_eq!(key, "store.postgres.password");
            assert!(matches!(cause, Cause::Secret(SecretError::Exposed { .. })), "{cause}");
        }
    }
    for name in ["", "a/b"] {
        config.store.postgres.password = Some(SecretPlace::Credential(name.into()));
        assert!(matches!(only(&config, NOW), (_, Cause::CredentialName)));
    }
}

#[test]
fn a_password_that_stands_in_the_file_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    for line in [
        "[store.postgres]\npassword = \"SECRET99\"",
        "[store.postgres]\npassword = \"SECRET99",
        "[store.postgres]\npassword = { value = \"SECRET99\" }",
        "[store.postgres]\npasswort = \"SECRET99\"",
        "[store.postgres]\npassword = \"\"\"\nSECRET99",
        "[store]\npostgres = { password = \"SECRET99\" }",
        "[store]\npassword = \"SECRET99\"",
        "[store]\npostgres.password = [\n\"SECRET99\",\n]",
        "store.postgres.password = \"SECRET99\"",
        "[store.postgres.password]\nfile = 1 # SECRET99",
    ] {
        std::fs::write(&path, line).unwrap();
        let told = Config::load(&path, &Flags::default()).unwrap_err().to_string();
        assert!(!told.contains("SECRET99"), "{line}: {told}");
        assert!(told.contains("c.toml: line "), "{line}: {told}");
    }
    for line in ["password = \"SECRET99\"", "pw = \"SECRET99\"", "x\n= \"SECRET99\""] {
        std::fs::write(&path, line).unwrap();
        let told = PostgresSection::load(&path).unwrap_err().to_string();
        assert!(!told.contains("SECRET99") && told.contains("c.toml: line "), "{line}: {told}");
    }
}

#[test]
fn a_file_of_its_own_has_the_keys_of_the_section() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("postgres.toml");
    std::fs::write(&path, "host = \"db\"\npassword = { descriptor = 4 }\n").unwrap();
    let expected = PostgresSection {
        host: "db".into(),
        password: Some(SecretPlace::Descriptor(4)),
        ..PostgresSection::default()
    };
    assert_eq!(PostgresSection::load(&path).unwrap(), expected);
    assert_eq!(parse(""), PostgresSection::default());
}

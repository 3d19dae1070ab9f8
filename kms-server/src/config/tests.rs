//! Tests of reading, layering and checking.

use std::path::Path;

use super::*;
use crate::dev::pki::{Authority, LeafName};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/holdfast.sample.toml");

fn parse(text: &str) -> Result<Config, toml::de::Error> {
    toml::from_str(text)
}

/// A configuration whose files exist, in `directory`.
fn good(directory: &Path) -> Config {
    use std::os::unix::fs::PermissionsExt as _;
    let now = kms_core::clock::Timestamp::from_unix_ms(1_700_000_000_000);
    let authority = Authority::create("test", now).unwrap();
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

fn keys(config: &Config) -> Vec<&'static str> {
    check(config).into_iter().map(|problem| problem.key).collect()
}

#[test]
fn the_sample_equals_the_defaults() {
    let sample = Config::load(Path::new(SAMPLE), &Flags::default()).unwrap();
    assert_eq!(sample, Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn the_sample_names_every_key() {
    let text = std::fs::read_to_string(SAMPLE).unwrap();
    let all = toml::Value::try_from(Config::default()).unwrap();
    for (section, values) in all.as_table().unwrap() {
        assert!(text.contains(&format!("[{section}]")), "{section}");
        for key in values.as_table().unwrap().keys() {
            assert!(text.contains(&format!("\n{key} = ")), "{section}.{key}");
        }
    }
    assert!(text.contains("# token_serial = ") && text.contains("# token_dir = "));
}

#[test]
fn unknown_keys_and_sections_are_refused() {
    assert!(parse("[listen]\nadress = \"127.0.0.1:1\"").is_err());
    assert!(parse("[lisen]").is_err());
    assert!(parse("[[authz.grants]]\nprincipal = \"a\"\ntenant = \"b\"").is_err());
    assert!(parse("[hsm]\npin = { env = \"PIN\" }").is_err());
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
    assert_eq!(check(&good(directory.path())), vec![]);
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
    assert_eq!(keys(&config), ["tls"]);
}

#[test]
fn a_private_key_that_everyone_can_read_is_a_problem() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let config = good(directory.path());
    let open_to_all = std::fs::Permissions::from_mode(0o604);
    std::fs::set_permissions(&config.tls.private_key, open_to_all).unwrap();
    assert_eq!(keys(&config), ["tls"]);
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

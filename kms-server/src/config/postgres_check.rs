//! What is wrong with how PostgreSQL is reached. Nothing is connected to.

use kms_core::clock::Timestamp;

use super::check::{Problems, check_secret};
use super::postgres::{
    MAX_DATABASE_NAME_BYTES, MAX_DATABASE_WAIT_MS, MAX_HOST_BYTES, MAX_POOL, PostgresSection,
    PostgresTls,
};
use super::problem::Cause;
use super::secret_source::SecretKind;
use crate::transport::tls_client;

pub(super) fn check(section: &PostgresSection, now: Timestamp, problems: &mut Problems) {
    check_host(section, problems);
    for (key, name) in
        [("store.postgres.database", &section.database), ("store.postgres.user", &section.user)]
    {
        if !(1..=MAX_DATABASE_NAME_BYTES).contains(&name.len())
            || name.chars().any(char::is_control)
        {
            problems.add(key, Cause::DatabaseName);
        }
    }
    if let Some(place) = &section.password {
        check_secret("store.postgres.password", SecretKind::Password, place, problems);
    }
    check_tls(section, now, problems);
    problems.add_unless_within("store.postgres.port", section.port.into(), 1, u16::MAX.into());
    let pool = section.pool_size as u64;
    problems.add_unless_within("store.postgres.pool_size", pool, 1, MAX_POOL as u64);
    for (key, span_ms) in [
        ("store.postgres.connect_timeout_ms", section.connect_timeout_ms),
        ("store.postgres.statement_timeout_ms", section.statement_timeout_ms),
    ] {
        problems.add_unless_within(key, span_ms, 1, MAX_DATABASE_WAIT_MS);
    }
}

fn check_host(section: &PostgresSection, problems: &mut Problems) {
    let key = "store.postgres.host";
    if let Some(directory) = section.socket_directory() {
        if !directory.is_dir() {
            problems.add(key, Cause::NotADirectory(directory.to_owned()));
        }
        return;
    }
    // What is no host may be a URL with a password in it: it is not shown.
    let known = |c: char| c.is_ascii_alphanumeric() || ".-:_".contains(c);
    let length = section.host.len();
    if !(1..=MAX_HOST_BYTES).contains(&length) || !section.host.chars().all(known) {
        problems.add(key, Cause::HostName);
    }
}

fn check_tls(section: &PostgresSection, now: Timestamp, problems: &mut Problems) {
    if section.tls == PostgresTls::DisabledOnLoopback && !section.is_loopback() {
        problems.add("store.postgres.tls", Cause::DatabaseExposed);
    }
    if section.certificate.is_some() != section.private_key.is_some() {
        problems.add("store.postgres.private_key", Cause::HalfAnIdentity);
    }
    if section.certificate.is_some() && !section.is_encrypted() {
        problems.add("store.postgres.certificate", Cause::IdentityWithoutTls);
    }
    if !section.is_socket() && section.password.is_none() && section.certificate.is_none() {
        problems.add("store.postgres.password", Cause::NothingProven);
    }
    let Some(files) = section.tls_files() else { return };
    for (part, error) in tls_client::check(&files, now) {
        let key = match part {
            tls_client::Part::ServerCa => "store.postgres.server_ca",
            tls_client::Part::Certificate => "store.postgres.certificate",
            tls_client::Part::PrivateKey => "store.postgres.private_key",
        };
        problems.add(key, Cause::Tls(error));
    }
}

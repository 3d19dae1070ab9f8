//! What is refused at start, with an error that says what to do.

use std::path::Path;
use std::process::Command;

use kms_testkit::pki::Pki;
use kms_testkit::postgres::Database;
use kms_testkit::process::binary;
use kms_testkit::{Postgres, Process};

use crate::common::{LIMIT, Rig};

/// Starts, and returns the error with which the process ended.
fn refused(rig: &Rig, status: i32) -> String {
    let mut process = rig.spawn();
    assert_eq!(process.await_end(LIMIT).code(), Some(status), "{}", process.stderr());
    last_error(&process)
}

fn last_error(process: &Process) -> String {
    let said = process.stderr();
    assert!(!said.contains("canary-password"), "{said}");
    let error = said.lines().rfind(|line| line.starts_with("error: "));
    error.unwrap_or_else(|| panic!("no error in {said}")).to_owned()
}

fn with_password_file(database: &Database, file: &Path) -> String {
    let text = |path: &Path| path.display().to_string();
    database.toml().replace(&text(&database.password_file), &text(file))
}

#[test]
fn a_database_that_does_not_let_it_in_or_is_another_is_told() {
    let database = Postgres::shared().fresh_database();
    let mut rig = Rig::on_postgres(&database);
    let wrong = rig.secret_file("wrong-password", "canary-password");
    rig.postgres = Some(with_password_file(&database, &wrong));
    let error = refused(&rig, 74);
    assert!(error.contains("password authentication failed"), "{error}");

    let others = Pki::create(&rig.path("others"));
    let (ours, theirs) = (database.ca.display().to_string(), others.ca().display().to_string());
    rig.postgres = Some(database.toml().replace(&ours, &theirs));
    let error = refused(&rig, 74);
    assert!(error.contains("certificate"), "{error}");

    let name = format!("database = \"{}\"", database.name);
    rig.postgres = Some(database.toml().replace(&name, "database = \"nobody_s\""));
    let error = refused(&rig, 74);
    assert!(error.contains("nobody_s"), "{error}");

    database.require_certificate();
    rig.postgres = Some(database.toml());
    let error = refused(&rig, 74);
    assert!(error.contains("certificate"), "{error}");
    let client =
        Postgres::shared().pki().issue("server-of-tests", &kms_testkit::pki::Kind::Dns("s"));
    rig.postgres = Some(format!(
        "{}certificate = \"{}\"\nprivate_key = \"{}\"\n",
        database.toml(),
        client.certificate.display(),
        client.key.display()
    ));
    let mut process = rig.spawn();
    process.await_line("serving listen=", LIMIT);
    assert_eq!(process.terminate(LIMIT).code(), Some(0));
}

#[test]
fn a_database_that_acknowledges_before_it_is_durable_is_refused() {
    let database = Postgres::shared().fresh_database();
    let rig = Rig::on_postgres(&database);
    database.set("synchronous_commit", "off");
    let error = refused(&rig, 74);
    assert!(error.contains("synchronous_commit"), "{error}");
    for durable in ["on", "local"] {
        database.set("synchronous_commit", durable);
        let mut process = rig.spawn();
        process.await_line("serving listen=", LIMIT);
        assert_eq!(process.terminate(LIMIT).code(), Some(0));
    }
}

/// What one server has cached, another one's changes do not reach yet.
#[tokio::test]
async fn a_second_server_on_one_database_is_refused_until_the_first_is_gone() {
    let database = Postgres::shared().fresh_database();
    let mut server = Rig::on_postgres(&database).start();
    let key = server.operator().await.create("held").await.name;
    // With a token and a log of its own, so that nothing else is in the way.
    let mut second = Rig::on_postgres(&Postgres::shared().fresh_database());
    second.postgres = Some(database.toml());
    let error = refused(&second, 74);
    assert!(error.contains("another server holds the database"), "{error}");
    assert!(server.operator().await.wrap(&key, b"x", &[]).await.is_ok());
    // Killed, it cannot free anything; the end of its connection does.
    server.process.kill();
    let server = server.rig.start();
    assert!(server.operator().await.wrap(&key, b"x", &[]).await.is_ok());
    server.stop().await;
}

#[test]
fn what_works_on_the_file_of_a_database_says_that_there_is_none() {
    let rig = Rig::on_postgres(&Postgres::shared().fresh_database());
    let identity = rig.path("identity");
    let made = Command::new("age-keygen").arg("-o").arg(&identity).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut restore = Command::new(binary("kms-server"));
    restore.args(["restore", "--backup", "/nowhere", "--identity"]).arg(identity);
    for output in [rig.verify_store(), rig.configured(&mut restore).output().unwrap()] {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        for part in ["is on a PostgreSQL server", "own tools", "start the server"] {
            assert!(said.contains(part), "{said}");
        }
    }
}

#[test]
fn it_is_reached_over_a_socket_and_over_loopback_without_tls_where_that_is_said() {
    let database = Postgres::shared().fresh_database();
    let mut rig = Rig::on_postgres(&database);
    let host = format!("host = \"{}\"", database.host);
    let socket = format!("host = \"{}\"", database.socket_directory.display());
    for section in [
        database.toml().replace(&host, &socket),
        database.toml() + "tls = \"disabled_on_loopback\"\n",
    ] {
        rig.postgres = Some(section);
        assert_eq!(rig.check_config().status.code(), Some(0));
        let mut process = rig.spawn();
        process.await_line("serving listen=", LIMIT);
        assert_eq!(process.terminate(LIMIT).code(), Some(0));
    }
}

#[test]
fn a_dev_server_shows_nothing_of_a_file_that_it_cannot_use() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("postgres.toml");
    for (content, told) in [
        ("password = \"canary-password\"", "store.postgres.password takes one place"),
        ("pasword = \"canary-password\"", "unknown field"),
        ("host = \"u:canary-password@db\"", "store.postgres.host: must be the name"),
    ] {
        std::fs::write(&file, content).unwrap();
        let mut command = Command::new(binary("kms-server"));
        command.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(root.path().join("dev"));
        command.arg("--module").arg(kms_testkit::softhsm::module()).env_remove("SOFTHSM2_CONF");
        let output = command.arg("--postgres").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(told) && !said.contains("canary-password"), "{said}");
    }
}

//! The temporary PostgreSQL cluster: what it is like, and that nothing of it stays.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kms_testkit::deadline;
use kms_testkit::postgres::{BIN_VARIABLE, Database, Postgres, Stop};

const LIMIT: Duration = Duration::from_mins(1);
/// Set for a process that starts a cluster, says where, and waits to be killed.
const KILLED_VARIABLE: &str = "HOLDFAST_TEST_TO_BE_KILLED";

/// Connects as the role does, and returns what a statement prints.
fn as_role(database: &Database, more: &str, statement: &str) -> Result<String, String> {
    let connection = format!(
        "host={} port={} dbname={} user={} {more}",
        database.host, database.port, database.name, database.user
    );
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-c", statement, &connection]);
    let output = command.env("PGPASSWORD", &database.password).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn verified(database: &Database) -> String {
    format!("sslmode=verify-full sslrootcert={}", database.ca.display())
}

#[test]
fn a_role_reaches_its_own_database_alone_over_tls_with_its_password() {
    let cluster = Postgres::shared();
    let (ours, theirs) = (cluster.fresh_database(), cluster.fresh_database());
    let with_tls = verified(&ours);
    let told =
        as_role(&ours, &with_tls, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    assert_eq!(told.as_deref(), Ok("t"));
    let made = as_role(&ours, &with_tls, "CREATE TABLE mine (a int)");
    assert_eq!(made.as_deref(), Ok(""));
    assert_eq!(ours.sql("SELECT count(*) FROM mine"), "0");
    assert!(theirs.try_sql("SELECT count(*) FROM mine").is_err());

    let mut other = ours.clone();
    other.name = theirs.name;
    let refused = as_role(&other, &with_tls, "SELECT 1");
    assert!(refused.unwrap_err().contains("permission denied"));
    let mut other = ours.clone();
    other.password = "wrong".into();
    let refused = as_role(&other, &with_tls, "SELECT 1");
    assert!(refused.unwrap_err().contains("password authentication failed"));
    assert!(as_role(&ours, "sslmode=disable", "SELECT 1").is_ok(), "plain text is there to refuse");
}

#[test]
fn what_is_committed_is_durable() {
    let database = Postgres::shared().fresh_database();
    for parameter in ["fsync", "full_page_writes", "synchronous_commit", "ssl"] {
        assert_eq!(database.sql(&format!("SHOW {parameter}")), "on", "{parameter}");
    }
    database.set("synchronous_commit", "off");
    assert_eq!(database.sql("SHOW synchronous_commit"), "off");
}

#[test]
fn a_certificate_is_wanted_where_it_was_asked_for() {
    let cluster = Postgres::shared();
    let database = cluster.fresh_database();
    let client = cluster.pki().issue("client-of-postgres", &kms_testkit::pki::Kind::Dns("client"));
    let with_certificate = format!(
        "{} sslcert={} sslkey={}",
        verified(&database),
        client.certificate.display(),
        client.key.display()
    );
    database.require_certificate();
    let refused = as_role(&database, &verified(&database), "SELECT 1");
    assert!(refused.unwrap_err().contains("requires a valid client certificate"));
    assert_eq!(as_role(&database, &with_certificate, "SELECT 1").as_deref(), Ok("1"));
}

#[test]
fn it_is_stopped_and_started_again_with_what_was_written() {
    let cluster = Postgres::start();
    let database = cluster.fresh_database();
    database.sql("CREATE TABLE kept AS SELECT 7 AS a");
    for how in [Stop::Fast, Stop::Immediate] {
        cluster.stop(how);
        assert!(database.try_sql("SELECT 1").is_err());
        cluster.start_again();
        assert_eq!(database.sql("SELECT a FROM kept"), "7", "{how:?}");
    }
    assert!(cluster.log().contains("was not properly shut down"), "{}", cluster.log());
    let directory = database.socket_directory.parent().unwrap().to_owned();
    assert!(directory.is_dir());
    drop(cluster);
    assert!(!directory.exists());
}

#[test]
fn nothing_stays_of_the_cluster_of_a_test_that_is_killed() {
    const NAME: &str = "nothing_stays_of_the_cluster_of_a_test_that_is_killed";
    if std::env::var_os(KILLED_VARIABLE).is_some() {
        let database = Postgres::shared().fresh_database();
        println!("\ncluster {}", database.socket_directory.parent().unwrap().display());
        // Nothing comes: it waits to be killed.
        std::io::read_to_string(std::io::stdin()).unwrap();
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([NAME, "--exact", "--nocapture"]).env(KILLED_VARIABLE, "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map(Result::unwrap).find_map(|line| {
        let place = line.strip_prefix("cluster ")?;
        Some(PathBuf::from(place))
    });
    let directory = said.unwrap();
    let pid_file = std::fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
    let server = Path::new("/proc").join(pid_file.lines().next().unwrap());
    assert!(server.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    deadline::eventually(LIMIT, "the end of the cluster", || {
        !server.exists() && !directory.exists()
    });
}

#[test]
fn without_it_a_test_fails_with_the_way_to_get_it() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["what_is_committed_is_durable", "--exact", "--nocapture"]);
    let output = command.env(BIN_VARIABLE, empty.path()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("make setup"), "{said}");
}

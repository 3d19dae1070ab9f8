//! A database of one test.

use std::path::PathBuf;
use std::process::Command;

/// How a test talks to a cluster behind the product's back: as its superuser.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) psql: PathBuf,
    pub(super) socket_directory: PathBuf,
    pub(super) port: u16,
    pub(super) password: String,
}

impl Access {
    /// Runs statements, each a transaction of its own, and returns what they print, unaligned.
    pub(super) fn run(&self, database: &str, statements: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.psql);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", super::SUPERUSER]);
        command.arg("-h").arg(&self.socket_directory).args(["-p", &self.port.to_string()]);
        command.args(["-d", database]).env("PGPASSWORD", &self.password);
        // The product's tables are in a schema of their own.
        command.env("PGOPTIONS", "-c search_path=holdfast,public");
        for statement in statements {
            command.args(["-c", statement]);
        }
        let output = command.output().expect("run psql");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// A database with a role that owns it and may nothing else.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The role.
    pub user: String,
    /// The role's password.
    pub password: String,
    /// A file (0600) with the password.
    pub password_file: PathBuf,
    /// Where it listens, with and without TLS.
    pub host: &'static str,
    /// The port.
    pub port: u16,
    /// The directory of the socket; the password is wanted there, too.
    pub socket_directory: PathBuf,
    /// The certificate of the authority that issued the server's.
    pub ca: PathBuf,
    pub(super) access: Access,
}

impl Database {
    /// Runs one statement in it as the superuser and returns what it prints: a row a line, columns between `|`.
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql(statement).unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Like [`Database::sql`]; the error is the server's, or that there is none.
    pub fn try_sql(&self, statement: &str) -> Result<String, String> {
        self.access.run(&self.name, &[statement])
    }

    /// Runs one statement as the superuser, in another database: for what cannot be done from within.
    pub fn sql_outside(&self, statement: &str) -> String {
        let told = self.access.run(super::SUPERUSER, &[statement]);
        told.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Returns how it is reached, over TCP with TLS, as the keys of `[store.postgres]` in a configuration.
    pub fn toml(&self) -> String {
        let Self { host, port, name, user, .. } = self;
        let (password, ca) = (self.password_file.display(), self.ca.display());
        format!(
            "host = \"{host}\"\nport = {port}\ndatabase = \"{name}\"\nuser = \"{user}\"\n\
             password = {{ file = \"{password}\" }}\nserver_ca = \"{ca}\"\n"
        )
    }

    /// Sets a parameter for new sessions in this database.
    pub fn set(&self, parameter: &str, value: &str) {
        self.sql(&format!("ALTER DATABASE {} SET {parameter} = '{value}'", self.name));
    }

    /// From now on the role gets in over TCP only with a certificate of the cluster's authority.
    pub fn require_certificate(&self) {
        self.sql(&format!("GRANT {} TO {}", super::CERTIFIED, self.user));
    }

    /// Ends all sessions in it, as a restart would; returns how many there were.
    pub fn end_sessions(&self) -> usize {
        let ended = self.sql_outside(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
            self.name
        ));
        ended.lines().count()
    }
}

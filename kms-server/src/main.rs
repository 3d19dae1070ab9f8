//! The command line of the server.

mod restore_command;
mod root_command;
mod verify_command;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kms_core::clock::{Clock as _, SystemClock};
use kms_hsm::pkcs11::exit_at_once;
use kms_server::assembly::{
    EXIT_AT_ONCE, EXIT_CONFIG, EXIT_HELD, EXIT_HSM, EXIT_SOCKET, Ended, Mode, ReadyFile, run,
};
use kms_server::audit::AcceptCode;
use kms_server::config::{Config, ConfigError, Flags, LogFormat, PostgresSection, check};
use kms_server::dev::{DevDirectory, DevError, banner, enter, prepare, write_cli_context};
use kms_server::hardening;
use kms_server::journal::Gap;
use kms_server::telemetry::log;

/// Audit records and HSM jobs are made on one thread and freed on another, which the system's allocator does under locks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line is wrong; clap ends so, too.
const EXIT_USAGE: u8 = 2;
/// How long the banner may take before the server goes on without it.
const BANNER_TIMEOUT: Duration = Duration::from_secs(1);
/// Exit statuses, shown by `--help`; docs/operations.md has the same table (test
/// `the_exit_statuses_of_help_documents_and_code_are_the_same`).
const EXIT_STATUSES: &str = "Exit status:\n  \
    0   stopped by SIGTERM or SIGINT, after a drain if it served; or all is well\n  \
    2   wrong command line\n  \
    65  database, log and journal do not fit together; or verify-store or root found rows amiss\n  \
    69  the HSM module cannot be used; or verify-store or a first dev start has no usable token\n  \
    70  a defect of the server\n  \
    71  a socket or a thread was refused by the system\n  \
    74  the database or the audit log cannot be opened\n  \
    75  the HSM hangs: start the process again\n  \
    77  the dev directory is held by another process, or not closed to others\n  \
    78  the configuration, a certificate or the place of a secret is wrong; or no root set is pinned\n  \
    143 told twice to stop: ended at once, the drain not finished\n\n\
    A PIN that the token refuses ends no server: it stays, not ready, so that nothing tries it again.\n\n\
    Signals:\n  SIGTERM, SIGINT  drain and stop; a second one ends at once, unless it is the same within 1 s\n  SIGHUP           read certificates, CAs and CRLs again";

/// Holdfast: an HSM-backed key management service
#[derive(Debug, Parser)]
#[command(name = "kms-server", version, after_help = EXIT_STATUSES)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
    #[command(flatten)]
    start: Start,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration and the files that it names, without starting
    CheckConfig(Serve),
    /// Verify the database offline: row MACs, manifests, counters, and the audit log
    ///
    /// Refuses while a server has it open. Writes to neither database nor log.
    VerifyStore(verify_command::VerifyStore),
    /// Put a backup of the store back, on an empty node that has the same token
    ///
    /// Verifies all of it, replays the state journal, and says what is lost.
    Restore(restore_command::Restore),
    /// Make the next root set of a DEV server, or retire an old one; while it does not run
    #[command(subcommand)]
    Root(root_command::Root),
    /// Run a DEV server with everything in one directory; never for production
    #[command(after_help = EXIT_STATUSES)]
    Dev(Dev),
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file; kms-server/holdfast.sample.toml explains every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// What is said of one start only, and therefore stands in no file.
#[derive(Debug, Args)]
struct Start {
    /// Go on with a database that is not the one the audit log has last seen, as after a restore; the
    /// log records it. The refusal and verify-store print the code, which accepts that database once
    #[arg(long, value_name = "CODE")]
    accept_restored_store: Option<AcceptCode>,
    /// Go on without entries of the state journal that are lost, as the refusal names them: then no key
    /// protects until it is rotated, as it may be COMPROMISED
    #[arg(long, value_name = "FROM-TO")]
    accept_journal_gap: Option<Gap>,
}

#[derive(Debug, Args)]
struct Dev {
    /// Directory for token, keys, database and logs; made when there is none
    #[arg(long, value_name = "DIR", default_value = "holdfast-dev")]
    dir: PathBuf,
    /// SoftHSM's PKCS#11 module; found by itself where distributions put it
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Keep the keys in the PostgreSQL database that this file names, with the keys of [store.postgres]
    /// in holdfast.sample.toml; without it in a file of the directory
    #[arg(long, value_name = "FILE")]
    postgres: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    start: Start,
}

/// Success.
const EXIT_OK: u8 = 0;

fn main() {
    let status = command();
    // A thread may hang in the HSM's module: its destructors must neither wait for that thread nor run beside it. Nothing
    // else is left to do: what was said is flushed.
    exit_at_once(status.into());
}

/// Does what the command line says, and returns the exit status.
fn command() -> u8 {
    let started = SystemClock.monotonic();
    let cli = Cli::parse();
    if let Err(error) = hardening::forbid_core_dumps() {
        return fail(EXIT_SOCKET, &format!("cannot forbid core dumps: {error}"));
    }
    let is_dev = matches!(cli.command, Some(Command::Dev(_)));
    if !is_dev && let Err(error) = hardening::hide_memory() {
        return fail(EXIT_SOCKET, &format!("cannot hide the memory of the process: {error}"));
    }
    hardening::keep_panics_short();
    match cli.command {
        Some(Command::CheckConfig(serve)) => check_config(&serve),
        Some(Command::VerifyStore(wanted)) => match wanted.run() {
            Ok((status, text)) => {
                say(&text);
                status
            }
            Err((status, error)) => fail(status, &error),
        },
        Some(Command::Restore(wanted)) => match wanted.run() {
            Ok(text) => {
                say(&text);
                EXIT_OK
            }
            Err((status, error)) => fail(status, &error),
        },
        Some(Command::Root(root)) => match root.run() {
            Ok(text) => {
                say(&text);
                EXIT_OK
            }
            Err((status, error)) => fail(status, &error),
        },
        Some(Command::Dev(dev)) => run_dev(&dev, started),
        None => run_server(&cli.serve, &cli.start, started),
    }
}

fn load(serve: &Serve) -> Result<Config, (u8, String)> {
    let path = serve.config.as_deref();
    let path = path.ok_or_else(|| (EXIT_USAGE, "--config FILE is missing".to_owned()))?;
    let loaded = Config::load(path, &serve.flags);
    loaded.map_err(|error: ConfigError| (EXIT_CONFIG, error.to_string()))
}

fn check_config(serve: &Serve) -> u8 {
    let config = match load(serve) {
        Ok(config) => config,
        Err((status, error)) => return fail(status, &error),
    };
    let problems = check(&config, SystemClock.now());
    if problems.is_empty() {
        say("the configuration is good\n");
        return EXIT_OK;
    }
    for problem in &problems {
        tell(&problem.to_string());
    }
    EXIT_CONFIG
}

fn run_server(serve: &Serve, start: &Start, started: std::time::Instant) -> u8 {
    let config = match load(serve) {
        Ok(config) => config,
        Err((status, error)) => return fail(status, &error),
    };
    let _last = match log::start(config.log) {
        Ok(last) => last,
        Err(error) => return fail(EXIT_SOCKET, &no_log(&error)),
    };
    let mode = Mode {
        create_roots: false,
        accept_restored_store: start.accept_restored_store,
        accept_journal_gap: start.accept_journal_gap,
        ready_file: None,
        on_ready: Box::new(|_, _| Ok(())),
    };
    serve_with(&config, &mode, started)
}

fn run_dev(dev: &Dev, started: std::time::Instant) -> u8 {
    match dev_server(dev, started) {
        Ok(status) => status,
        Err(error) => {
            let (status, text) = refused(&error);
            fail(status, &text)
        }
    }
}

/// Returns exit status and text.
fn refused(error: &DevError) -> (u8, String) {
    let status = match error {
        DevError::Held(_) | DevError::Exposed(_) => EXIT_HELD,
        DevError::Token(_) => EXIT_HSM,
        _ => EXIT_CONFIG,
    };
    (status, error.to_string())
}

fn dev_server(dev: &Dev, started: std::time::Instant) -> Result<u8, DevError> {
    let directory = DevDirectory::open(&dev.dir)?;
    enter(&directory)?;
    let held = directory.hold()?;
    // First of all: whoever waits for the file must not find that of a process which was killed.
    let path = directory.join("ready.json");
    let ready_file =
        ReadyFile::prepare(path.clone()).map_err(|cause| DevError::File { path, cause })?;
    let postgres = dev.postgres.as_deref().map(PostgresSection::load).transpose()?;
    let config = prepare(&directory, dev.module.clone(), postgres, &dev.flags, &SystemClock)?;
    let _last = match log::start(config.log) {
        Ok(last) => last,
        Err(error) => return Ok(fail(EXIT_SOCKET, &no_log(&error))),
    };
    tracing::warn!(directory = %directory.path().display(), "DEV MODE: never for production");
    let on_ready = Box::new(move |listen: SocketAddr, admin: SocketAddr| {
        write_cli_context(&directory, listen).map_err(std::io::Error::other)?;
        say_bounded(banner(&directory, listen, admin));
        Ok(())
    });
    let mode = Mode {
        create_roots: true,
        accept_restored_store: dev.start.accept_restored_store,
        accept_journal_gap: dev.start.accept_journal_gap,
        ready_file: Some(ready_file),
        on_ready,
    };
    let status = serve_with(&config, &mode, started);
    // The ready file goes before the next process may put its own there.
    drop(mode);
    drop(held);
    Ok(status)
}

fn serve_with(config: &Config, mode: &Mode, started: std::time::Instant) -> u8 {
    match run(config, mode, started) {
        Ok(Ended::Orderly) => EXIT_OK,
        Ok(Ended::AtOnce) => EXIT_AT_ONCE,
        // Who reads JSON lines reads this one, too.
        Err(error) if config.log.format == LogFormat::Json => {
            let status = error.exit_status();
            tracing::error!(%error, status, "the server ends");
            status
        }
        Err(error) => fail(error.exit_status(), &error.to_string()),
    }
}

fn fail(status: u8, error: &str) -> u8 {
    tell(&format!("error: {error}"));
    status
}

/// Nobody may read standard output any more: then there is nobody to tell.
fn say(text: &str) {
    let mut output = std::io::stdout();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// Says it from a thread of its own: a reader who does not read must keep no signal from being heard.
fn say_bounded(text: String) {
    let (said, heard) = mpsc::channel();
    let saying = std::thread::Builder::new().name("banner".to_owned()).spawn(move || {
        say(&text);
        // Nobody may wait any more.
        let _ = said.send(());
    });
    if saying.is_ok() {
        let _ = heard.recv_timeout(BANNER_TIMEOUT);
    }
}

fn tell(text: &str) {
    log::tell(&format!("{text}\n"));
}

fn no_log(error: &std::io::Error) -> String {
    format!("cannot start the thread of the log: {error}")
}

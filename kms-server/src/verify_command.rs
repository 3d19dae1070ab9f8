//! `kms-server verify-store`: where to look, and in which form to tell.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use kms_core::clock::SystemClock;
use kms_server::assembly::{EXIT_CONFIG, EXIT_DIVERGED, EXIT_INTERNAL, EXIT_SOCKET, verify_store};
use kms_server::config::{Config, Flags, PostgresSection};
use kms_server::dev::{DevDirectory, DevError, enter, prepare};
use kms_server::telemetry::log;
use kms_server::verify_store::table;

use crate::no_log;

/// Exit status and text.
pub(crate) type Told = (u8, String);

#[derive(Debug, Args)]
pub(crate) struct VerifyStore {
    #[command(flatten)]
    place: Place,
    /// SoftHSM's PKCS#11 module, for `--dir`; found by itself where distributions put it
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    module: Option<PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Configuration file; token, database and log are taken from where it says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of a dev server
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// One JSON object
    Json,
}

impl VerifyStore {
    /// Verifies, and returns what to print and how to exit; `Err` when it could not be verified.
    pub(crate) fn run(&self) -> Result<Told, Told> {
        let (config, _held) = self.place()?;
        let _last = log::start(config.log).map_err(|error| (EXIT_SOCKET, no_log(&error)))?;
        let report = verify_store(&config);
        let report = report.map_err(|error| (error.exit_status(), error.to_string()))?;
        let text = match self.output {
            Output::Table => table(&report),
            Output::Json => {
                let json = serde_json::to_string_pretty(&report);
                json.map_err(|error| (EXIT_INTERNAL, error.to_string()))? + "\n"
            }
        };
        Ok((if report.agrees { 0 } else { EXIT_DIVERGED }, text))
    }

    fn place(&self) -> Result<(Config, Option<File>), Told> {
        match &self.place {
            Place { config: Some(path), .. } => {
                let config = Config::load(path, &Flags::default());
                Ok((config.map_err(|error| (EXIT_CONFIG, error.to_string()))?, None))
            }
            Place { dir: Some(dir), .. } => {
                dev(dir, self.module.clone(), None).map(|(config, held)| (config, Some(held)))
            }
            Place { config: None, dir: None } => {
                Err((EXIT_CONFIG, "--config FILE or --dir DIR is missing".into()))
            }
        }
    }
}

/// Holds the directory of a dev server that ran before, and returns what it runs on. Makes nothing that is not there.
pub(crate) fn dev(
    dir: &Path,
    module: Option<PathBuf>,
    postgres: Option<&Path>,
) -> Result<(Config, File), Told> {
    let known = if postgres.is_some() { "token-serial" } else { "store.db" };
    if !dir.join(known).is_file() {
        return Err((EXIT_CONFIG, format!("{} has no database of a dev server", dir.display())));
    }
    let opened = || {
        let directory = DevDirectory::open(dir)?;
        enter(&directory)?;
        let held = directory.hold()?;
        let postgres = postgres.map(PostgresSection::load).transpose()?;
        let config = prepare(&directory, module, postgres, &Flags::default(), &SystemClock)?;
        Ok((config, held))
    };
    opened().map_err(|error: DevError| super::refused(&error))
}

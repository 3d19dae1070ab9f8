//! `kms-server root`: the next root set, and the end of an old one. Dev mode only: elsewhere that is a ceremony's.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kms_core::id::RootGeneration;
use kms_server::assembly::{EXIT_SOCKET, RootChange, change_root};
use kms_server::telemetry::log;

use crate::no_log;
use crate::verify_command::{Told, dev};

#[derive(Debug, Subcommand)]
pub(crate) enum Root {
    /// Make the next root set and pin it; the next start seals everything under it, while it serves
    Stage(Place),
    /// Retire a root set that nothing depends on any more: it is never opened again
    Retire(Retire),
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Directory of a dev server, which must not run
    #[arg(long, value_name = "DIR", default_value = "holdfast-dev")]
    dir: PathBuf,
    /// SoftHSM's PKCS#11 module; found by itself where distributions put it
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// The file that the dev server was given to find its PostgreSQL database
    #[arg(long, value_name = "FILE")]
    postgres: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Retire {
    #[command(flatten)]
    place: Place,
    /// Its generation
    #[arg(long, value_name = "NUMBER", value_parser = generation)]
    generation: RootGeneration,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn generation(text: &str) -> Result<RootGeneration, String> {
    let number = text.parse().ok().and_then(RootGeneration::new);
    number.ok_or_else(|| "must be 1 to 4294967295".to_owned())
}

impl Root {
    /// Changes the root sets; returns what to print and how to exit.
    pub(crate) fn run(&self) -> Result<String, Told> {
        let (place, change) = match self {
            Self::Stage(place) => (place, RootChange::Stage),
            Self::Retire(Retire { place, generation, reason }) => {
                let (generation, reason) = (*generation, reason.clone());
                (place, RootChange::Retire { generation, reason })
            }
        };
        let (config, _held) = dev(&place.dir, place.module.clone(), place.postgres.as_deref())?;
        let _last = log::start(config.log).map_err(|error| (EXIT_SOCKET, no_log(&error)))?;
        let generation = change_root(&config, &change)
            .map_err(|error| (error.exit_status(), error.to_string()))?;
        Ok(match change {
            RootChange::Stage => format!(
                "root generation {generation} is pinned: the next start seals everything under it, while it serves\n"
            ),
            RootChange::Retire { .. } => format!(
                "root generation {generation} is retired; its objects are on the token still, and backups of before need \
                 them: destroy them when there are none\n"
            ),
        })
    }
}

//! `kms-server restore`: a backup, put back on an empty node.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use kms_server::assembly::{
    EXIT_CONFIG, EXIT_INTERNAL, EXIT_SOCKET, RestoreOrder, Restored, restore,
};
use kms_server::backup::Identity;
use kms_server::config::{Config, Flags};
use kms_server::journal::Gap;
use kms_server::telemetry::log;

use crate::no_log;
use crate::verify_command::{Output, Told};

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Configuration file: token, database, audit log and state journal are where it says
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The backup, as `kms admin backup` wrote it
    #[arg(long, value_name = "FILE")]
    backup: PathBuf,
    /// File of the age identities that open it; /dev/fd/N is a descriptor
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Go on without entries of the state journal that are lost, as the refusal names them: then no key
    /// protects until it is rotated, as it may be COMPROMISED
    #[arg(long, value_name = "FROM-TO")]
    accept_journal_gap: Option<Gap>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Restore {
    /// Restores, and returns what to print.
    pub(crate) fn run(self) -> Result<String, Told> {
        let Self { config, backup, identity, accept_journal_gap, output } = self;
        let config = Config::load(&config, &Flags::default());
        let config = config.map_err(|error| (EXIT_CONFIG, error.to_string()))?;
        let _last = log::start(config.log).map_err(|error| (EXIT_SOCKET, no_log(&error)))?;
        let identity = Identity::read(&identity)
            .map_err(|error| (EXIT_CONFIG, format!("the identity cannot be read: {error}")))?;
        let order = RestoreOrder { backup, identity, accept_journal_gap };
        let restored = restore(&config, order);
        let restored = restored.map_err(|error| (error.exit_status(), error.to_string()))?;
        match output {
            Output::Table => Ok(table(&restored)),
            Output::Json => {
                let json = serde_json::to_string_pretty(&restored);
                Ok(json.map_err(|error| (EXIT_INTERNAL, error.to_string()))? + "\n")
            }
        }
    }
}

fn table(restored: &Restored) -> String {
    let Restored { backup, time, replayed, journal, protect_disabled, residents_lost } = restored;
    let Some(backup) = backup else {
        return "a restore that had been cut short is finished; its log tells what it was\n"
            .to_owned();
    };
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<28} {value}");
    };
    line("backup of", backup.time.clone());
    line("restored at", time.clone());
    line("tenants, keys", format!("{}, {}", backup.tenants, backup.keys));
    line("state journal", format!("replayed from {} to {journal}", backup.journal + 1));
    line(
        "destroyed again",
        format!("{} versions, {} keys", replayed.destroyed, replayed.keys_destroyed),
    );
    line("compromised again", format!("{} versions", replayed.compromised));
    line("counters raised", replayed.counters_raised.to_string());
    line("lost: all changes since", backup.time.clone());
    line("lost: told by the journal", format!("{} of keys made since", replayed.not_in_backup));
    line("lost: token objects", format!("{residents_lost} of HSM_RESIDENT keys and import jobs"));
    line("lost: mutations under way", backup.intents_left_out.to_string());
    line("lost: remembered requests", backup.requests_left_out.to_string());
    if *protect_disabled {
        text.push_str(
            "protection is disabled: a gap in the state journal was accepted. Rotate every key; until then it does not protect\n",
        );
    }
    text
}

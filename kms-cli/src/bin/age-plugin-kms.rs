//! `age-plugin-kms`: started by `age`, wraps and unwraps file keys with the KMS.
//!
//! Which server and certificates to use comes from the configuration of `kms` (`KMS_CONFIG`, `KMS_CONTEXT`); recipients,
//! identities and files cannot change that. Recipients and identities are printed by `kms age`.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use kms_cli::backup::{FileKeyService, RemoteFileKeys, ServiceError, plugin};
use kms_cli::context::{Overrides, ResolvedContext};

/// Starts the argument that names the state machine.
const STATE_MACHINE: &str = "--age-plugin=";
/// Shown when a person starts the plugin.
const USAGE: &str = "age-plugin-kms is started by age. Put it on the PATH, then:\n  \
    kms age recipient --key KEY > recipient.txt   # for: age -R recipient.txt\n  \
    kms age identity --key KEY > identity.txt     # for: age -d -i identity.txt\n";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let outcome = match (argument.strip_prefix(STATE_MACHINE), argument.as_str()) {
        (Some(state_machine), _) => plugin::run(state_machine, Box::new(connect)),
        (None, "--version") => {
            writeln!(std::io::stdout(), "age-plugin-kms {}", env!("CARGO_PKG_VERSION"))
        }
        (None, _) => {
            return match std::io::stderr().write_all(USAGE.as_bytes()) {
                Ok(()) | Err(_) => ExitCode::from(2),
            };
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match writeln!(std::io::stderr(), "age-plugin-kms: {error}") {
            Ok(()) | Err(_) => ExitCode::FAILURE,
        },
    }
}

fn connect(context: Option<&str>) -> Result<Arc<dyn FileKeyService>, ServiceError> {
    let mut overrides = Overrides::from_environment();
    if let Some(context) = context {
        overrides.context = Some(context.to_owned());
    }
    let context = ResolvedContext::resolve(&overrides)?;
    Ok(Arc::new(RemoteFileKeys::connect(&context)?))
}

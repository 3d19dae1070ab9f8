//! `kms health`.

use comfy_table::Table;

use super::Session;
use crate::client::health::Health;
use crate::error::CliError;
use crate::output::view::{facts, yes_no};
use crate::output::{View, show};

impl View for Health {
    fn table(&self) -> Table {
        facts(&[("live", yes_no(self.live).into()), ("ready", yes_no(self.ready).into())])
    }
}

/// Shows what the server says of itself, and fails when it does not serve.
pub fn run(session: &Session) -> Result<(), CliError> {
    let context = session.context()?;
    let health = session.with_client(&context, async |client| Ok(client.health().await?))?;
    show(session.format, &health)?;
    if health.live && health.ready {
        return Ok(());
    }
    Err(CliError::NotServing("HSM, store or audit log is not ready".into()))
}

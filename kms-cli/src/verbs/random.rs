//! `kms random`: bytes from the HSM's generator.

use data_encoding::HEXLOWER;
use serde_json::json;
use zeroize::Zeroizing;

use super::Session;
use super::data::write_secret;
use crate::args::data::Random;
use crate::error::CliError;
use crate::output::{Destination, Format, print};

/// Draws random bytes; on a terminal they are shown in hex.
pub fn run(session: &Session, args: &Random) -> Result<(), CliError> {
    let context = session.context()?;
    let tenant = context.tenant_name()?;
    let destination = Destination::new(args.output.path.as_deref(), args.output.force)?;
    let random = session.with_client(&context, async |client| {
        Ok(client.generate_random(&tenant, args.length).await?)
    })?;
    if session.format == Format::Table && destination.is_terminal() {
        let mut hex = Zeroizing::new(HEXLOWER.encode(random.expose()));
        hex.push('\n');
        return print(hex.as_bytes());
    }
    let facts = json!({ "length_bytes": args.length });
    write_secret(session, &destination, random.expose(), facts)
}

//! `kms datakey`: the one verb with two outputs.

use serde_json::json;

use super::Session;
use super::data::ciphertext_text;
use crate::args::data::DataKey;
use crate::error::CliError;
use crate::input;
use crate::output::{Destination, Format, show_json};

/// Draws a data key. Both files are begun before, and the wrapped copy appears first: a data key that cannot be had again
/// is worth nothing. When the data key cannot be given, its copy is taken back.
pub fn run(session: &Session, args: &DataKey) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_or_alias(&args.key)?;
    let binding = input::encryption_context(&args.bind.pairs)?;
    let wrapped_to = Destination::new(args.output.path.as_deref(), args.output.force)?;
    let clear_to = match &args.plaintext_out {
        Some(path) => Some(Destination::new(Some(path), args.output.force)?),
        None => None,
    };
    let to_stdout = |to: &Destination| matches!(to, Destination::Stdout { .. });
    let collides = match &clear_to {
        Some(clear_to) if to_stdout(clear_to) => {
            to_stdout(&wrapped_to) || session.format == Format::Json
        }
        Some(clear_to) => clear_to.is_same(&wrapped_to),
        None => false,
    };
    if collides {
        return Err(CliError::Usage(
            "the data key and its wrapped copy (and JSON) cannot share one output: \
             give --out and --plaintext-out a file each"
                .into(),
        ));
    }
    let (wrapped_file, clear_file) =
        (wrapped_to.prepare()?, clear_to.as_ref().map(Destination::prepare).transpose()?);
    let with_plaintext = clear_to.is_some();
    let made = session.with_client(&context, async |client| {
        Ok(client.generate_data_key(&key, args.length, &binding, with_plaintext).await?)
    })?;
    let facts = json!({ "key_version": made.key_version.to_string(), "length_bytes": args.length });
    let (text, facts) = ciphertext_text(session, &wrapped_to, args.form, &made.ciphertext, facts)?;
    let wrapped = wrapped_file.fill(&text)?;
    let clear = match (clear_file, &made.plaintext) {
        (Some(file), Some(plaintext)) => Some(file.fill(plaintext.expose())?),
        _ => None,
    };
    wrapped.commit()?;
    if let Some(clear) = clear {
        clear.commit().inspect_err(|_| wrapped_to.withdraw())?;
    }
    facts.map_or(Ok(()), |facts| show_json(&facts))
}

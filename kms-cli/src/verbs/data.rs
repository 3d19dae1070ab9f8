//! `kms wrap`, `kms unwrap`, `kms rewrap`.
//!
//! Bytes go to `--out`; without it to stdout, and with `--output json` into the JSON object instead. With both, the
//! bytes go to the file and the object says what was done.

use data_encoding::BASE64;
use kms_core::envelope;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Session;
use crate::args::data::{Form, Rewrap, Unwrap, Wrap};
use crate::error::CliError;
use crate::input;
use crate::output::{Destination, Format, json_text, show_json};

/// Wraps.
pub fn wrap(session: &Session, args: &Wrap) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_selector(&args.key)?;
    let binding = input::encryption_context(&args.bind.pairs)?;
    let destination = Destination::new(args.output.path.as_deref(), args.output.force)?;
    let plaintext = input::plaintext(args.input.path.as_deref())?;
    let wrapped = session.with_client(&context, async |client| {
        Ok(client.wrap(&key, &plaintext, &binding).await?)
    })?;
    let facts = json!({ "key_version": wrapped.key_version.to_string() });
    write_ciphertext(session, &destination, args.form, &wrapped.ciphertext, facts)
}

/// Unwraps.
pub fn unwrap(session: &Session, args: &Unwrap) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let binding = input::encryption_context(&args.bind.pairs)?;
    let destination = Destination::new(args.output.path.as_deref(), args.output.force)?;
    destination.check_secret()?;
    let ciphertext = input::ciphertext(args.input.path.as_deref())?;
    let unwrapped = session.with_client(&context, async |client| {
        Ok(client.unwrap(&key, &ciphertext, &binding).await?)
    })?;
    let facts = json!({ "key_version": unwrapped.key_version.to_string() });
    write_secret(session, &destination, unwrapped.plaintext.expose(), facts)
}

/// Rewraps.
pub fn rewrap(session: &Session, args: &Rewrap) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let binding = input::encryption_context(&args.bind.pairs)?;
    let destination = Destination::new(args.output.path.as_deref(), args.output.force)?;
    let ciphertext = input::ciphertext(args.input.path.as_deref())?;
    let rewrapped = session.with_client(&context, async |client| {
        Ok(client.rewrap(&key, &ciphertext, &binding).await?)
    })?;
    let facts = json!({
        "key_version": rewrapped.key_version.to_string(),
        "previous_key_version": rewrapped.previous_key_version.to_string(),
        "changed": rewrapped.changed,
    });
    write_ciphertext(session, &destination, args.form, &rewrapped.ciphertext, facts)
}

/// Writes a ciphertext in the form asked for, and what there is to say about it.
pub fn write_ciphertext(
    session: &Session,
    destination: &Destination,
    form: Form,
    ciphertext: &[u8],
    facts: Value,
) -> Result<(), CliError> {
    let (text, facts) = ciphertext_text(session, destination, form, ciphertext, facts)?;
    destination.write(&text)?;
    facts.map_or(Ok(()), |facts| show_json(&facts))
}

/// Returns what is written of a ciphertext, in the form asked for, and what stdout is told besides.
pub fn ciphertext_text(
    session: &Session,
    destination: &Destination,
    form: Form,
    ciphertext: &[u8],
    facts: Value,
) -> Result<(Vec<u8>, Option<Value>), CliError> {
    let to_file = matches!(destination, Destination::File { .. });
    let as_json = session.format == Format::Json;
    if as_json && !to_file {
        let text = Value::String(envelope::to_text(ciphertext));
        return Ok((json_text(&with_field(facts, "ciphertext", text))?.to_vec(), None));
    }
    let as_text = match form {
        Form::Text => true,
        Form::Binary => false,
        Form::Auto => destination.is_terminal(),
    };
    let text = if as_text {
        format!("{}\n", envelope::to_text(ciphertext)).into_bytes()
    } else {
        ciphertext.to_vec()
    };
    Ok((text, as_json.then_some(facts)))
}

/// Writes a secret, and what there is to say about it.
pub fn write_secret(
    session: &Session,
    destination: &Destination,
    secret: &[u8],
    facts: Value,
) -> Result<(), CliError> {
    let to_file = matches!(destination, Destination::File { .. });
    if session.format == Format::Table {
        return destination.write(secret);
    }
    if to_file {
        destination.write(secret)?;
        return show_json(&facts);
    }
    let encoded = Zeroizing::new(BASE64.encode(secret));
    show_json(&SecretView { plaintext_base64: &encoded, facts })
}

/// A secret in JSON; made of borrowed text, so that no copy is left in a `serde_json::Value`.
#[derive(serde::Serialize)]
struct SecretView<'a> {
    plaintext_base64: &'a str,
    #[serde(flatten)]
    facts: Value,
}

fn with_field(mut facts: Value, name: &str, value: Value) -> Value {
    if let Some(object) = facts.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
    facts
}

//! `kms inventory`: pages of keys, the versions of each, and what is written of them.

use std::io::{self, BufWriter, Write};

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::name::{KeyName, TenantName};
use serde_json::json;
use uuid::Uuid;

use super::Session;
use crate::args::inventory::{Export, InventoryCommand};
use crate::client::Client;
use crate::client::keys::{KeyQuery, MAX_PAGE_SIZE};
use crate::error::CliError;
use crate::input::STREAM;
use crate::inventory::{Entry, Form, Heading, Inventory};
use crate::output::view::VersionView;
use crate::output::{FileOutput, Overwrite, at, show_json};

/// Keys that are asked for at a time: their versions come one key after another.
const PAGE_SIZE: u32 = 200;

/// Runs a verb of `kms inventory`.
pub fn run(session: &Session, command: InventoryCommand) -> Result<(), CliError> {
    match command {
        InventoryCommand::Export(args) => export(session, &args),
    }
}

fn export(session: &Session, args: &Export) -> Result<(), CliError> {
    let context = session.context()?;
    let tenant = context.tenant_name()?;
    let path = args.output.path.as_deref().filter(|path| path.as_os_str() != STREAM);
    let heading =
        Heading { tenant: tenant.to_string(), time: SystemClock.now(), serial: Uuid::new_v4() };
    let Some(path) = path else {
        let out = BufWriter::new(io::stdout());
        let write = |cause| CliError::Stream { action: "write to standard output", cause };
        return session.with_client(&context, async |client| {
            write_all(&client, &tenant, args, &heading, out, &write).await.map(drop)
        });
    };
    // Begun before the server is asked, and there only when it is whole.
    let file = FileOutput::create(path, Overwrite::of(args.output.force)).map_err(at(path))?;
    let out = BufWriter::new(file);
    let write =
        |source| at(path)(crate::output::OutputError::Io { action: "write the inventory", source });
    let (out, keys, versions) = session.with_client(&context, async |client| {
        write_all(&client, &tenant, args, &heading, out, &write).await
    })?;
    let file = out.into_inner().map_err(|error| write(error.into_error()))?;
    file.commit().map_err(at(path))?;
    if session.format == crate::output::Format::Json {
        return show_json(&json!({ "keys": keys, "versions": versions }));
    }
    let text = format!("{keys} keys, {versions} versions: {}\n", path.display());
    crate::output::print(text.as_bytes())
}

/// Writes all keys that pass; returns how many keys and versions there were.
async fn write_all<W: Write>(
    client: &Client,
    tenant: &TenantName,
    args: &Export,
    heading: &Heading,
    out: W,
    failed: &impl Fn(io::Error) -> CliError,
) -> Result<(W, u64, u64), CliError> {
    let form: Form = args.format;
    let mut inventory = Inventory::begin(form, out, heading).map_err(failed)?;
    let mut page_token = String::new();
    loop {
        let query = KeyQuery { filter: args.filter.clone(), order_by: String::new() };
        let page = client.list_keys(tenant, &query, PAGE_SIZE, page_token).await?;
        for key in page.entries {
            let name: KeyName = key
                .name
                .parse()
                .map_err(|_| CliError::Bug("the server named a key that is no key's name"))?;
            let versions = versions(client, &name).await?;
            inventory.add(&Entry { key: key.into(), versions }).map_err(failed)?;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return inventory.end().map_err(failed);
        }
    }
}

async fn versions(client: &Client, key: &KeyName) -> Result<Vec<VersionView>, CliError> {
    let (mut versions, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = client.list_versions(key, MAX_PAGE_SIZE, page_token).await?;
        versions.extend(page.entries.into_iter().map(VersionView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(versions);
        }
    }
}

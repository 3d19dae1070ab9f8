//! `kms context ...`: the file of contexts. Nothing here connects.

use comfy_table::Table;
use serde::Serialize;

use super::Session;
use crate::args::context::ContextCommand;
use crate::context::{Context, ContextError, ContextFile, ResolvedContext};
use crate::error::CliError;
use crate::output::view::facts;
use crate::output::{View, plain_table, show};

/// One context in a list.
#[derive(Clone, Debug, Serialize)]
pub struct ContextView {
    /// Its name.
    pub name: String,
    /// True when it is the one that is used.
    pub current: bool,
    /// Its server.
    pub server: Option<String>,
    /// Its tenant.
    pub tenant: Option<String>,
}

/// The list of contexts.
#[derive(Clone, Debug, Serialize)]
pub struct ContextsView {
    /// The contexts by name.
    pub contexts: Vec<ContextView>,
}

impl View for ContextsView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["CURRENT", "NAME", "SERVER", "TENANT"]);
        for context in &self.contexts {
            table.add_row([
                if context.current { "*" } else { "" },
                &context.name,
                context.server.as_deref().unwrap_or_default(),
                context.tenant.as_deref().unwrap_or_default(),
            ]);
        }
        table
    }
}

/// What commands would use now.
#[derive(Clone, Debug, Serialize)]
pub struct ResolvedView {
    server: String,
    ca: String,
    cert: String,
    key: String,
    tenant: Option<String>,
    timeout_ms: u128,
}

impl View for ResolvedView {
    fn table(&self) -> Table {
        facts(&[
            ("server", self.server.clone()),
            ("ca", self.ca.clone()),
            ("cert", self.cert.clone()),
            ("key", self.key.clone()),
            ("tenant", self.tenant.clone().unwrap_or_default()),
            ("timeout", format!("{} ms", self.timeout_ms)),
        ])
    }
}

/// Runs one verb.
pub fn run(session: &Session, command: ContextCommand) -> Result<(), CliError> {
    match command {
        ContextCommand::List => list(session),
        ContextCommand::Use(args) => choose(session, &args.name),
        ContextCommand::Show => show_resolved(session),
        ContextCommand::Add(args) => add(session, &args.name),
    }
}

fn list(session: &Session) -> Result<(), CliError> {
    let (file, _) = load(session)?;
    let chosen = session.overrides.context.as_ref().or(file.current.as_ref());
    let contexts = file.contexts.iter().map(|(name, context)| ContextView {
        name: name.clone(),
        current: chosen == Some(name),
        server: context.server.as_ref().map(ToString::to_string),
        tenant: context.tenant.clone(),
    });
    show(session.format, &ContextsView { contexts: contexts.collect() })
}

fn choose(session: &Session, name: &str) -> Result<(), CliError> {
    let (mut file, path) = load(session)?;
    if !file.contexts.contains_key(name) {
        return Err(ContextError::Unknown { name: crate::terminal::harmless(name), path }.into());
    }
    file.current = Some(name.to_owned());
    Ok(file.save(&path)?)
}

fn show_resolved(session: &Session) -> Result<(), CliError> {
    let ResolvedContext { server, ca, cert, key, tenant, timeout } = session.context()?;
    let view = ResolvedView {
        server: server.to_string(),
        ca: ca.display().to_string(),
        cert: cert.display().to_string(),
        key: key.display().to_string(),
        tenant: tenant.map(|tenant| tenant.id().to_owned()),
        timeout_ms: timeout.as_millis(),
    };
    show(session.format, &view)
}

fn add(session: &Session, name: &str) -> Result<(), CliError> {
    let (mut file, path) = load(session)?;
    let flags = &session.overrides;
    let missing = |what, flag| ContextError::Missing { what, flag };
    // Relative paths on the command line count from here; in the file they would count from the file.
    let absolute = |path: &Option<std::path::PathBuf>, what, flag| {
        let path = path.as_ref().ok_or(missing(what, flag))?;
        std::path::absolute(path).map_err(|cause| ContextError::File {
            action: "find",
            path: path.clone(),
            cause,
        })
    };
    let server = flags.server.as_ref().ok_or(missing("server", "--server"))?.parse()?;
    let context = Context {
        server: Some(server),
        ca: Some(absolute(&flags.ca, "CA file", "--ca")?),
        cert: Some(absolute(&flags.cert, "client certificate", "--cert")?),
        key: Some(absolute(&flags.key, "private key file", "--key-file")?),
        tenant: flags.tenant.clone(),
    };
    if let Some(tenant) = &context.tenant {
        crate::context::resolve::tenant(Some(tenant))?;
    }
    file.add(name, context)?;
    Ok(file.save(&path)?)
}

fn load(session: &Session) -> Result<(ContextFile, std::path::PathBuf), CliError> {
    let path = session.overrides.config.clone().ok_or(ContextError::NoHome)?;
    Ok((ContextFile::load(&path)?, path))
}

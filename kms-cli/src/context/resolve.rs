//! Lays flags over the chosen context: what one call of the CLI really uses.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kms_core::name::{AliasName, KeyName, KeyOrAlias, KeySelector, TenantName, VersionName};

use super::{Context, ContextError, ContextFile, ServerAddress};
use crate::terminal::harmless;

/// What the flags say; each one wins over the context.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`, or what [`Overrides::from_environment`] found; `None` when there can be no file.
    pub config: Option<PathBuf>,
    /// Whether `config` is where the file stands when nothing names it: only then it need not be there.
    pub config_is_default: bool,
    /// `--context`, or `KMS_CONTEXT`.
    pub context: Option<String>,
    /// `--server`.
    pub server: Option<String>,
    /// `--ca`.
    pub ca: Option<PathBuf>,
    /// `--cert`.
    pub cert: Option<PathBuf>,
    /// `--key-file`.
    pub key: Option<PathBuf>,
    /// `--tenant`.
    pub tenant: Option<String>,
    /// `--timeout`.
    pub timeout: Option<Duration>,
}

impl Overrides {
    /// Takes `KMS_CONFIG` (else the default path) and `KMS_CONTEXT` from the environment. The one place that reads it.
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let named = set("KMS_CONFIG").map(PathBuf::from);
        let config_is_default = named.is_none();
        let config = named.or_else(|| default_path(set("XDG_CONFIG_HOME"), set("HOME")).ok());
        let context = set("KMS_CONTEXT").map(|name| name.to_string_lossy().into_owned());
        Self { config, config_is_default, context, ..Self::default() }
    }
}

/// Stands between a key and the number of its version.
const VERSIONS: &str = "/versions/";
/// What the argument of an alias of the context's tenant begins with.
const ALIASES: &str = "aliases/";

/// How long one call may take, retries and waits included, when `--timeout` says nothing.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A context in which everything that a connection needs is known.
#[derive(Clone, Debug)]
pub struct ResolvedContext {
    /// The server.
    pub server: ServerAddress,
    /// PEM file of the server's CAs.
    pub ca: PathBuf,
    /// PEM file of the client's certificate chain.
    pub cert: PathBuf,
    /// PEM file of the client's private key.
    pub key: PathBuf,
    /// The tenant that bare ids belong to, when one is known.
    pub tenant: Option<TenantName>,
    /// How long one call may take, retries and waits included.
    pub timeout: Duration,
}

impl ResolvedContext {
    /// Lays `overrides` over the file they name, or over the default one.
    ///
    /// # Errors
    /// Says which of server, CA, certificate and key is missing.
    pub fn resolve(overrides: &Overrides) -> Result<Self, ContextError> {
        let chosen = chosen(overrides)?;
        let server = match &overrides.server {
            Some(text) => text.parse()?,
            None => chosen.server.ok_or(missing("server", "--server"))?,
        };
        let pick = |flag: &Option<PathBuf>, from: Option<PathBuf>, what, name| {
            flag.clone().or(from).ok_or(missing(what, name))
        };
        Ok(Self {
            server,
            ca: pick(&overrides.ca, chosen.ca, "CA file", "--ca")?,
            cert: pick(&overrides.cert, chosen.cert, "client certificate", "--cert")?,
            key: pick(&overrides.key, chosen.key, "private key file", "--key-file")?,
            tenant: tenant(overrides.tenant.as_deref().or(chosen.tenant.as_deref()))?,
            timeout: overrides.timeout.unwrap_or(DEFAULT_TIMEOUT),
        })
    }

    /// Reads a key argument: a bare id of the context's tenant, or a full name.
    pub fn key_name(&self, text: &str) -> Result<KeyName, ContextError> {
        match text.parse() {
            Ok(name) => Ok(name),
            Err(_) if text.contains(VERSIONS) => Err(ContextError::KeyWithVersion(harmless(text))),
            Err(_) if text.contains('/') => Err(ContextError::Key(harmless(text))),
            Err(_) => KeyName::new(self.tenant_name()?, text)
                .map_err(|_| ContextError::Key(harmless(text))),
        }
    }

    /// Reads the argument of an alias: a bare id of the context's tenant, `aliases/ID`, or a full name.
    pub fn alias_name(&self, text: &str) -> Result<AliasName, ContextError> {
        let id = text.strip_prefix(ALIASES).unwrap_or(text);
        let name =
            if id.contains('/') { id.parse() } else { AliasName::new(self.tenant_name()?, id) };
        name.map_err(|_| ContextError::Alias(harmless(text)))
    }

    /// Reads a key argument that may be an alias: an id, `aliases/ID`, or a full name of either.
    pub fn key_or_alias(&self, text: &str) -> Result<KeyOrAlias, ContextError> {
        if is_of_alias(text) {
            return self.alias_name(text).map(KeyOrAlias::Alias);
        }
        self.key_name(text).map(KeyOrAlias::Key)
    }

    /// Reads a key argument that may pin a version, or be an alias: an id, `ID/versions/N`, `aliases/ID`, or a full name.
    pub fn key_selector(&self, text: &str) -> Result<KeySelector, ContextError> {
        if text.contains(VERSIONS) && !is_of_alias(text) {
            return self.version_name(text).map(KeySelector::Version);
        }
        self.key_or_alias(text).map(Into::into)
    }

    /// Reads a version argument: `ID/versions/N` or a full name.
    pub fn version_name(&self, text: &str) -> Result<VersionName, ContextError> {
        let Some((key, version)) = text.split_once(VERSIONS) else {
            // What is no key either is told as that.
            self.key_name(text)?;
            return Err(ContextError::VersionMissing(harmless(text)));
        };
        let key = self.key_name(key)?;
        let name = format!("{key}{VERSIONS}{version}").parse();
        name.map_err(|_| ContextError::Version(harmless(text)))
    }

    /// Returns the tenant that calls without a key are made for.
    pub fn tenant_name(&self) -> Result<TenantName, ContextError> {
        self.tenant.clone().ok_or(missing("tenant", "--tenant"))
    }
}

/// Returns whether a text is meant as an alias, well formed or not.
fn is_of_alias(text: &str) -> bool {
    text.starts_with(ALIASES) || text.split('/').nth(2) == Some("aliases")
}

fn missing(what: &'static str, flag: &'static str) -> ContextError {
    ContextError::Missing { what, flag }
}

/// Reads a tenant: its id or its name.
pub fn tenant(text: Option<&str>) -> Result<Option<TenantName>, ContextError> {
    let Some(text) = text else { return Ok(None) };
    let parsed = if text.contains('/') { text.parse() } else { TenantName::from_id(text) };
    parsed.map(Some).map_err(|_| ContextError::Tenant(harmless(text)))
}

/// Finds the context that is asked for, its relative paths counted from the directory of its file.
fn chosen(overrides: &Overrides) -> Result<Context, ContextError> {
    let Some(path) = overrides.config.clone() else {
        return match &overrides.context {
            Some(_) => Err(ContextError::NoHome),
            None => Ok(Context::default()),
        };
    };
    let mut file = match ContextFile::read(&path)? {
        Some(file) => file,
        None if overrides.config_is_default => ContextFile::default(),
        None => return Err(ContextError::NoFile(path)),
    };
    let Some(name) = overrides.context.clone().or_else(|| file.current.clone()) else {
        return Ok(Context::default());
    };
    let Some(context) = file.contexts.remove(&name) else {
        return Err(ContextError::Unknown { name: harmless(&name), path });
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let from_file = |path: Option<PathBuf>| path.map(|path| base.join(path));
    Ok(Context {
        ca: from_file(context.ca),
        cert: from_file(context.cert),
        key: from_file(context.key),
        ..context
    })
}

/// Says where the context file stands when nothing names it: `$XDG_CONFIG_HOME/holdfast/cli.toml`, else below
/// `$HOME/.config`. A relative XDG_CONFIG_HOME is ignored, as its specification asks.
pub fn default_path(
    xdg_config_home: Option<OsString>,
    home: Option<OsString>,
) -> Result<PathBuf, ContextError> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let base = xdg_config_home
        .and_then(absolute)
        .or_else(|| home.and_then(absolute).map(|home| home.join(".config")));
    base.map(|base| base.join("holdfast/cli.toml")).ok_or(ContextError::NoHome)
}

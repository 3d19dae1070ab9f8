//! The state machines of `age-plugin-kms`: stock `age` asks, the KMS wraps and unwraps.
//!
//! What `age` hands over names a key and perhaps a context; where to connect and as whom comes from the configuration of
//! whoever runs `age`, never from the recipient, the identity or the file. Stanzas that are not ours are passed over.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use age_core::format::{FileKey, Stanza};
use age_plugin::identity::{Error as IdentityError, IdentityPluginV1};
use age_plugin::recipient::{Error as RecipientError, RecipientPluginV1};
use age_plugin::{Callbacks, PluginHandler, run_state_machine};

use super::error::ServiceError;
use super::recipient::{Address, PLUGIN_NAME};
use super::service::FileKeyService;
use super::stanza::{KmsStanza, TAG};

/// The most recipients and identities of ours in one call of `age`.
pub const MAX_ADDRESSES: usize = 64;
/// The most stanzas of ours that are tried for one file; each may cost a call to the server.
pub const MAX_STANZAS_TRIED: usize = 16;

/// Connects through a context of the configuration; `None` means the current one.
pub type Connect = dyn Fn(Option<&str>) -> Result<Arc<dyn FileKeyService>, ServiceError>;

/// Runs the state machine that `age` asked for, over standard input and output.
///
/// # Errors
/// When the state machine is unknown or `age` breaks the protocol. What goes wrong with keys is told to `age` instead.
pub fn run(state_machine: &str, connect: Box<Connect>) -> io::Result<()> {
    run_state_machine(state_machine, Handler { connect })
}

struct Handler {
    connect: Box<Connect>,
}

impl PluginHandler for Handler {
    type RecipientV1 = RecipientPlugin;
    type IdentityV1 = IdentityPlugin;

    fn recipient_v1(self) -> io::Result<RecipientPlugin> {
        Ok(RecipientPlugin::new(self.connect))
    }

    fn identity_v1(self) -> io::Result<IdentityPlugin> {
        Ok(IdentityPlugin::new(self.connect))
    }
}

/// Opens each context once.
struct Services {
    connect: Box<Connect>,
    open: HashMap<Option<String>, Arc<dyn FileKeyService>>,
}

impl Services {
    fn of(&mut self, address: &Address) -> Result<Arc<dyn FileKeyService>, ServiceError> {
        let context = address.context();
        if let Some(service) = self.open.get(&context.map(str::to_owned)) {
            return Ok(Arc::clone(service));
        }
        let service = (self.connect)(context)?;
        self.open.insert(context.map(str::to_owned), Arc::clone(&service));
        Ok(service)
    }
}

/// Reads the bytes of an address, one of at most [`MAX_ADDRESSES`].
fn read_address(plugin_name: &str, bytes: &[u8], before: usize) -> Result<Address, String> {
    if plugin_name != PLUGIN_NAME {
        return Err(format!("this plugin serves `{PLUGIN_NAME}` only"));
    }
    if before >= MAX_ADDRESSES {
        return Err(format!("more than {MAX_ADDRESSES} recipients and identities"));
    }
    Address::from_bytes(bytes).map_err(|error| error.to_string())
}

/// Where an address came from, for the error that names it.
#[derive(Clone, Copy)]
enum Source {
    Recipient(usize),
    Identity(usize),
}

impl Source {
    fn error(self, message: String) -> RecipientError {
        match self {
            Self::Recipient(index) => RecipientError::Recipient { index, message },
            Self::Identity(index) => RecipientError::Identity { index, message },
        }
    }
}

/// Wraps file keys for `age -r age1kms1…`, and for `age -e -i` with an identity of ours.
pub struct RecipientPlugin {
    services: Services,
    addresses: Vec<(Source, Address)>,
}

impl RecipientPlugin {
    /// Makes a plugin that knows no recipient yet.
    pub fn new(connect: Box<Connect>) -> Self {
        let services = Services { connect, open: HashMap::new() };
        Self { services, addresses: Vec::new() }
    }

    fn add(&mut self, source: Source, plugin: &str, bytes: &[u8]) -> Result<(), RecipientError> {
        let address = read_address(plugin, bytes, self.addresses.len())
            .map_err(|message| source.error(message))?;
        self.addresses.push((source, address));
        Ok(())
    }

    fn wrap(&mut self, file_key: &FileKey) -> Result<Vec<Stanza>, Vec<RecipientError>> {
        let (mut stanzas, mut errors) = (Vec::new(), Vec::new());
        for (source, address) in &self.addresses {
            let service = self.services.of(address);
            match service.and_then(|service| service.wrap(address.key(), file_key)) {
                Ok(wrapped) => stanzas.push(KmsStanza::new(wrapped).to_age()),
                Err(error) => errors.push(source.error(format!("{address}: {error}"))),
            }
        }
        if errors.is_empty() { Ok(stanzas) } else { Err(errors) }
    }
}

impl std::fmt::Debug for RecipientPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecipientPlugin({} addresses)", self.addresses.len())
    }
}

impl RecipientPluginV1 for RecipientPlugin {
    fn add_recipient(
        &mut self,
        index: usize,
        plugin_name: &str,
        bytes: &[u8],
    ) -> Result<(), RecipientError> {
        self.add(Source::Recipient(index), plugin_name, bytes)
    }

    fn add_identity(
        &mut self,
        index: usize,
        plugin_name: &str,
        bytes: &[u8],
    ) -> Result<(), RecipientError> {
        self.add(Source::Identity(index), plugin_name, bytes)
    }

    /// No labels: our stanzas may stand beside native recipients for break-glass.
    fn labels(&mut self) -> HashSet<String> {
        HashSet::new()
    }

    fn wrap_file_keys(
        &mut self,
        file_keys: Vec<FileKey>,
        _: impl Callbacks<RecipientError>,
    ) -> io::Result<Result<Vec<Vec<Stanza>>, Vec<RecipientError>>> {
        Ok(file_keys.iter().map(|file_key| self.wrap(file_key)).collect())
    }
}

/// Unwraps file keys for `age -d -i`.
pub struct IdentityPlugin {
    services: Services,
    addresses: Vec<(usize, Address)>,
}

impl IdentityPlugin {
    /// Makes a plugin that knows no identity yet.
    pub fn new(connect: Box<Connect>) -> Self {
        let services = Services { connect, open: HashMap::new() };
        Self { services, addresses: Vec::new() }
    }

    /// Tries our stanzas of one file; `None` when no identity is for any of them, whose keys are then in `others`.
    fn open_file(
        &mut self,
        file_index: usize,
        stanzas: &[Stanza],
        others: &mut BTreeSet<String>,
    ) -> Option<Result<FileKey, Vec<IdentityError>>> {
        let mut errors = Vec::new();
        let ours = stanzas.iter().enumerate().filter(|(_, stanza)| stanza.tag == TAG);
        for (tried, (stanza_index, stanza)) in ours.enumerate() {
            let about = |message| IdentityError::Stanza { file_index, stanza_index, message };
            if tried >= MAX_STANZAS_TRIED {
                let message = format!("more than {MAX_STANZAS_TRIED} `{TAG}` stanzas");
                errors.push(about(message));
                break;
            }
            match KmsStanza::from_parts(&stanza.args, &stanza.body) {
                Ok(stanza) => {
                    if let Some(file_key) = self.open_stanza(&stanza, &mut errors, others) {
                        return Some(Ok(file_key));
                    }
                }
                Err(error) => errors.push(about(error.to_string())),
            }
        }
        (!errors.is_empty()).then_some(Err(errors))
    }

    /// Tries every identity on a stanza, but those of which the server says that they name another key. Who may not ask
    /// for that may still unwrap.
    fn open_stanza(
        &mut self,
        stanza: &KmsStanza,
        errors: &mut Vec<IdentityError>,
        others: &mut BTreeSet<String>,
    ) -> Option<FileKey> {
        let wrapped = stanza.wrapped();
        for (index, address) in &self.addresses {
            let opened = self.services.of(address).and_then(|service| {
                let found = match service.describe(wrapped) {
                    Err(error) if error.is_denied() => None,
                    described => described?.key,
                };
                if let Some(found) = found.filter(|found| found != address.key()) {
                    others.insert(found.to_string());
                    return Ok(None);
                }
                service.unwrap(address.key(), wrapped).map(Some)
            });
            match opened {
                Ok(Some(file_key)) => return Some(file_key),
                Ok(None) => {}
                Err(error) => errors.push(IdentityError::Identity {
                    index: *index,
                    message: format!("{address}: {error}"),
                }),
            }
        }
        None
    }
}

impl std::fmt::Debug for IdentityPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityPlugin({} addresses)", self.addresses.len())
    }
}

impl IdentityPluginV1 for IdentityPlugin {
    fn add_identity(
        &mut self,
        index: usize,
        plugin_name: &str,
        bytes: &[u8],
    ) -> Result<(), IdentityError> {
        let address = read_address(plugin_name, bytes, self.addresses.len())
            .map_err(|message| IdentityError::Identity { index, message })?;
        self.addresses.push((index, address));
        Ok(())
    }

    fn unwrap_file_keys(
        &mut self,
        files: Vec<Vec<Stanza>>,
        mut callbacks: impl Callbacks<IdentityError>,
    ) -> io::Result<HashMap<usize, Result<FileKey, Vec<IdentityError>>>> {
        let mut opened = HashMap::new();
        for (index, stanzas) in files.iter().enumerate() {
            let mut others = BTreeSet::new();
            if let Some(result) = self.open_file(index, stanzas, &mut others) {
                opened.insert(index, result);
            } else if !others.is_empty() {
                // Not an error, which would keep `age` from trying other identities.
                let keys = others.into_iter().collect::<Vec<_>>().join("`, `");
                let message = format!("sealed with `{keys}`; no identity given is for that key");
                // An `age` that shows no messages says at least that no identity matched.
                let _ = callbacks.message(&message);
            }
        }
        Ok(opened)
    }
}

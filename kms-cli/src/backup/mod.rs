//! Backups: standard age files whose file key is wrapped by the KMS (docs/backup-format.md).
//!
//! `seal` writes them, `open` reads them, `reseal` moves them to the key's current primary by rewriting only the
//! header, and `age-plugin-kms` lets stock `age` do the first two. Modules stand in the order a file meets them. This
//! module never keeps a file key longer than one call, never writes a plaintext byte that is not yet authenticated, and
//! never leaves output that looks complete when it is not.

pub mod command;
mod disk;
mod error;
mod header;
mod lazy;
mod open;
pub mod plugin;
mod progress;
mod recipient;
mod remote;
mod reseal;
mod seal;
mod service;
mod side;
mod stanza;
pub mod verbs;

pub use disk::{Disk, FileDisk, SIDE_SUFFIX};
pub use error::{BackupError, FormatError, ServiceError};
pub use header::{Header, MAX_HEADER_BYTES};
pub use lazy::LazyFileKeys;
pub use open::{Opened, open_stream};
pub use recipient::{Address, InvalidAddress};
pub use remote::RemoteFileKeys;
pub use reseal::{Outcome, Recovery, Status, recover, reseal, reseal_file};
pub use seal::{MAX_EXTRA_RECIPIENTS, Recipients, Sealed, seal_stream};
pub use service::{
    Description, FileKeyService, WRAPPED_FILE_KEY_BYTES, WrappedFileKey, file_key_context,
};
pub use side::{MAX_SIDE_BYTES, PAYLOAD_NONCE_BYTES, Side};
pub use stanza::{KmsStanza, STANZA_BYTES};

//! What can be wrong with an alias.

use kms_core::alias::MAX_ALIASES_PER_KEY;
use kms_core::name::{AliasName, KeyName};

/// What is wrong with an alias; all of it is the caller's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// No such alias; said only to those who may describe or list aliases, or keys, of the tenant.
    #[error("no alias `{name}`")]
    NotFound {
        /// The name asked for.
        name: AliasName,
    },
    /// An alias of this name exists.
    #[error("alias `{name}` exists")]
    Exists {
        /// The name.
        name: AliasName,
    },
    /// There is an alias that looks like this one.
    #[error("the alias is easily taken for `{other}`, which exists; choose another name")]
    Confusable {
        /// The one that is there.
        other: AliasName,
    },
    /// A key has this id.
    #[error("the alias would have the id of key `{key}`; choose another name")]
    ShadowsKey {
        /// The key.
        key: KeyName,
    },
    /// The key has as many aliases as it may have.
    #[error("the key has {MAX_ALIASES_PER_KEY} aliases, and may have no more; delete or move one")]
    Full,
    /// An alias points to a key of its own tenant, and to nothing else.
    #[error("an alias points to a key of its tenant, never to an alias or a version")]
    Target,
    /// The alias points to this key.
    #[error("the alias points to this key already")]
    Unmoved,
    /// The alias was changed since the revision that the change is based on.
    #[error("the alias was changed; read it again")]
    RevisionMismatch,
}

impl AliasError {
    /// Returns the reason for programs and audit records.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "ALIAS_NOT_FOUND",
            Self::Exists { .. } => "ALIAS_EXISTS",
            Self::Confusable { .. } => "ALIAS_CONFUSABLE",
            Self::ShadowsKey { .. } => "ALIAS_SHADOWS_KEY",
            Self::Full => "ALIASES_FULL",
            Self::Target => "ALIAS_TARGET",
            Self::Unmoved => "ALIAS_UNMOVED",
            Self::RevisionMismatch => "REVISION_MISMATCH",
        }
    }
}

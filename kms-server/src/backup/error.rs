//! Why a file is no backup that can be put back.

/// Why a file is no backup that can be put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read, or not decrypted to its end.
    #[error("the backup cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// No identity opens it, or it is no age file.
    #[error("the backup cannot be decrypted: {detail}")]
    Decrypt {
        /// What age says.
        detail: String,
    },
    /// It decrypts, to something else.
    #[error("this is no backup of a store, or one of another format")]
    NotABackup,
    /// It ends too early.
    #[error("the backup is cut off")]
    Truncated,
    /// A part of it is not what was written.
    #[error("the backup is damaged: {detail}")]
    Malformed {
        /// What is wrong.
        detail: &'static str,
    },
}

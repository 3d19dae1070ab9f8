//! Makes a token object durable: SoftHSM writes its files without fsync (softhsm.md, "durability").

use std::fs::File;
use std::path::Path;

use crate::error::HsmError;

/// How deep a token directory is: tokens/UUID/files.
const MAX_DEPTH: usize = 3;

/// Fsyncs every file and directory below `directory`.
///
/// # Errors
/// [`HsmError::Unavailable`] when something cannot be synced: the object must then not be acknowledged.
pub(crate) fn sync_tree(directory: &Path) -> Result<(), HsmError> {
    sync(directory, MAX_DEPTH).map_err(|error| HsmError::Unavailable {
        detail: format!("fsync of the token directory: {error}"),
        retry_after: std::time::Duration::from_secs(1),
    })
}

fn sync(directory: &Path, depth: usize) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            sync(&entry.path(), depth - 1)?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_synced_and_a_missing_one_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("token")).unwrap();
        std::fs::write(root.path().join("token/key.object"), b"x").unwrap();
        assert_eq!(sync_tree(root.path()), Ok(()));
        let missing = sync_tree(&root.path().join("missing"));
        assert!(matches!(missing, Err(HsmError::Unavailable { .. })));
    }
}

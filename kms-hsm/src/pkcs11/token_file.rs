//! Keeps a copy of what makes a directory a token: SoftHSM loses it when it is killed during a login.
//!
//! SoftHSM 2.6.1 rewrites `token.object` at each C_Login: it truncates the file, then writes it, and never fsyncs. A
//! process that is killed in between, or a power loss soon after, leaves an empty or blank file, and with it the token
//! and every key in it are gone from view. So a copy is kept beside the file, made before each login, and put back when
//! the file is blank. It holds what the file holds: flags, label, serial number, and the wrapping of the token's key
//! under the PINs; nothing in the clear. That a module no longer needs this shows when its login leaves the file alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// SoftHSM's file.
const TOKEN_FILE: &str = "token.object";
/// Ours; SoftHSM looks only at names that end with `.object`.
const COPY: &str = "token.object.kept";
const SIDE: &str = "token.object.kept.tmp";
/// The file starts with a number that grows with each rewriting and means nothing else.
const GENERATION_BYTES: usize = 8;
/// SoftHSM writes about 320 bytes; more than this is not that file.
const MAX_BYTES: u64 = 64 << 10;

/// Puts back what an interrupted login lost, then copies what is new. To be called before C_Initialize.
///
/// A directory that is not there has nothing to guard; whoever makes a token object finds out that it is missing.
pub(crate) fn guard(tokens: &Path) -> io::Result<()> {
    each_token(tokens, guard_token)
}

/// Makes durable what a login wrote.
pub(crate) fn sync(tokens: &Path) -> io::Result<()> {
    each_token(tokens, |token| match File::open(token.join(TOKEN_FILE)) {
        Ok(file) => file.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    })
}

fn each_token(tokens: &Path, act: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match std::fs::read_dir(tokens) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            act(&entry.path())?;
        }
    }
    Ok(())
}

fn guard_token(token: &Path) -> io::Result<()> {
    let Some(current) = read(&token.join(TOKEN_FILE))? else { return Ok(()) };
    let copy = read(&token.join(COPY))?.filter(|copy| !is_blank(copy));
    match copy {
        Some(copy) if is_blank(&current) => {
            put(token, TOKEN_FILE, &copy)?;
            tracing::warn!(token = %token.display(), "a login was cut off; the token file is put back");
            Ok(())
        }
        Some(copy) if copy.get(GENERATION_BYTES..) == current.get(GENERATION_BYTES..) => Ok(()),
        _ if is_blank(&current) => Ok(()),
        _ => put(token, COPY, &current),
    }
}

/// Nothing but zeros after the number: truncated, or allocated and never written.
fn is_blank(content: &[u8]) -> bool {
    content.iter().skip(GENERATION_BYTES).all(|byte| *byte == 0)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Puts a file in its place whole and durable.
fn put(token: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let side = token.join(SIDE);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&side)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(side, token.join(name))?;
    File::open(token)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"\0\0\0\0\0\0\0\x0bcontent";

    fn tokens() -> (tempfile::TempDir, std::path::PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("uuid").join(TOKEN_FILE);
        std::fs::create_dir(root.path().join("uuid")).unwrap();
        std::fs::write(&file, CONTENT).unwrap();
        (root, file)
    }

    #[test]
    fn a_blank_file_is_put_back() {
        let (root, file) = tokens();
        guard(root.path()).unwrap();
        for blank in [&b""[..], b"\0\0\0\0\0\0\0\x0c", &[0; 320]] {
            std::fs::write(&file, blank).unwrap();
            guard(root.path()).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), CONTENT);
        }
    }

    #[test]
    fn what_changed_is_copied_and_what_only_was_rewritten_is_not() {
        let (root, file) = tokens();
        let copy = root.path().join("uuid").join(COPY);
        guard(root.path()).unwrap();
        for (content, copied) in [
            (&b"\0\0\0\0\0\0\0\x0ccontent"[..], CONTENT),
            (b"\0\0\0\0\0\0\0\x0dother pin", b"\0\0\0\0\0\0\0\x0dother pin"),
        ] {
            std::fs::write(&file, content).unwrap();
            guard(root.path()).unwrap();
            assert_eq!(std::fs::read(&copy).unwrap(), copied);
            assert_eq!(std::fs::read(&file).unwrap(), content);
        }
    }

    #[test]
    fn a_blank_file_without_a_copy_stays_and_does_not_become_one() {
        let (root, file) = tokens();
        std::fs::write(&file, b"").unwrap();
        guard(root.path()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"");
        assert!(!root.path().join("uuid").join(COPY).exists());
    }

    #[test]
    fn what_is_no_token_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), b"x").unwrap();
        std::fs::create_dir(root.path().join("empty")).unwrap();
        guard(root.path()).unwrap();
        sync(root.path()).unwrap();
        assert_eq!(std::fs::read_dir(root.path().join("empty")).unwrap().count(), 0);
        assert!(guard(&root.path().join("missing")).is_ok());
        assert!(guard(&root.path().join("file")).is_err());
        assert!(sync(&root.path().join("file")).is_err());
    }
}

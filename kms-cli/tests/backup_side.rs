//! The side file of a reseal: its bytes are pinned, and what cannot be one is refused with nothing changed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test helpers")]

mod backup_support;

use std::path::PathBuf;

use age_core::format::FileKey;
use backup_support::{KEY, MemoryKms, OTHER_KEY, seal};
use data_encoding::HEXLOWER;
use kms_cli::backup::{
    BackupError, FileKeyService as _, Header, KmsStanza, PAYLOAD_NONCE_BYTES, SIDE_SUFFIX, Side,
    reseal_file,
};
use tempfile::TempDir;

/// A sealed file at version 1 of its key, a service at version 2, and the side file that a reseal would write.
struct Backup {
    directory: TempDir,
    path: PathBuf,
    kms: MemoryKms,
    bytes: Vec<u8>,
    side: Side,
}

impl Backup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backup.age");
        let kms = MemoryKms::at(1);
        let bytes = seal(&kms, b"what must survive");
        std::fs::write(&path, &bytes).unwrap();
        kms.rotate();
        let mut rest = &bytes[..];
        let old = Header::read(&mut rest).unwrap();
        let side = Side {
            file_bytes: bytes.len() as u64,
            payload_nonce: rest[..PAYLOAD_NONCE_BYTES].try_into().unwrap(),
            new: resealed(&kms, &old, KEY),
            old: old.encode(),
        };
        Self { directory, path, kms, bytes, side }
    }

    fn side_path(&self) -> PathBuf {
        self.directory.path().join(format!("backup.age{SIDE_SUFFIX}"))
    }

    #[track_caller]
    fn refuses(&self) {
        let refused = reseal_file(&self.kms, None, &self.path);
        assert!(matches!(refused, Err(BackupError::SideForeign)), "{refused:?}");
        assert_eq!(std::fs::read(&self.path).unwrap(), self.bytes);
    }
}

/// The header with a stanza of this key's primary; its MAC is not looked at by a recovery.
fn resealed(kms: &MemoryKms, header: &Header, key: &str) -> Vec<u8> {
    let file_key = FileKey::new(Box::new([1; 16]));
    let wrapped = kms.wrap(&key.parse().unwrap(), &file_key).unwrap();
    header.with_stanza(KmsStanza::new(wrapped), &file_key).unwrap().encode()
}

#[test]
fn the_bytes_are_pinned() {
    let side = Side {
        file_bytes: 0x0102_0304,
        payload_nonce: [9; PAYLOAD_NONCE_BYTES],
        old: b"the old header\n".to_vec(),
        new: b"the new header\n".to_vec(),
    };
    let golden = HEXLOWER.decode(include_bytes!("golden/side.hex").trim_ascii()).unwrap();
    assert_eq!(HEXLOWER.encode(&side.encode()), HEXLOWER.encode(&golden));
    assert_eq!(Side::decode(&golden), Some(side));
}

#[test]
fn a_side_file_that_no_reseal_of_this_file_wrote_changes_nothing() {
    let backup = Backup::new();
    let good = &backup.side;
    let header = Header::read(&mut &good.old[..]).unwrap();
    let mut foreign = good.new.clone();
    // A letter of a foreign stanza.
    let at = foreign.len() - 60;
    foreign[at] = if foreign[at] == b'A' { b'B' } else { b'A' };
    let mut malformed = good.new.clone();
    malformed[0] = b'A';
    let other_key = resealed(&backup.kms, &header, OTHER_KEY);
    for new in [foreign, malformed, other_key, vec![0; good.old.len()]] {
        let side = Side { new, ..good.clone() }.encode();
        std::fs::write(backup.side_path(), &side).unwrap();
        backup.refuses();
        assert_eq!(std::fs::read(backup.side_path()).unwrap(), side);
    }
    std::fs::write(backup.side_path(), good.encode()).unwrap();
    reseal_file(&backup.kms, None, &backup.path).unwrap();
}

#[test]
fn a_link_or_a_pipe_in_the_place_of_the_side_file_is_refused_at_once() {
    let backup = Backup::new();
    let elsewhere = backup.directory.path().join("elsewhere");
    std::fs::write(&elsewhere, backup.side.encode()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, backup.side_path()).unwrap();
    backup.refuses();
    std::fs::remove_file(backup.side_path()).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, backup.side_path(), kind, mode, 0).unwrap();
    backup.refuses();
}

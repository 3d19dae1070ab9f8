//! A client's own list of what was acknowledged: a file, synced line by line.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// One acknowledged operation.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    pub operation: String,
    pub event_id: String,
    pub key: String,
    pub version: u32,
    /// What the key's uid is, for changes of keys.
    pub uid: String,
    /// What shows that a change was made: the usage text or state of a key, the state of a version.
    pub shown: String,
    /// Which version that is of; 0 for the key.
    pub of: u32,
    /// What was protected, for wraps and data keys.
    pub sealed: Option<(Vec<u8>, Vec<u8>)>,
}

/// The list, open at its end.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    pub fn create(path: &Path) -> Self {
        Self(File::options().create_new(true).append(true).open(path).unwrap())
    }

    /// Writes an entry and returns when it is durable.
    pub fn note(&mut self, entry: &Acknowledged) {
        let Acknowledged { operation, event_id, key, version, uid, shown, of, sealed } = entry;
        let line = json!({
            "operation": operation, "event_id": event_id, "key": key, "version": version,
            "uid": uid, "shown": shown, "of": of, "sealed": sealed,
        });
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.0.sync_data().unwrap();
    }
}

/// Reads the lines that were added to a file since the last look.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    offset: u64,
}

impl Tail {
    pub fn new(path: PathBuf) -> Self {
        Self { path, offset: 0 }
    }

    /// Returns the whole lines that are new.
    pub fn lines(&mut self) -> Vec<Value> {
        let mut file = File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.offset)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        text[..whole].lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the entries that are new in a ledger.
    pub fn entries(&mut self) -> Vec<Acknowledged> {
        self.lines().iter().map(entry).collect()
    }
}

fn entry(line: &Value) -> Acknowledged {
    let text = |name: &str| line[name].as_str().unwrap().to_owned();
    let bytes = |value: &Value| -> Vec<u8> {
        let bytes = value.as_array().unwrap().iter();
        bytes.map(|byte| byte.as_u64().unwrap().try_into().unwrap()).collect()
    };
    let sealed = &line["sealed"];
    Acknowledged {
        operation: text("operation"),
        event_id: text("event_id"),
        key: text("key"),
        version: line["version"].as_u64().unwrap().try_into().unwrap(),
        uid: text("uid"),
        shown: text("shown"),
        of: line["of"].as_u64().unwrap().try_into().unwrap(),
        sealed: sealed.is_array().then(|| (bytes(&sealed[0]), bytes(&sealed[1]))),
    }
}

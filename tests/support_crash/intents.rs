//! What the audit log says of mutations: which were begun, which ended, and which versions were made.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// The mutations of a log, read from its start.
#[derive(Debug, Default)]
pub struct Intents {
    /// Operations that were begun, by intent; they stay after their outcome.
    begun: HashMap<String, String>,
    ended: HashSet<String>,
    /// Versions that an outcome says were made: uid of the key in hex, and number.
    made: HashSet<(String, i64)>,
}

impl Intents {
    /// Reads the next record.
    pub fn read(&mut self, record: &Value) {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let intent = text("intent_id");
        match &*text("phase") {
            "intent" => {
                assert!(!intent.is_empty(), "{record}");
                let before = self.begun.insert(intent, text("operation"));
                assert_eq!(before, None, "{record} began twice");
            }
            // One that was undone before it began in the log has an outcome alone.
            "outcome" if text("result") == "OK" => {
                let operation = self.begun.get(&intent);
                let operation = operation.unwrap_or_else(|| panic!("{record} never began"));
                let makes = ["/CreateKey", "/RotateKey", "/StageKeyVersion"];
                if makes.iter().any(|made| operation.ends_with(made)) {
                    let number = record["key_version"].as_i64().unwrap();
                    self.made.insert((text("key_uid").replace('-', ""), number));
                }
                self.ended.insert(intent);
            }
            "outcome" => {
                self.ended.insert(intent);
            }
            _ => {}
        }
    }

    /// Returns whether an outcome says that a version was made.
    pub fn made(&self, version: &(String, i64)) -> bool {
        self.made.contains(version)
    }

    /// Everything that was begun has an outcome.
    pub fn are_closed(&self) {
        let open: Vec<_> = self.begun.iter().filter(|(id, _)| !self.ended.contains(*id)).collect();
        assert!(open.is_empty(), "no outcome of {open:?}");
    }
}

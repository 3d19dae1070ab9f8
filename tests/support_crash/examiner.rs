//! Compares what clients were told with what the server has: after each restart, and once more at the end.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use kms_proto::v1 as proto;
use tonic::transport::Channel;

use super::Random;
use super::client::unwrap_request;
use super::ledger::{Acknowledged, Tail};
use crate::support_dev::{TENANT, audit_files};

/// The most items of a batch.
const BATCH: usize = 1_000;
/// How many older ciphertexts are opened after each restart, besides all of the last run.
const OLDER: usize = 100;

#[derive(Debug)]
pub struct Examiner {
    directory: PathBuf,
    ledgers: Vec<Tail>,
    logs: HashMap<PathBuf, Tail>,
    /// What was acknowledged in all, and how much of it before the last run.
    pub acknowledged: Vec<Acknowledged>,
    examined: usize,
    /// Event ids with the operations that succeeded under them.
    recorded: HashMap<String, Vec<String>>,
    /// Orphans that the log tells of, as it names them.
    pub orphans: HashSet<String>,
}

impl Examiner {
    pub fn new(directory: &Path, ledgers: &[PathBuf]) -> Self {
        Self {
            directory: directory.to_owned(),
            ledgers: ledgers.iter().cloned().map(Tail::new).collect(),
            logs: HashMap::new(),
            acknowledged: vec![],
            examined: 0,
            recorded: HashMap::new(),
            orphans: HashSet::new(),
        }
    }

    /// Examines everything that the last run acknowledged, and some of what earlier ones did.
    pub async fn examine(&mut self, channel: &Channel, random: &mut Random) {
        self.examined = self.acknowledged.len();
        for ledger in &mut self.ledgers {
            self.acknowledged.extend(ledger.entries());
        }
        self.read_log();
        self.records_are_there(self.examined);
        self.keys_are_there(channel, false).await;
        let (older, last) = self.acknowledged.split_at(self.examined);
        let picked = (0..OLDER).filter(|_| !older.is_empty());
        let picked: Vec<_> = picked.map(|_| &older[random.below(older.len())]).collect();
        open(channel, last.iter().chain(picked)).await;
    }

    /// Examines everything. Every change that was cut off has been repeated before.
    pub async fn examine_all(&mut self, channel: &Channel) {
        for ledger in &mut self.ledgers {
            self.acknowledged.extend(ledger.entries());
        }
        self.examined = 0;
        // From the start: nothing that was there once is gone.
        self.recorded.clear();
        self.logs.clear();
        self.read_log();
        self.records_are_there(0);
        self.keys_are_there(channel, true).await;
        open(channel, self.acknowledged.iter()).await;
    }

    fn read_log(&mut self) {
        for file in audit_files(&self.directory) {
            let tail = self.logs.entry(file.clone()).or_insert_with(|| Tail::new(file));
            for line in tail.lines() {
                let record = &line["entry"]["record"];
                let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
                if text("result") == "ORPHAN_OBJECT" {
                    let resource = text("resource");
                    self.orphans.insert(resource);
                }
                if text("result") == "OK" && text("phase") != "intent" {
                    let operation = text("operation");
                    let operation = operation.rsplit('/').next().unwrap().to_owned();
                    self.recorded.entry(text("event_id")).or_default().push(operation);
                }
            }
        }
    }

    fn records_are_there(&self, first: usize) {
        for entry in &self.acknowledged[first..] {
            let recorded = self.recorded.get(&entry.event_id);
            assert!(
                recorded.is_some_and(|operations| operations.contains(&entry.operation)),
                "no record of {entry:?}, but {recorded:?}"
            );
        }
    }

    /// Every acknowledged key and version is there. With `exactly`, nothing else is.
    async fn keys_are_there(&self, channel: &Channel, exactly: bool) {
        let mut client = kms_testkit::client::key_client(channel);
        let request = proto::ListKeysRequest {
            parent: TENANT.to_owned(),
            page_size: 1_000,
            page_token: String::new(),
        };
        let listed = client.list_keys(request).await.unwrap().into_inner();
        assert!(listed.next_page_token.is_empty());
        let found: HashMap<_, _> = listed.keys.iter().map(|key| (key.name.as_str(), key)).collect();
        let mut known: HashMap<&str, (u32, &str)> = HashMap::new();
        for entry in &self.acknowledged {
            let (version, uid) = known.entry(&entry.key).or_default();
            *version = entry.version.max(*version);
            if !entry.uid.is_empty() {
                *uid = &entry.uid;
            }
        }
        for (name, (version, uid)) in &known {
            let key = found.get(name).unwrap_or_else(|| panic!("{name} is gone"));
            assert_eq!(key.uid, *uid);
            assert!(key.version_count >= *version, "{key:?} lacks version {version}");
            assert_eq!(key.primary_version, key.version_count, "{key:?}");
            assert!(!exactly || key.version_count == *version, "{key:?}: not {version}");
        }
        assert!(!exactly || found.len() == known.len());
        let touched = self.acknowledged[self.examined..].iter();
        let touched = touched.filter(|entry| entry.operation == "RotateKey");
        for name in touched.map(|entry| entry.key.as_str()).collect::<HashSet<_>>() {
            let request = proto::ListKeyVersionsRequest {
                parent: name.to_owned(),
                page_size: 1_000,
                page_token: String::new(),
            };
            let versions = client.list_key_versions(request).await.unwrap().into_inner().versions;
            let numbers: Vec<_> = versions.iter().map(|version| version.version).collect();
            assert_eq!(numbers, (1..=found[name].version_count).collect::<Vec<_>>());
            let primary = versions.iter().filter(|version| version.primary);
            assert_eq!(primary.count(), 1, "{versions:?}");
        }
    }
}

/// Every ciphertext opens to what was protected.
async fn open(channel: &Channel, entries: impl Iterator<Item = &Acknowledged>) {
    let sealed: Vec<_> = entries.filter(|entry| entry.sealed.is_some()).collect();
    let mut client = kms_testkit::client::crypto_client(channel);
    for chunk in sealed.chunks(BATCH) {
        let item = |entry: &&Acknowledged| {
            unwrap_request(&entry.key, entry.sealed.as_ref().unwrap().1.clone())
        };
        let request = proto::BatchUnwrapRequest { items: chunk.iter().map(item).collect() };
        let answer = client.batch_unwrap(request).await.unwrap().into_inner();
        assert_eq!(answer.items.len(), chunk.len());
        for (entry, item) in chunk.iter().zip(answer.items) {
            let result = item.result.unwrap_or_else(|| panic!("{entry:?}: {:?}", item.status));
            assert_eq!(result.plaintext, entry.sealed.as_ref().unwrap().0, "{entry:?}");
        }
    }
}

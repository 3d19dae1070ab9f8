//! Compares what clients were told with what the server has: after each restart, and once more at the end.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use kms_proto::v1 as proto;
use tonic::transport::Channel;

use super::Random;
use super::client::{SWITCHED, unwrap_request};
use super::intents::Intents;
use super::ledger::{Acknowledged, Tail};
use super::lived::LIVED;
use super::residents;
use crate::support_dev::{TENANT, audit_files};

/// The most items of a batch.
const BATCH: usize = 1_000;
/// How the states of a key begin.
const KEY_STATE: &str = "KEY_STATE_";
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
    intents: Intents,
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
            intents: Intents::default(),
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
        self.intents = Intents::default();
        self.logs.clear();
        self.read_log();
        self.records_are_there(0);
        self.keys_are_there(channel, true).await;
        self.changes_show(channel).await;
        self.intents.are_closed();
        open(channel, self.acknowledged.iter()).await;
    }

    /// Every version in the database was told of: its own mutation has an outcome, whatever a repeat was told. Call it
    /// after [`Examiner::examine_all`], when the server is gone.
    pub fn versions_were_told(&self) {
        for version in residents::versions(&self.directory) {
            assert!(self.intents.made(&version), "no outcome of {version:?}");
        }
    }

    /// Keys went through their lives, and not only came into being.
    pub fn keys_lived(&self) {
        for operation in ["ActivateKeyVersion", "DisableKey", "DiscardKeyVersion"] {
            let made = self.acknowledged.iter().filter(|entry| entry.operation == operation);
            assert!(made.count() > 0, "too little load: no {operation}");
        }
    }

    fn read_log(&mut self) {
        for file in audit_files(&self.directory) {
            let tail = self.logs.entry(file.clone()).or_insert_with(|| Tail::new(file));
            for line in tail.lines() {
                let record = &line["entry"]["record"];
                let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
                self.intents.read(record);
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
        // One record an item: those of a batch have one event id.
        let mut wanted: HashMap<(&str, &str), usize> = HashMap::new();
        for entry in &self.acknowledged[first..] {
            *wanted.entry((&entry.event_id, &entry.operation)).or_default() += 1;
        }
        for ((event_id, operation), items) in wanted {
            let recorded = self.recorded.get(event_id).map_or(&[][..], Vec::as_slice);
            let found = recorded.iter().filter(|recorded| *recorded == operation).count();
            assert!(found >= items, "{operation} {event_id}: {items}, recorded {recorded:?}");
        }
    }

    /// Every acknowledged key and version is there. With `exactly`, nothing else is.
    async fn keys_are_there(&self, channel: &Channel, exactly: bool) {
        let mut client = kms_testkit::client::key_client(channel);
        let request = proto::ListKeysRequest {
            parent: TENANT.to_owned(),
            page_size: 1_000,
            page_token: String::new(),
            ..Default::default()
        };
        let listed = client.list_keys(request).await.unwrap().into_inner();
        assert!(listed.next_page_token.is_empty());
        let found: HashMap<_, _> = listed.keys.iter().map(|key| (key.name.as_str(), key)).collect();
        let mut known: HashMap<&str, (u32, &str)> = HashMap::new();
        let mut suspended: HashSet<&str> = HashSet::new();
        for entry in &self.acknowledged {
            let (version, uid) = known.entry(&entry.key).or_default();
            *version = entry.version.max(*version);
            if !entry.uid.is_empty() {
                *uid = &entry.uid;
            }
            match &*entry.operation {
                "SuspendKeyVersion" => suspended.insert(&entry.key),
                "ResumeKeyVersion" => suspended.remove(&*entry.key),
                _ => false,
            };
        }
        for (name, (version, uid)) in &known {
            let key = found.get(name).unwrap_or_else(|| panic!("{name} is gone"));
            assert_eq!(key.uid, *uid);
            assert!(key.version_count >= *version, "{key:?} lacks version {version}");
            // A suspended version is not shown as the primary one.
            let primary = if suspended.contains(name) { 0 } else { key.version_count };
            // Of one that goes through its life the last change tells the rest, see below.
            let either = (!exactly && name.ends_with(SWITCHED)) || name.ends_with(LIVED);
            assert!(either || key.primary_version == primary, "{key:?}");
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

    /// The last change of each key and version is the one that is there.
    async fn changes_show(&self, channel: &Channel) {
        let mut client = kms_testkit::client::key_client(channel);
        let mut last: HashMap<(&str, u32, bool), &str> = HashMap::new();
        for entry in self.acknowledged.iter().filter(|entry| !entry.shown.is_empty()) {
            let is_state = entry.shown.starts_with(KEY_STATE);
            last.insert((&entry.key, entry.of, is_state), &entry.shown);
        }
        for ((key, of, is_state), shown) in last {
            if of > 0 {
                let name = format!("{key}/versions/{of}");
                let request = proto::DescribeKeyVersionRequest { name };
                let version = client.describe_key_version(request).await.unwrap().into_inner();
                assert_eq!(version.state().as_str_name(), shown, "{version:?}");
                continue;
            }
            let request = proto::DescribeKeyRequest { name: key.to_owned() };
            let key = client.describe_key(request).await.unwrap().into_inner();
            let there = if is_state { key.state().as_str_name() } else { &key.usage };
            assert_eq!(there, shown, "{key:?}");
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

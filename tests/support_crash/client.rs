//! A client that uses and changes its own keys until its server is gone, and repeats what was cut off.

use std::path::Path;

use kms_proto::v1 as proto;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use super::Random;
use super::change::{After, Change, Done};
use super::ledger::{Acknowledged, Ledger};
use super::lived::{LIVED, Lived};
use crate::support_dev::{TENANT, event_id};

/// The most keys of one client: the token's objects are indexed at each start.
const MAX_KEYS: usize = 25;
/// The most versions of one key.
const MAX_VERSIONS: u32 = 20;
/// Items of a batch.
const BATCH: usize = 3;
/// How the name of the key ends that is suspended and resumed; nothing is protected with it.
pub const SWITCHED: &str = "-switched";

/// A key of the client, with what it knows about it.
#[derive(Clone, Debug)]
struct OwnKey {
    name: String,
    version: u32,
    revision: u64,
}

#[derive(Debug)]
pub struct Client {
    number: usize,
    random: Random,
    keys: Vec<OwnKey>,
    sealed: Vec<(String, Vec<u8>, Vec<u8>)>,
    /// The version that is suspended and resumed, and whether it is suspended.
    switched: Option<(String, bool)>,
    /// The key that goes through its life.
    lived: Option<Lived>,
    /// A change whose answer has not come yet.
    unanswered: Option<Change>,
    ledger: Ledger,
}

/// Why a client stopped: its server is gone.
#[derive(Debug)]
pub struct Gone;

impl Client {
    pub fn new(number: usize, random: Random, ledger: &Path) -> Self {
        let ledger = Ledger::create(ledger);
        let (keys, sealed) = (vec![], vec![]);
        let (switched, lived, unanswered) = (None, None, None);
        Self { number, random, keys, sealed, switched, lived, unanswered, ledger }
    }

    /// Works until the server is gone.
    pub async fn work(mut self, channel: Channel) -> Self {
        while let Ok(()) = self.step(&channel).await {}
        self
    }

    /// Repeats the change that was cut off, with its own request id, until it is answered.
    pub async fn settle(&mut self, channel: &Channel) {
        while let Some(change) = self.unanswered.take() {
            self.change(channel, change).await.expect("the server is there");
        }
    }

    async fn step(&mut self, channel: &Channel) -> Result<(), Gone> {
        if let Some(change) = self.unanswered.take() {
            return self.change(channel, change).await;
        }
        let choice = self.random.below(100);
        match (self.random.below(self.keys.len().max(1)), self.keys.len()) {
            (_, 0) => self.create(channel).await,
            (_, count) if choice < 10 && count < MAX_KEYS => self.create(channel).await,
            (index, _) if choice < 20 && self.keys[index].version < MAX_VERSIONS => {
                let rotate = Change::rotate(&self.keys[index].name);
                self.change(channel, rotate).await
            }
            (index, _) if choice < 26 => {
                let OwnKey { name, revision, .. } = &self.keys[index];
                let update = Change::update(name, *revision);
                self.change(channel, update).await
            }
            (_, _) if choice < 32 => self.switch(channel).await,
            (_, _) if choice < 44 => self.live(channel).await,
            (index, _) if choice < 62 => self.wrap(channel, index).await,
            (index, _) if choice < 68 => self.data_key(channel, index).await,
            (index, _) if choice < 76 => self.batch_wrap(channel, index).await,
            (_, _) if choice < 84 => self.rewrap(channel).await,
            _ => self.unwrap(channel).await,
        }
    }

    pub async fn create(&mut self, channel: &Channel) -> Result<(), Gone> {
        let resident = self.random.below(3) == 0;
        let protection =
            if resident { proto::Protection::HsmResident } else { proto::Protection::HsmWrapped };
        let id = format!("c{}-{}", self.number, self.keys.len());
        self.change(channel, Change::create(&id, protection)).await
    }

    async fn switch(&mut self, channel: &Channel) -> Result<(), Gone> {
        let change = if let Some((version, suspended)) = &self.switched {
            Change::switch(version, *suspended)
        } else {
            let id = format!("c{}{SWITCHED}", self.number);
            Change::create(&id, proto::Protection::HsmWrapped)
        };
        self.change(channel, change).await
    }

    async fn live(&mut self, channel: &Channel) -> Result<(), Gone> {
        let change = if let Some(lived) = &self.lived {
            Change::Live(lived.next())
        } else {
            let protections = [proto::Protection::HsmWrapped, proto::Protection::HsmResident];
            Change::create(&format!("c{}{LIVED}", self.number), protections[self.number % 2])
        };
        self.change(channel, change).await
    }

    async fn change(&mut self, channel: &Channel, change: Change) -> Result<(), Gone> {
        self.unanswered = Some(change.clone());
        let Done { operation, event_id, after } = change.ask(channel).await?;
        self.unanswered = None;
        // A change that was repeated may show what the first try did; nobody else changes this key.
        let entry = match after {
            After::Key(key) => self.learn_key(operation, key),
            After::Version(version) => self.learn_version(operation, &version),
            After::Lived(seen) => self.lived.as_mut().unwrap().learn(operation, &seen),
        };
        let operation = operation.to_owned();
        self.ledger.note(&Acknowledged { operation, event_id, ..entry });
        Ok(())
    }

    fn learn_key(&mut self, operation: &str, key: proto::Key) -> Acknowledged {
        let (version, revision) = (key.version_count, key.revision);
        assert_eq!(key.primary_version, version, "{key:?}");
        if let Some(known) = self.keys.iter_mut().find(|known| known.name == key.name) {
            let more = u32::from(operation == "RotateKey");
            assert_eq!(version, known.version + more, "a rollover was lost or done twice");
            assert_eq!(revision, known.revision + 1, "a change was lost or done twice");
            (known.version, known.revision) = (version, revision);
        } else {
            assert_eq!((operation, version), ("CreateKey", 1));
            let name = key.name.clone();
            if name.ends_with(LIVED) {
                self.lived = Some(Lived::new(&key));
            } else if name.ends_with(SWITCHED) {
                self.switched = Some((format!("{name}/versions/1"), false));
            } else {
                self.keys.push(OwnKey { name, version, revision });
            }
        }
        let (key, uid, shown) = (key.name, key.uid, key.usage);
        Acknowledged { key, version, uid, shown, ..Acknowledged::default() }
    }

    fn learn_version(&mut self, operation: &str, version: &proto::KeyVersion) -> Acknowledged {
        let (name, suspended) = self.switched.as_mut().unwrap();
        assert_eq!(version.name, *name);
        *suspended = !*suspended;
        assert_eq!(operation == "SuspendKeyVersion", *suspended);
        let state =
            if *suspended { proto::VersionState::Suspended } else { proto::VersionState::Active };
        assert_eq!(version.state(), state);
        let key = name.strip_suffix("/versions/1").unwrap().to_owned();
        let shown = state.as_str_name().to_owned();
        let (version, of) = (version.version, version.version);
        Acknowledged { key, version, shown, of, ..Acknowledged::default() }
    }

    pub async fn wrap(&mut self, channel: &Channel, index: usize) -> Result<(), Gone> {
        let OwnKey { name, version, .. } = self.keys[index].clone();
        let (plaintext, request) = self.wrap_request(&name);
        let wrapped = answer(kms_testkit::client::crypto_client(channel).wrap(request).await)?;
        let event = event_id(&wrapped);
        let wrapped = wrapped.into_inner();
        assert_eq!(wrapped.key_version, format!("{name}/versions/{version}"));
        self.keep("Wrap", event, name, version, plaintext, wrapped.ciphertext.to_vec());
        Ok(())
    }

    async fn data_key(&mut self, channel: &Channel, index: usize) -> Result<(), Gone> {
        let OwnKey { name, version, .. } = self.keys[index].clone();
        let request = proto::GenerateDataKeyRequest {
            key: name.clone(),
            length_bytes: 32,
            context: context(&name),
            without_plaintext: false,
        };
        let mut client = kms_testkit::client::crypto_client(channel);
        let made = answer(client.generate_data_key(request).await)?;
        let event = event_id(&made);
        let made = made.into_inner();
        let (plaintext, ciphertext) = (made.plaintext.to_vec(), made.ciphertext.to_vec());
        self.keep("GenerateDataKey", event, name, version, plaintext, ciphertext);
        Ok(())
    }

    async fn batch_wrap(&mut self, channel: &Channel, index: usize) -> Result<(), Gone> {
        let OwnKey { name, version, .. } = self.keys[index].clone();
        let (plaintexts, items): (Vec<_>, _) = (0..BATCH).map(|_| self.wrap_request(&name)).unzip();
        let request = proto::BatchWrapRequest { items };
        let mut client = kms_testkit::client::crypto_client(channel);
        let wrapped = answer(client.batch_wrap(request).await)?;
        let event = event_id(&wrapped);
        let items = wrapped.into_inner().items;
        assert_eq!(items.len(), BATCH);
        for (plaintext, item) in plaintexts.into_iter().zip(items) {
            let wrapped = item.result.unwrap_or_else(|| panic!("{:?}", item.status));
            assert_eq!(wrapped.key_version, format!("{name}/versions/{version}"));
            let (event, ciphertext) = (event.clone(), wrapped.ciphertext.to_vec());
            self.keep("BatchWrap", event, name.clone(), version, plaintext, ciphertext);
        }
        Ok(())
    }

    fn wrap_request(&mut self, key: &str) -> (Vec<u8>, proto::WrapRequest) {
        let length = 1 + self.random.below(48);
        let plaintext = self.random.bytes(length);
        let (bytes, context) = (plaintext.clone().into(), context(key));
        (plaintext, proto::WrapRequest { key: key.to_owned(), plaintext: bytes, context })
    }

    async fn rewrap(&mut self, channel: &Channel) -> Result<(), Gone> {
        let Some((key, plaintext, ciphertext)) = self.one_sealed() else { return Ok(()) };
        let version = self.keys.iter().find(|own| own.name == key).unwrap().version;
        let request = proto::RewrapRequest {
            key: key.clone(),
            ciphertext: ciphertext.into(),
            context: context(&key),
        };
        let rewrapped = answer(kms_testkit::client::crypto_client(channel).rewrap(request).await)?;
        let event = event_id(&rewrapped);
        let rewrapped = rewrapped.into_inner();
        assert_eq!(rewrapped.key_version, format!("{key}/versions/{version}"));
        self.keep("Rewrap", event, key, version, plaintext, rewrapped.ciphertext.to_vec());
        Ok(())
    }

    async fn unwrap(&mut self, channel: &Channel) -> Result<(), Gone> {
        let Some((key, plaintext, ciphertext)) = self.one_sealed() else { return Ok(()) };
        let request = unwrap_request(&key, ciphertext);
        let opened = answer(kms_testkit::client::crypto_client(channel).unwrap(request).await)?;
        assert_eq!(opened.get_ref().plaintext, plaintext);
        let (operation, event_id) = ("Unwrap".to_owned(), event_id(&opened));
        let entry = Acknowledged { operation, event_id, key, ..Acknowledged::default() };
        self.ledger.note(&entry);
        Ok(())
    }

    fn one_sealed(&mut self) -> Option<(String, Vec<u8>, Vec<u8>)> {
        let index = self.random.below(self.sealed.len().max(1));
        self.sealed.get(index).cloned()
    }

    fn keep(
        &mut self,
        operation: &str,
        event_id: String,
        key: String,
        version: u32,
        plaintext: Vec<u8>,
        ciphertext: Vec<u8>,
    ) {
        self.sealed.push((key.clone(), plaintext.clone(), ciphertext.clone()));
        let (operation, sealed) = (operation.to_owned(), Some((plaintext, ciphertext)));
        let entry =
            Acknowledged { operation, event_id, key, version, sealed, ..Acknowledged::default() };
        self.ledger.note(&entry);
    }
}

/// The encryption context under which the clients protect with a key.
fn context(key: &str) -> std::collections::HashMap<String, String> {
    [("key".to_owned(), key.to_owned())].into()
}

/// Asks for what a client protected.
pub fn unwrap_request(key: &str, ciphertext: Vec<u8>) -> proto::UnwrapRequest {
    proto::UnwrapRequest {
        key: key.to_owned(),
        ciphertext: ciphertext.into(),
        context: context(key),
    }
}

/// Tells a refusal, which fails the test, from a server that is gone.
pub fn answer<T>(answer: Result<Response<T>, Status>) -> Result<Response<T>, Gone> {
    answer.map_err(|status| {
        let refused = status.get_details_error_info().is_some();
        assert!(!refused, "refused under {TENANT}: {status:?}");
        let broken = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
        assert!(broken.contains(&status.code()), "{status:?}");
        Gone
    })
}

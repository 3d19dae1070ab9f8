//! A client that uses and changes its own keys until its server is gone, and repeats what was cut off.

use std::path::Path;

use kms_proto::v1 as proto;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use super::Random;
use super::ledger::{Acknowledged, Ledger};
use crate::support_dev::{TENANT, event_id, new_key, request_id};

/// The most keys of one client: the token's objects are indexed at each start.
const MAX_KEYS: usize = 25;
/// The most versions of one key.
const MAX_VERSIONS: u32 = 20;

/// A change whose answer has not come yet.
#[derive(Clone, Debug)]
enum Change {
    Create(proto::CreateKeyRequest),
    Rotate(proto::RotateKeyRequest),
}

/// A key of the client, with what it knows about it.
#[derive(Clone, Debug)]
struct OwnKey {
    name: String,
    version: u32,
}

#[derive(Debug)]
pub struct Client {
    number: usize,
    random: Random,
    keys: Vec<OwnKey>,
    sealed: Vec<(String, Vec<u8>, Vec<u8>)>,
    unanswered: Option<Change>,
    ledger: Ledger,
}

/// Why a client stopped: its server is gone.
#[derive(Debug)]
pub struct Gone;

impl Client {
    pub fn new(number: usize, random: Random, ledger: &Path) -> Self {
        let ledger = Ledger::create(ledger);
        Self { number, random, keys: vec![], sealed: vec![], unanswered: None, ledger }
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
                let rotate = proto::RotateKeyRequest {
                    name: self.keys[index].name.clone(),
                    reason: "test".to_owned(),
                    request_id: request_id(),
                };
                self.change(channel, Change::Rotate(rotate)).await
            }
            (index, _) if choice < 60 => self.wrap(channel, index).await,
            (index, _) if choice < 75 => self.data_key(channel, index).await,
            _ => self.unwrap(channel).await,
        }
    }

    pub async fn create(&mut self, channel: &Channel) -> Result<(), Gone> {
        let resident = self.random.below(3) == 0;
        let protection =
            if resident { proto::Protection::HsmResident } else { proto::Protection::HsmWrapped };
        let id = format!("c{}-{}", self.number, self.keys.len());
        self.change(channel, Change::Create(new_key(&id, protection))).await
    }

    async fn change(&mut self, channel: &Channel, change: Change) -> Result<(), Gone> {
        self.unanswered = Some(change.clone());
        let mut client = kms_testkit::client::key_client(channel);
        let (operation, event, key) = match change {
            Change::Create(request) => {
                let answer = answer(client.create_key(request).await)?;
                ("CreateKey", event_id(&answer), answer.into_inner())
            }
            Change::Rotate(request) => {
                let answer = answer(client.rotate_key(request).await)?;
                ("RotateKey", event_id(&answer), answer.into_inner().key.unwrap())
            }
        };
        self.unanswered = None;
        // A change that was repeated may show what the first try did; nobody else changes this key.
        let version = key.version_count;
        assert_eq!(key.primary_version, version, "{key:?}");
        match self.keys.iter_mut().find(|known| known.name == key.name) {
            Some(known) => {
                assert_eq!(version, known.version + 1, "a rollover was lost or done twice");
                known.version = version;
            }
            None => {
                assert_eq!((operation, version), ("CreateKey", 1));
                self.keys.push(OwnKey { name: key.name.clone(), version });
            }
        }
        self.note(operation, event, key.name, version, key.uid, None);
        Ok(())
    }

    pub async fn wrap(&mut self, channel: &Channel, index: usize) -> Result<(), Gone> {
        let length = 1 + self.random.below(48);
        let plaintext = self.random.bytes(length);
        let OwnKey { name, version } = self.keys[index].clone();
        let request = proto::WrapRequest {
            key: name.clone(),
            plaintext: plaintext.clone().into(),
            context: context(&name),
        };
        let wrapped = answer(kms_testkit::client::crypto_client(channel).wrap(request).await)?;
        let event = event_id(&wrapped);
        let wrapped = wrapped.into_inner();
        assert_eq!(wrapped.key_version, format!("{name}/versions/{version}"));
        self.keep("Wrap", event, name, version, plaintext, wrapped.ciphertext.to_vec());
        Ok(())
    }

    async fn data_key(&mut self, channel: &Channel, index: usize) -> Result<(), Gone> {
        let OwnKey { name, version } = self.keys[index].clone();
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

    async fn unwrap(&mut self, channel: &Channel) -> Result<(), Gone> {
        if self.sealed.is_empty() {
            return Ok(());
        }
        let (key, plaintext, ciphertext) = {
            let index = self.random.below(self.sealed.len());
            self.sealed[index].clone()
        };
        let request = unwrap_request(&key, ciphertext);
        let opened = answer(kms_testkit::client::crypto_client(channel).unwrap(request).await)?;
        assert_eq!(opened.get_ref().plaintext, plaintext);
        self.note("Unwrap", event_id(&opened), key, 0, String::new(), None);
        Ok(())
    }

    fn keep(
        &mut self,
        operation: &str,
        event: String,
        key: String,
        version: u32,
        plaintext: Vec<u8>,
        ciphertext: Vec<u8>,
    ) {
        self.sealed.push((key.clone(), plaintext.clone(), ciphertext.clone()));
        let sealed = Some((plaintext, ciphertext));
        self.note(operation, event, key, version, String::new(), sealed);
    }

    fn note(
        &mut self,
        operation: &str,
        event_id: String,
        key: String,
        version: u32,
        uid: String,
        sealed: Option<(Vec<u8>, Vec<u8>)>,
    ) {
        let operation = operation.to_owned();
        self.ledger.note(&Acknowledged { operation, event_id, key, version, uid, sealed });
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
fn answer<T>(answer: Result<Response<T>, Status>) -> Result<Response<T>, Gone> {
    answer.map_err(|status| {
        let refused = status.get_details_error_info().is_some();
        assert!(!refused, "refused under {TENANT}: {status:?}");
        let broken = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
        assert!(broken.contains(&status.code()), "{status:?}");
        Gone
    })
}

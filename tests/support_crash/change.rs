//! The changes that clients make, and what their answers say.

use kms_proto::v1 as proto;
use tonic::transport::Channel;

use super::client::{Gone, answer};
use super::lived::{Seen, Step};
use crate::support_dev::{event_id, new_key, request_id};

/// A change, with the request id under which it is repeated until it is answered.
#[derive(Clone, Debug)]
pub enum Change {
    Create(proto::CreateKeyRequest),
    Rotate(proto::RotateKeyRequest),
    Update(proto::UpdateKeyRequest),
    Suspend(proto::SuspendKeyVersionRequest),
    Resume(proto::ResumeKeyVersionRequest),
    Live(Step),
}

/// What a change was acknowledged with.
#[derive(Debug)]
pub struct Done {
    pub operation: &'static str,
    pub event_id: String,
    pub after: After,
}

/// What was changed, as it is afterwards.
#[derive(Debug)]
pub enum After {
    Key(proto::Key),
    Version(proto::KeyVersion),
    Lived(Seen),
}

impl Change {
    pub fn create(id: &str, protection: proto::Protection) -> Self {
        Self::Create(new_key(id, protection))
    }

    pub fn rotate(name: &str) -> Self {
        let (name, reason) = (name.to_owned(), "test".to_owned());
        Self::Rotate(proto::RotateKeyRequest { name, reason, request_id: request_id() })
    }

    /// Gives a key another usage text, each time a new one.
    pub fn update(name: &str, revision: u64) -> Self {
        Self::Update(proto::UpdateKeyRequest {
            name: name.to_owned(),
            revision,
            update_mask: Some(prost_types::FieldMask { paths: vec!["usage".to_owned()] }),
            usage: format!("changed at revision {revision}"),
            request_id: request_id(),
            ..proto::UpdateKeyRequest::default()
        })
    }

    /// Suspends a version, or resumes it when it is suspended.
    pub fn switch(name: &str, suspended: bool) -> Self {
        let (name, reason, request_id) = (name.to_owned(), "test".to_owned(), request_id());
        if suspended {
            Self::Resume(proto::ResumeKeyVersionRequest { name, reason, request_id })
        } else {
            Self::Suspend(proto::SuspendKeyVersionRequest { name, reason, request_id })
        }
    }

    /// Asks for it; an answer to a repeat is the answer to the first try.
    pub async fn ask(self, channel: &Channel) -> Result<Done, Gone> {
        let mut client = kms_testkit::client::key_client(channel);
        let (operation, event_id, after) = match self {
            Self::Create(request) => {
                let answer = answer(client.create_key(request).await)?;
                ("CreateKey", event_id(&answer), After::Key(answer.into_inner()))
            }
            Self::Rotate(request) => {
                let answer = answer(client.rotate_key(request).await)?;
                let event = event_id(&answer);
                ("RotateKey", event, After::Key(answer.into_inner().key.unwrap()))
            }
            Self::Update(request) => {
                let answer = answer(client.update_key(request).await)?;
                ("UpdateKey", event_id(&answer), After::Key(answer.into_inner()))
            }
            Self::Suspend(request) => {
                let answer = answer(client.suspend_key_version(request).await)?;
                ("SuspendKeyVersion", event_id(&answer), After::Version(answer.into_inner()))
            }
            Self::Live(step) => {
                let (operation, event, seen) = step.ask(channel).await?;
                (operation, event, After::Lived(seen))
            }
            Self::Resume(request) => {
                let answer = answer(client.resume_key_version(request).await)?;
                ("ResumeKeyVersion", event_id(&answer), After::Version(answer.into_inner()))
            }
        };
        Ok(Done { operation, event_id, after })
    }
}

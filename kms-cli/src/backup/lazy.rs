//! The file-key service of a real server, connected when it is first needed: recovering a torn header needs none.

use std::sync::{Arc, Mutex, PoisonError};

use age_core::format::FileKey;
use kms_core::name::KeyName;

use super::error::ServiceError;
use super::remote::RemoteFileKeys;
use super::service::{Description, FileKeyService, WrappedFileKey};
use crate::client::ClientError;
use crate::client::connector::ConnectFailure;
use crate::context::ResolvedContext;

/// Connects at its first call. A server that could not be reached is not tried again, so that a hundred files on a dead
/// network cost one timeout and not a hundred.
#[derive(Debug)]
pub struct LazyFileKeys<'a> {
    context: &'a ResolvedContext,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Untried,
    Connected(Arc<RemoteFileKeys>),
    Unreachable { server: String, failure: ConnectFailure },
}

impl<'a> LazyFileKeys<'a> {
    /// Remembers where to connect; nothing is read or sent yet.
    pub const fn new(context: &'a ResolvedContext) -> Self {
        Self { context, state: Mutex::new(State::Untried) }
    }

    fn service(&self) -> Result<Arc<RemoteFileKeys>, ServiceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Connected(service) => return Ok(Arc::clone(service)),
            State::Unreachable { server, failure } => {
                let (server, failure) = (server.clone(), failure.clone());
                return Err(ClientError::Connect { server, failure }.into());
            }
            State::Untried => {}
        }
        let connected = RemoteFileKeys::connect(self.context).map(Arc::new);
        match &connected {
            Ok(service) => *state = State::Connected(Arc::clone(service)),
            Err(ServiceError::Client(ClientError::Connect { server, failure })) => {
                *state = State::Unreachable { server: server.clone(), failure: failure.clone() };
            }
            Err(_) => {}
        }
        connected
    }
}

impl FileKeyService for LazyFileKeys<'_> {
    fn wrap(&self, key: &KeyName, file_key: &FileKey) -> Result<WrappedFileKey, ServiceError> {
        self.service()?.wrap(key, file_key)
    }

    fn unwrap(&self, key: &KeyName, wrapped: &WrappedFileKey) -> Result<FileKey, ServiceError> {
        self.service()?.unwrap(key, wrapped)
    }

    fn describe(&self, wrapped: &WrappedFileKey) -> Result<Description, ServiceError> {
        self.service()?.describe(wrapped)
    }
}

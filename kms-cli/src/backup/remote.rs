//! The file-key service of a real server: gRPC on a runtime that a thread of its own owns.
//!
//! age's traits are synchronous and may be called from anywhere, also from inside another runtime, so calls are handed
//! over a channel and their answers waited for. Every call is bounded by the client's own timeout.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use age_core::format::{FILE_KEY_BYTES, FileKey};
use age_core::secrecy::ExposeSecret as _;
use kms_core::name::{KeyName, KeySelector};
use kms_core::secret::Plaintext;
use tokio::sync::mpsc;

use super::error::ServiceError;
use super::service::{Description, FileKeyService, WrappedFileKey, file_key_context};
use crate::client::{Client, ClientError};
use crate::context::ResolvedContext;

/// How many calls may wait: there is one at a time.
const QUEUE_LENGTH: usize = 1;
/// What a caller gets when the thread is gone.
const STOPPED: ServiceError = ServiceError::Bug("the connection's thread has stopped");

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Wraps and unwraps file keys on a server. Dropping it closes the connection.
#[derive(Debug)]
pub struct RemoteFileKeys {
    client: Client,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl RemoteFileKeys {
    /// Connects, on a new thread.
    ///
    /// # Errors
    /// [`ServiceError::Client`] when there is no connection.
    pub fn connect(context: &ResolvedContext) -> Result<Self, ServiceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|_| ServiceError::Bug("cannot make a runtime"))?;
        let (jobs, mut waiting) = mpsc::channel::<Job>(QUEUE_LENGTH);
        let (connected, connection) = sync_channel(1);
        let context = context.clone();
        let serve = async move {
            let client = Client::connect(&context).await;
            let failed = client.is_err();
            if connected.send(client).is_err() || failed {
                return;
            }
            while let Some(job) = waiting.recv().await {
                job.await;
            }
        };
        let thread = std::thread::Builder::new()
            .name("file-keys".into())
            .spawn(move || runtime.block_on(serve))
            .map_err(|_| ServiceError::Bug("cannot start a thread"))?;
        let client = connection.recv().map_err(|_| STOPPED)??;
        Ok(Self { client, jobs: Mutex::new(Some(jobs)), thread: Some(thread) })
    }

    /// Runs a call on the thread and waits for its answer.
    fn call<T, F>(&self, make: impl FnOnce(Client) -> F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ClientError>> + Send + 'static,
    {
        let (answer, answered) = sync_channel(1);
        let call = make(self.client.clone());
        let job: Job = Box::pin(async move {
            // The caller waits for as long as this runs, so somebody takes the answer.
            let _ = answer.send(call.await);
        });
        // Held until the answer is there: one call at a time, so the queue has room.
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // Not `blocking_send`, which panics inside another runtime.
        jobs.as_ref().and_then(|jobs| jobs.try_send(job).ok()).ok_or(STOPPED)?;
        Ok(answered.recv().map_err(|_| STOPPED)??)
    }
}

impl Drop for RemoteFileKeys {
    fn drop(&mut self) {
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there; nothing is left to do here.
            let _ = thread.join();
        }
    }
}

impl FileKeyService for RemoteFileKeys {
    fn wrap(&self, key: &KeyName, file_key: &FileKey) -> Result<WrappedFileKey, ServiceError> {
        let key = KeySelector::Key(key.clone());
        let plaintext = Plaintext::new(file_key.expose_secret().to_vec());
        let context =
            file_key_context().map_err(|_| ServiceError::Bug("our own context is refused"))?;
        let wrapped =
            self.call(|client| async move { client.wrap(&key, &plaintext, &context).await })?;
        WrappedFileKey::new(&wrapped.ciphertext)
            .map_err(|_| ServiceError::BadAnswer("the wrapped file key is no envelope we know"))
    }

    fn unwrap(&self, key: &KeyName, wrapped: &WrappedFileKey) -> Result<FileKey, ServiceError> {
        let (key, wrapped) = (key.clone(), wrapped.clone());
        let context =
            file_key_context().map_err(|_| ServiceError::Bug("our own context is refused"))?;
        let unwrapped =
            self.call(
                |client| async move { client.unwrap(&key, wrapped.as_bytes(), &context).await },
            )?;
        let plaintext = unwrapped.plaintext.expose();
        let bytes: &[u8; FILE_KEY_BYTES] = plaintext
            .try_into()
            .map_err(|_| ServiceError::BadAnswer("the unwrapped file key has not 16 bytes"))?;
        Ok(FileKey::init_with_mut(|file_key| file_key.copy_from_slice(bytes)))
    }

    fn describe(&self, wrapped: &WrappedFileKey) -> Result<Description, ServiceError> {
        let bytes = *wrapped.as_bytes();
        let described =
            self.call(|client| async move { client.describe_ciphertext(&bytes).await })?;
        let header = wrapped.header();
        if described.key_uid != header.key_uid || described.version != header.version {
            return Err(ServiceError::BadAnswer("it describes another envelope"));
        }
        let key = described.key_version.map(|version| version.key().clone());
        Ok(Description { key, current: described.current })
    }
}

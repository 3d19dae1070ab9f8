//! BackupStore, which the admin listener has: pieces as they come, and the status that says whether they are all.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response};
use hyper::body::Body as HttpBody;
use kms_proto::v1::{BackupStoreRequest, BackupStoreResponse};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::body::Body;
use tracing::Instrument as _;

use super::answer;
use super::arrive::Arrived;
use super::gateway::{Call, EVENT_ID_KEY, Ended, Gateway};
use super::stream_answers::Answers;
use crate::service::{BackupPart, BackupParts, RequestContext, ServiceError};
use crate::transport::event_id::new_event_id;
use crate::transport::method::Method;
use crate::transport::status::{self, Refused};

const TOO_LARGE: ServiceError =
    ServiceError::Bug { reason: "an answer is larger than a message may be" };

impl Gateway {
    /// Answers a request for a backup. Who calls is asked before its message is read, as for every method.
    pub async fn backup_store<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let call = match self.admit(Method::BackupStore, &request) {
            Ok(call) => call,
            Err(status) => return status.into_http(),
        };
        match begin(&call, request).await {
            Ok((context, recipient)) => answer(call, context, recipient).await,
            Err(refused) => call.refuse(refused),
        }
    }
}

async fn begin<B>(call: &Call, request: Request<B>) -> Result<(RequestContext, String), Refused>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let (Arrived { message, .. }, deadline) = call.message(request).await?;
    let message = BackupStoreRequest::decode(message).map_err(|_| Refused::Malformed)?;
    let event_id = new_event_id().ok_or(Refused::NoRandomness)?;
    let BackupStoreRequest { recipient } = message;
    Ok((call.context(event_id, deadline), recipient))
}

async fn answer(call: Call, context: RequestContext, recipient: String) -> Response<Body> {
    let event_id = context.event_id;
    let span = call.span(event_id);
    let begun = call.kms().backup_store(&context, &recipient).instrument(span.clone()).await;
    let parts = match begun {
        Ok(parts) => parts,
        Err(error) => return call.ended(event_id, Err(Ended::Failed(error))).into_http(),
    };
    let (sender, answers) = mpsc::channel(1);
    let (answers, how) = Answers::new(answers, event_id);
    let giving = async move {
        let outcome = give(parts, &sender).await;
        // The sender is dropped after it: who finds no further piece finds this.
        let _ = how.set(call.ended(event_id, outcome));
    };
    tokio::spawn(giving.instrument(span));
    let mut response = answer::streaming(Body::new(answers));
    if let Ok(value) = HeaderValue::try_from(event_id.to_string()) {
        response.headers_mut().insert(EVENT_ID_KEY, value);
    }
    response
}

/// Hands on what comes. A client that takes nothing holds up what makes it, which has patience of its own.
async fn give(mut parts: BackupParts, sender: &mpsc::Sender<Bytes>) -> Result<(), Ended> {
    while let Some(part) = parts.recv().await {
        let BackupPart::Piece { data, rows, total_rows } = part.map_err(Ended::Failed)? else {
            return Ok(());
        };
        let mut bytes = BytesMut::new();
        let response = BackupStoreResponse { data, rows, total_rows };
        answer::frame(&response, &mut bytes).ok_or(Ended::Failed(TOO_LARGE))?;
        let left = sender.send(bytes.freeze()).await;
        left.map_err(|_| Ended::Refused(Refused::Cancelled))?;
    }
    // It must not look whole to its client.
    Err(Ended::Failed(ServiceError::Bug { reason: "a backup ended and did not say how" }))
}

/// Answers before there is a service to ask.
pub fn not_yet() -> Response<Body> {
    status::from_refused(Refused::Saturated).into_http()
}

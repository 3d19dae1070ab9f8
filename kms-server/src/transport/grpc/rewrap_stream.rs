//! RewrapStream: items as they come, answers in their order.
//!
//! What has come is done together, as a batch: one HSM worker, one append to the audit log, a record an item. Then the
//! answers must be on their way before more is read, so a client that takes none stops itself by the windows of HTTP/2.
//! The first item of a batch must come within the time of a call; from then on the batch has the time of a call to be done, and
//! its answers to be taken. So a stream lasts as long as it goes on, and no longer than its connection, or than its client wants.
//! Who calls is asked again for each batch, as it would be for each call. While nothing comes, a stream takes of the memory for
//! requests what an idle one does.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use kms_proto::v1::RewrapStreamResponse;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::body::Body;
use tracing::Instrument as _;

use super::arrive::Charge;
use super::bounds::{CONTEXT, NotDecoded, one, stream_item};
use super::gateway::{Call, EVENT_ID_KEY, Ended};
use super::messages::{Messages, Next};
use super::route::Answer;
use super::stream_answers::{Answers, HowEnded};
use super::{answer, decode, encode};
use crate::service::{RequestContext, Rewrap, ServiceError};
use crate::transport::health::Ending;
use crate::transport::limits::{IDLE_STREAM_BYTES, MAX_REFERENCE_BYTES, STREAM_BYTES};
use crate::transport::recheck::Trust;
use crate::transport::status::{self, Refused};

/// The most items that are done together: enough to pay for one append, few enough for quick answers.
const WINDOW_ITEMS: usize = 64;
/// How many bytes of messages are done together before none is added: the answers are about as large.
const WINDOW_BYTES: usize = 512 * 1024;
const TOO_LARGE: ServiceError =
    ServiceError::Bug { reason: "an answer is larger than a message may be" };

/// Items that are done together.
#[derive(Default)]
struct Window {
    references: Vec<String>,
    items: Vec<Result<Rewrap, ServiceError>>,
    bytes: usize,
    /// Why no further one follows.
    end: Option<Result<(), Refused>>,
}

pub(super) fn answer(call: Call, request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let (mut head, body) = request.into_parts();
        let ending = head.extensions.remove::<Ending>();
        let trust = head.extensions.remove::<Trust>();
        let (context, whole) = match call.open(&head.headers) {
            Ok(opened) => opened,
            Err(refused) => return Ok(call.refuse(refused)),
        };
        let event_id = context.event_id;
        let span = call.span(event_id);
        // One window of answers waits while the next is done.
        let (sender, answers) = mpsc::channel(1);
        let items = Items { messages: Messages::new(body), whole, ending, trust };
        let (answers, how) = Answers::new(answers, event_id);
        tokio::spawn(serve(call, context, items, (sender, how)).instrument(span));
        let mut response = answer::streaming(Body::new(answers));
        if let Ok(value) = HeaderValue::try_from(event_id.to_string()) {
            response.headers_mut().insert(EVENT_ID_KEY, value);
        }
        Ok(response)
    })
}

/// Serves the stream to its end. It ends too when the client leaves, or takes no answers until a deadline.
async fn serve(
    call: Call,
    context: RequestContext,
    items: Items,
    (sender, how): (mpsc::Sender<Bytes>, HowEnded),
) {
    let event_id = context.event_id;
    let outcome = work(&call, context, items, &sender).await;
    // Empty until here, and the sender is dropped after it: who finds no further answer finds this.
    let _ = how.set(call.ended(event_id, outcome));
}

async fn work(
    call: &Call,
    mut context: RequestContext,
    mut from: Items,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Ended> {
    let mut charge = call.charge(IDLE_STREAM_BYTES).map_err(Ended::Refused)?;
    loop {
        context.deadline = call.step(from.whole);
        // A client that never stops sending is never waited for, so no timer would end it.
        if call.left(context.deadline).is_zero() {
            return Err(Ended::Refused(Refused::TooLate));
        }
        let wait = Wait { call, deadline: context.deadline };
        let Window { references, items, end, .. } = from.window(wait, &mut charge).await;
        if !items.is_empty() {
            // They may have been long in coming: that is not taken from the time to do them.
            context.deadline = call.step(from.whole);
            call.still(from.trust.as_ref())?;
            // Only now: streams that nothing comes on must not take the memory of those who work.
            charge.grow_to(STREAM_BYTES).map_err(Ended::Refused)?;
            let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
            let results = call.kms().batch_rewrap(&context, items).await.map_err(Ended::Failed)?;
            context.items_before = context.items_before.saturating_add(count);
            let answers = framed(references, results).ok_or(Ended::Failed(TOO_LARGE))?;
            let left = call.left(context.deadline);
            match timeout(left, sender.send(answers)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Ended::Refused(Refused::Cancelled)),
                Err(_) => return Err(Ended::Refused(Refused::TooLate)),
            }
        }
        if let Some(end) = end {
            return end.map_err(Ended::Refused);
        }
    }
}

/// How long the first item may take to come.
#[derive(Clone, Copy)]
struct Wait<'c> {
    call: &'c Call,
    deadline: Instant,
}

/// Where the items come from.
struct Items {
    messages: Messages<Incoming>,
    /// When the client wants all of it to end.
    whole: Option<Instant>,
    /// Told when the connection ends: a stream that stays would hold up every drain.
    ending: Option<Ending>,
    /// Whose they are.
    trust: Option<Trust>,
}

impl Items {
    /// Waits for an item, and takes those that are there already with it. What ends the stream does so after these. Who has to
    /// wait gives back what a stream at work takes.
    async fn window(&mut self, wait: Wait<'_>, charge: &mut Charge<'_>) -> Window {
        let mut window = Window::default();
        while window.items.len() < WINDOW_ITEMS && window.bytes < WINDOW_BYTES {
            let next = match self.next(None).await {
                Ok(Next::NotYet) if window.items.is_empty() => {
                    charge.shrink_to(IDLE_STREAM_BYTES);
                    self.next(Some(wait.call.left(wait.deadline))).await
                }
                next => next,
            };
            let came = next.and_then(|next| match next {
                Next::Message(message) => Ok(Some((message.len(), item(&message)?))),
                Next::NotYet => Ok(None),
                Next::End => {
                    window.end = Some(Ok(()));
                    Ok(None)
                }
            });
            match came {
                Ok(Some((bytes, (reference, item)))) => {
                    window.bytes += bytes;
                    window.references.push(reference);
                    window.items.push(item);
                }
                Ok(None) => break,
                Err(refused) => {
                    window.end = Some(Err(refused));
                    break;
                }
            }
        }
        window
    }

    async fn next(&mut self, wait: Option<Duration>) -> Result<Next, Refused> {
        let Self { messages, ending, .. } = self;
        let Some(ending) = ending else { return messages.next(wait).await };
        tokio::select! {
            // What has come is done, whoever ends the connection; further items are for the next one.
            biased;
            () = ending.triggered() => Err(Refused::Ending),
            next = messages.next(wait) => next,
        }
    }
}

/// Decodes a message: an item that is refused travels on as its error, to be audited with the others.
fn item(message: &Bytes) -> Result<(String, Result<Rewrap, ServiceError>), Refused> {
    let malformed = |_| Refused::Malformed;
    let (reference, item) = stream_item(message).map_err(malformed)?;
    let item = match one(CONTEXT, decode::rewrap)(item) {
        Ok(item) => Ok(item),
        Err(NotDecoded::Refused(error)) => Err(error),
        Err(NotDecoded::Malformed) => return Err(Refused::Malformed),
    };
    if reference.len() > MAX_REFERENCE_BYTES {
        let text = format!("must be at most {MAX_REFERENCE_BYTES} bytes");
        return Ok((reference, Err(ServiceError::field("reference", text))));
    }
    Ok((reference, item))
}

fn framed(
    references: Vec<String>,
    results: Vec<Result<crate::service::Rewrapped, ServiceError>>,
) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    for (reference, result) in references.into_iter().zip(results) {
        let (status, result) = match result {
            Ok(result) => (status::item_ok(), Some(encode::rewrapped(result))),
            Err(error) => (status::item(&error), None),
        };
        answer::frame(
            &RewrapStreamResponse { reference, status: Some(status), result },
            &mut bytes,
        )?;
    }
    Some(bytes.freeze())
}

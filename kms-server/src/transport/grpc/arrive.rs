//! The arrival of a request: one message, whole, to the end of its stream, before anything of it is decoded.
//!
//! A client that has a certificate may still send slowly, never finish, or open many requests at once. So a body has to
//! be there by the deadline of its request, counted from its headers, and what is beyond the first bytes of it is taken
//! from one budget that all requests share. Only raw bytes wait here: they are as many as were sent.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::time::timeout;

use crate::transport::limits::MAX_MESSAGE_BYTES;
use crate::transport::status::Refused;

/// Flag and length before a gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// Bytes of a body that are not taken from the budget: one DATA frame of the usual size, more than a small Wrap needs.
pub(super) const FREE_BYTES: usize = 16 * 1024;

/// The bytes that bodies may still take beyond [`FREE_BYTES`] each.
#[derive(Debug)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    pub(super) const fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// What one request has taken from the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Charge<'b> {
    budget: &'b Budget,
    bytes: usize,
}

impl<'b> Charge<'b> {
    /// Takes bytes for something that is not a message, or fails when so many are not left.
    pub(super) fn of(budget: &'b Budget, bytes: usize) -> Result<Self, Refused> {
        let mut charge = Self { budget, bytes: 0 };
        charge.grow_to(bytes)?;
        Ok(charge)
    }

    /// Takes what is missing to so many bytes, or fails when that is not left.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Refused> {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && !self.budget.take(more) {
            return Err(Refused::Saturated);
        }
        self.bytes += more;
        Ok(())
    }

    /// Gives back what is more than so many bytes.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.budget.0.fetch_add(less, Ordering::Relaxed);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

/// A message that is there, and what it takes from the budget as long as it is worked on.
#[derive(Debug)]
pub(super) struct Arrived<'b> {
    pub(super) message: Bytes,
    pub(super) charge: Charge<'b>,
}

/// Reads the one message of a body. `left` says how long the rest may take; it is asked only when something is missing.
pub(super) async fn message<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    budget: &Budget,
    left: impl Fn() -> Duration,
) -> Result<Arrived<'_>, Refused> {
    let mut reading = Reading::new(budget);
    while !body.is_end_stream() {
        let mut frame = body.frame();
        // What is there already costs no timer.
        let first_look = poll_fn(|context| Poll::Ready(Pin::new(&mut frame).poll(context))).await;
        let next = match first_look {
            Poll::Ready(next) => next,
            Poll::Pending => timeout(left(), frame).await.map_err(|_| Refused::TooLate)?,
        };
        match next {
            None => break,
            Some(Err(_)) => return Err(Refused::Cancelled),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => reading.add(data)?,
                // Trailers end a request; what they say is for nobody here.
                Err(_) => break,
            },
        }
    }
    reading.finish()
}

enum Buffer {
    /// The usual request: all of it came in one frame, and is not copied.
    One(Bytes),
    Many(BytesMut),
}

struct Reading<'b> {
    buffer: Buffer,
    charge: Charge<'b>,
    /// Length of message and prefix, once the prefix is there.
    whole: Option<usize>,
}

impl<'b> Reading<'b> {
    const fn new(budget: &'b Budget) -> Self {
        let charge = Charge { budget, bytes: 0 };
        Self { buffer: Buffer::One(Bytes::new()), charge, whole: None }
    }

    fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Buffer::One(bytes) => bytes,
            Buffer::Many(bytes) => bytes,
        }
    }

    fn add(&mut self, data: Bytes) -> Result<(), Refused> {
        if data.is_empty() {
            return Ok(());
        }
        let length = self.bytes().len() + data.len();
        self.charge.grow_to(length.saturating_sub(FREE_BYTES))?;
        match &mut self.buffer {
            Buffer::One(first) if first.is_empty() => self.buffer = Buffer::One(data),
            Buffer::One(first) => {
                // Memory that is reserved and not written is not held.
                let mut many = BytesMut::with_capacity(self.whole.unwrap_or(length).max(length));
                many.extend_from_slice(first);
                many.extend_from_slice(&data);
                self.buffer = Buffer::Many(many);
            }
            Buffer::Many(bytes) => bytes.extend_from_slice(&data),
        }
        if self.whole.is_none() {
            self.whole = whole(self.bytes(), MAX_MESSAGE_BYTES)?;
        }
        if self.whole.is_some_and(|whole| length > whole) {
            return Err(Refused::Malformed);
        }
        Ok(())
    }

    fn finish(self) -> Result<Arrived<'b>, Refused> {
        if self.whole != Some(self.bytes().len()) {
            return Err(Refused::Malformed);
        }
        let bytes = match self.buffer {
            Buffer::One(bytes) => bytes,
            Buffer::Many(bytes) => bytes.freeze(),
        };
        Ok(Arrived { message: bytes.slice(PREFIX_BYTES..), charge: self.charge })
    }
}

/// Reads the prefix, when it is there: no compression, and a length within the bound.
pub(super) fn whole(bytes: &[u8], most: usize) -> Result<Option<usize>, Refused> {
    let Some((&[flag, a, b, c, d], _)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    match (flag, length) {
        (0, length) if length <= most => Ok(Some(length + PREFIX_BYTES)),
        (0, _) => Err(Refused::TooLarge),
        _ => Err(Refused::Malformed),
    }
}

#[cfg(test)]
#[path = "arrive_tests.rs"]
mod tests;

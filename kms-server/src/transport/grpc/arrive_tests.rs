//! Tests of arrival: what is one whole message, what it may take, and how long.

use std::convert::Infallible;

use futures_util::stream::{self, Stream, StreamExt as _};
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::*;

const NO_TIME: fn() -> Duration = || Duration::ZERO;

fn frames(parts: &[&[u8]]) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Unpin + use<> {
    let frames: Vec<_> = parts.iter().map(|part| Bytes::copy_from_slice(part)).collect();
    stream::iter(frames.into_iter().map(|bytes| Ok(Frame::data(bytes))))
}

async fn read(parts: &[&[u8]]) -> Result<Vec<u8>, Refused> {
    let budget = Budget::new(0);
    let arrived = message(StreamBody::new(frames(parts)), &budget, NO_TIME).await?;
    Ok(arrived.message.to_vec())
}

/// A prefix that announces so many bytes.
fn prefix(length: usize) -> Vec<u8> {
    [&[0], &u32::try_from(length).unwrap().to_be_bytes()[..]].concat()
}

#[tokio::test]
async fn a_message_is_read_however_it_is_cut() {
    assert_eq!(read(&[&[0, 0, 0, 0, 0]]).await, Ok(vec![]));
    assert_eq!(read(&[&[0, 0, 0, 0, 2, 7, 8]]).await, Ok(vec![7, 8]));
    assert_eq!(read(&[&[0, 0], &[], &[0, 0, 2, 7], &[8]]).await, Ok(vec![7, 8]));
    let bytes = [0, 0, 0, 0, 2, 7, 8].map(|byte| [byte]);
    let parts: Vec<&[u8]> = bytes.iter().map(|byte| &byte[..]).collect();
    assert_eq!(read(&parts).await, Ok(vec![7, 8]));
}

#[tokio::test]
async fn what_is_not_one_whole_message_is_malformed() {
    let malformed: [&[&[u8]]; 7] = [
        &[],
        &[&[]],
        &[&[0, 0, 0, 0]],
        &[&[0, 0, 0, 0, 2, 7]],
        // One byte too many, and a second message.
        &[&[0, 0, 0, 0, 1, 7, 8]],
        &[&[0, 0, 0, 0, 0], &[0, 0, 0, 0, 0]],
        // Compressed.
        &[&[1, 0, 0, 0, 1, 7]],
    ];
    for parts in malformed {
        assert_eq!(read(parts).await, Err(Refused::Malformed), "{parts:?}");
    }
}

#[tokio::test]
async fn a_message_is_read_up_to_the_bound_and_refused_when_more_is_announced() {
    let budget = Budget::new(MAX_MESSAGE_BYTES);
    let (head, body) = (prefix(MAX_MESSAGE_BYTES), vec![7; MAX_MESSAGE_BYTES]);
    let parts = StreamBody::new(frames(&[&head, &body]));
    let arrived = message(parts, &budget, NO_TIME).await.unwrap();
    assert_eq!(arrived.message.len(), MAX_MESSAGE_BYTES);
    assert_eq!(read(&[&prefix(MAX_MESSAGE_BYTES + 1)]).await, Err(Refused::TooLarge));
}

#[tokio::test]
async fn a_body_that_stays_away_is_too_late() {
    let budget = Budget::new(0);
    for parts in [&[][..], &[&[0, 0, 0, 0, 0][..]]] {
        // The whole message counts as missing as long as its stream has not ended.
        let body = StreamBody::new(frames(parts).chain(stream::pending()));
        let refused = message(body, &budget, NO_TIME).await.unwrap_err();
        assert_eq!(refused, Refused::TooLate);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_cancelled() {
    let broken = stream::iter([Err::<Frame<Bytes>, _>("reset")]);
    let refused = message(StreamBody::new(broken), &Budget::new(0), NO_TIME).await.unwrap_err();
    assert_eq!(refused, Refused::Cancelled);
}

#[tokio::test]
async fn trailers_end_a_message() {
    let trailers = Ok(Frame::trailers(http::HeaderMap::new()));
    let body = StreamBody::new(frames(&[&[0, 0, 0, 0, 0]]).chain(stream::iter([trailers])));
    assert!(message(body, &Budget::new(0), NO_TIME).await.is_ok());
}

#[tokio::test]
async fn the_first_bytes_are_free_and_the_rest_is_taken_from_the_budget_until_the_end() {
    let body = |length: usize| {
        let bytes = [prefix(length - PREFIX_BYTES), vec![0; length - PREFIX_BYTES]].concat();
        StreamBody::new(frames(&[&bytes]))
    };
    let none = Budget::new(0);
    assert!(message(body(FREE_BYTES), &none, NO_TIME).await.is_ok());
    let refused = message(body(FREE_BYTES + 1), &none, NO_TIME).await.unwrap_err();
    assert_eq!(refused, Refused::Saturated);

    let budget = Budget::new(10);
    let first = message(body(FREE_BYTES + 6), &budget, NO_TIME).await.unwrap();
    assert_eq!(first.charge.bytes, 6);
    let _second = message(body(FREE_BYTES + 4), &budget, NO_TIME).await.unwrap();
    let refused = message(body(FREE_BYTES + 1), &budget, NO_TIME).await.unwrap_err();
    assert_eq!(refused, Refused::Saturated);
    drop(first);
    assert!(message(body(FREE_BYTES + 6), &budget, NO_TIME).await.is_ok());
}

#[tokio::test]
async fn a_body_that_fails_gives_back_what_it_took() {
    let budget = Budget::new(100);
    let bytes = [prefix(FREE_BYTES * 2), vec![0; FREE_BYTES + 50]].concat();
    let body = StreamBody::new(frames(&[&bytes]).chain(stream::pending()));
    assert_eq!(message(body, &budget, NO_TIME).await.unwrap_err(), Refused::TooLate);
    assert_eq!(budget.0.load(Ordering::Relaxed), 100);
}

#[test]
fn a_stream_takes_what_is_left_and_one_byte_more_is_saturated() {
    let budget = Budget::new(10);
    let taken = Charge::of(&budget, 10).unwrap();
    assert_eq!(Charge::of(&budget, 1).unwrap_err(), Refused::Saturated);
    drop(taken);
    assert_eq!(Charge::of(&budget, 11).unwrap_err(), Refused::Saturated);
    assert!(Charge::of(&budget, 10).is_ok());
}

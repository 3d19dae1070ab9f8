//! What every error of ours tells, also on those that tonic's own services make: they refuse what they cannot read, and
//! what reflection does not know, with a bare code.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tonic::{Code, Status};

use super::routes::is_grpc;
use crate::transport::status;

/// Gives a status without details its details, whether it stands in the headers or behind messages.
pub(super) async fn explain(request: Request, next: Next) -> Response {
    if !is_grpc(&request) {
        return next.run(request).await;
    }
    let response = next.run(request).await;
    if let Some(explained) = explained(response.headers()) {
        return explained.into_http();
    }
    response.map(|body| {
        axum::body::Body::new(body.map_frame(|frame| match frame.into_trailers() {
            Ok(trailers) => Frame::trailers(with_details(trailers)),
            Err(other) => other,
        }))
    })
}

fn with_details(trailers: HeaderMap) -> HeaderMap {
    let Some(explained) = explained(&trailers) else { return trailers };
    let mut fresh = HeaderMap::new();
    // Fails only for a text that is no header; ours are.
    match explained.add_header(&mut fresh) {
        Ok(()) => fresh,
        Err(_) => trailers,
    }
}

fn explained(headers: &HeaderMap) -> Option<Status> {
    let bare = Status::from_header_map(headers)?;
    (bare.code() != Code::Ok && bare.details().is_empty()).then(|| status::from_bare(&bare))
}

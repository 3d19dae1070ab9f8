//! grpc.health.v1 on the public listener: for callers who are known, within the bounds of every other call.

use http::Request;
use hyper::body::Incoming;
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec as _, EncodeBody, SingleMessageCompressionOverride};
use tonic_health::pb::health_server::Health as _;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;

use super::answer;
use super::gateway::Call;
use super::route::Answer;
use crate::transport::health::{Ending, HealthService};
use crate::transport::status::Refused;

pub(super) fn check(call: Call, request: Request<Incoming>, health: HealthService) -> Answer {
    Box::pin(async move {
        let asked = match read(&call, request).await {
            Ok(asked) => asked,
            Err(refused) => return Ok(call.refuse(refused)),
        };
        let answered = health.check(tonic::Request::new(asked)).await;
        let sent = answered.map(|response| answer::with(response.get_ref()).unwrap_or_default());
        Ok(sent.unwrap_or_else(Status::into_http))
    })
}

/// Tells every change until the connection is told to end.
pub(super) fn watch(call: Call, request: Request<Incoming>, health: HealthService) -> Answer {
    Box::pin(async move {
        let ending = request.extensions().get::<Ending>().cloned();
        let asked = match read(&call, request).await {
            Ok(asked) => asked,
            Err(refused) => return Ok(call.refuse(refused)),
        };
        let mut asking = tonic::Request::new(asked);
        if let Some(ending) = ending {
            asking.extensions_mut().insert(ending);
        }
        let changes = match health.watch(asking).await {
            Ok(changes) => changes.into_inner(),
            Err(status) => return Ok(status.into_http()),
        };
        let encoder = ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default().encoder();
        let whole = SingleMessageCompressionOverride::default();
        let body = EncodeBody::new_server(encoder, changes, None, whole, None);
        Ok(answer::streaming(Body::new(body)))
    })
}

async fn read(call: &Call, request: Request<Incoming>) -> Result<HealthCheckRequest, Refused> {
    let (arrived, _) = call.message(request).await?;
    HealthCheckRequest::decode(arrived.message).map_err(|_| Refused::Malformed)
}

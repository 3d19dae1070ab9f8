//! From the path of a request to its method.
//!
//! A plain match: tonic's own router costs a microsecond, and its services decode a message before anyone could ask
//! who sent it and how large it becomes. Who calls is asked here, for every path, before the message is read.

use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tower::Service;

use super::gateway::{Call, Gateway};
use super::{alias, crypto, health, import, key, rewrap_stream};
use crate::transport::health::{CHECK_PATH, HealthService, WATCH_PATH};
use crate::transport::method::Method;
use crate::transport::status::Refused;

/// An answer on its way.
pub(super) type Answer = BoxFuture<Response<Body>, Infallible>;

/// Everything that the public listener serves.
#[derive(Clone)]
pub struct GrpcService(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    health: HealthService,
}

impl GrpcService {
    /// Puts the services together.
    pub fn new(gateway: &Gateway, health: HealthService) -> Self {
        Self(Arc::new(Inner { gateway: gateway.clone(), health }))
    }
}

impl fmt::Debug for GrpcService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrpcService")
    }
}

impl Service<Request<Incoming>> for GrpcService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        let method = Method::from_path(request.uri().path());
        match self.0.gateway.admit(method, &request) {
            Ok(call) => dispatch(call, method, request, &self.0.health),
            Err(status) => Box::pin(ready(Ok(status.into_http()))),
        }
    }
}

fn dispatch(
    call: Call,
    method: Method,
    request: Request<Incoming>,
    health: &HealthService,
) -> Answer {
    let answers = match method {
        Method::Wrap => crypto::wrap,
        Method::Unwrap => crypto::unwrap,
        Method::Rewrap => crypto::rewrap,
        Method::GenerateDataKey => crypto::generate_data_key,
        Method::BatchWrap => crypto::batch_wrap,
        Method::BatchUnwrap => crypto::batch_unwrap,
        Method::BatchRewrap => crypto::batch_rewrap,
        Method::RewrapStream => rewrap_stream::answer,
        Method::BatchGenerateDataKey => crypto::batch_generate_data_key,
        Method::DescribeCiphertext => crypto::describe_ciphertext,
        Method::GenerateRandom => crypto::generate_random,
        Method::CreateKey => key::create_key,
        Method::DescribeKey => key::describe_key,
        Method::ListKeys => key::list_keys,
        Method::UpdateKey => key::update_key,
        Method::RotateKey => key::rotate_key,
        Method::StageKeyVersion => key::stage_key_version,
        Method::ActivateKeyVersion => key::activate_key_version,
        Method::DiscardKeyVersion => key::discard_key_version,
        Method::DisableKey => key::disable_key,
        Method::EnableKey => key::enable_key,
        Method::ScheduleKeyDestruction => key::schedule_key_destruction,
        Method::CancelKeyDestruction => key::cancel_key_destruction,
        Method::DescribeKeyVersion => key::describe_key_version,
        Method::ListKeyVersions => key::list_key_versions,
        Method::SuspendKeyVersion => key::suspend_key_version,
        Method::ResumeKeyVersion => key::resume_key_version,
        Method::DeactivateKeyVersion => key::deactivate_key_version,
        Method::CompromiseKeyVersion => key::compromise_key_version,
        Method::ScheduleKeyVersionDestruction => key::schedule_key_version_destruction,
        Method::CancelKeyVersionDestruction => key::cancel_key_version_destruction,
        Method::CreateImportJob => import::create_import_job,
        Method::DescribeImportJob => import::describe_import_job,
        Method::ListImportJobs => import::list_import_jobs,
        Method::CancelImportJob => import::cancel_import_job,
        Method::ImportKey => import::import_key,
        Method::ImportKeyVersion => import::import_key_version,
        Method::RegisterConsumer => key::register_consumer,
        Method::ListConsumers => key::list_consumers,
        Method::RemoveConsumer => key::remove_consumer,
        Method::CreateAlias => alias::create_alias,
        Method::UpdateAlias => alias::update_alias,
        Method::DeleteAlias => alias::delete_alias,
        Method::DescribeAlias => alias::describe_alias,
        Method::ListAliases => alias::list_aliases,
        Method::ListKeyHistory => key::list_key_history,
        Method::GetVersionUsage => key::get_version_usage,
        // The admin listener has it.
        Method::BackupStore | Method::Unknown => return other(call, request, health),
    };
    answers(call, request)
}

/// Answers what is no method of the contract.
fn other(call: Call, request: Request<Incoming>, service: &HealthService) -> Answer {
    match request.uri().path() {
        CHECK_PATH => health::check(call, request, service.clone()),
        WATCH_PATH => health::watch(call, request, service.clone()),
        _ => Box::pin(ready(Ok(call.refuse(Refused::MethodUnknown)))),
    }
}

//! KeyService: one line a method. What they share is in `gateway`.

use http::Request;
use hyper::body::Incoming;
use kms_core::name::KeyOrAlias;

use super::bounds::{CREATE_KEY, NONE, UPDATE_KEY, one};
use super::gateway::Call;
use super::route::Answer;
use super::{decode, encode};
use crate::service::Kms;

/// A method that changes something.
macro_rules! mutation {
    ($method:ident, $bounds:expr, $decode:path, $encode:path) => {
        pub(super) fn $method(call: Call, request: Request<Incoming>) -> Answer {
            Box::pin(async move {
                let decode = one($bounds, $decode);
                let work = |kms: Kms, context, request| async move {
                    kms.$method(&context, request).await
                };
                Ok(call.run(request, decode, work, $encode).await)
            })
        }
    };
}

/// A method that reads.
macro_rules! reading {
    ($method:ident, $decode:path, |$asked:ident| $given:expr, $encode:path) => {
        pub(super) fn $method(call: Call, request: Request<Incoming>) -> Answer {
            Box::pin(async move {
                let decode = one(NONE, $decode);
                let work =
                    |kms: Kms, context, $asked| async move { kms.$method(&context, $given).await };
                Ok(call.run(request, decode, work, $encode).await)
            })
        }
    };
}

pub(super) use {mutation, reading};

mutation!(create_key, CREATE_KEY, decode::create_key, encode::key);
mutation!(update_key, UPDATE_KEY, decode::update_key, encode::key);
mutation!(rotate_key, NONE, decode::rotate_key, encode::rotated);
mutation!(stage_key_version, NONE, decode::stage, encode::staged);
mutation!(activate_key_version, NONE, decode::activate, encode::activated);
mutation!(discard_key_version, NONE, decode::discard, encode::version);
mutation!(register_consumer, NONE, decode::register_consumer, encode::consumer);
mutation!(remove_consumer, NONE, decode::remove_consumer, encode::consumer);
mutation!(disable_key, NONE, decode::disable_key, encode::key);
mutation!(enable_key, NONE, decode::enable_key, encode::key);
mutation!(schedule_key_destruction, NONE, decode::schedule_key, encode::key);
mutation!(cancel_key_destruction, NONE, decode::cancel_key, encode::key);
mutation!(suspend_key_version, NONE, decode::suspend, encode::version);
mutation!(resume_key_version, NONE, decode::resume, encode::version);
mutation!(deactivate_key_version, NONE, decode::deactivate, encode::version);
mutation!(compromise_key_version, NONE, decode::compromise, encode::compromised);
mutation!(schedule_key_version_destruction, NONE, decode::schedule, encode::version);
mutation!(cancel_key_version_destruction, NONE, decode::cancel, encode::version);
reading!(list_consumers, decode::list_consumers, |key| &key, encode::consumers);
reading!(list_key_history, decode::list_key_history, |list| list, encode::history);
reading!(get_version_usage, decode::get_version_usage, |name| &name, encode::usage);
reading!(list_keys, decode::list_keys, |list| list, encode::keys);
reading!(describe_key_version, decode::describe_key_version, |name| &name, encode::version);
reading!(list_key_versions, decode::list_key_versions, |list| list, encode::versions);

pub(super) fn describe_key(call: Call, request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let decode = one(NONE, decode::describe_key);
        let work = |kms: Kms, context, name: KeyOrAlias| async move {
            match name {
                KeyOrAlias::Key(name) => kms.describe_key(&context, &name).await,
                KeyOrAlias::Alias(name) => kms.describe_key_of_alias(&context, &name).await,
            }
        };
        Ok(call.run(request, decode, work, encode::key).await)
    })
}

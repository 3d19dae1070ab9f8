//! `kms key consumer ...`.

use kms_core::name::ConsumerName;

use super::{Session, request_id};
use crate::args::key::{AddConsumer, ConsumerCommand, OfKey, RemoveConsumer};
use crate::client::Client;
use crate::context::ResolvedContext;
use crate::error::CliError;
use crate::output::consumer::{ConsumerView, ConsumersView};
use crate::output::show;

/// Runs a verb about consumers.
pub fn run(session: &Session, command: ConsumerCommand) -> Result<(), CliError> {
    match command {
        ConsumerCommand::Add(args) => add(session, args),
        ConsumerCommand::List(args) => list(session, &args),
        ConsumerCommand::Remove(args) => remove(session, args),
    }
}

fn add(session: &Session, args: AddConsumer) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = consumer_name(&context, &args.key, &args.consumer)?;
    let consumer = session.with_client(&context, async |client: Client| {
        Ok(client.register_consumer(&name, args.description, id).await?)
    })?;
    show(session.format, &ConsumerView::from(consumer))
}

fn list(session: &Session, args: &OfKey) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let consumers =
        session.with_client(&context, async |client| Ok(client.list_consumers(&key).await?))?;
    let consumers = consumers.into_iter().map(ConsumerView::from).collect();
    show(session.format, &ConsumersView { consumers })
}

fn remove(session: &Session, args: RemoveConsumer) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = consumer_name(&context, &args.key, &args.consumer)?;
    let consumer = session.with_client(&context, async |client: Client| {
        Ok(client.remove_consumer(&name, args.reason, id).await?)
    })?;
    show(session.format, &ConsumerView::from(consumer))
}

fn consumer_name(
    context: &ResolvedContext,
    key: &str,
    consumer: &str,
) -> Result<ConsumerName, CliError> {
    ConsumerName::new(context.key_name(key)?, consumer)
        .map_err(|error| CliError::Usage(format!("consumer `{consumer}`: {error}")))
}

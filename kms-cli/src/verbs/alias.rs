//! `kms alias ...`: thin translations onto KeyService.

use super::key::{pages, tell_of_more};
use super::{Session, request_id};
use crate::args::alias::{
    AliasCommand, CreateAlias, DeleteAlias, DescribeAlias, ListAliases, UpdateAlias,
};
use crate::client::Client;
use crate::error::CliError;
use crate::output::alias::{AliasView, AliasesView};
use crate::output::show;

/// Runs one verb.
pub fn run(session: &Session, command: AliasCommand) -> Result<(), CliError> {
    match command {
        AliasCommand::Create(args) => create(session, args),
        AliasCommand::Update(args) => update(session, args),
        AliasCommand::Delete(args) => delete(session, args),
        AliasCommand::Describe(args) => describe(session, &args),
        AliasCommand::List(args) => list(session, args),
    }
}

fn create(session: &Session, args: CreateAlias) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let (name, key) = (context.alias_name(&args.alias)?, context.key_or_alias(&args.key)?);
    let alias = session.with_client(&context, async |client: Client| {
        Ok(client.create_alias(&name, &key, args.reason, id).await?)
    })?;
    show(session.format, &AliasView::from(alias))
}

fn update(session: &Session, args: UpdateAlias) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let (name, key) = (context.alias_name(&args.alias)?, context.key_or_alias(&args.key)?);
    let alias = session.with_client(&context, async |client: Client| {
        let revision = match args.revision {
            Some(revision) => revision,
            None => client.describe_alias(&name).await?.revision,
        };
        Ok(client.update_alias(&name, &key, revision, args.reason, id).await?)
    })?;
    show(session.format, &AliasView::from(alias))
}

fn delete(session: &Session, args: DeleteAlias) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = context.alias_name(&args.alias)?;
    let alias = session.with_client(&context, async |client: Client| {
        let revision = match args.revision {
            Some(revision) => revision,
            None => client.describe_alias(&name).await?.revision,
        };
        Ok(client.delete_alias(&name, revision, args.reason, id).await?)
    })?;
    show(session.format, &AliasView::from(alias))
}

fn describe(session: &Session, args: &DescribeAlias) -> Result<(), CliError> {
    let context = session.context()?;
    let name = context.alias_name(&args.alias)?;
    let alias =
        session.with_client(&context, async |client| Ok(client.describe_alias(&name).await?))?;
    show(session.format, &AliasView::from(alias))
}

fn list(session: &Session, args: ListAliases) -> Result<(), CliError> {
    let context = session.context()?;
    let key = args.key.as_deref().map(|key| context.key_name(key)).transpose()?;
    let tenant = match &key {
        Some(key) => key.tenant().clone(),
        None => context.tenant_name()?,
    };
    let page = session.with_client(&context, async |client: Client| {
        let turn =
            async |size, token| client.list_aliases(&tenant, key.as_ref(), size, token).await;
        Ok(pages(args.list, turn).await?)
    })?;
    let aliases = page.entries.into_iter().map(AliasView::from).collect();
    let view = AliasesView { aliases, next_page_token: page.next_page_token };
    show(session.format, &view)?;
    tell_of_more(session, &view.next_page_token);
    Ok(())
}

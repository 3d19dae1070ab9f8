//! `kms key ...`: thin translations onto KeyService.

use std::collections::BTreeSet;
use std::io::Write as _;

use kms_core::id::KeyVersion;
use kms_core::name::{KeyName, VersionName};
use kms_proto::v1;

use super::{Session, request_id};
use crate::args::key::{
    About, CancelDestruction, ChangeKeyState, ChangeState, Create, Describe, KeyCommand, List,
    OfKey, Protection, RequestIdArg, Rotate, RotationCommand, ScheduleDestruction, Sensitivity,
    SetRotation, Stage, Update, Usage, Versions,
};
use crate::args::list::ListKeys;
use crate::client::keys::{
    Destruction, KeyChange, KeyQuery, KeyStateChange, MAX_PAGE_SIZE, NewKey, Page, Rotation,
    StateChange,
};
use crate::client::{Client, ClientError};
use crate::context::ResolvedContext;
use crate::error::CliError;
use crate::output::history::{CompromiseView, HistoryEntryView, HistoryView};
use crate::output::usage::UsageView;
use crate::output::view::{
    KeyView, KeysView, RotationPlanView, RotationView, VersionView, VersionsView,
};
use crate::output::{Format, show};
use crate::terminal::harmless;

/// Runs one verb.
pub fn run(session: &Session, command: KeyCommand) -> Result<(), CliError> {
    match command {
        KeyCommand::Create(args) => create(session, args),
        KeyCommand::Import(args) => super::import::import(session, args),
        KeyCommand::ImportVersion(args) => super::import::import_version(session, args),
        KeyCommand::List(args) => list(session, args),
        KeyCommand::Describe(args) => describe(session, &args),
        KeyCommand::Versions(args) => versions(session, args),
        KeyCommand::Rotate(args) => rotate(session, args),
        KeyCommand::Stage(args) => stage(session, args),
        KeyCommand::Activate(args) => activate(session, args),
        KeyCommand::Discard(args) => change_state(session, args, StateChange::Discard),
        KeyCommand::Update(args) => update(session, args),
        KeyCommand::Disable(args) => change_key_state(session, args, KeyStateChange::Disable),
        KeyCommand::Enable(args) => change_key_state(session, args, KeyStateChange::Enable),
        KeyCommand::Suspend(args) => change_state(session, args, StateChange::Suspend),
        KeyCommand::Resume(args) => change_state(session, args, StateChange::Resume),
        KeyCommand::Deactivate(args) => change_state(session, args, StateChange::Deactivate),
        KeyCommand::Compromise(args) => compromise(session, args),
        KeyCommand::ScheduleDestruction(args) => {
            let ScheduleDestruction {
                change,
                whole_key,
                window,
                allow_recent_use,
                allow_consumers,
            } = args;
            let destruction = Destruction { window, allow_recent_use, allow_consumers };
            if whole_key {
                let to = KeyStateChange::ScheduleDestruction(destruction);
                return change_key_state(session, of_key(change), to);
            }
            change_state(session, change, StateChange::ScheduleDestruction(destruction))
        }
        KeyCommand::CancelDestruction(CancelDestruction { change, whole_key: true }) => {
            change_key_state(session, of_key(change), KeyStateChange::CancelDestruction)
        }
        KeyCommand::CancelDestruction(CancelDestruction { change, whole_key: false }) => {
            change_state(session, change, StateChange::CancelDestruction)
        }
        KeyCommand::Consumer(command) => super::consumer::run(session, command),
        KeyCommand::Usage(args) => usage(session, &args),
        KeyCommand::Rotation(RotationCommand::Set(args)) => set_rotation(session, &args),
        KeyCommand::Rotation(RotationCommand::Show(args)) => show_rotation(session, &args),
        KeyCommand::History(args) => history(session, args),
    }
}

fn create(session: &Session, args: Create) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let new = new_key(context.key_name(&args.key)?, args.about)?;
    let key =
        session.with_client(&context, async |client| Ok(client.create_key(new, id).await?))?;
    show(session.format, &KeyView::from(key))
}

/// What is said about a key that is to be made.
pub(super) fn new_key(name: KeyName, about: About) -> Result<NewKey, CliError> {
    Ok(NewKey {
        name,
        owner: about.owner,
        sensitivity: sensitivity(about.sensitivity),
        usage: about.usage,
        cryptoperiod: about.cryptoperiod,
        recipient_usage_period: about.recipient_usage_period,
        rotation_period: about.rotation_period,
        protection: match about.protection {
            Protection::HsmWrapped => v1::Protection::HsmWrapped,
            Protection::HsmResident => v1::Protection::HsmResident,
        },
        acknowledge_no_backup: about.acknowledge_no_backup,
        labels: distinct(about.labels)?,
    })
}

fn describe(session: &Session, args: &Describe) -> Result<(), CliError> {
    let context = session.context()?;
    if args.key.contains("/versions/") {
        let name = context.version_name(&args.key)?;
        let version = session
            .with_client(&context, async |client| Ok(client.describe_version(&name).await?))?;
        return show(session.format, &VersionView::from(version));
    }
    let name = context.key_or_alias(&args.key)?;
    let key = session
        .with_client(&context, async |client| Ok(client.describe_key_or_alias(&name).await?))?;
    show(session.format, &KeyView::from(key))
}

fn list(session: &Session, args: ListKeys) -> Result<(), CliError> {
    let context = session.context()?;
    let tenant = context.tenant_name()?;
    let query = KeyQuery { filter: args.whole_filter(), order_by: args.order_by.clone() };
    let page = session.with_client(&context, async |client: Client| {
        let turn = async |size, token| client.list_keys(&tenant, &query, size, token).await;
        Ok(pages(args.list, turn).await?)
    })?;
    let keys = page.entries.into_iter().map(KeyView::from).collect();
    let view = KeysView { keys, next_page_token: page.next_page_token };
    show(session.format, &view)?;
    tell_of_more(session, &view.next_page_token);
    Ok(())
}

/// A table does not show where to go on, so that a list which was cut off would look whole.
pub(super) fn tell_of_more(session: &Session, next_page_token: &str) {
    if session.format == Format::Table && !next_page_token.is_empty() {
        let token = harmless(next_page_token);
        let text = format!("more follow: raise --limit, or go on with --page-token {token}\n");
        // Nobody may read it: the list itself is there.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Labels are a map on the wire, where the last of two would win in silence.
fn distinct(labels: Vec<(String, String)>) -> Result<Vec<(String, String)>, CliError> {
    let mut keys = BTreeSet::new();
    match labels.iter().find(|(key, _)| !keys.insert(key)) {
        Some((twice, _)) => Err(CliError::Usage(format!("label `{twice}` is given twice"))),
        None => Ok(labels),
    }
}

fn versions(session: &Session, args: Versions) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let page = session.with_client(&context, async |client: Client| {
        let turn = async |size, token| client.list_versions(&key, size, token).await;
        Ok(pages(args.list, turn).await?)
    })?;
    let versions = page.entries.into_iter().map(VersionView::from).collect();
    let view = VersionsView { versions, next_page_token: page.next_page_token };
    show(session.format, &view)?;
    tell_of_more(session, &view.next_page_token);
    Ok(())
}

fn rotate(session: &Session, args: Rotate) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = context.key_name(&args.key)?;
    let (key, version) = session.with_client(&context, async |client: Client| {
        Ok(client.rotate_key(&name, args.reason, id).await?)
    })?;
    show(session.format, &RotationView { key: key.into(), version: version.into() })
}

fn stage(session: &Session, args: Stage) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = context.key_name(&args.key)?;
    let (key, version) = session.with_client(&context, async |client: Client| {
        Ok(client.stage_version(&name, args.activate_at, args.reason, id).await?)
    })?;
    show(session.format, &RotationView { key: key.into(), version: version.into() })
}

fn activate(session: &Session, args: ChangeState) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = version_name(&context, &args.key, args.number)?;
    let (key, version) = session.with_client(&context, async |client: Client| {
        Ok(client.activate_version(&name, args.reason, id).await?)
    })?;
    show(session.format, &RotationView { key: key.into(), version: version.into() })
}

fn update(session: &Session, args: Update) -> Result<(), CliError> {
    let relabelled = args.no_labels || !args.labels.is_empty();
    let change = KeyChange {
        owner: args.owner,
        sensitivity: args.sensitivity.map(sensitivity),
        usage: args.usage,
        cryptoperiod: args.cryptoperiod,
        recipient_usage_period: args.recipient_usage_period,
        labels: relabelled.then(|| distinct(args.labels)).transpose()?,
        rotation: None,
        allow_recent_use: args.allow_recent_use,
    };
    let key = change_key(session, &args.key, args.revision, change, &args.request_id)?;
    show(session.format, &KeyView::from(key))
}

/// Changes a key that has a revision, or the one it has now.
fn change_key(
    session: &Session,
    key: &str,
    revision: Option<u64>,
    change: KeyChange,
    id: &RequestIdArg,
) -> Result<v1::Key, CliError> {
    let context = session.context()?;
    let id = request_id(id);
    let name = context.key_name(key)?;
    session.with_client(&context, async |client: Client| {
        let revision = match revision {
            Some(revision) => revision,
            None => client.describe_key(&name).await?.revision,
        };
        Ok(client.update_key(&name, revision, change, id).await?)
    })
}

fn change_key_state(
    session: &Session,
    args: ChangeKeyState,
    change: KeyStateChange,
) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = context.key_name(&args.key)?;
    let key = session.with_client(&context, async |client: Client| {
        Ok(client.change_key_state(&name, change, args.reason, id).await?)
    })?;
    show(session.format, &KeyView::from(key))
}

/// The parser refuses a number beside `--whole-key`; a version's name is none of a key.
fn of_key(change: ChangeState) -> ChangeKeyState {
    let ChangeState { key, number: _, reason, request_id } = change;
    ChangeKeyState { key, reason, request_id }
}

fn change_state(session: &Session, args: ChangeState, change: StateChange) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = version_name(&context, &args.key, args.number)?;
    let version = session.with_client(&context, async |client: Client| {
        Ok(client.change_state(&name, change, args.reason, id).await?)
    })?;
    show(session.format, &VersionView::from(version))
}

fn set_rotation(session: &Session, args: &SetRotation) -> Result<(), CliError> {
    // The parser takes exactly one of the two.
    let rotation = args.period.map_or(Rotation::Off, Rotation::Every);
    let change = KeyChange { rotation: Some(rotation), ..KeyChange::default() };
    let key = change_key(session, &args.key, args.revision, change, &args.request_id)?;
    show(session.format, &RotationPlanView::from(key))
}

fn show_rotation(session: &Session, args: &OfKey) -> Result<(), CliError> {
    let context = session.context()?;
    let name = context.key_name(&args.key)?;
    let key =
        session.with_client(&context, async |client| Ok(client.describe_key(&name).await?))?;
    show(session.format, &RotationPlanView::from(key))
}

fn compromise(session: &Session, args: ChangeState) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = version_name(&context, &args.key, args.number)?;
    let (key, version, replacement) = session.with_client(&context, async |client: Client| {
        Ok(client.compromise_version(&name, args.reason, id).await?)
    })?;
    let replacement = replacement.map(VersionView::from);
    show(session.format, &CompromiseView { key: key.into(), version: version.into(), replacement })
}

fn usage(session: &Session, args: &Usage) -> Result<(), CliError> {
    let context = session.context()?;
    let name = version_name(&context, &args.key, args.number)?;
    let usage =
        session.with_client(&context, async |client| Ok(client.version_usage(&name).await?))?;
    show(session.format, &UsageView::from(usage))
}

fn history(session: &Session, args: Versions) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let page = session.with_client(&context, async |client: Client| {
        let turn = async |size, token| client.list_history(&key, size, token).await;
        Ok(pages(args.list, turn).await?)
    })?;
    let entries = page.entries.into_iter().map(HistoryEntryView::from).collect();
    let view = HistoryView { entries, next_page_token: page.next_page_token };
    show(session.format, &view)?;
    tell_of_more(session, &view.next_page_token);
    Ok(())
}

/// Reads which version is meant: `KEY/versions/N`, or KEY and N.
fn version_name(
    context: &ResolvedContext,
    key: &str,
    number: Option<u32>,
) -> Result<VersionName, CliError> {
    let Some(number) = number else { return Ok(context.version_name(key)?) };
    let number = KeyVersion::new(number)
        .ok_or_else(|| CliError::Usage("versions are numbered from 1".into()))?;
    Ok(VersionName::new(context.key_name(key)?, number))
}

/// The most pages without an entry that are turned one after another: the keys of a tenant of a million, a hundred at a time.
const MAX_EMPTY_PAGES: u32 = 10_000;

/// Turns pages until there are `limit` entries or no more.
pub(super) async fn pages<T>(
    args: List,
    turn: impl AsyncFn(u32, String) -> Result<Page<T>, ClientError>,
) -> Result<Page<T>, ClientError> {
    let mut all = Page { entries: Vec::new(), next_page_token: args.page_token };
    let mut empty_pages = 0;
    loop {
        let have = u32::try_from(all.entries.len()).unwrap_or(u32::MAX);
        let size = args.limit.saturating_sub(have).min(MAX_PAGE_SIZE);
        if size == 0 {
            return Ok(all);
        }
        let page = turn(size, all.next_page_token).await?;
        empty_pages = if page.entries.is_empty() { empty_pages + 1 } else { 0 };
        all.entries.extend(page.entries);
        all.next_page_token = page.next_page_token;
        // With a filter a page may be empty and go on; a server that sends such pages for ever would hold us for ever.
        if all.next_page_token.is_empty() || empty_pages >= MAX_EMPTY_PAGES {
            return Ok(all);
        }
    }
}

const fn sensitivity(given: Sensitivity) -> v1::Sensitivity {
    match given {
        Sensitivity::Low => v1::Sensitivity::Low,
        Sensitivity::Medium => v1::Sensitivity::Medium,
        Sensitivity::High => v1::Sensitivity::High,
    }
}

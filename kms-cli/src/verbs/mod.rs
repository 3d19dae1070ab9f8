//! What each command does: read, one connection, calls, write. Reading and writing are synchronous and stand outside
//! the runtime. SIGINT and SIGTERM end all of it ([`crate::interrupt`]).

pub mod admin;
pub mod alias;
pub mod bench;
pub mod consumer;
pub mod context;
pub mod data;
pub mod datakey;
pub mod doctor;
pub mod health;
pub mod import;
pub mod inspect;
pub mod inventory;
pub mod key;
pub mod random;
pub mod rewrap_file;
pub mod shell;

use kms_core::id::RequestId;

use crate::args::key::RequestIdArg;
use crate::args::{Cli, Command};
use crate::backup::verbs as backup;
use crate::client::Client;
use crate::context::{Overrides, ResolvedContext};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Format;

/// What a verb stands on: the flags, and how results are shown.
#[derive(Clone, Debug)]
pub struct Session {
    /// The flags over the environment.
    pub overrides: Overrides,
    /// How results are shown.
    pub format: Format,
}

impl Session {
    /// Returns the context that calls are made in.
    pub fn context(&self) -> Result<ResolvedContext, CliError> {
        Ok(ResolvedContext::resolve(&self.overrides)?)
    }

    /// Connects and runs `work`.
    pub fn with_client<T, F>(
        &self,
        context: &ResolvedContext,
        work: impl FnOnce(Client) -> F,
    ) -> Result<T, CliError>
    where
        F: Future<Output = Result<T, CliError>>,
    {
        run_async(async { work(Client::connect(context).await?).await })
    }
}

/// Runs a future on a runtime of its own.
fn run_async<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|_| CliError::Bug("no runtime can be started"))?.block_on(work)
}

/// Takes the given request id, or makes one: the one place of the CLI that draws randomness of its own.
pub fn request_id(given: &RequestIdArg) -> RequestId {
    let id = given.request_id.unwrap_or_else(uuid::Uuid::new_v4);
    RequestId::from_bytes(id.into_bytes())
}

/// Does what the command line says.
pub fn run(cli: Cli, environment: Overrides) -> Result<(), CliError> {
    let session =
        Session { overrides: cli.global.overrides(environment), format: cli.global.output };
    // A PKCS#11 module is not left in the middle of a call by an orderly end: there the system's own end is better.
    if !matches!(cli.command, Command::Hsm(_)) {
        interrupt::listen(session.format == Format::Json)?;
    }
    match cli.command {
        Command::Key(command) => key::run(&session, command),
        Command::Alias(command) => alias::run(&session, command),
        Command::ImportJob(command) => import::run(&session, command),
        Command::Inventory(command) => inventory::run(&session, command),
        Command::Wrap(args) => data::wrap(&session, &args),
        Command::Unwrap(args) => data::unwrap(&session, &args),
        Command::Rewrap(args) => data::rewrap(&session, &args),
        Command::RewrapFile(args) => rewrap_file::run(&session, &args),
        Command::Datakey(args) => datakey::run(&session, &args),
        Command::Inspect(args) => inspect::run(&session, &args),
        Command::Random(args) => random::run(&session, &args),
        Command::Seal(args) => backup::seal(&session, &args),
        Command::Open(args) => backup::open(&session, &args),
        Command::Reseal(args) => backup::reseal(&session, &args),
        Command::Age(command) => backup::age(&session, &command),
        Command::Admin(command) => admin::run(&session, command),
        Command::Health => health::run(&session),
        Command::Hsm(command) => doctor::run(&session, command),
        Command::Bench(args) => bench::run(&session, &args),
        Command::Context(command) => context::run(&session, command),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

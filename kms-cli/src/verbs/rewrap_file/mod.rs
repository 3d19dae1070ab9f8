//! `kms rewrap-file`: rewraps the ciphertexts in a file of any size, and goes on where it was cut.
//!
//! The file is checked as a whole first ([`check`]). Then it is read in stretches ([`record`], [`batch`]), several calls
//! are in flight ([`pump`]), and what comes back is written beside the output with a checkpoint ([`sink`]) until all is
//! done. Nothing here sees a plaintext. Memory is bounded whatever the file holds.

mod batch;
mod check;
mod checkpoint;
mod csv;
mod error;
mod fault;
mod jsonl;
mod layout;
mod paths;
mod progress;
mod publish;
mod pump;
mod record;
mod report;
mod sink;
mod source;
mod tally;

use std::io::{self, Write as _};

use kms_core::context::EncryptionContext;
use kms_core::name::KeyName;

use self::check::Census;
use self::checkpoint::{Arguments, Checkpoint, sha256_of};
use self::error::RunError;
use self::layout::Layout;
use self::paths::Paths;
use self::progress::Bar;
use self::publish::Left;
use self::pump::Pump;
use self::report::{CensusView, RunView};
use self::sink::{Begin, Sink};
use self::source::Source;
use super::Session;
use crate::args::rewrap_file::RewrapFile;
use crate::error::CliError;
use crate::input;
use crate::output::pending::resolve;
use crate::output::{Format, OutputError, Overwrite, show};

/// `kms rewrap-file`.
pub fn run(session: &Session, args: &RewrapFile) -> Result<(), CliError> {
    let binding = input::encryption_context(&args.bind.pairs)?;
    let mut source = Source::find(&args.input, Layout::of(args)?)?;
    if args.dry_run {
        return dry_run(session, &source);
    }
    let context = session.context()?;
    let key = context.key_name(args.key.as_deref().unwrap_or_default())?;
    let output = args.output.as_deref().unwrap_or(&source.path).to_path_buf();
    let paths = Paths::of(&output)?;
    if args.output.is_some() && paths.target == source.path {
        return Err(RunError::SameFile(paths.target).into());
    }
    if paths.are(&source.path) {
        return Err(RunError::InputIsOurs(source.path).into());
    }
    if paths.remove_published_name()? {
        // In place that was a change of the input: the last one that is ours.
        source = Source::find(&args.input, Layout::of(args)?)?;
    }
    let arguments = arguments(&source, &key, &binding);
    let shown = output.display().to_string();
    let mut how = Begin::of(args.resume, args.restart);
    if how != Begin::Restart {
        match publish::finished(&paths, &arguments, &source)? {
            Left::Finished(state) => return report(session, *state, shown, true),
            // There was a run to go on from. What it left to do is a new one.
            Left::Stale if args.in_place => how = Begin::Anyhow,
            Left::Stale | Left::Work => {}
        }
    }
    resolve(&output, overwrite(args)).map_err(|error| output_error(error, &paths))?;
    let connect = || Pump::connect(&context, key, binding, args.batch_size);
    let (sink, pump, items) = begin(args, how, &source, paths, &arguments, connect)?;
    let resumed = sink.resumed();
    let state = rewrap(args, &source, sink, &pump, items, session.format)?;
    report(session, state, shown, resumed)
}

/// Counts what is in the file, and calls nobody.
fn dry_run(session: &Session, source: &Source) -> Result<(), CliError> {
    let census = Census::take(source.records(0, 0)?, true)?;
    let (failed, items) = (census.tally.failed, census.tally.items);
    show(session.format, &CensusView::of(census))?;
    if failed == 0 { Ok(()) } else { Err(RunError::ItemsFailed { failed, items }.into()) }
}

/// Says what a checkpoint must know of the run.
fn arguments(source: &Source, key: &KeyName, binding: &EncryptionContext) -> Arguments {
    let mut canonical = Vec::with_capacity(binding.canonical_len());
    binding.write_canonical(&mut canonical);
    let (format, place) = source.layout().arguments();
    Arguments {
        input: source.path.display().to_string(),
        key: key.to_string(),
        context_sha256: sha256_of(&canonical),
        format: format.to_owned(),
        place,
    }
}

/// Checks what is left of the file, connects, and opens the output; returns the number of items that are left.
///
/// A new run writes nothing before all of the file is checked. One that goes on makes sure first that it is the same run:
/// else the place in the file would mean nothing.
fn begin(
    args: &RewrapFile,
    how: Begin,
    source: &Source,
    paths: Paths,
    arguments: &Arguments,
    connect: impl FnOnce() -> Result<Pump, RunError>,
) -> Result<(Sink, Pump, u64), RunError> {
    let goes_on =
        how == Begin::Resume || how == Begin::Anyhow && paths.read_checkpoint()?.is_some();
    let check = |offset, lines| -> Result<u64, RunError> {
        let census = Census::take(source.records(offset, lines)?, args.keep_going)?;
        Ok(census.tally.items)
    };
    let like = args.in_place.then_some(&source.metadata);
    let open = || Sink::open(paths, arguments, how, source, like);
    if goes_on {
        let sink = open()?;
        let items = check(sink.state().input_offset, sink.state().lines)?;
        return Ok((sink, connect()?, items));
    }
    let items = check(0, 0)?;
    let pump = connect()?;
    Ok((open()?, pump, items))
}

/// Does the work; whatever fails, what was done stays for the next run.
fn rewrap(
    args: &RewrapFile,
    source: &Source,
    mut sink: Sink,
    pump: &Pump,
    items: u64,
    format: Format,
) -> Result<Checkpoint, RunError> {
    let bar = Bar::of_items(items, args.quiet);
    let mut records = source.records(sink.state().input_offset, sink.state().lines)?;
    let done = pump
        .run(&mut records, &mut sink, &bar, args.keep_going)
        .and_then(|()| source.check_unchanged());
    drop(bar);
    if let Err(error) = done {
        // What stopped us is told. A checkpoint that fails too costs the next run some items, no more.
        if sink.checkpoint().is_ok() && format == Format::Table {
            let done = sink.state().tally.items;
            let note = format!("{done} items are done; the same command goes on from there\n");
            let _ = io::stderr().write_all(note.as_bytes());
        }
        return Err(error);
    }
    sink.publish(source, args.in_place.then_some(&source.metadata), overwrite(args))
}

const fn overwrite(args: &RewrapFile) -> Overwrite {
    Overwrite::of(args.force || args.in_place)
}

fn report(
    session: &Session,
    state: Checkpoint,
    output: String,
    resumed: bool,
) -> Result<(), CliError> {
    let (failed, items) = (state.tally.failed, state.tally.items);
    show(session.format, &RunView::of(state, output, resumed))?;
    if failed == 0 { Ok(()) } else { Err(RunError::ItemsFailed { failed, items }.into()) }
}

fn output_error(error: OutputError, paths: &Paths) -> RunError {
    let path = paths.target.clone();
    match error {
        OutputError::Exists => CliError::Exists(path).into(),
        OutputError::NotRegular => RunError::NotRegular(path),
        OutputError::Io { action, source } => RunError::File { action, path, cause: source },
    }
}

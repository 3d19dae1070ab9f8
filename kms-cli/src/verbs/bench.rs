//! `kms bench`: checks the bounds, runs the engine on all cores, shows the report.

use std::ops::RangeInclusive;

use kms_core::envelope::{MAX_PLAINTEXT_BYTES, OVERHEAD_BYTES};

use super::Session;
use crate::args::bench::Bench;
use crate::bench::{
    BenchError, Config, Load, MAX_CONCURRENCY, MAX_CONNECTIONS, MAX_DURATION, MAX_KEYS, Op,
    run as drive,
};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::show;

/// The most items of a batch: what a server takes.
pub const MAX_BATCH_SIZE: usize = 1000;

/// The lengths of data keys that a server makes.
pub const DATA_KEY_BYTES: RangeInclusive<usize> = 16..=1024;

/// The largest message; a server refuses a batch whose answer could be larger.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// What a server reckons for an item of a batch beside its ciphertext: names, lengths, status.
const ITEM_BYTES: usize = 384;

/// How many connections there are unless fewer calls are in flight: enough to keep a server's cores busy.
pub const DEFAULT_CONNECTIONS: usize = 8;

/// Runs the load and shows what came of it.
pub fn run(session: &Session, args: &Bench) -> Result<(), CliError> {
    let connections = args.connections.unwrap_or(DEFAULT_CONNECTIONS.min(args.concurrency));
    check_bounds(args, connections)?;
    let context = session.context()?;
    let tenant = context.tenant_name()?;
    let load = Load {
        concurrency: args.concurrency,
        warmup: args.warmup,
        duration: args.duration,
        call_timeout: context.timeout,
    };
    let config = Config {
        context,
        op: args.op,
        load,
        connections,
        key_count: args.key_count,
        key_prefix: args.key_prefix.clone(),
        size_bytes: args.size,
        batch_size: args.batch_size,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|_| CliError::Bug("no runtime can be started"))?;
    let report = runtime.block_on(async {
        drive(&config, &tenant).await.map_err(|error| match error {
            BenchError::Client(error) => error.into(),
            BenchError::Prefix(error) => CliError::Usage(format!("--key-prefix: {error}")),
            error @ BenchError::ForeignKey(_) => CliError::Part {
                exit: Exit::Precondition,
                reason: "FOREIGN_KEY",
                message: error.to_string(),
                advice: Some("choose another --key-prefix".into()),
            },
            BenchError::Recorder => CliError::Bug("latencies cannot be recorded"),
        })
    })?;
    show(session.format, &report)?;
    if report.requests > 0 {
        return Ok(());
    }
    let reasons = report.errors.iter().map(|(reason, count)| format!("{reason}={count}"));
    let reasons = reasons.collect::<Vec<_>>().join(" ");
    Err(CliError::Part {
        exit: Exit::Unavailable,
        reason: "NO_SUCCESS",
        message: format!("no call succeeded: {reasons}"),
        advice: None,
    })
}

/// Finds what could only be refused, by the engine or by a server, before anything is connected or made.
fn check_bounds(args: &Bench, connections: usize) -> Result<(), CliError> {
    check("--concurrency", args.concurrency, 1..=MAX_CONCURRENCY)?;
    let most = MAX_CONNECTIONS.min(args.concurrency);
    check("--connections (no more than --concurrency)", connections, 1..=most)?;
    check("--key-count", args.key_count, 1..=MAX_KEYS)?;
    match args.op {
        Op::Datakey => check("--size of a data key", args.size, DATA_KEY_BYTES)?,
        Op::Wrap | Op::Unwrap | Op::Rewrap | Op::Batch => {
            check("--size", args.size, 1..=MAX_PLAINTEXT_BYTES)?;
        }
    }
    check("--batch-size", args.batch_size, 1..=MAX_BATCH_SIZE)?;
    if args.op == Op::Batch {
        let most = MAX_MESSAGE_BYTES / (args.size + OVERHEAD_BYTES + ITEM_BYTES);
        check("--batch-size, for items of this --size", args.batch_size, 1..=most)?;
    }
    if args.duration > MAX_DURATION || args.warmup > MAX_DURATION {
        return Err(CliError::Usage("--duration and --warmup must be 24h at most".into()));
    }
    Ok(())
}

fn check(flag: &str, given: usize, range: RangeInclusive<usize>) -> Result<(), CliError> {
    if range.contains(&given) {
        return Ok(());
    }
    let (low, high) = range.into_inner();
    Err(CliError::Usage(format!("{flag} must be {low} to {high}")))
}

//! `kms-bench`: measures, writes `target/bench/summary.json`, prints the table. As a child of itself it is the echo, or
//! the process that holds the bare token.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kms_bench::error::{Error, io};
use kms_bench::scale::seed::{self, Seeding};
use kms_bench::scale::{self as scaling, Plan};
use kms_bench::summary::{Plan as Rounds, Summary};
use kms_bench::{serve, token};
use serde::Serialize;
use tempfile::TempDir;

/// The server's allocator: the echo is this program, and a floor with another allocator would say nothing. The bare
/// token's floor is `kms-bench-token`, which has the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the server beside a bare tonic echo and the bare token
#[derive(Debug, Parser)]
struct Cli {
    /// Alternating rounds of each measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of each round
    #[arg(long, default_value_t = 5000)]
    round_ms: u64,
    /// MiB that are sealed a round
    #[arg(long, default_value_t = 256)]
    seal_mib: usize,
    /// Where the summary goes
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// A file system in memory
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What a child does.
#[derive(Debug, Subcommand)]
enum Part {
    /// Serves the echo with the certificates of a directory
    #[command(hide = true)]
    Echo { directory: PathBuf, threads: usize },
    /// Measures what a million keys, a root rollover, a storm of rotations and a long stream cost
    Scale(Plan),
    /// Makes keys in a dev directory
    #[command(hide = true)]
    Seed {
        directory: PathBuf,
        keys: u32,
        #[arg(long)]
        due: bool,
    },
    /// Measures the token with the server's allocator
    #[command(hide = true)]
    Token { module: PathBuf, millis: u64 },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.part {
        Some(Part::Echo { directory, threads }) => serve::run(directory, *threads),
        Some(Part::Token { module, millis }) => {
            token::items_per_second(module, Duration::from_millis(*millis))
                .and_then(|items| print(&format!("{items}\n")))
        }
        Some(Part::Seed { directory, keys, due }) => {
            seed::run(directory, Seeding { keys: *keys, due: *due })
        }
        Some(Part::Scale(plan)) => scale(&cli, plan),
        None => measure(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kms-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<(), Error> {
    let (disk_root, tmpfs) = directories(cli)?;
    if cli.rounds == 0 || cli.round_ms == 0 || cli.seal_mib == 0 {
        return Err(Error::Nothing);
    }
    let plan = Rounds {
        rounds: cli.rounds,
        duration: Duration::from_millis(cli.round_ms),
        seal_mib: cli.seal_mib,
    };
    let absolute = std::path::absolute(disk_root.path()).map_err(io("find the directory"))?;
    let summary = Summary::measure(plan, &absolute, tmpfs.path())?;
    write(&cli.out.join("summary.json"), &summary)?;
    print(&summary.table()?)
}

fn scale(cli: &Cli, plan: &Plan) -> Result<(), Error> {
    let (disk_root, tmpfs) = directories(cli)?;
    let absolute = std::path::absolute(disk_root.path()).map_err(io("find the directory"))?;
    let scale = scaling::measure(plan, &absolute, tmpfs.path())?;
    write(&cli.out.join("scale.json"), &scale)?;
    print(&scale.table()?)
}

/// Makes directories of this run on the disk and in memory.
fn directories(cli: &Cli) -> Result<(TempDir, TempDir), Error> {
    std::fs::create_dir_all(&cli.out).map_err(io("make the output directory"))?;
    let disk_root = tempfile::tempdir_in(&cli.out).map_err(io("make a directory"))?;
    let tmpfs = tempfile::tempdir_in(&cli.tmpfs).map_err(io("make a directory in memory"))?;
    Ok((disk_root, tmpfs))
}

fn write(path: &Path, summary: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(summary).map_err(|_| Error::Bug("no JSON form"))?;
    std::fs::write(path, text).map_err(io("write the summary"))
}

fn print(text: &str) -> Result<(), Error> {
    std::io::stdout().write_all(text.as_bytes()).map_err(io("write to stdout"))
}

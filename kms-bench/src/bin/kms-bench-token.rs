//! `kms-bench-token`: the bare token in a program that brings no allocator, as any program meets it. The server's serves
//! the module too, so a floor under it would not be bare.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kms_bench::scale::floor;
use kms_bench::token;

/// Measures the bare token and prints its items a second
#[derive(Debug, Parser)]
struct Cli {
    /// The PKCS#11 module
    module: PathBuf,
    /// For how long
    millis: u64,
    /// What a root rollover asks of it, not what a wrap does
    #[arg(long)]
    rewrap: bool,
    /// With --rewrap: openings of a blob, a key
    #[arg(long, default_value_t = floor::Calls::LEAST.openings)]
    openings: u32,
    /// With --rewrap: HMACs, a key
    #[arg(long, default_value_t = floor::Calls::LEAST.macs)]
    macs: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let span = Duration::from_millis(cli.millis);
    let items = if cli.rewrap {
        let calls = floor::Calls { openings: cli.openings, macs: cli.macs };
        floor::keys_per_second(&cli.module, span, calls)
    } else {
        token::items_per_second(&cli.module, span)
    };
    let written = match items {
        Ok(items) => writeln!(std::io::stdout(), "{items}"),
        Err(error) => writeln!(std::io::stderr(), "kms-bench-token: {error}")
            .and_then(|()| Err(std::io::Error::other("not measured"))),
    };
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

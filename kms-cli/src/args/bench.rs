//! `kms bench`.

use std::time::Duration;

use clap::Args;

use crate::bench::Op;
use crate::input::{period, period_or_none};

/// `kms bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Which call to measure
    #[arg(long, value_enum, default_value = "wrap")]
    pub op: Op,
    /// Calls in flight, 1 to 4096
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub concurrency: usize,
    /// Connections that they share, 1 to 256 [default: 8, or fewer for fewer calls in flight]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// How long to measure
    #[arg(long, value_name = "PERIOD", default_value = "10s", value_parser = period)]
    pub duration: Duration,
    /// How long to call before it counts; 0s to count at once
    #[arg(long, value_name = "PERIOD", default_value = "2s", value_parser = period_or_none)]
    pub warmup: Duration,
    /// Keys to go over in turn, 1 to 10000; those that are missing are created
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub key_count: usize,
    /// The keys are named so, with `-0`, `-1` ... after it
    #[arg(long, value_name = "TEXT", default_value = "bench")]
    pub key_prefix: String,
    /// Bytes of each plaintext, 1 to 65536, or data key, 16 to 1024
    #[arg(long, value_name = "BYTES", default_value_t = 32)]
    pub size: usize,
    /// Items of each batch, 1 to 1000, and 4 MiB in all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub batch_size: usize,
}

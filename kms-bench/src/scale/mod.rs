//! `kms-bench scale`: what a million keys, a root rollover, a storm of rotations and a long stream cost.
//!
//! The keys are real ones, made by the service itself ([`seed`]). What is compared is measured in one run, in alternating
//! rounds: [`size`] a tenant of many keys beside one of few, [`root`] the root rollover beside the bare token and foreground
//! calls, [`storm`] rotations beside foreground calls, [`stream`] RewrapStream beside batches.

mod calls;
mod directory;
pub mod floor;
mod foreground;
mod report;
mod root;
pub mod seed;
mod size;
mod storm;
mod stream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;

pub use report::Scale;

use crate::error::{Error, io};
use crate::processes::binary;

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Keys of the large tenant
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u32,
    /// Keys of the small tenant
    #[arg(long, default_value_t = 1_000)]
    pub few: u32,
    /// Keys that are due at once
    #[arg(long, default_value_t = 10_000)]
    pub due: u32,
    /// Keys whose root is rolled over
    #[arg(long, default_value_t = 20_000)]
    pub rolled: u32,
    /// Items that are streamed
    #[arg(long, default_value_t = 1_000_000)]
    pub items: u64,
    /// Alternating rounds, and windows of a p99
    #[arg(long, default_value_t = 5)]
    pub windows: usize,
    /// Milliseconds of each
    #[arg(long, default_value_t = 10_000)]
    pub window_ms: u64,
}

impl Plan {
    fn window(&self) -> Duration {
        Duration::from_millis(self.window_ms)
    }

    fn check(&self) -> Result<(), Error> {
        let counts = [self.keys, self.few, self.due, self.rolled];
        let least = *counts.iter().min().unwrap_or(&0);
        if least < MIN_KEYS || self.items == 0 || self.windows == 0 || self.window_ms == 0 {
            return Err(Error::Nothing);
        }
        Ok(())
    }
}

/// Fewer keys than this say nothing.
pub const MIN_KEYS: u32 = 10;

/// Where it is measured.
struct Place {
    runtime: Runtime,
    server: PathBuf,
    disk: PathBuf,
    tmpfs: PathBuf,
}

/// Measures everything; `disk` stands on a real file system, `tmpfs` in memory.
///
/// # Errors
/// What was not measured: no figure stands for it.
pub fn measure(plan: &Plan, disk: &Path, tmpfs: &Path) -> Result<Scale, Error> {
    plan.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let place = Place {
        runtime: runtime.map_err(io("start a runtime"))?,
        server: binary("kms-server")?,
        disk: disk.to_owned(),
        tmpfs: tmpfs.to_owned(),
    };
    let stream = stream::measure(plan, &place)?;
    let root = root::measure(plan, &place)?;
    let storm = storm::measure(plan, &place)?;
    let size = size::measure(plan, &place)?;
    let scale = Scale::new(plan, size, root, storm, stream);
    scale.check()?;
    Ok(scale)
}

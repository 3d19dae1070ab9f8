//! Sealing rows anew under the newest root: each is verified under its own root first, and a blob is wrapped anew.

use std::time::Instant;

use futures_util::stream::{self, StreamExt as _};
use kms_core::id::RootGeneration;
use kms_core::key::{Material, RowMac, Sealed, VersionRow, WrappedKey};
use kms_core::secret::equal_in_constant_time;
use kms_core::state::VersionState;
use kms_hsm::{HsmError, KeySource, MAX_REWRAPS};

use super::load::Check;
use super::{Keyring, KeyringError, MacInput, Shared};
use crate::store::{Resealed, SealedRow};

impl Keyring {
    /// Makes the seals of rows anew under the newest root. Rows that are not what their MAC says, and versions whose material
    /// is not, are left out, with the alert: nobody makes them genuine.
    ///
    /// # Errors
    /// [`KeyringError::Hsm`] when the HSM cannot.
    pub async fn reseal(
        &self,
        rows: Vec<SealedRow>,
        calls: Calls,
    ) -> Result<Vec<Resealed>, KeyringError> {
        let genuine = self.shared.genuine(rows, calls).await?;
        let rewrapped = self.shared.rewrap(genuine, calls).await?;
        self.shared.seal_anew(rewrapped, calls).await
    }
}

/// How the HSM is asked.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// How many calls are made at a time: each takes a worker, which others may wait for.
    pub at_once: usize,
    /// Rows of one call, at most [`MAX_REWRAPS`]: what others ask the HSM for may wait for it.
    pub rows: usize,
    /// Until when.
    pub deadline: Instant,
}

/// A row and the MAC that it has in the store.
type Known = (RowMac, SealedRow);

impl Shared {
    /// Returns the rows whose MAC fits.
    async fn genuine(
        &self,
        rows: Vec<SealedRow>,
        calls: Calls,
    ) -> Result<Vec<Known>, KeyringError> {
        let mut genuine = Vec::with_capacity(rows.len());
        for group in rows.chunk_by(|a, b| generation(a) == generation(b)) {
            let Some(generation) = group.first().map(generation) else { continue };
            if !(self.config.oldest..=self.config.generation).contains(&generation) {
                // The alerts are all that can be done.
                for row in group {
                    let what = check(row).what;
                    let detail = format!("{what}: root generation {generation} is not open");
                    drop(self.integrity(detail));
                }
                continue;
            }
            let mut checks: Vec<Check> = group.iter().map(check).collect();
            let inputs = checks.iter_mut().map(|check| std::mem::take(&mut check.input)).collect();
            let macs = self.macs_of(generation, inputs, calls).await?;
            for ((row, check), mac) in group.iter().zip(checks).zip(macs) {
                if equal_in_constant_time(&check.mac.0, &mac.0) {
                    genuine.push((check.mac, row.clone()));
                } else {
                    drop(self.integrity(format!("{} has another MAC", check.what)));
                }
            }
        }
        Ok(genuine)
    }

    /// Wraps the material of versions under the newest root.
    async fn rewrap(&self, rows: Vec<Known>, calls: Calls) -> Result<Vec<Known>, KeyringError> {
        let (wrapped, mut done): (Vec<Known>, Vec<Known>) =
            rows.into_iter().partition(|(_, row)| source(row).is_some());
        for rows in wrapped.chunks(calls.rows.clamp(1, MAX_REWRAPS)) {
            let sources = rows.iter().filter_map(|(_, row)| source(row)).collect();
            let to = self.config.generation;
            let blobs = self.hsm.rewrap_keys(sources, to, calls.deadline).await?;
            if blobs.len() != rows.len() {
                return Err(KeyringError::Bug { reason: "the hsm gave another number of blobs" });
            }
            for ((mac, row), blob) in rows.iter().zip(blobs) {
                match blob {
                    Ok(blob) => done.push((*mac, with_material(row.clone(), blob))),
                    Err(HsmError::KeyIntegrity { detail }) => {
                        let what = check(row).what;
                        drop(self.integrity(format!("{what}: {detail}")));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(done)
    }

    async fn seal_anew(
        &self,
        rows: Vec<Known>,
        calls: Calls,
    ) -> Result<Vec<Resealed>, KeyringError> {
        let generation = self.config.generation;
        let inputs = rows.iter().map(|(_, row)| mac_input(row, generation)).collect();
        let macs = self.macs_of(generation, inputs, calls).await?;
        let rows = rows.into_iter().zip(macs);
        Ok(rows
            .map(|((expected, row), mac)| Resealed { expected, row: sealed(row, mac, generation) })
            .collect())
    }

    async fn macs_of(
        &self,
        generation: RootGeneration,
        inputs: Vec<Vec<u8>>,
        calls: Calls,
    ) -> Result<Vec<RowMac>, KeyringError> {
        let count = inputs.len();
        let chunks = chunked(inputs, calls.rows.max(1)).into_iter();
        let asked = chunks.map(|inputs| self.hsm.mac(generation, inputs, calls.deadline));
        let mut answers = stream::iter(asked).buffered(calls.at_once.max(1));
        let mut macs = Vec::with_capacity(count);
        while let Some(answer) = answers.next().await {
            macs.extend(answer?);
        }
        if macs.len() != count {
            return Err(KeyringError::Bug { reason: "the hsm gave another number of MACs" });
        }
        Ok(macs)
    }
}

/// Divides what is to be MACed among calls.
fn chunked(inputs: Vec<Vec<u8>>, rows: usize) -> Vec<Vec<Vec<u8>>> {
    let mut chunks = Vec::with_capacity(inputs.len().div_ceil(rows));
    let mut left = inputs.into_iter().peekable();
    while left.peek().is_some() {
        chunks.push(left.by_ref().take(rows).collect());
    }
    chunks
}

/// Returns what to wrap anew; `None` of what has no blob, or none any more.
fn source(row: &SealedRow) -> Option<KeySource> {
    let SealedRow::Version(Sealed { row, generation, mac: _ }) = row else { return None };
    let VersionRow { key_uid, version, state, material, check, .. } = row;
    if *state == VersionState::Destroyed || !matches!(material, Material::Wrapped(_)) {
        return None;
    }
    Some(KeySource {
        key_uid: *key_uid,
        version: *version,
        generation: *generation,
        material: material.clone(),
        check: check.clone(),
    })
}

fn with_material(row: SealedRow, blob: WrappedKey) -> SealedRow {
    match row {
        SealedRow::Version(Sealed { row, mac, generation }) => {
            let row = VersionRow { material: Material::Wrapped(blob), ..row };
            SealedRow::Version(Sealed { row, mac, generation })
        }
        other => other,
    }
}

/// Does the same with a row of whichever table.
macro_rules! of_any {
    ($row:expr, $sealed:ident => $value:expr) => {
        match $row {
            SealedRow::Key($sealed) => $value,
            SealedRow::Version($sealed) => $value,
            SealedRow::History($sealed) => $value,
            SealedRow::Consumer($sealed) => $value,
            SealedRow::Alias($sealed) => $value,
            SealedRow::ImportJob($sealed) => $value,
            SealedRow::Counter($sealed) => $value,
            SealedRow::Usage($sealed) => $value,
            SealedRow::Request($sealed) => $value,
            SealedRow::Manifest($sealed) => $value,
        }
    };
}

fn generation(row: &SealedRow) -> RootGeneration {
    of_any!(row, sealed => sealed.generation)
}

fn mac_input(row: &SealedRow, generation: RootGeneration) -> Vec<u8> {
    of_any!(row, sealed => MacInput::mac_input(&sealed.row, generation))
}

fn sealed(row: SealedRow, mac: RowMac, generation: RootGeneration) -> SealedRow {
    match row {
        SealedRow::Key(Sealed { row, .. }) => SealedRow::Key(Sealed { row, mac, generation }),
        SealedRow::Version(Sealed { row, .. }) => {
            SealedRow::Version(Sealed { row, mac, generation })
        }
        SealedRow::History(Sealed { row, .. }) => {
            SealedRow::History(Sealed { row, mac, generation })
        }
        SealedRow::Alias(Sealed { row, .. }) => SealedRow::Alias(Sealed { row, mac, generation }),
        SealedRow::Consumer(Sealed { row, .. }) => {
            SealedRow::Consumer(Sealed { row, mac, generation })
        }
        SealedRow::ImportJob(Sealed { row, .. }) => {
            SealedRow::ImportJob(Sealed { row, mac, generation })
        }
        SealedRow::Counter(Sealed { row, .. }) => {
            SealedRow::Counter(Sealed { row, mac, generation })
        }
        SealedRow::Usage(Sealed { row, .. }) => SealedRow::Usage(Sealed { row, mac, generation }),
        SealedRow::Request(Sealed { row, .. }) => {
            SealedRow::Request(Sealed { row, mac, generation })
        }
        SealedRow::Manifest(Sealed { row, .. }) => {
            SealedRow::Manifest(Sealed { row, mac, generation })
        }
    }
}

fn check(row: &SealedRow) -> Check {
    match row {
        SealedRow::Key(sealed) => Check::key(sealed),
        SealedRow::Version(sealed) => Check::version(sealed),
        SealedRow::History(sealed) => Check::history(sealed),
        SealedRow::Consumer(sealed) => Check::consumer(sealed),
        SealedRow::Alias(sealed) => Check::alias(sealed),
        SealedRow::Counter(sealed) => Check::counter(sealed),
        SealedRow::Usage(sealed) => Check::usage(sealed),
        SealedRow::ImportJob(sealed) => Check::import_job(sealed),
        SealedRow::Request(Sealed { row, mac, generation }) => Check {
            input: row.mac_input(*generation),
            mac: *mac,
            generation: *generation,
            what: format!("request {} of `{}`", row.request_id, row.principal),
        },
        SealedRow::Manifest(sealed) => Check::manifest(sealed),
    }
}

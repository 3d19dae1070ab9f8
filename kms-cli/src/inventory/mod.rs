//! The inventory of a tenant: all keys and versions, as CSV, JSON, or a cryptography bill of materials (CycloneDX 1.6).
//!
//! Written key by key as they come, in constant memory. It holds metadata alone: nothing in it is secret, and nothing in it
//! opens anything. docs/formats.md describes the three forms.

pub mod csv;
pub mod cyclonedx;
pub mod json;

use std::io::{self, Write};

use kms_core::clock::Timestamp;
use uuid::Uuid;

use crate::output::view::{KeyView, VersionView};

/// What an inventory is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heading {
    /// The tenant, `tenants/{t}`.
    pub tenant: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Names this inventory and no other.
    pub serial: Uuid,
}

/// A key with all its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: KeyView,
    /// Its versions, oldest first.
    pub versions: Vec<VersionView>,
}

/// The form of an inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// One row a version, RFC 4180
    Csv,
    /// One object with all keys
    Json,
    /// A cryptography bill of materials, CycloneDX 1.6
    Cyclonedx,
}

/// Writes one inventory.
#[derive(Debug)]
pub struct Inventory<W> {
    form: Form,
    out: W,
    keys: u64,
    versions: u64,
}

impl<W: Write> Inventory<W> {
    /// Begins it.
    ///
    /// # Errors
    /// Of the writer.
    pub fn begin(form: Form, mut out: W, heading: &Heading) -> io::Result<Self> {
        match form {
            Form::Csv => csv::begin(&mut out)?,
            Form::Json => json::begin(&mut out, heading)?,
            Form::Cyclonedx => cyclonedx::begin(&mut out, heading)?,
        }
        Ok(Self { form, out, keys: 0, versions: 0 })
    }

    /// Adds a key.
    ///
    /// # Errors
    /// Of the writer.
    pub fn add(&mut self, entry: &Entry) -> io::Result<()> {
        match self.form {
            Form::Csv => csv::add(&mut self.out, entry)?,
            Form::Json => json::add(&mut self.out, entry, self.keys == 0)?,
            Form::Cyclonedx => cyclonedx::add(&mut self.out, entry)?,
        }
        self.keys += 1;
        self.versions += entry.versions.len() as u64;
        Ok(())
    }

    /// Ends it; returns the writer and how many keys and versions there were.
    ///
    /// # Errors
    /// Of the writer.
    pub fn end(mut self) -> io::Result<(W, u64, u64)> {
        match self.form {
            Form::Csv => {}
            Form::Json => json::end(&mut self.out)?,
            Form::Cyclonedx => cyclonedx::end(&mut self.out)?,
        }
        self.out.flush()?;
        Ok((self.out, self.keys, self.versions))
    }
}

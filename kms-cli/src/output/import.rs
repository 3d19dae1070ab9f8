//! How import jobs are shown.

use comfy_table::Table;
use data_encoding::BASE64;
use kms_proto::v1;
use serde::Serialize;

use super::view::{facts, time_text};
use super::{View, plain_table};
use crate::fingerprint::Fingerprint;
use crate::terminal::harmless;

/// An import job, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportJobView {
    /// Name: what the check value is about.
    pub name: String,
    /// How the key is to be sealed.
    pub method: &'static str,
    /// The size of the RSA key.
    pub rsa_bits: u32,
    /// The public key, SubjectPublicKeyInfo as DER, in base64.
    pub public_key: String,
    /// The fingerprint of the public key: SHA-256 of its DER, in hexadecimal.
    pub public_key_sha256: String,
    /// When it was made, RFC 3339.
    pub create_time: String,
    /// Until when it can be used, RFC 3339.
    pub expire_time: String,
    /// Who made it.
    pub actor: String,
}

impl From<v1::ImportJob> for ImportJobView {
    fn from(job: v1::ImportJob) -> Self {
        let method = job.method().as_str_name();
        let v1::ImportJob {
            name,
            method: _,
            rsa_bits,
            public_key,
            create_time,
            expire_time,
            actor,
        } = job;
        Self {
            name,
            method,
            rsa_bits,
            public_key: BASE64.encode(&public_key),
            public_key_sha256: Fingerprint::of(&public_key).to_string(),
            create_time: time_text(create_time.as_ref()),
            expire_time: time_text(expire_time.as_ref()),
            actor,
        }
    }
}

impl View for ImportJobView {
    fn table(&self) -> Table {
        facts(&[
            ("name", self.name.clone()),
            ("method", self.method.into()),
            ("rsa bits", self.rsa_bits.to_string()),
            ("public key sha256", self.public_key_sha256.clone()),
            ("created", self.create_time.clone()),
            ("expires", self.expire_time.clone()),
            ("by", self.actor.clone()),
        ])
    }
}

/// A list of import jobs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImportJobsView {
    /// The jobs, by id.
    pub import_jobs: Vec<ImportJobView>,
}

impl View for ImportJobsView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["IMPORT JOB", "METHOD", "EXPIRES", "BY"]);
        for job in &self.import_jobs {
            table.add_row([
                harmless(&job.name),
                job.method.into(),
                job.expire_time.clone(),
                harmless(&job.actor),
            ]);
        }
        table
    }
}

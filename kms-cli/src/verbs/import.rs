//! `kms import-job ...`, `kms key import` and `kms key import-version`: the owner's half of an import.

use std::path::Path;

use kms_core::id::RequestId;
use kms_core::import::{
    self, IMPORT_CHECK_BYTES, IMPORTED_KEY_BYTES, ImportCheck, ImportMethod, RsaSize, SealError,
};
use kms_core::name::ImportJobName;
use kms_proto::v1;
use zeroize::Zeroizing;

use super::key::new_key;
use super::{Session, request_id};
use crate::args::import::{
    CancelJob, CreateJob, DescribeJob, Import, ImportJobCommand, ImportVersion, Material, Method,
    PublicKeyOut, RsaBits,
};
use crate::client::import::{NewImportJob, SealedKey};
use crate::client::{Client, ClientError};
use crate::context::ResolvedContext;
use crate::error::CliError;
use crate::exit::Exit;
use crate::fingerprint::Fingerprint;
use crate::input;
use crate::output::import::{ImportJobView, ImportJobsView};
use crate::output::view::{KeyView, RotationView};
use crate::output::{Destination, show};

/// The longest sealed key.
const MAX_SEALED_BYTES: usize = ImportMethod::RsaOaepSha256AesKwp.sealed_bytes(RsaSize::Bits4096);
const IMPORT_JOBS: &str = "/importJobs/";

/// Runs a verb about import jobs.
pub fn run(session: &Session, command: ImportJobCommand) -> Result<(), CliError> {
    match command {
        ImportJobCommand::Create(args) => create(session, &args),
        ImportJobCommand::Describe(args) => describe(session, &args),
        ImportJobCommand::List => list(session),
        ImportJobCommand::Cancel(args) => cancel(session, args),
    }
}

fn create(session: &Session, args: &CreateJob) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let to = destination(&args.public_key)?;
    let job = NewImportJob {
        key: context.key_name(&args.key)?,
        method: match args.method {
            Method::RsaOaepSha256 => v1::ImportMethod::RsaOaepSha256,
            Method::RsaOaepSha1 => v1::ImportMethod::RsaOaepSha1,
            Method::RsaOaepSha256AesKwp => v1::ImportMethod::RsaOaepSha256AesKwp,
            Method::RsaOaepSha1AesKwp => v1::ImportMethod::RsaOaepSha1AesKwp,
        },
        rsa_bits: match args.rsa_bits {
            RsaBits::Bits3072 => 3072,
            RsaBits::Bits4096 => 4096,
        },
        lifetime: args.lifetime,
    };
    let job = session.with_client(&context, async |client: Client| {
        Ok(client.create_import_job(job, id).await?)
    })?;
    show_job(session, job, to.as_ref())
}

fn describe(session: &Session, args: &DescribeJob) -> Result<(), CliError> {
    let context = session.context()?;
    let to = destination(&args.public_key)?;
    let name = job_name(&context, &args.job)?;
    let job = session
        .with_client(&context, async |client| Ok(client.describe_import_job(&name).await?))?;
    show_job(session, job, to.as_ref())
}

fn list(session: &Session) -> Result<(), CliError> {
    let context = session.context()?;
    let tenant = context.tenant_name()?;
    let jobs = session
        .with_client(&context, async |client| Ok(client.list_import_jobs(&tenant).await?))?;
    let import_jobs = jobs.into_iter().map(ImportJobView::from).collect();
    show(session.format, &ImportJobsView { import_jobs })
}

fn cancel(session: &Session, args: CancelJob) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let name = job_name(&context, &args.job)?;
    let job = session.with_client(&context, async |client: Client| {
        Ok(client.cancel_import_job(&name, args.reason, id).await?)
    })?;
    show(session.format, &ImportJobView::from(job))
}

/// `kms key import`.
pub fn import(session: &Session, args: Import) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let job = job_name(&context, &args.job)?;
    let key = new_key(job.key().clone(), args.about)?;
    let brought = Brought::read(&args.material)?;
    let expected = args.material.public_key_sha256;
    let key = session.with_client(&context, async |client: Client| {
        let sealed = brought.sealed(&client, job, expected, id).await?;
        Ok(client.import_key(key, sealed, id).await?)
    })?;
    show(session.format, &KeyView::from(key))
}

/// `kms key import-version`.
pub fn import_version(session: &Session, args: ImportVersion) -> Result<(), CliError> {
    let context = session.context()?;
    let id = request_id(&args.request_id);
    let job = job_name(&context, &args.job)?;
    let brought = Brought::read(&args.material)?;
    let expected = args.material.public_key_sha256;
    let (key, version) = session.with_client(&context, async |client: Client| {
        let sealed = brought.sealed(&client, job, expected, id).await?;
        Ok(client.import_key_version(sealed, args.activate_at, args.reason, id).await?)
    })?;
    show(session.format, &RotationView { key: key.into(), version: version.into() })
}

/// What the owner gives.
enum Brought {
    /// The key itself. Wiped when dropped.
    Clear(Zeroizing<[u8; IMPORTED_KEY_BYTES]>),
    /// What was sealed elsewhere, and its check value.
    Sealed(Vec<u8>, ImportCheck),
}

impl Brought {
    fn read(material: &Material) -> Result<Self, CliError> {
        match (&material.sealed, &material.check) {
            (Some(sealed), Some(check)) => {
                let sealed = input::bounded(Some(sealed), MAX_SEALED_BYTES, "sealed key")?;
                let check = input::bounded(Some(check), IMPORT_CHECK_BYTES, "check value")?;
                let check = ImportCheck::from_bytes(&check).ok_or_else(|| {
                    let wanted = IMPORT_CHECK_BYTES;
                    refused("LENGTH", format!("the check value must be {wanted} bytes"))
                })?;
                Ok(Self::Sealed(sealed.to_vec(), check))
            }
            _ => Self::clear(material.input.as_deref()),
        }
    }

    fn clear(path: Option<&Path>) -> Result<Self, CliError> {
        let bytes = input::bounded(path, IMPORTED_KEY_BYTES, "key")?;
        let mut key = Zeroizing::new([0; IMPORTED_KEY_BYTES]);
        if bytes.len() != key.len() {
            let text =
                format!("the key must be {IMPORTED_KEY_BYTES} bytes, as they are: no text form");
            return Err(refused("LENGTH", text));
        }
        key.copy_from_slice(&bytes);
        if import::is_weak(&key) {
            return Err(refused("IMPORT_KEY_WEAK", SealError::WeakKey.to_string()));
        }
        Ok(Self::Clear(key))
    }

    /// Seals it to the public key of the job, as the server gives it, and to no other than is expected.
    async fn sealed(
        self,
        client: &Client,
        job: ImportJobName,
        expected: Option<Fingerprint>,
        id: RequestId,
    ) -> Result<SealedKey, CliError> {
        let key = match self {
            Self::Sealed(wrapped, check) => return Ok(SealedKey { job, wrapped, check }),
            Self::Clear(key) => key,
        };
        let name = job.to_string();
        let check = ImportCheck::compute(&key, ImportCheck::iv(&name, id), &name);
        let check = check.map_err(|_| CliError::Bug("a check value cannot be made"))?;
        let wrapped = match client.describe_import_job(&job).await {
            Ok(described) => {
                check_public_key(&described.public_key, expected)?;
                seal(&described, &key)?
            }
            // Perhaps this very request used it up, and its answer was lost: the server knows it by its id, and the key by the
            // check value.
            Err(ClientError::Refused(refusal)) if refusal.reason == "IMPORT_JOB_NOT_FOUND" => {
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        Ok(SealedKey { job, wrapped, check })
    }
}

/// Refuses a public key that is another than the owner was told of: whoever has its private key would read the key.
fn check_public_key(public_key: &[u8], expected: Option<Fingerprint>) -> Result<(), CliError> {
    let given = Fingerprint::of(public_key);
    let Some(expected) = expected.filter(|expected| *expected != given) else { return Ok(()) };
    Err(CliError::Part {
        exit: Exit::Integrity,
        reason: "PUBLIC_KEY_MISMATCH",
        message: format!(
            "the server gives the import job a public key with SHA-256 {given}, expected is {expected}: nothing was sealed \
             or sent"
        ),
        advice: Some(
            "compare the name of the job and its fingerprint with who made it; when they are right, stop, and tell the \
             operators of the server"
                .into(),
        ),
    })
}

fn seal(job: &v1::ImportJob, key: &[u8; IMPORTED_KEY_BYTES]) -> Result<Vec<u8>, CliError> {
    let method = ImportMethod::parse(job.method().as_str_name())
        .ok_or(ClientError::Answer("an import job without a method that this release knows"))?;
    import::wrap(method, &job.public_key, key).map_err(|error| match error {
        SealError::PublicKey => {
            ClientError::Answer("an import job without a public key that can be used").into()
        }
        SealError::WeakKey | SealError::Refused => CliError::Bug("a key cannot be sealed"),
    })
}

fn refused(reason: &'static str, message: String) -> CliError {
    CliError::Part { exit: Exit::BadInput, reason, message, advice: None }
}

fn destination(args: &PublicKeyOut) -> Result<Option<Destination>, CliError> {
    let path = args.public_key_out.as_deref();
    path.map(|path| Destination::new(Some(path), args.force)).transpose()
}

fn show_job(
    session: &Session,
    job: v1::ImportJob,
    public_key: Option<&Destination>,
) -> Result<(), CliError> {
    if let Some(to) = public_key {
        to.write(&job.public_key)?;
        if matches!(to, Destination::Stdout { .. }) {
            return Ok(());
        }
    }
    show(session.format, &ImportJobView::from(job))
}

/// Reads which job is meant: `KEY/importJobs/ID`, where KEY is an id or a name.
fn job_name(context: &ResolvedContext, text: &str) -> Result<ImportJobName, CliError> {
    let wrong = || CliError::Usage(format!("`{text}` is no import job: KEY{IMPORT_JOBS}ID"));
    let (key, job) = text.rsplit_once(IMPORT_JOBS).ok_or_else(wrong)?;
    ImportJobName::new(context.key_name(key)?, job).map_err(|_| wrong())
}

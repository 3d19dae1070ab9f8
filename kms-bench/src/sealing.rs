//! `seal_vs_age`: our seal beside the age crate's own Encryptor, same process, from tmpfs to /dev/null.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;

use age_core::format::FileKey;
use age_core::secrecy::ExposeSecret as _;
use kms_cli::backup::{
    Description, FileKeyService, Recipients, ServiceError, WrappedFileKey, seal_stream,
};
use kms_core::clock::{Clock, SystemClock};
use kms_core::envelope::{Header, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::name::KeyName;

use crate::error::{Error, io};
use crate::rounds::median;

/// How much is sealed a round.
const INPUT_MIB: usize = 256;
/// How many rounds each.
const ROUNDS: usize = 5;
/// Bytes of each read of the age crate's round; ours chooses its own.
const READ_BYTES: usize = 64 * 1024;

/// Envelopes that hold the file key as it is: what is measured is the stream.
struct Clear;

impl FileKeyService for Clear {
    fn wrap(&self, _: &KeyName, file_key: &FileKey) -> Result<WrappedFileKey, ServiceError> {
        let header = Header {
            suite: Suite::Aes256Gcm,
            key_uid: KeyUid::from_random([7; 16]),
            version: KeyVersion::FIRST,
        };
        let body = [&file_key.expose_secret()[..], &[0; 16]].concat();
        WrappedFileKey::new(&header.seal(&[1; 12], &body))
            .map_err(|_| ServiceError::Bug("our own envelope is refused"))
    }

    fn unwrap(&self, _: &KeyName, _: &WrappedFileKey) -> Result<FileKey, ServiceError> {
        Err(ServiceError::Bug("nothing is opened here"))
    }

    fn describe(&self, _: &WrappedFileKey) -> Result<Description, ServiceError> {
        Err(ServiceError::Bug("nothing is described here"))
    }
}

/// Returns our throughput divided by age's, and ours in MiB a second; medians of alternating rounds.
pub fn seal_vs_age(tmpfs: &Path) -> Result<(f64, f64), Error> {
    let mut input = tempfile::NamedTempFile::new_in(tmpfs).map_err(io("make the input"))?;
    for _ in 0..INPUT_MIB {
        input.write_all(&vec![0x5a; 1024 * 1024]).map_err(io("write the input"))?;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(seconds(|| age_round(input.path()))?);
        ours.push(seconds(|| our_round(input.path()))?);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    Ok((theirs / ours, INPUT_MIB as f64 / ours))
}

fn seconds(round: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let start = SystemClock.monotonic();
    round()?;
    Ok(SystemClock.monotonic().saturating_duration_since(start).as_secs_f64())
}

fn null() -> Result<File, Error> {
    File::options().write(true).open("/dev/null").map_err(io("open /dev/null"))
}

fn our_round(input: &Path) -> Result<(), Error> {
    let key = "tenants/t/keys/k".parse().map_err(|_| Error::Bug("a name of ours is none"))?;
    let seal = |error: kms_cli::backup::BackupError| Error::Seal(error.to_string());
    let recipients = Recipients::new(key, Vec::new()).map_err(seal)?;
    let input = File::open(input).map_err(io("open the input"))?;
    seal_stream(&Clear, &recipients, input, null()?).map_err(seal)?;
    Ok(())
}

fn age_round(input: &Path) -> Result<(), Error> {
    let recipient = age::x25519::Identity::generate().to_public();
    let one: &dyn age::Recipient = &recipient;
    let encryptor = age::Encryptor::with_recipients(std::iter::once(one))
        .map_err(|error| Error::Seal(error.to_string()))?;
    let mut writer = encryptor.wrap_output(null()?).map_err(io("write the header"))?;
    let input = File::open(input).map_err(io("open the input"))?;
    let mut input = BufReader::with_capacity(READ_BYTES, input);
    std::io::copy(&mut input, &mut writer).map_err(io("write the payload"))?;
    writer.finish().map_err(io("finish the payload"))?;
    Ok(())
}

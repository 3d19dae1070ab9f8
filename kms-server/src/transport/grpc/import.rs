//! The methods of KeyService about import: to domain types and back, every field.

use http::Request;
use hyper::body::Incoming;
use kms_core::import::{IMPORT_CHECK_BYTES, ImportCheck, ImportMethod, RsaSize};
use kms_core::import_job::DEFAULT_IMPORT_JOB_LIFETIME;
use kms_core::name::{ImportJobName, TenantName};
use kms_proto::v1 as proto;

use super::bounds::{IMPORT_KEY, NONE, one};
use super::decode::{
    Decoded, field, parse, period, protection, purpose, recipient_usage, request_id, rotation,
    sensitivity, time, whole_seconds,
};
use super::encode;
use super::gateway::Call;
use super::key::{mutation, reading};
use super::route::Answer;
use crate::service::{
    CancelImportJob, CreateImportJob, CreateKey, ImportJobDescription, ImportKey, ImportKeyVersion,
    Kms, SealedKey, StageKeyVersion, Staged,
};

mutation!(create_import_job, NONE, decode_create, encode_job);
mutation!(cancel_import_job, NONE, decode_cancel, encode_job);
mutation!(import_key, IMPORT_KEY, decode_import, encode::key);
mutation!(import_key_version, NONE, decode_import_version, encode_imported);
reading!(describe_import_job, decode_describe, |name| &name, encode_job);
reading!(list_import_jobs, decode_list, |tenant| &tenant, encode_jobs);

fn decode_create(message: proto::CreateImportJobRequest) -> Decoded<CreateImportJob> {
    let proto::CreateImportJobRequest { parent, method, rsa_bits, lifetime, request_id: id } =
        message;
    let size = match rsa_bits {
        0 => RsaSize::default(),
        bits => {
            RsaSize::from_bits(bits).ok_or_else(|| field("rsa_bits", "must be 3072 or 4096"))?
        }
    };
    let lifetime = match lifetime {
        Some(given) => whole_seconds("lifetime", given)?,
        None => DEFAULT_IMPORT_JOB_LIFETIME,
    };
    let (key, method) = (parse("parent", &parent)?, import_method(method)?);
    Ok(CreateImportJob { key, method, size, lifetime, request_id: request_id(&id)? })
}

fn decode_describe(message: proto::DescribeImportJobRequest) -> Decoded<ImportJobName> {
    let proto::DescribeImportJobRequest { name } = message;
    parse("name", &name)
}

fn decode_list(message: proto::ListImportJobsRequest) -> Decoded<TenantName> {
    let proto::ListImportJobsRequest { parent } = message;
    parse("parent", &parent)
}

fn decode_cancel(message: proto::CancelImportJobRequest) -> Decoded<CancelImportJob> {
    let proto::CancelImportJobRequest { name, reason, request_id: id } = message;
    Ok(CancelImportJob { name: parse("name", &name)?, reason, request_id: request_id(&id)? })
}

fn decode_import(message: proto::ImportKeyRequest) -> Decoded<ImportKey> {
    let proto::ImportKeyRequest {
        import_job,
        wrapped_key,
        purpose: use_of,
        protection: place,
        owner,
        sensitivity: level,
        usage,
        cryptoperiod,
        labels,
        request_id: id,
        rotation_period,
        check_value,
        recipient_usage_period,
        acknowledge_no_backup,
    } = message;
    let sealed = sealed(&import_job, wrapped_key.into(), &check_value)?;
    let create = CreateKey {
        name: sealed.job.key().clone(),
        purpose: purpose(use_of)?,
        protection: protection(place)?,
        owner,
        sensitivity: sensitivity(level)?,
        usage,
        cryptoperiod: period(cryptoperiod)?,
        recipient_usage_period: recipient_usage(recipient_usage_period)?,
        labels: labels.into_iter().collect(),
        rotation_period: rotation(rotation_period)?,
        acknowledge_no_backup,
        request_id: request_id(&id)?,
    };
    Ok(ImportKey { create, sealed })
}

fn decode_import_version(message: proto::ImportKeyVersionRequest) -> Decoded<ImportKeyVersion> {
    let proto::ImportKeyVersionRequest {
        import_job,
        wrapped_key,
        check_value,
        activate_time,
        reason,
        request_id: id,
    } = message;
    let sealed = sealed(&import_job, wrapped_key.into(), &check_value)?;
    let activate_time = activate_time.map(|given| time("activate_time", given)).transpose()?;
    let (name, request_id) = (sealed.job.key().clone(), request_id(&id)?);
    let stage = StageKeyVersion { name, activate_time, reason, request_id };
    Ok(ImportKeyVersion { stage, sealed })
}

/// Its length is that of the job's method, which the service knows.
fn sealed(job: &str, wrapped: Vec<u8>, check_value: &[u8]) -> Decoded<SealedKey> {
    let job = parse("import_job", job)?;
    let check = ImportCheck::from_bytes(check_value).ok_or_else(|| {
        field("check_value", format!("must be {IMPORT_CHECK_BYTES} bytes: IV, then tag"))
    })?;
    Ok(SealedKey { job, wrapped, check })
}

fn import_method(number: i32) -> Decoded<ImportMethod> {
    match proto::ImportMethod::try_from(number) {
        Ok(proto::ImportMethod::RsaOaepSha256) => Ok(ImportMethod::RsaOaepSha256),
        Ok(proto::ImportMethod::RsaOaepSha1) => Ok(ImportMethod::RsaOaepSha1),
        Ok(proto::ImportMethod::RsaOaepSha256AesKwp) => Ok(ImportMethod::RsaOaepSha256AesKwp),
        Ok(proto::ImportMethod::RsaOaepSha1AesKwp) => Ok(ImportMethod::RsaOaepSha1AesKwp),
        Ok(proto::ImportMethod::Unspecified) => Err(field("method", "must be given")),
        Err(_) => Err(field("method", "is not known")),
    }
}

fn encode_job(result: ImportJobDescription) -> proto::ImportJob {
    let ImportJobDescription { name, method, size, public_key, create_time, expire_time, actor } =
        result;
    proto::ImportJob {
        name: name.to_string(),
        method: method_number(method).into(),
        rsa_bits: size.bits().into(),
        public_key: public_key.into(),
        create_time: Some(encode::time(create_time)),
        expire_time: Some(encode::time(expire_time)),
        actor,
    }
}

fn encode_jobs(result: Vec<ImportJobDescription>) -> proto::ListImportJobsResponse {
    proto::ListImportJobsResponse { import_jobs: result.into_iter().map(encode_job).collect() }
}

fn encode_imported(result: Staged) -> proto::ImportKeyVersionResponse {
    let Staged { key, version } = result;
    let (key, version) = (Some(encode::key(key)), Some(encode::version(version)));
    proto::ImportKeyVersionResponse { key, version }
}

const fn method_number(method: ImportMethod) -> proto::ImportMethod {
    match method {
        ImportMethod::RsaOaepSha256 => proto::ImportMethod::RsaOaepSha256,
        ImportMethod::RsaOaepSha1 => proto::ImportMethod::RsaOaepSha1,
        ImportMethod::RsaOaepSha256AesKwp => proto::ImportMethod::RsaOaepSha256AesKwp,
        ImportMethod::RsaOaepSha1AesKwp => proto::ImportMethod::RsaOaepSha1AesKwp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_the_names_of_the_contract_and_read_back() {
        for method in ImportMethod::ALL {
            let number = method_number(method);
            assert_eq!(number.as_str_name(), method.as_str());
            assert_eq!(import_method(number.into()), Ok(method));
        }
        for number in [0, 5] {
            assert!(import_method(number).is_err());
        }
    }

    #[test]
    fn a_job_is_of_3072_bits_and_a_day_when_nothing_else_is_asked_for() {
        let message = |rsa_bits| proto::CreateImportJobRequest {
            parent: "tenants/t/keys/k".into(),
            method: proto::ImportMethod::RsaOaepSha256.into(),
            rsa_bits,
            lifetime: None,
            request_id: "00000000-0000-4000-8000-000000000001".into(),
        };
        let asked = decode_create(message(0)).unwrap();
        assert_eq!((asked.size, asked.lifetime.as_secs()), (RsaSize::Bits3072, 24 * 3600));
        assert_eq!(decode_create(message(4096)).unwrap().size, RsaSize::Bits4096);
        for bits in [1, 2048, 3071, 4097] {
            assert_eq!(decode_create(message(bits)).unwrap_err().reason(), "FIELD_VIOLATION");
        }
    }

    #[test]
    fn a_check_value_has_28_bytes() {
        for (length, taken) in [(0, false), (27, false), (28, true), (29, false)] {
            let read = sealed("tenants/t/keys/k/importJobs/j", vec![], &vec![0; length]);
            assert_eq!(read.is_ok(), taken, "{length}");
        }
    }
}

//! A cryptography bill of materials: CycloneDX 1.6, each version a cryptographic asset of type related-crypto-material.
//!
//! CycloneDX has the states of SP 800-57 but no planned destruction: such a version is shown as `deactivated`, and the state it
//! has here stands in the property `holdfast:state`.

use std::io::{self, Write};

use kms_core::clock::Timestamp;
use serde_json::{Value, json, to_string};

use super::{Entry, Heading};
use crate::output::view::{KeyView, VersionView};

/// What keys are used with.
const GCM: &str = "algorithm/aes-256-gcm";
/// What keys are stored under.
const KWP: &str = "algorithm/aes-256-kwp";

pub(super) fn begin(out: &mut impl Write, heading: &Heading) -> io::Result<()> {
    let Heading { tenant, time, serial } = heading;
    let metadata = json!({
        "timestamp": time.to_string(),
        "tools": { "components": [
            { "type": "application", "name": "kms", "version": env!("CARGO_PKG_VERSION") },
        ] },
        "component": { "type": "application", "bom-ref": tenant, "name": tenant },
    });
    // The object stays open: the components come one by one.
    write!(
        out,
        "{{\n\"$schema\":\"http://cyclonedx.org/schema/bom-1.6.schema.json\",\n\"bomFormat\":\"CycloneDX\",\n\
         \"specVersion\":\"1.6\",\n\"serialNumber\":{},\n\"version\":1,\n\"metadata\":{},\n\"components\":[\n{},\n{}",
        to_string(&format!("urn:uuid:{serial}"))?,
        to_string(&metadata)?,
        to_string(&algorithm(GCM, "AES-256-GCM", "ae", "gcm", "2.16.840.1.101.3.4.1.46"))?,
        to_string(&algorithm(KWP, "AES-256-KWP", "other", "other", "2.16.840.1.101.3.4.1.48"))?,
    )
}

fn algorithm(reference: &str, name: &str, primitive: &str, mode: &str, oid: &str) -> Value {
    json!({
        "type": "cryptographic-asset",
        "bom-ref": reference,
        "name": name,
        "cryptoProperties": {
            "assetType": "algorithm",
            "algorithmProperties": {
                "primitive": primitive,
                "parameterSetIdentifier": "256",
                "executionEnvironment": "hardware",
                "mode": mode,
                "cryptoFunctions": ["keygen", "encrypt", "decrypt"],
                "classicalSecurityLevel": 256,
                "nistQuantumSecurityLevel": 5,
            },
            "oid": oid,
        },
    })
}

pub(super) fn add(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    for version in &entry.versions {
        write!(out, ",\n{}", to_string(&component(&entry.key, version))?)?;
    }
    Ok(())
}

fn component(key: &KeyView, version: &VersionView) -> Value {
    let secured_by = match key.protection {
        "HSM_WRAPPED" => json!({ "mechanism": "HSM", "algorithmRef": KWP }),
        _ => json!({ "mechanism": "HSM" }),
    };
    let material = json!({
        "type": "secret-key",
        "id": format!("{}/{}", key.uid, version.version),
        "state": state(version.state),
        "algorithmRef": GCM,
        "size": 256,
        "securedBy": secured_by,
    });
    let mut dates = vec![
        ("creationDate", version.create_time.clone()),
        ("activationDate", version.activate_time.clone()),
        ("updateDate", version.state_time.clone()),
        ("expirationDate", expires(key, version)),
    ];
    dates.retain(|(_, time)| !time.is_empty());
    let dates = dates.into_iter().map(|(field, time)| (field.to_owned(), Value::String(time)));
    let material: serde_json::Map<_, _> =
        material.as_object().cloned().unwrap_or_default().into_iter().chain(dates).collect();
    json!({
        "type": "cryptographic-asset",
        "bom-ref": version.name,
        "name": version.name,
        "description": key.usage,
        "cryptoProperties": {
            "assetType": "related-crypto-material",
            "relatedCryptoMaterialProperties": material,
        },
        "properties": properties(key, version),
    })
}

/// What CycloneDX has no field for; the values are texts.
fn properties(key: &KeyView, version: &VersionView) -> Vec<Value> {
    let mut facts = vec![
        ("key", key.name.clone()),
        ("owner", key.owner.clone()),
        ("sensitivity", key.sensitivity.to_owned()),
        ("key-state", key.state.to_owned()),
        ("state", version.state.to_owned()),
        ("primary", version.primary.to_string()),
        ("protection", key.protection.to_owned()),
        ("origin", version.origin.to_owned()),
        ("local", version.local.to_string()),
        ("root-generation", version.root_generation.to_string()),
        ("invocation-count", version.invocation_count.to_string()),
        ("destroy-time", version.destroy_time.clone()),
        ("next-rotation-time", key.next_rotation_time.clone()),
    ];
    facts.retain(|(_, value)| !value.is_empty());
    let facts = facts.into_iter().map(|(name, value)| (format!("holdfast:{name}"), value));
    let labels = key.labels.iter();
    let labels = labels.map(|(name, value)| (format!("holdfast:label:{name}"), value.clone()));
    facts.chain(labels).map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

/// The states of SP 800-57 by their names in CycloneDX.
fn state(state: &str) -> &'static str {
    match state {
        "PRE_ACTIVATION" => "pre-activation",
        "ACTIVE" => "active",
        "SUSPENDED" => "suspended",
        "COMPROMISED" => "compromised",
        "DESTROYED" => "destroyed",
        _ => "deactivated",
    }
}

/// The end of the originator-usage period; empty for a version that was never ACTIVE.
fn expires(key: &KeyView, version: &VersionView) -> String {
    let active = version.state != "PRE_ACTIVATION";
    let period = u64::try_from(key.cryptoperiod_seconds).ok().filter(|_| active);
    let from = Timestamp::parse(&version.activate_time).zip(period);
    from.map_or_else(String::new, |(from, seconds)| {
        from.after(std::time::Duration::from_secs(seconds)).to_string()
    })
}

pub(super) fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\n]\n}\n")
}

//! The three forms of an inventory: golden files of fixed keys, and the official CycloneDX 1.6 schema.
//!
//! HOLDFAST_WRITE_GOLDEN=1 writes the files anew. A field that changes or goes breaks whoever reads them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::path::Path;

use kms_cli::inventory::{Entry, Form, Heading, Inventory, csv, json};
use kms_cli::output::view::{KeyView, VersionView};
use kms_core::clock::Timestamp;
use serde_json::Value;
use uuid::Uuid;

const STATES: [&str; 7] = [
    "PRE_ACTIVATION",
    "ACTIVE",
    "SUSPENDED",
    "DEACTIVATED",
    "COMPROMISED",
    "DESTROY_SCHEDULED",
    "DESTROYED",
];

fn heading() -> Heading {
    Heading {
        tenant: "tenants/t1".into(),
        time: Timestamp::from_unix_ms(1_800_000_000_000),
        serial: Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef),
    }
}

fn version(key: &str, number: u32, state: &'static str) -> VersionView {
    let staged = state == "PRE_ACTIVATION";
    let destroy = if state == "DESTROY_SCHEDULED" { "2027-03-01T00:00:00.000Z" } else { "" };
    VersionView {
        name: format!("{key}/versions/{number}"),
        version: number,
        state,
        primary: state == "ACTIVE",
        origin: if number == 2 { "IMPORTED" } else { "GENERATED" },
        local: number != 2,
        create_time: "2026-01-31T08:00:00.000Z".into(),
        activate_time: if staged { String::new() } else { "2026-02-01T08:00:00.000Z".into() },
        state_time: "2026-02-02T08:00:00.000Z".into(),
        state_reason: "=cmd|' /C calc'!A0".into(),
        state_actor: "spiffe://td/admin".into(),
        invocation_count: 1025,
        revision: 3,
        root_generation: 1,
        destroy_time: destroy.into(),
        destroy_despite: if destroy.is_empty() { Vec::new() } else { vec!["recent use"] },
    }
}

fn entries() -> Vec<Entry> {
    let key = |id: &str, protection: &'static str, labels: &[(&str, &str)]| KeyView {
        name: format!("tenants/t1/keys/{id}"),
        uid: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".into(),
        purpose: "WRAP",
        protection,
        state: "ENABLED",
        owner: "team \"blue\", second floor".into(),
        sensitivity: "HIGH",
        usage: "orders\nand bills".into(),
        cryptoperiod_seconds: 31_536_000,
        recipient_usage_period_seconds: 126_144_000,
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        create_time: "2026-01-31T08:00:00.000Z".into(),
        update_time: "2026-02-02T08:00:00.000Z".into(),
        revision: 7,
        primary_version: 2,
        version_count: 7,
        consumer_count: 1,
        rotation_period_seconds: 2_592_000,
        next_rotation_time: "2026-03-03T08:00:00.000Z".into(),
        destroy_time: String::new(),
        destroy_despite: Vec::new(),
        destruction_begun: false,
    };
    let all = (1..).zip(STATES).map(|(number, state)| version("tenants/t1/keys/a", number, state));
    let resident = KeyView {
        labels: BTreeMap::new(),
        next_rotation_time: String::new(),
        ..key("b", "HSM_RESIDENT", &[])
    };
    vec![
        Entry {
            key: key("a", "HSM_WRAPPED", &[("scope", "pci"), ("team", "b;c")]),
            versions: all.collect(),
        },
        Entry { key: resident, versions: vec![version("tenants/t1/keys/b", 1, "ACTIVE")] },
    ]
}

fn written(form: Form, entries: &[Entry]) -> String {
    let mut inventory = Inventory::begin(form, Vec::new(), &heading()).unwrap();
    for entry in entries {
        inventory.add(entry).unwrap();
    }
    let (bytes, keys, versions) = inventory.end().unwrap();
    assert_eq!(keys, entries.len() as u64);
    assert_eq!(versions, entries.iter().map(|entry| entry.versions.len() as u64).sum::<u64>());
    String::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_golden(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{file} changed");
}

#[test]
fn the_forms_are_those_of_the_golden_files() {
    let entries = entries();
    // The version of the program that wrote it is no part of the form.
    let named = |text: String| text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let csv = written(Form::Csv, &entries);
    assert_golden("inventory.csv", &csv);
    let columns = csv.lines().next().unwrap().split(',').count();
    let formats = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/formats.md");
    let text = std::fs::read_to_string(formats).unwrap();
    let said = format!("one row a version, {columns} columns");
    assert!(text.contains(&said), "docs/formats.md does not say: {said}");
    assert_golden("inventory.json", &written(Form::Json, &entries));
    assert_golden("inventory.cdx.json", &named(written(Form::Cyclonedx, &entries)));
}

#[test]
fn every_row_has_every_column() {
    let text = written(Form::Csv, &entries());
    // Read back by hand: quotes, doubled quotes, line ends inside of quotes.
    let (mut rows, mut row, mut field, mut in_quotes) =
        (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if in_quotes && characters.peek() == Some(&'"') => {
                field.push('"');
                characters.next();
            }
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => row.push(std::mem::take(&mut field)),
            '\r' if !in_quotes => {
                assert_eq!(characters.next(), Some('\n'));
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            other => field.push(other),
        }
    }
    assert!(row.is_empty() && field.is_empty());
    assert_eq!(rows.len(), 1 + 8);
    assert!(rows.iter().all(|row| row.len() == csv::COLUMNS.len()));
    assert_eq!(rows[0], csv::COLUMNS);
    let of = |column: &str| {
        let index = csv::COLUMNS.iter().position(|name| *name == column).unwrap();
        rows[1][index].as_str()
    };
    assert_eq!(of("owner"), "team \"blue\", second floor");
    assert_eq!(of("usage"), "orders\nand bills");
    assert_eq!(of("labels"), "scope=pci;team=b;c");
    assert_eq!(of("state_reason"), "'=cmd|' /C calc'!A0", "no spreadsheet runs it");
}

#[test]
fn the_json_form_holds_all_keys_with_their_versions() {
    let value: Value = serde_json::from_str(&written(Form::Json, &entries())).unwrap();
    assert_eq!(value["format"], json::FORMAT);
    let states: Vec<_> = value["keys"][0]["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, STATES);
    let empty: Value = serde_json::from_str(&written(Form::Json, &[])).unwrap();
    assert_eq!(empty["keys"].as_array().map(Vec::len), Some(0));
}

fn schema() -> jsonschema::Validator {
    let read = |name: &str| -> Value {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schema/cyclonedx-1.6").join(name);
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let registry = jsonschema::Registry::new()
        .add("http://cyclonedx.org/schema/spdx.SNAPSHOT.schema.json", read("spdx.schema.json"))
        .unwrap()
        .add(
            "http://cyclonedx.org/schema/jsf-0.82.SNAPSHOT.schema.json",
            read("jsf-0.82.schema.json"),
        )
        .unwrap()
        .prepare()
        .unwrap();
    jsonschema::options()
        .with_registry(&registry)
        .should_validate_formats(true)
        .build(&read("bom-1.6.schema.json"))
        .unwrap()
}

#[test]
fn the_bill_of_materials_is_what_cyclonedx_1_6_says() {
    let schema = schema();
    let problems = |value: &Value| -> Vec<String> {
        schema
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect()
    };
    for entries in [entries(), Vec::new()] {
        let value: Value = serde_json::from_str(&written(Form::Cyclonedx, &entries)).unwrap();
        assert_eq!(problems(&value), [""; 0]);
        let assets = value["components"].as_array().unwrap();
        let versions: usize = entries.iter().map(|entry| entry.versions.len()).sum();
        assert_eq!(assets.len(), 2 + versions, "two algorithms, and each version");
        let references: std::collections::BTreeSet<_> =
            assets.iter().map(|asset| asset["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(references.len(), assets.len(), "no reference twice");
    }
    // The check can fail.
    let mut wrong: Value = serde_json::from_str(&written(Form::Cyclonedx, &entries())).unwrap();
    let material = "/components/2/cryptoProperties/relatedCryptoMaterialProperties";
    wrong.pointer_mut(material).unwrap()["state"] = "alive".into();
    assert!(!problems(&wrong).is_empty());
}

#[test]
fn states_are_those_of_sp_800_57_and_a_planned_destruction_stays_visible() {
    let value: Value = serde_json::from_str(&written(Form::Cyclonedx, &entries())).unwrap();
    let material = |index: usize| {
        let asset = &value["components"][2 + index];
        asset["cryptoProperties"]["relatedCryptoMaterialProperties"].clone()
    };
    let states: Vec<_> = (0..7).map(|index| material(index)["state"].clone()).collect();
    let expected = [
        "pre-activation",
        "active",
        "suspended",
        "deactivated",
        "compromised",
        "deactivated",
        "destroyed",
    ];
    assert_eq!(states, expected);
    let properties = value["components"][2 + 5]["properties"].as_array().unwrap();
    let has = |name: &str, value: &str| {
        properties.iter().any(|property| property["name"] == name && property["value"] == value)
    };
    assert!(has("holdfast:state", "DESTROY_SCHEDULED"));
    assert!(has("holdfast:destroy-time", "2027-03-01T00:00:00.000Z"));
    assert!(has("holdfast:label:scope", "pci"));
    assert_eq!(material(1)["expirationDate"], "2027-02-01T08:00:00.000Z", "activation and a year");
    assert_eq!(material(0).get("expirationDate"), None, "not activated yet");
    assert_eq!(material(7)["securedBy"].get("algorithmRef"), None, "resident: not wrapped");
}

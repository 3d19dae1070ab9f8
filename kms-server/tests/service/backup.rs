//! Backups: what they hold, who may take one, and what is told of them.

use std::io::Write as _;
use std::str::FromStr as _;

use kms_server::authz::ActionKind;
use kms_server::backup::{BackupManifest, BackupReader, Frame, Identity, decrypting};
use kms_server::service::{BackupPart, ServiceError};
use kms_server::store::{BACKUP_TABLES, Cell};

use crate::mutations::KEY;
use crate::support::*;

const OPERATION: &str = "kms.v1.AdminService/BackupStore";

struct Holder {
    identity: Identity,
    recipient: String,
}

fn holder() -> Holder {
    use age::secrecy::ExposeSecret as _;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "# a comment\n\n{}", identity.to_string().expose_secret()).unwrap();
    Holder { identity: Identity::read(file.path()).unwrap(), recipient }
}

/// Takes all parts; the bytes are a backup only when the last says so.
async fn taken(world: &World, recipient: &str) -> Result<Vec<u8>, ServiceError> {
    let mut parts = world.kms.backup_store(&world.request(OPERATION), recipient).await?;
    let mut bytes = Vec::new();
    while let Some(part) = parts.recv().await {
        match part? {
            BackupPart::Piece { data, rows, total_rows } => {
                assert!(rows <= total_rows);
                bytes.extend_from_slice(&data);
            }
            BackupPart::Whole => return Ok(bytes),
        }
    }
    panic!("it ended and did not say how")
}

fn opened(bytes: &[u8], identity: &Identity) -> (BackupManifest, Vec<(String, u64)>) {
    let content = decrypting(identity, bytes).unwrap();
    let (mut reader, manifest) = BackupReader::begin(content).unwrap();
    let mut tables = Vec::new();
    loop {
        match reader.next_frame().unwrap() {
            Frame::Table { name, .. } => tables.push((name, 0)),
            Frame::Row(cells) => {
                assert!(cells.iter().any(|cell| matches!(cell, Cell::Blob(_))));
                tables.last_mut().unwrap().1 += 1;
            }
            Frame::End { .. } => return (manifest, tables),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_holds_every_table_and_is_told_of_at_its_beginning_and_its_end() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    let Holder { identity, recipient } = holder();
    let bytes = taken(&world, &recipient).await.unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1\n-> X25519 "));
    let (manifest, tables) = opened(&bytes, &identity);
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, BACKUP_TABLES);
    let count = |table: &str| tables.iter().find(|(name, _)| name == table).unwrap().1;
    assert_eq!((count("roots"), count("keys"), count("versions"), count("counters")), (1, 1, 1, 1));
    assert_eq!(manifest.rows, tables.iter().map(|(_, rows)| rows).sum::<u64>());
    assert_eq!((manifest.keys, manifest.tenants, manifest.requests_left_out), (1, 1, 1));
    let records = world.records();
    let [.., begun, ended] = &records[..] else { panic!("{records:?}") };
    for record in [begun, ended] {
        assert_eq!((&*record.operation, &*record.principal), (OPERATION, ADMIN));
        assert_eq!(record.event_id.to_string(), manifest.audit_event);
    }
    assert_eq!((&*begun.result, &*ended.result), ("PENDING", "OK"));
    assert!(begun.reason.as_ref().unwrap().contains(&recipient), "{begun:?}");
    let told = format!("ended, {} rows", manifest.rows);
    assert_eq!(ended.reason.as_deref(), Some(&*told));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_recipient_that_is_no_key_of_ours_gets_one() {
    let world = World::new().await;
    let plugin = "age1kms1qyp8getnxqmn5cm0vf5hg6txdaehguejvf5kzctn9ekkjmrfvd6x7mf0d3hkzer5yvcrwtf3xsmsaf7u2e";
    for other in ["", "age1", plugin, "ssh-ed25519 AAAA"] {
        let refused = taken(&world, other).await;
        assert_eq!(refused, Err(ServiceError::RecipientRefused), "{other}");
        assert_eq!(&*world.last().result, "RECIPIENT_REFUSED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_needs_its_action_in_whichever_tenant() {
    const OTHER: &str = "spiffe://td/other";
    let all_but: Vec<_> =
        ActionKind::ALL.iter().copied().filter(|kind| *kind != ActionKind::BackupStore).collect();
    let alone = "spiffe://td/backup";
    let world =
        World::with(&[grant(OTHER, "t", &all_but), grant(alone, "u", &[ActionKind::BackupStore])])
            .await;
    let Holder { recipient, .. } = holder();
    let refused = world.kms.backup_store(&world.request_of(OTHER, OPERATION), &recipient).await;
    assert_eq!(refused.unwrap_err(), ServiceError::AccessDenied);
    let taken = world.kms.backup_store(&world.request_of(alone, OPERATION), &recipient).await;
    assert!(taken.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_backup_is_taken_at_a_time_and_one_that_nobody_takes_is_given_up() {
    let world = World::new().await;
    for number in 0..40 {
        world.create(&format!("tenants/t/keys/k{number}")).await;
    }
    let Holder { recipient, .. } = holder();
    let request = world.request(OPERATION);
    let first = world.kms.backup_store(&request, &recipient).await.unwrap();
    let refused = world.kms.backup_store(&request, &recipient).await;
    // It may be over already: small ones wait to be taken whole.
    assert!(matches!(refused, Err(ServiceError::BackupInProgress) | Ok(_)));
    drop((first, refused));
    let limit = std::time::Duration::from_mins(1);
    let again = kms_testkit::deadline::within(limit, "the turn", async {
        loop {
            match world.kms.backup_store(&request, &recipient).await {
                Err(ServiceError::BackupInProgress) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    });
    assert!(again.await.is_ok());
}

#[test]
fn an_identity_file_without_an_identity_is_refused() {
    for text in ["", "# only a comment\n", "not an identity\n"] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert!(Identity::read(file.path()).is_err(), "{text:?}");
    }
    assert!(kms_server::backup::Recipient::from_str("age1").is_err());
}

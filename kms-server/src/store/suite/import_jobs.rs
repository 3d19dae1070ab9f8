//! Import jobs: they are made, and go with the key they were for, or alone.

use std::sync::Arc;

use kms_core::import::{ImportMethod, RsaSize};
use kms_core::import_job::ImportJobRow;

use super::*;

fn job(number: u8) -> Sealed<ImportJobRow> {
    sealed(ImportJobRow {
        id: CkaId([number; 16]),
        key: key_row(number).name,
        key_uid: uid(number),
        method: ImportMethod::RsaOaepSha256AesKwp,
        size: RsaSize::Bits4096,
        public_key: vec![number; 550],
        create_time: time(1),
        expire_time: time(100 + i64::from(number)),
        actor: "spiffe://holdfast.test/officer".into(),
    })
}

fn place(at: i64, number: u8) -> JobPosition {
    JobPosition { time: time(at), id: CkaId([number; 16]) }
}

async fn add(store: &Arc<impl Store>, number: u8, manifest_revision: u64) {
    store.open_intent(sealed(intent(number))).await.unwrap();
    let (edit, closing) = (ImportJobEdit::Add(job(number)), closing(number, manifest_revision));
    store.change_import_jobs(edit, closing).await.unwrap();
}

pub(crate) async fn import_jobs_come_and_go(store: Arc<impl Store>) {
    add(&store, 2, 0).await;
    add(&store, 1, 1).await;
    assert_eq!(store.list_import_jobs(tenant()).await, Ok(vec![job(1), job(2)]));
    let other = TenantName::from_id("t2").unwrap();
    assert_eq!(store.list_import_jobs(other).await, Ok(vec![]));
    for (now, after, limit, due) in [
        (100, None, 9, vec![]),
        (101, None, 9, vec![job(1)]),
        (200, None, 9, vec![job(1), job(2)]),
        (200, None, 1, vec![job(1)]),
        (200, Some(place(101, 0)), 9, vec![job(1), job(2)]),
        (200, Some(place(101, 1)), 9, vec![job(2)]),
        (200, Some(place(102, 2)), 9, vec![]),
    ] {
        let found = store.due_import_jobs(time(now), after, limit).await;
        assert_eq!(found, Ok(listed(due)), "{now} {after:?} {limit}");
    }
    assert_eq!(store.resident_ids().await.unwrap().rows.len(), 2, "they name token objects");

    store.open_intent(sealed(intent(3))).await.unwrap();
    let taken = store.change_import_jobs(ImportJobEdit::Add(job(1)), closing(3, 2)).await;
    assert_eq!(taken, Err(StoreError::NameTaken));
    // Only the one that was read is taken away.
    let another = Sealed { mac: RowMac([9; 32]), ..job(1) };
    for absent in [job(4), another] {
        let gone = store.change_import_jobs(ImportJobEdit::Remove(absent), closing(3, 2)).await;
        assert_eq!(gone, Err(StoreError::NotFound));
    }
    store.change_import_jobs(ImportJobEdit::Remove(job(1)), closing(3, 2)).await.unwrap();
    assert_eq!(store.list_import_jobs(tenant()).await, Ok(vec![job(2)]));
}

pub(crate) async fn an_import_job_goes_with_the_key_it_was_for(store: Arc<impl Store>) {
    add(&store, 7, 0).await;
    store.open_intent(sealed(intent(1))).await.unwrap();
    let import = |job| NewKey { import_job: Some(job), ..new_key(1) };
    let absent = store.create_key(import(job(8)), closing(1, 1)).await;
    assert_eq!(absent, Err(StoreError::NotFound));
    assert_eq!(store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await, Ok(None));
    store.create_key(import(job(7)), closing(1, 1)).await.unwrap();
    assert_eq!(stored_key(&store, 1).await, new_key(1).key);
    assert_eq!(store.list_import_jobs(tenant()).await, Ok(vec![]));
}

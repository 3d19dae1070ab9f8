//! The row of a pinned root set, edited behind the server's back: nothing starts on it, and nothing is verified.

use crate::common::{LIMIT, Rig};

/// Exit status for a store or a log that cannot be used as it is.
const EXIT_STATE: i32 = 74;

/// Asserts that the database as it is, edited, is refused by the server and by the verification.
fn is_refused(rig: &Rig, edit: &str, said: &str) {
    let database = rusqlite::Connection::open(rig.path("store.db")).unwrap();
    assert_eq!(database.execute(edit, []).unwrap(), 1, "{edit}");
    database.close().unwrap();
    let mut process = rig.spawn();
    assert_eq!(process.await_end(LIMIT).code(), Some(EXIT_STATE), "{edit}: {}", process.stderr());
    assert!(process.stderr().contains(said), "{edit}: {}", process.stderr());
    assert!(!process.stderr().contains(" listen="), "{edit}: it served");
    let output = rig.verify_store();
    assert_eq!(output.status.code(), Some(EXIT_STATE), "{edit}: {output:?}");
    assert!(output.stdout.is_empty(), "{edit}: {output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{edit}: {output:?}");
}

/// What the token itself would not notice: the objects that the row names are there, and have the recorded check values.
#[tokio::test]
async fn an_edited_root_pin_is_refused() {
    let rig = Rig::new().start().stop().await;
    let first = "the pinned root set of generation 1 fails its integrity check";
    is_refused(&rig, "UPDATE roots SET mac = zeroblob(32)", first);
    let second = "the pinned root set of generation 2 fails its integrity check";
    is_refused(&rig, "UPDATE roots SET generation = 2", second);
}

//! The token's own keys, as PKCS#11 itself shows them and as the database names them.
//!
//! The product's own listing is what is examined, so it is not asked.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use kms_testkit::postgres::Database;

/// Lists all secret keys in the token of a dev directory that no server holds, torn ones too, by the names that the audit
/// log has for orphans.
///
/// SOFTHSM2_CONF must name its configuration.
pub fn in_token(directory: &Path) -> HashSet<String> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let (serial, pin) = (read("token-serial"), read("user-pin"));
    let module = Pkcs11::new(kms_testkit::softhsm::module()).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let mut slots = module.get_slots_with_token().unwrap().into_iter();
    let is_ours = |slot| module.get_token_info(slot).unwrap().serial_number() == serial.trim();
    let slot = slots.find(|slot| is_ours(*slot)).unwrap();
    let session = module.open_ro_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(pin.trim().into()))).unwrap();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let class = Attribute::Class(ObjectClass::SECRET_KEY);
    let named = session.find_objects(&[class]).unwrap().into_iter().map(|object| {
        let attributes = session.get_attributes(object, &[AttributeType::Id]).unwrap_or_default();
        let id = match attributes.as_slice() {
            [Attribute::Id(id)] => hex(id),
            _ => String::new(),
        };
        let number = seen.entry(id.clone()).or_default();
        *number += 1;
        match (id.as_str(), *number) {
            ("", number) => format!("no-cka-id:{number}"),
            (id, 1) => format!("cka-id:{id}"),
            (id, number) => format!("cka-id:{id}#{number}"),
        }
    });
    let named = named.collect();
    session.close().unwrap();
    module.finalize().unwrap();
    named
}

/// The database where the keys are, when it is not in the dev directory. Each test is a process of its own.
pub static POSTGRES: OnceLock<Database> = OnceLock::new();

/// Lists the CKA_IDs that the database of a dev directory names, in versions and in open intents.
pub fn in_store(directory: &Path) -> (HashSet<String>, HashSet<String>) {
    (
        ids(
            directory,
            "SELECT material FROM versions WHERE material_kind = 'resident' AND state <> 'DESTROYED'",
        ),
        ids(directory, "SELECT resident_id FROM intents"),
    )
}

/// Lists the CKA_IDs of the pinned roots.
pub fn roots(directory: &Path) -> HashSet<String> {
    ids(directory, "SELECT wrap_id FROM roots UNION SELECT mac_id FROM roots")
}

/// Lists the versions that the database of a dev directory has: uid of the key in hex, and number.
pub fn versions(directory: &Path) -> HashSet<(String, i64)> {
    if let Some(database) = POSTGRES.get() {
        let told = database.sql("SELECT encode(key_uid, 'hex'), version FROM versions");
        let rows = told.lines().map(|row| row.split_once('|').unwrap());
        return rows.map(|(uid, version)| (uid.to_owned(), version.parse().unwrap())).collect();
    }
    let store = rusqlite::Connection::open(directory.join("store.db")).unwrap();
    let mut statement = store.prepare("SELECT lower(hex(key_uid)), version FROM versions").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn ids(directory: &Path, query: &str) -> HashSet<String> {
    if let Some(database) = POSTGRES.get() {
        let told = database.sql(&format!("SELECT encode(id, 'hex') FROM ({query}) AS ids (id)"));
        return told.lines().map(|id| format!("cka-id:{id}")).collect();
    }
    let store = rusqlite::Connection::open(directory.join("store.db")).unwrap();
    let mut statement = store.prepare(query).unwrap();
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    rows.map(|row| format!("cka-id:{}", hex(&row.unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

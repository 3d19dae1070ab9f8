//! The token's own keys, as the HSM layer lists them and as the database names them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use kms_core::clock::{Clock as _, SystemClock};
use kms_hsm::Hsm as _;
use kms_hsm::pin::PinSource;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};

use crate::support_dev::LIMIT;

/// Lists the CKA_IDs of all resident keys in the token of a dev directory that no server holds.
///
/// SOFTHSM2_CONF must name its configuration.
pub fn in_token(directory: &Path) -> HashSet<String> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let token = TokenSelector::Serial(read("token-serial").trim().to_owned());
    let config = Pkcs11Config::new(kms_testkit::softhsm::module(), token);
    let pin = PinSource::File(directory.join("user-pin")).read(false).unwrap();
    let hsm = Pkcs11Hsm::start(config, pin, Arc::new(SystemClock)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let deadline = SystemClock.monotonic() + LIMIT;
    let listed = runtime.block_on(hsm.list_residents(deadline)).unwrap();
    hsm.close();
    listed.iter().map(|id| hex(&id.0)).collect()
}

/// Lists the CKA_IDs that the database of a dev directory names, in versions and in open intents.
pub fn in_store(directory: &Path) -> (HashSet<String>, HashSet<String>) {
    let store = rusqlite::Connection::open(directory.join("store.db")).unwrap();
    let list = |query: &str| {
        let mut statement = store.prepare(query).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        rows.map(|row| hex(&row.unwrap())).collect()
    };
    (
        list("SELECT material FROM versions WHERE material_kind = 'resident'"),
        list("SELECT resident_id FROM intents"),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

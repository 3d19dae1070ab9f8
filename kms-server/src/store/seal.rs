//! What the MACs of intents and remembered requests cover (docs/formats.md, "Row MACs").
//!
//! Both are acted upon without anybody asking: an intent has an HSM object destroyed, a remembered result is answered.

use kms_core::audit::ManifestStamp;
use kms_core::canonical::CanonicalWriter;
use kms_core::domain;
use kms_core::id::RootGeneration;

use super::{Intent, RequestRecord};

impl Intent {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self {
            id,
            kind,
            principal,
            key_name,
            key_uid,
            version,
            protection,
            resident_id,
            time,
            applied,
        } = self;
        let out = CanonicalWriter::new(domain::ROW_MAC)
            .text("intents")
            .bytes(id.as_bytes())
            .number(generation.get().into())
            .text(kind.as_str())
            .text(principal)
            .text(key_name.tenant().id())
            .text(key_name.key_id())
            .bytes(key_uid.as_bytes())
            .number(version.get().into())
            .text(protection.as_str())
            .bytes(&resident_id.0)
            .signed(time.as_unix_ms());
        match applied {
            Some(ManifestStamp { revision, digest }) => out.number(revision.get()).text(digest),
            None => out.bytes(&[]).bytes(&[]),
        }
        .finish()
    }
}

impl RequestRecord {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { tenant, principal, request_id, method, request_hash, result, time } = self;
        CanonicalWriter::new(domain::ROW_MAC)
            .text("requests")
            .text(principal)
            .bytes(request_id.as_bytes())
            .number(generation.get().into())
            .text(tenant.id())
            .text(method)
            .bytes(request_hash)
            .bytes(result)
            .signed(time.as_unix_ms())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::Timestamp;
    use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision};
    use kms_core::key::{CkaId, Protection};

    use super::*;
    use crate::store::IntentKind;
    use crate::store::suite::{applied, intent, request};

    const GENERATION: RootGeneration = RootGeneration::FIRST;

    #[test]
    fn every_edit_of_an_intent_changes_its_mac_input() {
        let edits: [fn(&mut Intent); 11] = [
            |r| r.id = IntentId::from_bytes([9; 16]),
            |r| r.kind = IntentKind::RotateKey,
            |r| r.principal = "x".into(),
            |r| r.key_name = "tenants/x/keys/k1".parse().unwrap(),
            |r| r.key_name = "tenants/t1/keys/x".parse().unwrap(),
            |r| r.key_uid = KeyUid::from_random([9; 16]),
            |r| r.version = KeyVersion::new(9).unwrap(),
            |r| r.protection = Protection::HsmResident,
            |r| r.resident_id = CkaId([9; 16]),
            |r| r.time = Timestamp::from_unix_ms(9),
            |r| r.applied = applied(2, 7).applied,
        ];
        for row in [intent(1), applied(1, 0)] {
            let input = row.mac_input(GENERATION);
            for (number, edit) in edits.iter().enumerate() {
                let mut edited = row.clone();
                edit(&mut edited);
                assert_ne!(edited.mac_input(GENERATION), input, "edit {number}");
            }
            assert_ne!(row.mac_input(RootGeneration::new(2).unwrap()), input);
        }
        assert_ne!(intent(1).mac_input(GENERATION), applied(1, 0).mac_input(GENERATION));
        let stamp = applied(1, 0).applied.unwrap();
        for other in [
            ManifestStamp { revision: Revision::new(9), ..stamp.clone() },
            ManifestStamp { digest: "00".repeat(32), ..stamp },
        ] {
            let edited = Intent { applied: Some(other), ..intent(1) };
            assert_ne!(edited.mac_input(GENERATION), applied(1, 0).mac_input(GENERATION));
        }
    }

    #[test]
    fn every_edit_of_a_remembered_request_changes_its_mac_input() {
        let edits: [fn(&mut RequestRecord); 7] = [
            |r| r.tenant = kms_core::name::TenantName::from_id("x").unwrap(),
            |r| r.principal = "x".into(),
            |r| r.request_id = RequestId::from_bytes([9; 16]),
            |r| r.method = "x".into(),
            |r| r.request_hash = [9; 32],
            |r| r.result = vec![9],
            |r| r.time = Timestamp::from_unix_ms(9),
        ];
        let row = request(1, 100);
        let input = row.mac_input(GENERATION);
        for (number, edit) in edits.iter().enumerate() {
            let mut edited = row.clone();
            edit(&mut edited);
            assert_ne!(edited.mac_input(GENERATION), input, "edit {number}");
        }
        assert_ne!(row.mac_input(RootGeneration::new(2).unwrap()), input);
    }
}

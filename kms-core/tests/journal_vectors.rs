//! The bytes of the state journal and its mark, pinned: changing one is a change of a format.
#![allow(clippy::unwrap_used, reason = "test helpers: a failure here is a failed test")]

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use kms_core::clock::Timestamp;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RootGeneration};
use kms_core::journal::{Entry, Event, HEADER, JournalMark, Link, Subject};
use kms_core::key::RowMac;
use kms_core::name::TenantName;

const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/journal.json");
/// The root `mac` of these vectors.
const ROOT_MAC: [u8; 32] = [0x42; 32];

fn mac(input: &[u8]) -> RowMac {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &ROOT_MAC);
    RowMac(hmac::sign(&key, input).as_ref().try_into().unwrap())
}

fn events() -> Vec<Event> {
    let tenant = TenantName::from_id("t1").unwrap();
    let key_uid = KeyUid::from_random([1; 16]);
    let version = KeyVersion::new(7).unwrap();
    let subject = Subject { tenant: tenant.clone(), key_uid, version };
    vec![
        Event::VersionDestroyed(subject.clone()),
        Event::VersionCompromised(subject.clone()),
        Event::KeyDestroyed { tenant, key_uid },
        Event::CountReached { subject, count: 1 << 20 },
        Event::Abandoned,
        Event::GapAccepted { from: 6 },
        Event::GapCovered { from: 6 },
        Event::RootAdvanced,
    ]
}

#[test]
fn the_bytes_are_those_of_the_golden_file() {
    let (mut link, mut lines) = (Link::start(), vec![HEXLOWER.encode(HEADER)]);
    for (number, event) in (1..).zip(events()) {
        let entry = Entry {
            number,
            time: Timestamp::from_unix_ms(1_700_000_000_000),
            generation: RootGeneration::FIRST,
            intent: (number < 6).then(|| IntentId::from_bytes([3; 16])),
            event,
        };
        let mut bytes = entry.to_bytes();
        bytes.extend_from_slice(&mac(&entry.mac_input(link)).0);
        link = link.after(&bytes);
        lines.push(HEXLOWER.encode(&bytes));
    }
    let mark = JournalMark { number: 8, generation: RootGeneration::FIRST, link };
    lines.push(HEXLOWER.encode(&mark.to_bytes(&mac(&mark.mac_input()))));
    let text = serde_json::to_string_pretty(&lines).unwrap() + "\n";
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        std::fs::write(GOLDEN_PATH, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(GOLDEN_PATH).unwrap());
}

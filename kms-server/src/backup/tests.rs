//! What is written reads back, and nothing else does.

use std::io;

use kms_core::id::RootGeneration;
use kms_core::key::RowMac;

use super::*;
use crate::store::Cell;

fn manifest() -> BackupManifest {
    BackupManifest {
        time: "2023-11-14T22:13:20.000Z".into(),
        audit_event: "01010101-0101-4101-8101-010101010101".into(),
        journal: 7,
        root_generation: 1,
        schema: "00".repeat(32),
        rows: 1,
        keys: 1,
        tenants: 1,
        intents_left_out: 0,
        requests_left_out: 2,
    }
}

fn cells() -> Vec<Cell> {
    vec![Cell::Null, Cell::Integer(-5), Cell::Text("text".into()), Cell::Blob(vec![0, 1, 2])]
}

fn written() -> Vec<u8> {
    let mut writer = BackupWriter::begin(Vec::new(), &manifest()).unwrap();
    writer.table("keys", &["a".into(), "b".into(), "c".into(), "d".into()]).unwrap();
    writer.row(&cells()).unwrap();
    writer.end(RootGeneration::FIRST, |_| Ok::<_, io::Error>(RowMac([9; 32]))).unwrap()
}

/// Reads all of it; returns what the MAC must have been made over.
fn read(bytes: &[u8]) -> Result<(Vec<Frame>, Vec<u8>), BackupError> {
    let (mut reader, _) = BackupReader::begin(bytes)?;
    let mut frames = Vec::new();
    loop {
        match reader.next_frame()? {
            Frame::End { generation, mac, mac_input } => {
                assert_eq!((generation, mac), (RootGeneration::FIRST, RowMac([9; 32])));
                return Ok((frames, mac_input));
            }
            frame => frames.push(frame),
        }
    }
}

#[test]
fn a_backup_reads_back() {
    assert_eq!(BackupReader::begin(&written()[..]).unwrap().1, manifest());
    let (frames, mac_input) = read(&written()).unwrap();
    let columns = ["a", "b", "c", "d"].map(String::from).to_vec();
    assert_eq!(frames, [Frame::Table { name: "keys".into(), columns }, Frame::Row(cells())]);
    let mut asked = Vec::new();
    let mut writer = BackupWriter::begin(Vec::new(), &manifest()).unwrap();
    writer.table("keys", &["a".into(), "b".into(), "c".into(), "d".into()]).unwrap();
    writer.row(&cells()).unwrap();
    let mac = |input| {
        asked = input;
        Ok::<_, io::Error>(RowMac([9; 32]))
    };
    writer.end(RootGeneration::FIRST, mac).unwrap();
    assert_eq!(asked, mac_input);
}

#[test]
fn a_backup_that_is_cut_off_anywhere_is_refused() {
    let whole = written();
    for length in 0..whole.len() {
        assert!(matches!(read(&whole[..length]), Err(BackupError::Truncated)), "{length}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(read(&longer), Err(BackupError::Malformed { .. })));
}

#[test]
fn a_flipped_bit_is_refused_or_changes_what_the_mac_is_made_over() {
    let whole = written();
    let (_, genuine) = read(&whole).unwrap();
    // Behind this stand generation and MAC, which are compared.
    let end = whole.len() - 36;
    for place in 0..end {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        let is_same = read(&flipped).is_ok_and(|(_, input)| input == genuine);
        assert!(!is_same, "byte {place}");
    }
}

#[test]
fn a_row_at_the_longest_frame_is_written_and_one_past_it_is_not() {
    let row = |bytes: usize| {
        let mut writer = BackupWriter::begin(io::sink(), &manifest()).unwrap();
        writer.row(&[Cell::Blob(vec![0; bytes])])
    };
    assert!(row(MAX_FRAME_BYTES - 5).is_ok());
    assert!(row(MAX_FRAME_BYTES - 4).is_err());
}

#[test]
fn only_x25519_recipients_are_recipients() {
    let identity = age::x25519::Identity::generate();
    let good = identity.to_public().to_string();
    assert_eq!(good.parse::<Recipient>().unwrap().to_string(), good);
    let plugin = "age1kms1qyp8getnxqmn5cm0vf5hg6txdaehguejvf5kzctn9ekkjmrfvd6x7mf0d3hkzer5yvcrwtf3xsmsaf7u2e";
    for other in
        ["", "age1", plugin, "ssh-ed25519 AAAA", good.trim_start_matches("age"), &good.repeat(3)]
    {
        assert!(other.parse::<Recipient>().is_err(), "{other}");
    }
}

//! Sealing and opening: round trips, every kind of damage with its own error, and the header's bounds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test helpers")]

mod backup_support;

use std::io::{self, Cursor, Read};

use backup_support::{
    KEY, MemoryKms, OTHER_KEY, key, native_identity, open, plaintext, reason_of, seal,
};
use kms_cli::backup::{
    BackupError, FormatError, Header, KmsStanza, MAX_EXTRA_RECIPIENTS, MAX_HEADER_BYTES,
    Recipients, STANZA_BYTES, open_stream, seal_stream,
};
use proptest::prelude::*;

/// Length of a full chunk of the payload with its tag.
const SEALED_CHUNK_BYTES: usize = 64 * 1024 + 16;

fn header_bytes(sealed: &[u8]) -> usize {
    Header::read(&mut &sealed[..]).unwrap().encode().len()
}

fn format_error(bytes: &[u8]) -> FormatError {
    match Header::read(&mut &bytes[..]) {
        Err(BackupError::Format(error)) => error,
        other => panic!("no format error: {other:?}"),
    }
}

/// Puts lines before the MAC line of a sealed file's header.
fn with_stanzas(sealed: &[u8], stanzas: &[u8]) -> Vec<u8> {
    let at = sealed.windows(5).position(|window| window == b"\n--- ").unwrap() + 1;
    [&sealed[..at], stanzas, &sealed[at..]].concat()
}

#[test]
fn plaintexts_around_the_chunk_bounds_come_back() {
    let kms = MemoryKms::at(3);
    for bytes in [0, 1, 65_535, 65_536, 65_537, 131_072, 262_144, 300_001] {
        let plaintext = plaintext(bytes);
        let (result, opened) = open(&kms, &seal(&kms, &plaintext));
        result.unwrap();
        assert_eq!(opened, plaintext, "{bytes}");
    }
}

#[test]
fn a_native_recipient_opens_the_file_without_the_kms() {
    let sealed = seal(&MemoryKms::at(3), b"break glass");
    let decryptor = age::Decryptor::new(&sealed[..]).unwrap();
    let identity = native_identity();
    let mut reader = decryptor.decrypt(std::iter::once(&identity as _)).unwrap();
    let mut opened = Vec::new();
    reader.read_to_end(&mut opened).unwrap();
    assert_eq!(opened, b"break glass");
}

#[test]
fn our_stanza_is_the_first_and_has_its_width() {
    let sealed = seal(&MemoryKms::at(3), b"x");
    let stanza = Header::read(&mut &sealed[..]).unwrap().stanza().encode();
    assert_eq!(stanza.len(), STANZA_BYTES);
    let first_line = "age-encryption.org/v1\n".len();
    assert_eq!(sealed[first_line..first_line + STANZA_BYTES], stanza);
}

#[test]
fn the_header_is_written_back_as_it_was_read() {
    let sealed = seal(&MemoryKms::at(3), b"x");
    let header = Header::read(&mut &sealed[..]).unwrap().encode();
    assert_eq!(sealed[..header.len()], header);
}

/// The age crate adds a stanza of random shape to every header; its body has 0 to 99 bytes.
#[test]
fn the_random_stanzas_of_the_age_crate_are_read() {
    let kms = MemoryKms::at(3);
    for _ in 0..400 {
        let sealed = seal(&kms, b"x");
        let header = Header::read(&mut &sealed[..]).unwrap().encode();
        assert_eq!(sealed[..header.len()], header);
    }
}

#[test]
fn reading_the_header_stops_at_the_payload() {
    let sealed = seal(&MemoryKms::at(3), b"x");
    let mut rest = &sealed[..];
    let header = Header::read(&mut rest).unwrap().encode();
    assert_eq!(rest, &sealed[header.len()..]);
}

#[test]
fn sixty_four_extra_recipients_are_accepted_and_65_refused() {
    let recipients = |count| vec![native_identity().to_public(); count];
    let most = Recipients::new(key(), recipients(MAX_EXTRA_RECIPIENTS)).unwrap();
    let kms = MemoryKms::at(1);
    let mut sealed = Vec::new();
    seal_stream(&kms, &most, &b"x"[..], &mut sealed).unwrap();
    open(&kms, &sealed).0.unwrap();
    assert!(matches!(
        Recipients::new(key(), recipients(MAX_EXTRA_RECIPIENTS + 1)),
        Err(BackupError::TooManyRecipients { given: 65, max: 64 })
    ));
}

#[test]
fn nothing_is_written_when_the_service_fails() {
    let kms = MemoryKms { fail_on: Some("wrap"), ..MemoryKms::at(1) };
    let recipients = Recipients::new(key(), Vec::new()).unwrap();
    let mut sealed = Vec::new();
    let error = seal_stream(&kms, &recipients, &b"x"[..], &mut sealed).unwrap_err();
    assert_eq!(reason_of(&error), "TEST_UNAVAILABLE");
    assert!(sealed.is_empty());
}

/// An output on which nothing can be written.
struct Broken(io::ErrorKind);

impl io::Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::new(self.0, "the system's own text"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_fails_in_the_header_is_told_in_the_systems_words() {
    let recipients = Recipients::new(key(), Vec::new()).unwrap();
    for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull] {
        let failed = seal_stream(&MemoryKms::at(3), &recipients, &b"x"[..], Broken(kind));
        let Err(BackupError::Io { source, .. }) = failed else { panic!("{failed:?}") };
        assert_eq!((source.kind(), source.to_string()), (kind, "the system's own text".into()));
    }
}

#[test]
fn a_failing_input_fails_the_seal_and_what_was_written_does_not_open() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let kms = MemoryKms::at(1);
    let recipients = Recipients::new(key(), Vec::new()).unwrap();
    let mut sealed = Vec::new();
    let input = Cursor::new(plaintext(200_000)).chain(Broken);
    let error = seal_stream(&kms, &recipients, input, &mut sealed).unwrap_err();
    assert!(matches!(error, BackupError::Io { action: "read the input", .. }), "{error:?}");
    assert!(matches!(open(&kms, &sealed).0, Err(BackupError::PayloadTruncated { .. })));
}

#[test]
fn the_key_that_is_asked_for_must_be_the_files() {
    let kms = MemoryKms::at(1);
    let sealed = seal(&kms, b"x");
    let mut out = Vec::new();
    open_stream(&kms, Some(&key()), &sealed[..], &mut out).unwrap();
    let other = OTHER_KEY.parse().unwrap();
    let error = open_stream(&kms, Some(&other), &sealed[..], io::sink()).unwrap_err();
    assert!(
        matches!(&error, BackupError::KeyMismatch { asked, found } if *asked == other && found.to_string() == KEY),
        "{error:?}"
    );
}

#[test]
fn a_server_that_tells_no_key_needs_one_to_be_named() {
    let kms = MemoryKms { secretive: true, ..MemoryKms::at(1) };
    let sealed = seal(&kms, b"x");
    assert!(matches!(open(&kms, &sealed).0, Err(BackupError::KeyUnknown)));
    open_stream(&kms, Some(&key()), &sealed[..], io::sink()).unwrap();
    let other = OTHER_KEY.parse().unwrap();
    let error = open_stream(&kms, Some(&other), &sealed[..], io::sink()).unwrap_err();
    assert_eq!(reason_of(&error), "CIPHERTEXT_INVALID");
}

#[test]
fn what_is_no_age_file_is_said_to_be_none() {
    let cases: [(&[u8], FormatError); 6] = [
        (b"", FormatError::NotAge),
        (b"hello\n", FormatError::NotAge),
        (&vec![0xff; 100_000], FormatError::NotAge),
        (b"age-enc", FormatError::HeaderTruncated),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", FormatError::Armored),
        (b"age-encryption.org/v2\n-> x\n\n", FormatError::UnsupportedAgeVersion),
    ];
    for (bytes, expected) in cases {
        assert_eq!(format_error(bytes), expected);
    }
}

#[test]
fn a_file_without_our_stanza_is_refused() {
    let recipient = native_identity().to_public();
    let sealed = age::encrypt(&recipient, b"x").unwrap();
    assert_eq!(format_error(&sealed), FormatError::NoKmsStanza);
}

#[test]
fn a_file_with_two_of_our_stanzas_is_refused() {
    let sealed = seal(&MemoryKms::at(1), b"x");
    let ours = Header::read(&mut &sealed[..]).unwrap().stanza().encode();
    let twice = with_stanzas(&sealed, &ours);
    assert_eq!(format_error(&twice), FormatError::SeveralKmsStanzas { count: 2 });
}

#[test]
fn another_version_of_our_stanza_is_refused() {
    let mut sealed = seal(&MemoryKms::at(1), b"x");
    let at = sealed.windows(9).position(|window| window == b"-> kms 1 ").unwrap();
    sealed[at + 7] = b'2';
    assert_eq!(format_error(&sealed), FormatError::UnsupportedStanza);
}

#[test]
fn a_header_of_64_kib_is_read_and_one_byte_more_refused() {
    let sealed = seal(&MemoryKms::at(1), b"x");
    let room = MAX_HEADER_BYTES - header_bytes(&sealed);
    let stanza = |bytes: usize| format!("-> {}\n\n", "x".repeat(bytes - 5)).into_bytes();
    let longest = with_stanzas(&sealed, &stanza(room));
    assert_eq!(header_bytes(&longest), MAX_HEADER_BYTES);
    let longer = with_stanzas(&sealed, &stanza(room + 1));
    assert_eq!(format_error(&longer), FormatError::HeaderTooLong);
}

#[test]
fn malformed_lines_are_named() {
    let sealed = seal(&MemoryKms::at(1), b"x");
    for stanza in [&b"-> \n\n"[..], b"->\n\n", b"-> a  b\n\n", b"-> a \n\n", b"-> a\n=\n", b"x\n"] {
        let error = format_error(&with_stanzas(&sealed, stanza));
        assert!(matches!(error, FormatError::HeaderMalformed { .. }), "{stanza:?}: {error:?}");
    }
    let error = format_error(b"age-encryption.org/v1\n--- AAAA\n");
    assert_eq!(error, FormatError::HeaderMalformed { line: 2 });
}

#[test]
fn a_foreign_stanza_that_is_changed_is_caught_by_the_mac() {
    let kms = MemoryKms::at(1);
    let sealed = seal(&kms, b"x");
    let (result, opened) = open(&kms, &with_stanzas(&sealed, b"-> foreign\nAAAA\n"));
    assert!(matches!(result, Err(BackupError::HeaderTampered)));
    assert!(opened.is_empty());
}

#[test]
fn a_stanza_of_another_file_is_caught_by_the_mac() {
    let kms = MemoryKms::at(1);
    let (one, other) = (seal(&kms, b"one"), seal(&kms, b"other"));
    let stanza = |sealed: &[u8]| Header::read(&mut &sealed[..]).unwrap().stanza().encode();
    let mut swapped = one.clone();
    let at = "age-encryption.org/v1\n".len();
    swapped[at..at + STANZA_BYTES].copy_from_slice(&stanza(&other));
    assert!(matches!(open(&kms, &swapped).0, Err(BackupError::HeaderTampered)));
}

#[test]
fn every_cut_of_a_small_file_is_refused_and_none_of_its_text_released() {
    let kms = MemoryKms::at(1);
    let sealed = seal(&kms, b"all or nothing");
    let header = header_bytes(&sealed);
    for length in 0..sealed.len() {
        let (result, opened) = open(&kms, &sealed[..length]);
        let error = result.unwrap_err();
        match error {
            BackupError::Format(FormatError::NotAge) => assert_eq!(length, 0),
            BackupError::Format(FormatError::HeaderTruncated) => assert!(length < header + 16),
            BackupError::PayloadTruncated { verified_bytes: 0 } => assert!(length >= header + 16),
            other => panic!("{length}: {other:?}"),
        }
        assert!(opened.is_empty(), "{length}");
    }
}

#[test]
fn a_cut_payload_gives_the_verified_beginning_and_an_error() {
    let kms = MemoryKms::at(1);
    let plaintext = plaintext(200_000);
    let sealed = seal(&kms, &plaintext);
    let payload = header_bytes(&sealed) + 16;
    for (cut, verified) in [
        (payload + 2 * SEALED_CHUNK_BYTES, 2 * 65_536),
        (payload + 2 * SEALED_CHUNK_BYTES + 1, 2 * 65_536),
        (payload + SEALED_CHUNK_BYTES + 40_000, 65_536),
        (sealed.len() - 1, 3 * 65_536),
    ] {
        let (result, opened) = open(&kms, &sealed[..cut]);
        let error = result.unwrap_err();
        assert!(
            matches!(error, BackupError::PayloadTruncated { verified_bytes } if verified_bytes == verified as u64),
            "{cut}: {error:?}"
        );
        assert_eq!(opened, plaintext[..verified], "{cut}");
    }
}

#[test]
fn a_changed_or_swapped_chunk_is_refused_where_it_stands() {
    let kms = MemoryKms::at(1);
    let plaintext = plaintext(200_000);
    let sealed = seal(&kms, &plaintext);
    let payload = header_bytes(&sealed) + 16;
    let mut changed = sealed.clone();
    changed[payload + SEALED_CHUNK_BYTES + 5] ^= 1;
    let mut swapped = sealed.clone();
    swapped[payload..payload + 2 * SEALED_CHUNK_BYTES].rotate_left(SEALED_CHUNK_BYTES);
    for (damaged, verified) in [(changed, 65_536), (swapped, 0)] {
        let (result, opened) = open(&kms, &damaged);
        let error = result.unwrap_err();
        assert!(
            matches!(error, BackupError::PayloadTampered { verified_bytes } if verified_bytes == verified as u64),
            "{error:?}"
        );
        assert_eq!(opened, plaintext[..verified]);
    }
}

#[test]
fn bytes_after_the_last_chunk_are_refused() {
    let kms = MemoryKms::at(1);
    for bytes in [10, 65_536] {
        let mut sealed = seal(&kms, &plaintext(bytes));
        sealed.extend_from_slice(b"more");
        let error = open(&kms, &sealed).0.unwrap_err();
        let refused = matches!(
            error,
            BackupError::PayloadTampered { .. } | BackupError::PayloadTruncated { .. }
        );
        assert!(refused, "{bytes}: {error:?}");
    }
}

#[test]
fn every_bit_of_the_header_is_protected() {
    let kms = MemoryKms::at(1);
    let sealed = seal(&kms, b"x");
    for bit in 0..header_bytes(&sealed) * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (result, opened) = open(&kms, &flipped);
        assert!(result.is_err() && opened.is_empty(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn the_header_reader_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let framed = [b"age-encryption.org/v1\n-> kms 1 ", &bytes[..]].concat();
        prop_assert!(Header::read(&mut &bytes[..]).is_err());
        prop_assert!(Header::read(&mut &framed[..]).is_err());
    }

    #[test]
    fn headers_with_any_foreign_stanzas_round_trip(
        tags in proptest::collection::vec("[!-~]{1,9}( [!-~]{1,9}){0,3}", 0..4),
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 4),
    ) {
        prop_assume!(tags.iter().all(|tag| tag != "kms" && !tag.starts_with("kms ")));
        let sealed = seal(&MemoryKms::at(1), b"x");
        let mut stanzas = Vec::new();
        for (tag, body) in tags.iter().zip(&bodies) {
            stanzas.extend_from_slice(format!("-> {tag}\n").as_bytes());
            let body = data_encoding::BASE64_NOPAD.encode(body);
            for line in body.as_bytes().chunks(64) {
                stanzas.extend_from_slice(line);
                stanzas.push(b'\n');
            }
            if body.len().is_multiple_of(64) {
                stanzas.push(b'\n');
            }
        }
        let sealed = with_stanzas(&sealed, &stanzas);
        let header = Header::read(&mut &sealed[..]).unwrap().encode();
        prop_assert_eq!(&header, &sealed[..header.len()]);
        prop_assert!(age::Decryptor::new(&sealed[..]).is_ok());
    }

    #[test]
    fn stanza_arguments_never_panic(args in proptest::collection::vec(".{0,40}", 0..5), body in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(KmsStanza::from_parts(&args, &body).is_err());
    }
}

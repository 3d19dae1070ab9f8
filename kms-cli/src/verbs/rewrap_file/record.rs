//! Splits a file into records and finds the ciphertext of each, a record at a time.
//!
//! The bytes of a record go to the caller's buffer as they are: whatever is not a ciphertext is copied from there.

use std::io::{BufRead, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kms_core::envelope::{self, Envelope, Header, InvalidEnvelope};

use super::csv::{Field, RecordReader};
use super::error::RunError;
use super::fault::Fault;
use super::layout::{Layout, column_number};

/// The longest record, its line end included: a record is held in memory as a whole. The longest ciphertext takes 88 KiB
/// of it.
pub(super) const MAX_RECORD_BYTES: usize = 1 << 20;
/// What some editors put before the first byte of a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The line that it begins on, from 1.
    pub(super) line: u64,
    /// What is in it.
    pub(super) found: Result<Found, Fault>,
}

/// What is in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The names of the columns.
    ColumnNames,
    /// Nothing to rewrap: an empty line or field, or `null`.
    Blank,
    /// A ciphertext.
    Ciphertext(Ciphertext),
}

/// A ciphertext and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ciphertext {
    /// Where its text form stands in the caller's buffer; with the quotes of a JSON string, without those of a CSV field.
    pub(super) place: Range<usize>,
    /// Whether quotes must stand around what replaces it.
    pub(super) in_json: bool,
    /// The binary form.
    pub(super) envelope: Bytes,
    /// What it says of itself.
    pub(super) header: Header,
}

/// Reads records one after the other.
#[derive(Debug)]
pub(super) struct Records<R> {
    input: R,
    path: PathBuf,
    layout: Arc<Layout>,
    /// The index of the CSV column, once it is known.
    column: Option<usize>,
    offset: u64,
    lines: u64,
}

impl<R: BufRead> Records<R> {
    /// Begins at the beginning of a file; `path` is for messages.
    pub(super) fn new(input: R, path: &Path, layout: &Layout) -> Self {
        let column = match layout {
            Layout::Csv { column, header: false } => column_number(column),
            _ => None,
        };
        let (path, layout) = (path.to_path_buf(), Arc::new(layout.clone()));
        Self { input, path, layout, column, offset: 0, lines: 0 }
    }

    /// Goes on with another reader, which stands at `offset` of the same file, behind `lines` lines.
    pub(super) fn at<S: BufRead>(self, input: S, offset: u64, lines: u64) -> Records<S> {
        let Self { path, layout, column, .. } = self;
        Records { input, path, layout, column, offset, lines }
    }

    /// Returns how many bytes and lines were read.
    pub(super) const fn position(&self) -> (u64, u64) {
        (self.offset, self.lines)
    }

    /// Appends the next record to `buffer`; `None` at the end of the file.
    ///
    /// # Errors
    /// What makes it impossible to tell where records end, and I/O errors. What is wrong with one record only is in it.
    pub(super) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Record>, RunError> {
        let (start, line) = (buffer.len(), self.lines + 1);
        let at_beginning = self.offset == 0;
        if !self.read_line(buffer, start, line)? {
            return Ok(None);
        }
        let bytes = buffer.get(start..).unwrap_or_default();
        let marked = at_beginning && bytes.starts_with(BYTE_ORDER_MARK);
        let start = if marked { start + BYTE_ORDER_MARK.len() } else { start };
        let layout = Arc::clone(&self.layout);
        let found = match &*layout {
            Layout::Lines => in_line(buffer, start),
            Layout::JsonLines(path) => {
                let text = std::str::from_utf8(buffer.get(start..).unwrap_or_default());
                text.map_err(|_| Fault::NotText).and_then(|text| {
                    let text = text.trim_ascii_end();
                    if text.is_empty() {
                        return Ok(Found::Blank);
                    }
                    let Some((place, text)) = path.find(text)? else { return Ok(Found::Blank) };
                    ciphertext(start + place.start..start + place.end, true, &text)
                })
            }
            Layout::Csv { column, header } => {
                self.csv(buffer, start, line, (*header && at_beginning).then_some(column))?
            }
        };
        Ok(Some(Record { line, found }))
    }

    /// Appends a physical line of the record that began at `start` and on `line`; false at the end of the file.
    fn read_line(
        &mut self,
        buffer: &mut Vec<u8>,
        start: usize,
        line: u64,
    ) -> Result<bool, RunError> {
        let room = MAX_RECORD_BYTES.saturating_sub(buffer.len() - start);
        let mut limited = self.input.by_ref().take(room as u64 + 1);
        let length =
            limited.read_until(b'\n', buffer).map_err(RunError::file("read", &self.path))?;
        if length > room {
            return Err(RunError::RecordTooLong(line));
        }
        self.offset += length as u64;
        self.lines += u64::from(length > 0);
        Ok(length > 0)
    }

    /// Reads the rest of a CSV record whose first line is in `buffer`; `must_name` is the column that a header must
    /// name.
    fn csv(
        &mut self,
        buffer: &mut Vec<u8>,
        start: usize,
        line: u64,
        must_name: Option<&String>,
    ) -> Result<Result<Found, Fault>, RunError> {
        let mut reader = RecordReader::new();
        let (mut fields, mut wanted, mut names) = (0, None, Vec::new());
        let column = self.column;
        let mut put = |field: Field| {
            if must_name.is_some() {
                names.push(field.clone());
            }
            if Some(fields) == column {
                wanted = Some(field);
            }
            fields += 1;
        };
        let mut from = start;
        loop {
            let piece = buffer.get(from..).unwrap_or_default();
            if reader.line(piece, from - start, self.lines, &mut put)? {
                break;
            }
            from = buffer.len();
            if !self.read_line(buffer, start, line)? {
                reader.end(from - start, self.lines, &mut put)?;
                break;
            }
        }
        let record = buffer.get(start..).unwrap_or_default();
        if let Some(name) = must_name {
            self.column = Some(named_column(record, &names, name)?);
            return Ok(Ok(Found::ColumnNames));
        }
        if record.trim_ascii_end().is_empty() && fields == 1 {
            return Ok(Ok(Found::Blank));
        }
        let Some(field) = wanted else {
            let column = column.unwrap_or_default() + 1;
            return Ok(Err(Fault::ColumnMissing { column, fields }));
        };
        let Some(text) = record.get(field.place.clone()).filter(|text| !text.is_empty()) else {
            return Ok(Ok(Found::Blank));
        };
        let place = start + field.place.start..start + field.place.end;
        let text = std::str::from_utf8(text).map_err(|_| InvalidEnvelope::Malformed);
        Ok(text.map_err(Fault::from).and_then(|text| ciphertext(place, false, text)))
    }
}

/// Finds the column that a header names, or the number that is none of its names.
fn named_column(header: &[u8], fields: &[Field], name: &str) -> Result<usize, RunError> {
    let called = |field: &Field| {
        let text = header.get(field.place.clone()).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let unquoted = if field.quoted { text.replace("\"\"", "\"") } else { text.into_owned() };
        unquoted == name
    };
    let mut named = fields.iter().enumerate().filter(|(_, field)| called(field));
    match (named.next(), named.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some(_), Some(_)) => Err(RunError::Column { column: name.to_owned(), twice: true }),
        (None, _) => column_number(name)
            .filter(|index| *index < fields.len())
            .ok_or_else(|| RunError::Column { column: name.to_owned(), twice: false }),
    }
}

/// Takes a line for a ciphertext, white space around it apart.
fn in_line(buffer: &[u8], start: usize) -> Result<Found, Fault> {
    let line = buffer.get(start..).unwrap_or_default();
    let text = line.trim_ascii();
    if text.is_empty() {
        return Ok(Found::Blank);
    }
    let start = start + line.len() - line.trim_ascii_start().len();
    let place = start..start + text.len();
    let text = std::str::from_utf8(text).map_err(|_| InvalidEnvelope::Malformed)?;
    ciphertext(place, false, text)
}

fn ciphertext(place: Range<usize>, in_json: bool, text: &str) -> Result<Found, Fault> {
    let envelope = envelope::from_text(text)?;
    let header = Envelope::decode(&envelope)?.header;
    Ok(Found::Ciphertext(Ciphertext { place, in_json, envelope: envelope.into(), header }))
}

#[cfg(test)]
mod tests {
    use super::super::jsonl::FieldPath;
    use super::*;

    fn csv(column: &str) -> Layout {
        Layout::Csv { column: column.into(), header: true }
    }

    /// The line of a record, and what is in it: a ciphertext as its place.
    type Told = (u64, Result<Option<Range<usize>>, Fault>);

    /// Reads all records.
    fn read(bytes: &[u8], layout: &Layout) -> Result<Vec<Told>, RunError> {
        let mut records = Records::new(bytes, Path::new("f"), layout);
        let (mut buffer, mut all) = (Vec::new(), Vec::new());
        while let Some(Record { line, found }) = records.next(&mut buffer)? {
            let place = |found| match found {
                Found::Ciphertext(ciphertext) => Some(ciphertext.place),
                Found::Blank | Found::ColumnNames => None,
            };
            all.push((line, found.map(place)));
        }
        assert_eq!(buffer, bytes);
        Ok(all)
    }

    fn text() -> String {
        let key_uid = kms_core::id::KeyUid::from_bytes([1; 16]);
        let version = kms_core::id::KeyVersion::new(1).unwrap();
        let header = Header { suite: envelope::Suite::Aes256Gcm, key_uid, version };
        envelope::to_text(&header.seal(&[0; 12], &[0; 17]))
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_what_follows() {
        let text = text();
        let length = text.len();
        let marked = format!("\u{feff}\"s\",t\n{text},x\n");
        assert_eq!(read(marked.as_bytes(), &csv("s")).unwrap()[1], (2, Ok(Some(9..9 + length))));
        let marked = format!("\u{feff}{{\"s\":\"{text}\"}}");
        let layout = Layout::JsonLines(FieldPath::parse("s").unwrap());
        assert_eq!(read(marked.as_bytes(), &layout).unwrap(), [(1, Ok(Some(8..10 + length)))]);
    }

    #[test]
    fn a_header_must_name_the_column_once_or_have_its_number() {
        for (header, column, twice) in
            [("a,b", "c", false), ("a,b,a", "a", true), ("a,b", "3", false), ("a,b", "0", false)]
        {
            let refused = read(format!("{header}\n1,2,3\n").as_bytes(), &csv(column));
            assert!(matches!(refused, Err(RunError::Column { twice: told, .. }) if told == twice));
        }
        assert!(read(b"1,x\n,\n", &csv("1")).is_ok());
        assert_eq!(read(b"", &csv("s")).unwrap(), []);
    }

    #[test]
    fn what_is_wrong_with_one_record_is_told_of_it_and_lines_are_counted_in_quotes_too() {
        let all = read(b"s,t\n\"\n\n\",x\n1\n\n,\xff\n", &csv("t")).unwrap();
        let missing = Fault::ColumnMissing { column: 2, fields: 1 };
        let malformed = || Err(Fault::Envelope(InvalidEnvelope::Malformed));
        let expected =
            [(1, Ok(None)), (2, malformed()), (5, Err(missing)), (6, Ok(None)), (7, malformed())];
        assert_eq!(all, expected);
        let layout = Layout::JsonLines(FieldPath::parse("s").unwrap());
        assert_eq!(read(b"{\"s\":\"\xff\"}\n", &layout).unwrap(), [(1, Err(Fault::NotText))]);
    }

    #[test]
    fn a_record_of_1_mib_is_read_and_one_byte_more_refused_over_lines_too() {
        let record = |bytes: usize| format!("s\n\"\n{}\"\n", "x".repeat(bytes - 4));
        assert_eq!(read(record(MAX_RECORD_BYTES).as_bytes(), &csv("s")).unwrap().len(), 2);
        let refused = read(record(MAX_RECORD_BYTES + 1).as_bytes(), &csv("s"));
        assert!(matches!(refused, Err(RunError::RecordTooLong(2))));
    }
}

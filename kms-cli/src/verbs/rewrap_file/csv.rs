//! Reads CSV records strictly after RFC 4180: what quoting leaves open is refused, never guessed.
//!
//! Lines end with LF or CR LF. The reader is fed whole physical lines and tells where each field stands; it changes
//! nothing and keeps nothing but places.

use std::ops::Range;

/// What is wrong with the quoting, and where: no record after it can be told for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub(super) struct BadQuoting {
    /// The line, from 1.
    pub(super) line: u64,
    /// The byte of the line, from 1.
    pub(super) column: usize,
    /// What is wrong.
    pub(super) what: &'static str,
}

/// One field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Where its content stands in the record, without quotes around it.
    pub(super) place: Range<usize>,
    /// Whether quotes stand around it.
    pub(super) quoted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the first byte of a field.
    Start,
    /// In a field without quotes.
    Plain,
    /// Between quotes.
    Quoted,
    /// After a quote between quotes: it ends the field, or another quote follows.
    QuoteInQuoted,
    /// After a carriage return outside quotes: a line feed must follow.
    CarriageReturn,
}

/// Reads one record.
pub(super) struct RecordReader {
    state: State,
    /// Where the field's content began in the record.
    start: usize,
    /// Where the last quotes were opened.
    opened: (u64, usize),
}

impl RecordReader {
    pub(super) const fn new() -> Self {
        Self { state: State::Start, start: 0, opened: (0, 0) }
    }

    /// Reads a physical line, its end included, that stands at `at` in the record; says whether the record ends with it.
    pub(super) fn line(
        &mut self,
        bytes: &[u8],
        at: usize,
        line: u64,
        mut field: impl FnMut(Field),
    ) -> Result<bool, BadQuoting> {
        for (index, byte) in bytes.iter().enumerate() {
            let here = at + index;
            let bad = |what| Err(BadQuoting { line, column: index + 1, what });
            if self.state == State::Start {
                self.start = here;
            }
            self.state = match (self.state, byte) {
                (State::CarriageReturn, b'\n') => return Ok(true),
                (State::CarriageReturn, _) => {
                    return bad("text after a carriage return outside quotes");
                }
                (State::Start, b'"') => {
                    self.start = here + 1;
                    self.opened = (line, index + 1);
                    State::Quoted
                }
                (State::Plain, b'"') => {
                    return bad("a quote in a field that does not begin with one");
                }
                (State::Quoted, b'"') => State::QuoteInQuoted,
                (State::Quoted, _) | (State::QuoteInQuoted, b'"') => State::Quoted,
                (_, b',' | b'\r' | b'\n') => {
                    field(self.ended(here));
                    match byte {
                        b',' => State::Start,
                        b'\r' => State::CarriageReturn,
                        _ => return Ok(true),
                    }
                }
                (State::QuoteInQuoted, _) => return bad("text after the quote that ends a field"),
                (State::Start | State::Plain, _) => State::Plain,
            };
        }
        Ok(false)
    }

    /// Ends a record of `length` bytes at the end of the file.
    pub(super) fn end(
        self,
        length: usize,
        line: u64,
        mut field: impl FnMut(Field),
    ) -> Result<(), BadQuoting> {
        match self.state {
            State::Quoted => {
                let (line, column) = self.opened;
                Err(BadQuoting { line, column, what: "a quote that is never closed" })
            }
            State::CarriageReturn => {
                let what = "the file ends after a carriage return";
                Err(BadQuoting { line, column: length, what })
            }
            State::Start => {
                field(Field { place: length..length, quoted: false });
                Ok(())
            }
            State::Plain | State::QuoteInQuoted => {
                field(self.ended(length));
                Ok(())
            }
        }
    }

    fn ended(&self, here: usize) -> Field {
        let quoted = self.state == State::QuoteInQuoted;
        let end = if quoted { here.saturating_sub(1) } else { here };
        Field { place: self.start..end, quoted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all records of a text, each as its fields.
    fn records(text: &str) -> Result<Vec<Vec<(&str, bool)>>, BadQuoting> {
        let mut records = Vec::new();
        let (mut reader, mut fields, mut start, mut at) = (RecordReader::new(), Vec::new(), 0, 0);
        let mut number = 0;
        for line in text.split_inclusive('\n') {
            number += 1;
            let record = text.get(start..).unwrap();
            let mut put =
                |field: Field| fields.push((record.get(field.place).unwrap(), field.quoted));
            let ended = reader.line(line.as_bytes(), at, number, &mut put)?;
            at += line.len();
            if ended {
                records.push(std::mem::take(&mut fields));
                (reader, start, at) = (RecordReader::new(), start + at, 0);
            }
        }
        if at > 0 {
            let record = text.get(start..).unwrap();
            let mut put =
                |field: Field| fields.push((record.get(field.place).unwrap(), field.quoted));
            reader.end(at, number, &mut put)?;
            records.push(fields);
        }
        Ok(records)
    }

    #[test]
    fn fields_are_told_with_and_without_quotes_over_lines_and_at_the_end_of_the_file() {
        let text = "a,\"b\"\"c\",\r\n\"x\r\ny\n\",\"\"\n\n,z";
        let plain = |text| (text, false);
        let quoted = |text| (text, true);
        let expected = [
            vec![plain("a"), quoted("b\"\"c"), plain("")],
            vec![quoted("x\r\ny\n"), quoted("")],
            vec![plain("")],
            vec![plain(""), plain("z")],
        ];
        assert_eq!(records(text).unwrap(), expected);
        assert_eq!(records("a,").unwrap(), [[plain("a"), plain("")]]);
        assert_eq!(records("\"a\"").unwrap(), [[quoted("a")]]);
        assert_eq!(records("").unwrap(), Vec::<Vec<_>>::new());
    }

    #[test]
    fn broken_quoting_is_refused_with_its_place() {
        let cases = [
            ("a\nb\"c\n", 2, 2),
            ("a,\"b\"c\n", 1, 6),
            ("a\nb,\"c\n\nd", 2, 3),
            ("a\rb\n", 1, 3),
            ("a\r", 1, 2),
            ("\"a\" ,b\n", 1, 4),
        ];
        for (text, line, column) in cases {
            let refused = records(text).unwrap_err();
            assert_eq!((refused.line, refused.column), (line, column), "{text:?}: {refused}");
        }
    }
}

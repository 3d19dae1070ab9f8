//! Reading a log file line by line, in constant memory, and telling a torn end from a broken chain.
//!
//! Lines are appended in groups, one write and one fdatasync each, and a group is begun only when the one before is
//! durable. After a loss of power the last group may therefore lack sectors, which read as zeros or are beyond the end;
//! everything before it is whole. So what follows the last good line is *torn*, never acknowledged and to be cut off,
//! only if it is one incomplete line, or has zero bytes in its first bad line and no line of a later group behind it.
//! Anything else is *broken*: edited or damaged.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use super::chain::{Head, Line, LineFault, MAX_LINE_BYTES};

const BUFFER_BYTES: usize = 256 << 10;

/// Where reading begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes before it.
    pub(super) bytes: u64,
    /// Lines before it.
    pub(super) lines: u64,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Sequence number of the first line that was read, if there is one.
    pub(super) first: Option<u64>,
    /// The head after the last good line; `None` when there is no line and no start was given.
    pub(super) head: Option<Head>,
    /// Number of good lines, with those before the place where reading began.
    pub(super) lines: u64,
    /// Their length in bytes.
    pub(super) good_bytes: u64,
    /// How it ends.
    pub(super) end: End,
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a good line.
    Clean,
    /// With this many bytes of a write that was cut short.
    Torn(u64),
    /// The line after the last good one is damaged.
    Broken(LineFault),
}

/// Reads a file from a place on and hands every good line to `each`. `start` is what the first line must follow; `None`
/// takes the line's own word.
pub(super) fn scan(
    mut file: &File,
    from: Place,
    start: Option<Head>,
    mut each: impl FnMut(&[u8]),
) -> io::Result<Scan> {
    file.seek(SeekFrom::Start(from.bytes))?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let Place { bytes: good_bytes, lines } = from;
    let mut scan = Scan { first: None, head: start, lines, good_bytes, end: End::Clean };
    let mut line = Vec::with_capacity(1024);
    while read_line(&mut reader, &mut line)? {
        match check(&line, scan.head) {
            Ok(head) => {
                scan.first.get_or_insert(head.seq);
                scan.head = Some(head);
                each(&line);
                scan.lines += 1;
                scan.good_bytes += line.len() as u64;
            }
            Err(fault) => {
                scan.end = judge(&mut reader, &line, fault, scan.head)?;
                break;
            }
        }
    }
    Ok(scan)
}

fn check(line: &[u8], head: Option<Head>) -> Result<Head, LineFault> {
    if line.last() != Some(&b'\n') {
        let too_long = line.len() > MAX_LINE_BYTES;
        return Err(if too_long { LineFault::TooLong } else { LineFault::Incomplete });
    }
    let parsed = Line::parse(line)?;
    parsed.follows(head.unwrap_or_else(|| parsed.own_previous()))?;
    Ok(parsed.head)
}

/// Decides what the first bad line and all that follows it are.
fn judge(
    reader: &mut BufReader<&File>,
    first_bad: &[u8],
    fault: LineFault,
    head: Option<Head>,
) -> io::Result<End> {
    let expected_seq = head.map_or(1, |head| head.seq.saturating_add(1));
    let mut torn_bytes = first_bad.len() as u64;
    let mut later_group = false;
    let mut line = Vec::new();
    while read_line(reader, &mut line)? {
        torn_bytes += line.len() as u64;
        later_group |= is_of_later_group(&line, expected_seq);
    }
    let incomplete_end = fault == LineFault::Incomplete && torn_bytes == first_bad.len() as u64;
    let lost_sectors = first_bad.contains(&0) && !later_group;
    Ok(if incomplete_end || lost_sectors { End::Torn(torn_bytes) } else { End::Broken(fault) })
}

/// A whole line whose group began after `seq` proves that the group of `seq` had been made durable.
fn is_of_later_group(line: &[u8], seq: u64) -> bool {
    // What is left of a torn line may stand in front of it, after zeros.
    let start = line.iter().rposition(|byte| *byte == 0).map_or(0, |zero| zero + 1);
    let rest = line.get(start..).unwrap_or_default();
    Line::parse(rest).is_ok_and(|line| line.is_whole() && line.head.group > seq)
}

/// Reads up to and with the next line feed, at most one byte more than a line can have.
fn read_line(reader: &mut BufReader<&File>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', line)?;
    Ok(!line.is_empty())
}

/// Reads the head after the last line that ends at `end`; `None` when there is no whole line there.
pub(super) fn head_at(file: &File, end: u64) -> io::Result<Option<Head>> {
    let start = end.saturating_sub(MAX_LINE_BYTES as u64 + 1);
    let mut tail = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut tail, start)?;
    let Some(body) = tail.strip_suffix(b"\n") else { return Ok(None) };
    let line_start = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
    let line = tail.get(line_start..).unwrap_or_default();
    Ok(Line::parse(line).ok().filter(Line::is_whole).map(|line| line.head))
}

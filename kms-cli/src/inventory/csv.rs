//! One row a version, RFC 4180: a header, CRLF, and quotes where they are needed.
//!
//! A text that a spreadsheet would run as a formula (it begins with `=`, `+`, `-`, `@`, a tab or a line end) gets a `'` in
//! front: owner, usage, labels and reasons are other people's words.

use std::io::{self, Write};

use super::Entry;

/// The columns.
pub const COLUMNS: [&str; 30] = [
    "key",
    "key_uid",
    "purpose",
    "protection",
    "key_state",
    "owner",
    "sensitivity",
    "usage",
    "cryptoperiod_seconds",
    "recipient_usage_period_seconds",
    "labels",
    "key_create_time",
    "key_update_time",
    "rotation_period_seconds",
    "next_rotation_time",
    "consumer_count",
    "key_destroy_time",
    "version",
    "version_state",
    "primary",
    "origin",
    "local",
    "version_create_time",
    "activate_time",
    "state_time",
    "state_reason",
    "state_actor",
    "invocation_count",
    "root_generation",
    "destroy_time",
];

/// What begins a formula in a spreadsheet.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

pub(super) fn begin(out: &mut impl Write) -> io::Result<()> {
    row(out, &COLUMNS.map(str::to_owned))
}

pub(super) fn add(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let Entry { key, versions } = entry;
    let labels: Vec<_> = key.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    for version in versions {
        let fields: [String; COLUMNS.len()] = [
            key.name.clone(),
            key.uid.clone(),
            key.purpose.to_owned(),
            key.protection.to_owned(),
            key.state.to_owned(),
            key.owner.clone(),
            key.sensitivity.to_owned(),
            key.usage.clone(),
            key.cryptoperiod_seconds.to_string(),
            key.recipient_usage_period_seconds.to_string(),
            labels.join(";"),
            key.create_time.clone(),
            key.update_time.clone(),
            key.rotation_period_seconds.to_string(),
            key.next_rotation_time.clone(),
            key.consumer_count.to_string(),
            key.destroy_time.clone(),
            version.version.to_string(),
            version.state.to_owned(),
            version.primary.to_string(),
            version.origin.to_owned(),
            version.local.to_string(),
            version.create_time.clone(),
            version.activate_time.clone(),
            version.state_time.clone(),
            version.state_reason.clone(),
            version.state_actor.clone(),
            version.invocation_count.to_string(),
            version.root_generation.to_string(),
            version.destroy_time.clone(),
        ];
        row(out, &fields)?;
    }
    Ok(())
}

fn row(out: &mut impl Write, fields: &[String]) -> io::Result<()> {
    let fields: Vec<_> = fields.iter().map(|field| quoted(field)).collect();
    write!(out, "{}\r\n", fields.join(","))
}

fn quoted(field: &str) -> String {
    let harmless = if field.starts_with(FORMULA) { format!("'{field}") } else { field.to_owned() };
    if harmless.contains([',', '"', '\r', '\n']) {
        return format!("\"{}\"", harmless.replace('"', "\"\""));
    }
    harmless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_quoted_where_it_must_be_and_never_runs() {
        for (field, expected) in [
            ("plain", "plain"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1,A2)", "\"'@SUM(A1,A2)\""),
            ("\tx", "'\tx"),
            ("\rx", "\"'\rx\""),
            ("1=1", "1=1"),
        ] {
            assert_eq!(quoted(field), expected);
        }
    }
}

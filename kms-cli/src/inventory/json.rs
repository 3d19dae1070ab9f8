//! One object: what it is of, and `keys`, each with its `versions`; the fields are those of `kms key describe`.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::to_string;

use super::{Entry, Heading};
use crate::output::view::{KeyView, VersionView};

/// Names the form; another number stands for fields that were taken away or changed.
pub const FORMAT: &str = "holdfast-inventory/1";

#[derive(Serialize)]
struct Key<'a> {
    #[serde(flatten)]
    key: &'a KeyView,
    versions: &'a [VersionView],
}

pub(super) fn begin(out: &mut impl Write, heading: &Heading) -> io::Result<()> {
    let Heading { tenant, time, serial } = heading;
    let (format, tenant) = (to_string(FORMAT)?, to_string(tenant)?);
    let (time, serial) = (to_string(&time.to_string())?, to_string(serial)?);
    write!(
        out,
        "{{\n\"format\":{format},\n\"tenant\":{tenant},\n\"time\":{time},\n\"serial\":{serial},\n\"keys\":["
    )
}

pub(super) fn add(out: &mut impl Write, entry: &Entry, is_first: bool) -> io::Result<()> {
    let key = to_string(&Key { key: &entry.key, versions: &entry.versions })?;
    let comma = if is_first { "" } else { "," };
    write!(out, "{comma}\n{key}")
}

pub(super) fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\n]\n}\n")
}

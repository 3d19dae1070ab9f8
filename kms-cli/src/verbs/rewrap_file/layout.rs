//! How ciphertexts stand in a file, as the command line says it.

use super::jsonl::FieldPath;
use crate::args::rewrap_file::{FileFormat, RewrapFile};
use crate::error::CliError;

/// How ciphertexts stand in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One text form a line.
    Lines,
    /// One JSON object a line.
    JsonLines(FieldPath),
    /// Records of RFC 4180.
    Csv {
        /// The column, as it was given.
        column: String,
        /// Whether the first record names the columns.
        header: bool,
    },
}

impl Layout {
    /// Reads `--format` and what belongs to it.
    ///
    /// # Errors
    /// [`CliError::Usage`] for an option of another format, a path or a number that is none.
    pub(super) fn of(args: &RewrapFile) -> Result<Self, CliError> {
        let usage = |text: String| Err(CliError::Usage(text));
        if args.field.is_some() && args.format != FileFormat::Jsonl {
            return usage("--field is for --format jsonl".into());
        }
        if (args.column.is_some() || args.no_header) && args.format != FileFormat::Csv {
            return usage("--column and --no-header are for --format csv".into());
        }
        match args.format {
            FileFormat::Lines => Ok(Self::Lines),
            FileFormat::Jsonl => {
                match FieldPath::parse(args.field.as_deref().unwrap_or_default()) {
                    Ok(path) => Ok(Self::JsonLines(path)),
                    Err(cause) => usage(format!("--field names no field: {cause}")),
                }
            }
            FileFormat::Csv => {
                let column = args.column.clone().unwrap_or_default();
                let header = !args.no_header;
                if !header && column_number(&column).is_none() {
                    return usage("without a header, --column is a number from 1".into());
                }
                Ok(Self::Csv { column, header })
            }
        }
    }

    /// Returns it as the arguments of a checkpoint: format, and where in it.
    pub(super) fn arguments(&self) -> (&'static str, String) {
        match self {
            Self::Lines => ("lines", String::new()),
            Self::JsonLines(path) => ("jsonl", path.text().to_owned()),
            Self::Csv { column, header: true } => ("csv", column.clone()),
            Self::Csv { column, header: false } => ("csv-without-header", column.clone()),
        }
    }
}

/// Reads the number of a column: the index is one less.
pub(super) fn column_number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: usize = text.parse().ok().filter(|_| digits)?;
    number.checked_sub(1)
}

//! Reading the configuration file and laying the flags over it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Config, Flags};

/// The largest configuration file: room for some thousand grants.
pub const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is larger than [`MAX_CONFIG_BYTES`].
    #[error("{path} is larger than 4 MiB")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what it should be.
    #[error("{path}: {detail}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where and why, for people.
        detail: String,
    },
}

impl Config {
    /// Reads the file and lays the flags over it.
    pub fn load(path: &Path, flags: &Flags) -> Result<Self, ConfigError> {
        let unreadable = |cause| ConfigError::Unreadable { path: path.to_owned(), cause };
        let file = File::open(path).map_err(unreadable)?;
        let mut text = String::new();
        file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Invalid {
            path: path.to_owned(),
            detail: told(&error, &text),
        })?;
        flags.apply(&mut config);
        Ok(config)
    }
}

/// Tells where and why, with the line itself: unless it may hold a PIN that was written where its place belongs.
fn told(error: &toml::de::Error, text: &str) -> String {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let number = before.matches('\n').count();
    let line = text.lines().nth(number).unwrap_or_default();
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
    if error.span().is_some() && !words.any(|word| word.eq_ignore_ascii_case("pin")) {
        return error.to_string().trim_end().to_owned();
    }
    format!(
        "line {}: not understood; it is not shown, as a PIN may stand there. A PIN has no place in this file: \
         give `pin = {{ file = \"/path\" }}` or another of its places",
        number + 1
    )
}

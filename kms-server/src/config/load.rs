//! Reading the configuration file and laying the flags over it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{Config, Flags, PostgresSection};

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
        let mut config: Self = read(path, told)?;
        flags.apply(&mut config);
        Ok(config)
    }
}

impl PostgresSection {
    /// Reads a file that has the keys of `[store.postgres]` alone.
    ///
    /// # Errors
    /// Never shows a line of it: a password may be meant by any name.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read(path, told_without_the_line)
    }
}

fn read<T: DeserializeOwned>(
    path: &Path,
    told: impl FnOnce(&toml::de::Error, &str) -> String,
) -> Result<T, ConfigError> {
    let unreadable = |cause| ConfigError::Unreadable { path: path.to_owned(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    toml::from_str(&text).map_err(|error| ConfigError::Invalid {
        path: path.to_owned(),
        detail: told(&error, &text),
    })
}

/// Words of what has to do with a secret.
const SECRET_WORDS: [&str; 4] = ["pin", "hsm", "password", "postgres"];

/// Tells where and why, with the line itself: unless its section has to do with a secret, which some write where its
/// place belongs, in a value that may span lines.
fn told(error: &toml::de::Error, text: &str) -> String {
    let at = error.span().map_or(text.len(), |span| span.start);
    let (before, rest) = text.split_at_checked(at).unwrap_or((text, ""));
    let line = rest.lines().next().unwrap_or_default();
    // Its table header, if it has one, and all from there on.
    let section = before.rfind("\n[").and_then(|start| before.get(start..)).unwrap_or(before);
    let mut words = section.split(not_of_words).chain(line.split(not_of_words));
    if !words.any(|word| SECRET_WORDS.iter().any(|other| word.eq_ignore_ascii_case(other))) {
        return error.to_string().trim_end().to_owned();
    }
    told_without_the_line(error, text)
}

fn told_without_the_line(error: &toml::de::Error, text: &str) -> String {
    let at = error.span().map_or(text.len(), |span| span.start);
    let before = text.split_at_checked(at).map_or(text, |(before, _)| before);
    let number = before.matches('\n').count() + 1;
    format!("line {number}: {}", error.message())
}

const fn not_of_words(c: char) -> bool {
    !c.is_ascii_alphanumeric()
}

//! Numbers of entries that are missing.

use std::fmt;
use std::str::FromStr;

/// Entries from one number to another, both among them; written `6-17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    from: u64,
    to: u64,
}

/// A text that names no gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be two numbers, as in 6-17")]
pub struct InvalidGap;

impl Gap {
    /// Takes the first and the last number; `None` when there is nothing between them.
    pub const fn new(from: u64, to: u64) -> Option<Self> {
        if from == 0 || to < from { None } else { Some(Self { from, to }) }
    }

    /// Returns the first number.
    pub const fn from(self) -> u64 {
        self.from
    }

    /// Returns the last number.
    pub const fn to(self) -> u64 {
        self.to
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

impl FromStr for Gap {
    type Err = InvalidGap;

    fn from_str(text: &str) -> Result<Self, InvalidGap> {
        let (from, to) = text.split_once('-').ok_or(InvalidGap)?;
        let number = |text: &str| text.parse().map_err(|_| InvalidGap);
        let gap = Self::new(number(from)?, number(to)?).ok_or(InvalidGap)?;
        // One gap, one text.
        if gap.to_string() == text { Ok(gap) } else { Err(InvalidGap) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_has_one_text() {
        for text in ["1-1", "6-17", "1-18446744073709551615"] {
            assert_eq!(text.parse::<Gap>().unwrap().to_string(), text);
        }
        for text in ["", "6", "6-", "-6", "17-6", "0-3", "+6-17", "06-17", "6-17-20", " 6-17"] {
            assert_eq!(text.parse::<Gap>(), Err(InvalidGap), "{text:?}");
        }
    }
}

//! Filters of lists of keys: a subset of AIP-160, parsed before anything is read.
//!
//! `expression = factor {"AND" factor}`, `factor = term {"OR" term}` (OR binds tighter, as AIP-160 has it),
//! `term = ["NOT" | "-"] ("(" expression ")" | field operator value)`. Bounded in length, terms and depth; an error names the
//! column and says what was expected. A star at an end of a text stands for any text, and for itself where it is written `\*` in quotes. What a key does not have (a label, a last use) equals nothing and is before nothing.

mod field;
mod lex;
mod parse;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::key::{KeyState, Origin, Protection, Sensitivity};

use field::Test;

/// The longest filter, in bytes.
pub const MAX_FILTER_BYTES: usize = 2048;
/// The most comparisons of a filter.
pub const MAX_FILTER_TERMS: usize = 64;
/// How deep parentheses and negations may be nested.
pub const MAX_FILTER_DEPTH: usize = 16;

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFilter {
    /// It is too long.
    #[error("is longer than {MAX_FILTER_BYTES} bytes")]
    TooLong,
    /// It compares too often.
    #[error("has more than {MAX_FILTER_TERMS} comparisons")]
    TooManyTerms,
    /// It is nested too deeply.
    #[error("is nested more than {MAX_FILTER_DEPTH} deep")]
    TooDeep,
    /// It is not understood.
    #[error("column {column}: {expected}")]
    Syntax {
        /// Where, counted in characters from 1.
        column: usize,
        /// What would have been understood there.
        expected: String,
    },
}

/// What a filter may look at.
#[derive(Clone, Copy, Debug)]
pub struct KeyFacts<'a> {
    /// Full name.
    pub name: &'a str,
    /// State of the key.
    pub state: KeyState,
    /// Who answers for it.
    pub owner: &'a str,
    /// What it is for.
    pub usage: &'a str,
    /// Sensitivity.
    pub sensitivity: Sensitivity,
    /// Protection.
    pub protection: Protection,
    /// Where the primary's material comes from.
    pub origin: Origin,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was changed last.
    pub update_time: Timestamp,
    /// When its primary gives way.
    pub next_rotation_time: Option<Timestamp>,
    /// When any version was used last; `None` when none ever was.
    pub last_use_time: Option<Timestamp>,
    /// How many versions there are.
    pub version_count: u32,
    /// How many consumers are registered.
    pub consumer_count: u32,
}

/// A filter that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Node);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Test(Test),
}

impl Filter {
    /// Reads a filter; `None` when the text is empty, which lets everything through.
    ///
    /// # Errors
    /// [`InvalidFilter`], with the column.
    pub fn parse(text: &str) -> Result<Option<Self>, InvalidFilter> {
        Ok(parse::parse(text)?.map(Self))
    }

    /// Returns whether the filter looks at when a key was used: that costs more than the rest.
    pub fn asks_last_use(&self) -> bool {
        self.0.any(&|test| test.asks_last_use())
    }

    /// Returns whether a key passes.
    pub fn passes(&self, key: &KeyFacts<'_>) -> bool {
        self.0.passes(key)
    }
}

impl Node {
    fn passes(&self, key: &KeyFacts<'_>) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.passes(key)),
            Self::Any(nodes) => nodes.iter().any(|node| node.passes(key)),
            Self::Not(node) => !node.passes(key),
            Self::Test(test) => test.passes(key),
        }
    }

    fn any(&self, found: &impl Fn(&Test) -> bool) -> bool {
        match self {
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().any(|node| node.any(found)),
            Self::Not(node) => node.any(found),
            Self::Test(test) => found(test),
        }
    }
}

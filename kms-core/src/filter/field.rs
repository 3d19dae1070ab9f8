//! Fields, and how each compares.

use std::cmp::Ordering;

use super::lex::{Operator, Value, expected};
use super::{InvalidFilter, KeyFacts};
use crate::clock::Timestamp;
use crate::key::{KeyState, Origin, Protection, Sensitivity};

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Name,
    Owner,
    Usage,
    State,
    Sensitivity,
    Protection,
    Origin,
    Label(String),
    /// `labels`, of which `:` asks whether there is one of this key.
    Labels,
    CreateTime,
    UpdateTime,
    NextRotationTime,
    LastUseTime,
    VersionCount,
    ConsumerCount,
}

impl Field {
    pub(super) const NAMES: &'static str = "name, owner, usage, state, sensitivity, protection, origin, labels.KEY, create_time, update_time, \
         next_rotation_time, last_use_time, version_count, consumer_count";

    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "name" => Self::Name,
            "owner" => Self::Owner,
            "usage" => Self::Usage,
            "state" => Self::State,
            "sensitivity" => Self::Sensitivity,
            "protection" => Self::Protection,
            "origin" => Self::Origin,
            "labels" => Self::Labels,
            "create_time" => Self::CreateTime,
            "update_time" => Self::UpdateTime,
            "next_rotation_time" => Self::NextRotationTime,
            "last_use_time" => Self::LastUseTime,
            "version_count" => Self::VersionCount,
            "consumer_count" => Self::ConsumerCount,
            _ => {
                let key = name.strip_prefix("labels.").filter(|key| !key.is_empty())?;
                Self::Label(key.to_owned())
            }
        })
    }
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    field: Field,
    compare: Compare,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Compare {
    /// The text is this, or the other way round.
    Text { pattern: Pattern, equal: bool },
    /// The text has this in it.
    Contains(String),
    /// The word is this, or the other way round.
    Word { word: &'static str, equal: bool },
    /// The time stands so to this.
    Time(Operator, Timestamp),
    /// The number stands so to this.
    Number(Operator, u32),
    /// There is one.
    Present,
    /// There is a label of this key.
    HasLabel(String),
}

/// A text, open at one end or both.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    open_start: bool,
    open_end: bool,
}

impl Pattern {
    fn new(value: &Value) -> Self {
        let text = value.text.as_str();
        let open = text.strip_prefix('*').filter(|_| !value.starts_with_star);
        let (text, open_start) = open.map_or((text, false), |rest| (rest, true));
        let open = text.strip_suffix('*').filter(|_| !value.ends_with_star);
        let (text, open_end) = open.map_or((text, false), |rest| (rest, true));
        Self { text: text.to_owned(), open_start, open_end }
    }

    fn fits(&self, text: &str) -> bool {
        match (self.open_start, self.open_end) {
            (false, false) => text == self.text,
            (false, true) => text.starts_with(&self.text),
            (true, false) => text.ends_with(&self.text),
            (true, true) => text.contains(&self.text),
        }
    }
}

/// What is wrong with a comparison.
pub(super) enum Problem {
    Operator(String),
    Value(String),
}

impl Problem {
    pub(super) fn at(self, operator: usize, value: usize) -> InvalidFilter {
        match self {
            Self::Operator(what) => expected(operator, what),
            Self::Value(what) => expected(value, what),
        }
    }
}

impl Test {
    pub(super) fn new(field: Field, operator: Operator, written: &Value) -> Result<Self, Problem> {
        let value = written.text.as_str();
        // AIP-160: a field that is there at all. A quoted star is a star.
        let asks_presence = operator == Operator::Has && value == "*" && !written.is_quoted;
        let compare = match &field {
            Field::Label(_) | Field::NextRotationTime | Field::LastUseTime if asks_presence => {
                Compare::Present
            }
            Field::Name | Field::Owner | Field::Usage | Field::Label(_) => text(operator, written)?,
            Field::Labels if operator == Operator::Has => Compare::HasLabel(value.to_owned()),
            Field::Labels => {
                let what = "`labels` takes `:` and a key; a value is compared by labels.KEY";
                return Err(Problem::Operator(what.into()));
            }
            Field::State => word(operator, value, KeyState::NAMES)?,
            Field::Sensitivity => word(operator, value, Sensitivity::NAMES)?,
            Field::Protection => word(operator, value, Protection::NAMES)?,
            Field::Origin => word(operator, value, Origin::NAMES)?,
            Field::CreateTime
            | Field::UpdateTime
            | Field::NextRotationTime
            | Field::LastUseTime => time(operator, value)?,
            Field::VersionCount | Field::ConsumerCount => number(operator, value)?,
        };
        Ok(Self { field, compare })
    }

    pub(super) fn asks_last_use(&self) -> bool {
        self.field == Field::LastUseTime
    }

    pub(super) fn passes(&self, key: &KeyFacts<'_>) -> bool {
        match &self.field {
            Field::Name => self.text(Some(key.name)),
            Field::Owner => self.text(Some(key.owner)),
            Field::Usage => self.text(Some(key.usage)),
            Field::Label(name) => self.text(key.labels.get(name).map(String::as_str)),
            Field::Labels => {
                matches!(&self.compare, Compare::HasLabel(name) if key.labels.contains_key(name))
            }
            Field::State => self.word(key.state.as_str()),
            Field::Sensitivity => self.word(key.sensitivity.as_str()),
            Field::Protection => self.word(key.protection.as_str()),
            Field::Origin => self.word(key.origin.as_str()),
            Field::CreateTime => self.time(Some(key.create_time)),
            Field::UpdateTime => self.time(Some(key.update_time)),
            Field::NextRotationTime => self.time(key.next_rotation_time),
            Field::LastUseTime => self.time(key.last_use_time),
            Field::VersionCount => self.number(key.version_count),
            Field::ConsumerCount => self.number(key.consumer_count),
        }
    }

    fn text(&self, found: Option<&str>) -> bool {
        match &self.compare {
            Compare::Text { pattern, equal } => {
                found.is_some_and(|text| pattern.fits(text)) == *equal
            }
            Compare::Contains(part) => found.is_some_and(|text| text.contains(part)),
            Compare::Present => found.is_some(),
            _ => false,
        }
    }

    fn word(&self, found: &str) -> bool {
        matches!(&self.compare, Compare::Word { word, equal } if (*word == found) == *equal)
    }

    fn time(&self, found: Option<Timestamp>) -> bool {
        match &self.compare {
            Compare::Time(operator, time) => match found {
                Some(found) => holds(*operator, found.cmp(time)),
                // What is not there is not equal to anything, and neither before nor after it.
                None => *operator == Operator::NotEqual,
            },
            Compare::Present => found.is_some(),
            _ => false,
        }
    }

    fn number(&self, found: u32) -> bool {
        matches!(&self.compare, Compare::Number(operator, number) if holds(*operator, found.cmp(number)))
    }
}

fn holds(operator: Operator, found: Ordering) -> bool {
    match operator {
        Operator::Equal | Operator::Has => found == Ordering::Equal,
        Operator::NotEqual => found != Ordering::Equal,
        Operator::Less => found == Ordering::Less,
        Operator::LessOrEqual => found != Ordering::Greater,
        Operator::More => found == Ordering::Greater,
        Operator::MoreOrEqual => found != Ordering::Less,
    }
}

fn text(operator: Operator, value: &Value) -> Result<Compare, Problem> {
    match operator {
        Operator::Equal => Ok(Compare::Text { pattern: Pattern::new(value), equal: true }),
        Operator::NotEqual => Ok(Compare::Text { pattern: Pattern::new(value), equal: false }),
        Operator::Has => Ok(Compare::Contains(value.text.clone())),
        _ => Err(Problem::Operator("a text is compared by = != or : (contains)".into())),
    }
}

fn word(
    operator: Operator,
    value: &str,
    words: &'static [&'static str],
) -> Result<Compare, Problem> {
    let equal = match operator {
        Operator::Equal | Operator::Has => true,
        Operator::NotEqual => false,
        _ => return Err(Problem::Operator("this field is compared by = or !=".into())),
    };
    let found = words.iter().copied().find(|word| word.eq_ignore_ascii_case(value));
    let word = found.ok_or_else(|| Problem::Value(format!("one of {}", words.join(", "))))?;
    Ok(Compare::Word { word, equal })
}

fn time(operator: Operator, value: &str) -> Result<Compare, Problem> {
    let time = Timestamp::parse(value).ok_or_else(|| {
        Problem::Value("a quoted time is expected, as \"2026-01-31T00:00:00Z\"".into())
    })?;
    Ok(Compare::Time(operator, time))
}

fn number(operator: Operator, value: &str) -> Result<Compare, Problem> {
    let number = value.parse();
    let number = number.map_err(|_| Problem::Value("a whole number is expected".into()))?;
    Ok(Compare::Number(operator, number))
}

//! Finds a string in a JSON line without touching the rest of it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::fault::Fault;

/// The deepest path: more is a mistake.
pub(super) const MAX_PATH_NAMES: usize = 32;
/// The longest path: it stands in every message about a line.
pub(super) const MAX_PATH_BYTES: usize = 1_024;

/// The way to a field: the names of the objects around it, and its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldPath {
    names: Vec<String>,
    text: String,
}

impl FieldPath {
    /// Reads `name` or `outer.name`; `\.` is a dot in a name, `\\` a backslash.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_PATH_BYTES {
            return Err("it is longer than 1024 bytes");
        }
        let mut names = vec![String::new()];
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let escaped = match character {
                '.' => {
                    names.push(String::new());
                    continue;
                }
                '\\' => Some(characters.next()),
                _ => None,
            };
            let character = match escaped {
                None => character,
                Some(Some(character @ ('.' | '\\'))) => character,
                Some(_) => return Err("after a backslash comes a dot or a backslash"),
            };
            if let Some(name) = names.last_mut() {
                name.push(character);
            }
        }
        if names.iter().any(String::is_empty) {
            return Err("a name is empty");
        }
        if names.len() > MAX_PATH_NAMES {
            return Err("it has more than 32 names");
        }
        Ok(Self { names, text: text.to_owned() })
    }

    /// Returns it as it was given.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Finds the field's value: where it stands in `line`, quotes included, and what it says; `None` for `null`.
    pub(super) fn find(&self, line: &str) -> Result<Option<(Range<usize>, String)>, Fault> {
        let mut value = line;
        let mut passed: Option<String> = None;
        for name in &self.names {
            if !value.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
                // Text that is no JSON at all is told as such.
                check(value)?;
                return Err(Fault::NotObject(passed));
            }
            value = self.member(value, name)?;
            passed = Some(passed.map_or_else(|| name.clone(), |outer| format!("{outer}.{name}")));
        }
        if value == "null" {
            return Ok(None);
        }
        if !value.starts_with('"') {
            return Err(Fault::FieldNotString(self.text.clone()));
        }
        // The value borrows from the line, so the distance of their addresses is its place.
        let start = value.as_ptr().addr() - line.as_ptr().addr();
        let text: String =
            serde_json::from_str(value).map_err(|error| Fault::NotJson(start + error.column()))?;
        Ok(Some((start..start + value.len(), text)))
    }

    fn member<'l>(&self, object: &'l str, name: &str) -> Result<&'l str, Fault> {
        let mut reader = serde_json::Deserializer::from_str(object);
        let found = Member(name).deserialize(&mut reader).and_then(|found| {
            reader.end()?;
            Ok(found)
        });
        let found = found.map_err(|error| match error.classify() {
            Category::Data => Fault::FieldTwice(self.text.clone()),
            Category::Io | Category::Syntax | Category::Eof => Fault::NotJson(error.column()),
        })?;
        found.map(RawValue::get).ok_or_else(|| Fault::FieldMissing(self.text.clone()))
    }
}

fn check(text: &str) -> Result<(), Fault> {
    let read: Result<IgnoredAny, _> = serde_json::from_str(text);
    read.map(drop).map_err(|error| Fault::NotJson(error.column()))
}

/// Takes one member of an object as it stands, and checks the others.
struct Member<'n>(&'n str);

impl<'l> DeserializeSeed<'l> for Member<'_> {
    type Value = Option<&'l RawValue>;

    fn deserialize<D: serde::Deserializer<'l>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'l> Visitor<'l> for Member<'_> {
    type Value = Option<&'l RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'l>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'l, str>>()? {
            if key != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value::<&RawValue>()?).is_some() {
                return Err(A::Error::custom("twice"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, line: &str) -> Result<Option<(String, String)>, Fault> {
        let path = FieldPath::parse(path).unwrap();
        let found = path.find(line)?;
        Ok(found.map(|(place, text)| (line.get(place).unwrap().to_owned(), text)))
    }

    #[test]
    fn a_string_is_found_at_its_place_whatever_stands_around_it() {
        let line = "  {\"x\": [1, {\"c\": \"no\"}] ,\t\"a.b\":{\"c\" : \"h\\u0066\\\"\" }, \"c\":\"y\"}\r\n";
        let nested = Ok(Some(("\"h\\u0066\\\"\"".into(), "hf\"".into())));
        assert_eq!(found("a\\.b.c", line), nested);
        assert_eq!(found("c", line), Ok(Some(("\"y\"".into(), "y".into()))));
        assert_eq!(found("c", "{\"\\u0063\": null}"), Ok(None));
    }

    #[test]
    fn a_line_without_one_string_at_the_field_is_refused() {
        let cases = [
            ("{}", Fault::FieldMissing("a.b".into())),
            ("{\"a\":{}}", Fault::FieldMissing("a.b".into())),
            ("{\"a\":3}", Fault::NotObject(Some("a".into()))),
            ("[1]", Fault::NotObject(None)),
            ("{\"a\":{\"b\":3}}", Fault::FieldNotString("a.b".into())),
            ("{\"a\":{\"b\":\"x\",\"b\":\"y\"}}", Fault::FieldTwice("a.b".into())),
            ("{\"a\":{},\"\\u0061\":{}}", Fault::FieldTwice("a.b".into())),
            ("{\"a\":{\"b\":\"x\"}} x", Fault::NotJson(17)),
            ("hello", Fault::NotJson(1)),
        ];
        for (line, fault) in cases {
            assert_eq!(found("a.b", line), Err(fault), "{line}");
        }
        for broken in ["{\"a\":{\"b\":\"x\"}", "{\"a\":{\"b\":\"x\ty\"}}", "{\"a\":tru}", "{'a':1}"]
        {
            assert!(matches!(found("a.b", broken), Err(Fault::NotJson(_))), "{broken}");
        }
    }

    #[test]
    fn a_path_of_1024_bytes_is_read_and_one_more_refused() {
        assert!(FieldPath::parse(&"n".repeat(MAX_PATH_BYTES)).is_ok());
        assert!(FieldPath::parse(&"n".repeat(MAX_PATH_BYTES + 1)).is_err());
    }

    #[test]
    fn a_path_of_32_names_is_read_and_one_more_refused() {
        let path = |names: usize| vec!["n"; names].join(".");
        assert!(FieldPath::parse(&path(MAX_PATH_NAMES)).is_ok());
        for wrong in [path(MAX_PATH_NAMES + 1).as_str(), "", "a.", ".a", "a..b", "a\\", "a\\b"] {
            assert!(FieldPath::parse(wrong).is_err(), "{wrong}");
        }
    }
}

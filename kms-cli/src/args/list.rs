//! `kms key list`: which keys, in which order.

use clap::Args;
use kms_core::clock::Timestamp;

use super::key::{List, Sensitivity};
use crate::input::{pair, time};

/// `kms key list`.
#[derive(Debug, Args)]
pub struct ListKeys {
    /// Only keys that pass: `owner = "a*" AND (labels.team = b OR version_count > 1)`
    #[arg(long, value_name = "FILTER", default_value = "", hide_default_value = true)]
    pub filter: String,
    /// Only enabled, or only disabled keys
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// Only keys of this owner; `*` at an end stands for any text
    #[arg(long, value_name = "TEXT")]
    pub owner: Option<String>,
    /// Only keys of this sensitivity
    #[arg(long, value_enum)]
    pub sensitivity: Option<Sensitivity>,
    /// Only keys with this label, with just this value; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Only keys that are due to be rotated before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub rotation_due_before: Option<Timestamp>,
    /// Only keys that are older than this time and were not used since
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub unused_since: Option<Timestamp>,
    /// `create_time` or `name`, and ` desc` for the last first
    #[arg(long, value_name = "ORDER", default_value = "create_time")]
    pub order_by: String,
    /// How much.
    #[command(flatten)]
    pub list: List,
}

/// Whether a key may be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum State {
    /// Enabled
    Enabled,
    /// Disabled
    Disabled,
    /// To be destroyed as a whole
    DestroyScheduled,
    /// Destroyed as a whole
    Destroyed,
}

impl ListKeys {
    /// Returns one filter of all that was asked for.
    pub fn whole_filter(&self) -> String {
        let mut parts = Vec::new();
        if let Some(state) = self.state {
            let state = match state {
                State::Enabled => "ENABLED",
                State::Disabled => "DISABLED",
                State::DestroyScheduled => "DESTROY_SCHEDULED",
                State::Destroyed => "DESTROYED",
            };
            parts.push(format!("state = {state}"));
        }
        if let Some(owner) = &self.owner {
            parts.push(format!("owner = {}", quoted(owner)));
        }
        if let Some(sensitivity) = self.sensitivity {
            let sensitivity = match sensitivity {
                Sensitivity::Low => "LOW",
                Sensitivity::Medium => "MEDIUM",
                Sensitivity::High => "HIGH",
            };
            parts.push(format!("sensitivity = {sensitivity}"));
        }
        for (key, value) in &self.labels {
            // It is the value that was set, stars and all.
            let value = quoted(value).replace('*', "\\*");
            parts.push(format!("labels.{} = {value}", quoted(key)));
        }
        if let Some(time) = self.rotation_due_before {
            parts.push(format!("next_rotation_time < \"{time}\""));
        }
        if let Some(time) = self.unused_since {
            // A key that was never used was not used since either, if it was there.
            parts.push(format!(
                "create_time < \"{time}\" AND (NOT last_use_time:* OR last_use_time < \"{time}\")"
            ));
        }
        let flags = parts.join(" AND ");
        match (self.filter.trim().is_empty(), flags.is_empty()) {
            (true, _) => flags,
            // As it was given: an error names its column.
            (false, true) => self.filter.clone(),
            (false, false) => format!("({}) AND {flags}", self.filter),
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use kms_core::filter::Filter;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        list: ListKeys,
    }

    fn whole(words: &[&str]) -> String {
        let words = std::iter::once("list").chain(words.iter().copied());
        let filter = Line::try_parse_from(words).unwrap().list.whole_filter();
        Filter::parse(&filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
        filter
    }

    #[test]
    fn flags_are_joined_to_one_filter_that_the_server_reads() {
        assert_eq!(whole(&[]), "");
        assert_eq!(whole(&["--filter", "  "]), "");
        assert_eq!(whole(&["--filter", " owner = a"]), " owner = a", "columns stay");
        assert_eq!(
            whole(&["--filter", "owner = a OR owner = b", "--state", "disabled"]),
            "(owner = a OR owner = b) AND state = DISABLED"
        );
        assert_eq!(
            whole(&["--owner", "say \"x\\y\"", "--label", "a.b/c=d e", "--sensitivity", "high"]),
            "owner = \"say \\\"x\\\\y\\\"\" AND sensitivity = HIGH AND labels.\"a.b/c\" = \"d e\""
        );
        assert_eq!(
            whole(&["--owner", "a*", "--label", "a=*"]),
            "owner = \"a*\" AND labels.\"a\" = \"\\*\""
        );
        let time = "2027-01-31T08:00:00Z";
        let due = whole(&["--rotation-due-before", time, "--unused-since", time]);
        assert_eq!(
            due,
            "next_rotation_time < \"2027-01-31T08:00:00.000Z\" AND create_time < \"2027-01-31T08:00:00.000Z\" \
             AND (NOT last_use_time:* OR last_use_time < \"2027-01-31T08:00:00.000Z\")"
        );
    }
}

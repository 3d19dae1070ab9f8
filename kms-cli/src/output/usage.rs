//! How a version was used, as it is shown.

use comfy_table::Table;
use kms_proto::v1;
use serde::Serialize;

use super::View;
use super::view::{facts, time_text};

/// A kind of use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TallyView {
    /// How often.
    pub count: u64,
    /// The first time, RFC 3339; empty while the count is 0.
    pub first_time: String,
    /// The last time, RFC 3339; empty while the count is 0.
    pub last_time: String,
}

impl From<v1::UseTally> for TallyView {
    fn from(tally: v1::UseTally) -> Self {
        let v1::UseTally { count, first_time, last_time } = tally;
        let (first_time, last_time) =
            (time_text(first_time.as_ref()), time_text(last_time.as_ref()));
        Self { count, first_time, last_time }
    }
}

impl TallyView {
    fn text(&self) -> String {
        match self.count {
            0 => "never".into(),
            count => format!("{count}, {} to {}", self.first_time, self.last_time),
        }
    }
}

/// The usage of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UsageView {
    /// Name of the version.
    pub name: String,
    /// State.
    pub state: &'static str,
    /// `SAFE`, `QUIET` or `IN_USE`.
    pub retirement: &'static str,
    /// On what evidence.
    pub evidence: Vec<String>,
    /// What the server cannot know.
    pub blind_spots: Vec<String>,
    /// Wraps, data keys, and rewraps to it.
    pub protect: TallyView,
    /// Unwraps.
    pub process: TallyView,
    /// Rewraps from it.
    pub rewrap: TallyView,
    /// Attempts that were refused while its key was disabled, or its destruction planned.
    pub refused: TallyView,
}

impl From<v1::VersionUsage> for UsageView {
    fn from(usage: v1::VersionUsage) -> Self {
        let (state, retirement) = (usage.state(), usage.retirement());
        let v1::VersionUsage {
            name,
            state: _,
            protect,
            process,
            rewrap,
            refused,
            retirement: _,
            evidence,
            blind_spots,
        } = usage;
        Self {
            name,
            state: state.as_str_name(),
            retirement: retirement.as_str_name(),
            evidence,
            blind_spots,
            protect: protect.unwrap_or_default().into(),
            process: process.unwrap_or_default().into(),
            rewrap: rewrap.unwrap_or_default().into(),
            refused: refused.unwrap_or_default().into(),
        }
    }
}

impl View for UsageView {
    fn table(&self) -> Table {
        let mut rows = vec![
            ("name", self.name.clone()),
            ("state", self.state.into()),
            ("protected", self.protect.text()),
            ("processed", self.process.text()),
            ("rewrapped away", self.rewrap.text()),
            ("refused", self.refused.text()),
            ("retirement", self.retirement.into()),
        ];
        rows.extend(self.evidence.iter().map(|line| ("evidence", line.clone())));
        rows.extend(self.blind_spots.iter().map(|line| ("cannot be known", line.clone())));
        facts(&rows)
    }
}

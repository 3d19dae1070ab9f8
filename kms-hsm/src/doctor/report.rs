//! What the doctor found, as data and as rows of text. No PKCS#11 types, nothing secret.

use std::time::Duration;

use serde::Serialize;

/// Everything that was found out about a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The module.
    pub module: ModuleFacts,
    /// The token.
    pub token: TokenFacts,
    /// One row for each thing that was tried, in the order in which it was.
    pub rows: Vec<Row>,
    /// Who chooses the IV of AES-GCM.
    pub iv_mode: IvMode,
    /// The code for a wrong GCM tag, `CKR_...`; `None` when that could not be tried.
    pub tag_failure: Option<String>,
    /// How many sessions may be open at once; `None` when no bound was met.
    pub max_sessions: Option<u64>,
    /// Medians of single operations.
    pub latencies: Vec<Latency>,
    /// Throughput by number of parallel lanes.
    pub lanes: Vec<Lane>,
    /// How many workers the server should have on this token.
    pub recommended_workers: usize,
}

/// What the module says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModuleFacts {
    /// Library description.
    pub description: String,
    /// Manufacturer.
    pub manufacturer: String,
    /// Version of the library.
    pub version: String,
    /// Version of PKCS#11 that it speaks.
    pub cryptoki: String,
}

/// What the token says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenFacts {
    /// Label.
    pub label: String,
    /// Serial number; this is what gets pinned.
    pub serial: String,
    /// Manufacturer.
    pub manufacturer: String,
    /// Model.
    pub model: String,
    /// Version of the firmware.
    pub firmware: String,
}

/// Whether we can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Without it the token cannot serve us.
    Needed,
    /// Without it something that is named in the row is not offered.
    Optional,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As we want it.
    Good,
    /// Not there, or not as we want it.
    Bad,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was tried.
    pub what: &'static str,
    /// Whether we can do without.
    pub need: Need,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen.
    pub result: String,
    /// What that means for us.
    pub meaning: &'static str,
}

/// Who chooses the IV of AES-GCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IvMode {
    /// The caller, and the token takes it as it is.
    Caller,
    /// The token, when the caller gives zeros; it writes it back into the parameters.
    TokenWritesBack,
    /// The token, which appends it to the ciphertext.
    TokenAppends,
    /// It could not be found out.
    Unknown,
}

/// How long one kind of operation takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// The operation.
    pub operation: &'static str,
    /// Median, in nanoseconds.
    #[serde(rename = "median_ns", serialize_with = "as_nanoseconds")]
    pub median: Duration,
    /// How many were measured.
    pub samples: usize,
}

/// What a number of parallel sessions got done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lane {
    /// Threads, each with a session of its own.
    pub lanes: usize,
    /// AES-GCM encryptions of 32 bytes, per second, all lanes together.
    pub operations_per_second: u64,
}

/// Why a token cannot serve us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token cannot be used; it lacks: {}", .missing.join("; "))]
pub struct Refusal {
    /// What is missing, and what was seen instead.
    pub missing: Vec<String>,
}

impl Report {
    /// Returns why the token cannot serve us, or `None` when it can.
    pub fn refusal(&self) -> Option<Refusal> {
        let needed = |row: &&Row| row.need == Need::Needed && row.verdict == Verdict::Bad;
        let missing: Vec<_> = self.rows.iter().filter(needed).map(Row::in_one_line).collect();
        (!missing.is_empty()).then_some(Refusal { missing })
    }

    /// Returns the head of a table of [`Row::cells`].
    pub const fn head() -> [&'static str; 5] {
        ["what", "need", "verdict", "result", "meaning"]
    }
}

impl Row {
    /// Returns the row as text, in the order of [`Report::head`].
    pub fn cells(&self) -> [&str; 5] {
        [self.what, self.need.name(), self.verdict.name(), &self.result, self.meaning]
    }

    fn in_one_line(&self) -> String {
        format!("{} ({})", self.what, self.result)
    }
}

impl Need {
    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Needed => "needed",
            Self::Optional => "optional",
        }
    }
}

impl Verdict {
    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
        }
    }
}

fn as_nanoseconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(need: Need, verdict: Verdict) -> Row {
        Row { what: "CKM_X", need, verdict, result: "CKR_Y".into(), meaning: "no X" }
    }

    fn report(rows: Vec<Row>) -> Report {
        let empty = String::new;
        Report {
            module: ModuleFacts {
                description: empty(),
                manufacturer: empty(),
                version: empty(),
                cryptoki: empty(),
            },
            token: TokenFacts {
                label: empty(),
                serial: empty(),
                manufacturer: empty(),
                model: empty(),
                firmware: empty(),
            },
            rows,
            iv_mode: IvMode::Caller,
            tag_failure: None,
            max_sessions: None,
            latencies: vec![],
            lanes: vec![],
            recommended_workers: 1,
        }
    }

    #[test]
    fn only_what_is_needed_and_bad_refuses_the_token() {
        let good = [
            row(Need::Needed, Verdict::Good),
            row(Need::Optional, Verdict::Good),
            row(Need::Optional, Verdict::Bad),
        ];
        assert_eq!(report(good.to_vec()).refusal(), None);
        let refusal = report(vec![row(Need::Needed, Verdict::Bad)]).refusal().expect("a refusal");
        assert_eq!(refusal.to_string(), "the token cannot be used; it lacks: CKM_X (CKR_Y)");
    }

    #[test]
    fn cells_stand_in_the_order_of_the_head() {
        let cells = [row(Need::Needed, Verdict::Bad)].map(|row| row.cells().map(str::to_owned));
        assert_eq!(cells, [["CKM_X", "needed", "bad", "CKR_Y", "no X"].map(str::to_owned)]);
        assert_eq!(Report::head().len(), cells[0].len());
    }
}

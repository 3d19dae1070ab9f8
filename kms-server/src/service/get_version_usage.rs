//! GetVersionUsage: what a version was used for, and whether it can be retired; on what evidence, and what nobody here can
//! know.

use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::key::VersionRow;
use kms_core::name::VersionName;
use kms_core::state::VersionState;
use kms_core::usage::{Tally, Uses};

use super::describe_key::Fresh;
use super::kms::{Inner, Kms};
use super::trail::Trail;
use super::{RequestContext, Retirement, ServiceError, VersionUsage};
use crate::authz::{self, Target};
use crate::store::VersionChoice;

/// How long a version must not have been used before it counts as quiet.
pub const QUIET_PERIOD: Duration = Duration::from_hours(30 * 24);

/// What no count here can show.
const BLIND_SPOTS: [&str; 5] = [
    "ciphertexts that are stored and not opened leave no trace: a backup may be opened after years",
    "a ciphertext that was rewrapped more than once is counted each time, and old copies of it may be kept",
    "data keys that clients hold in the clear are used without the server",
    "uses of the last minute before a crash of the server may be missing",
    "counts may be too high where the database wrote them and its answer was lost",
];

impl Kms {
    /// Tells how a version was used.
    ///
    /// # Errors
    /// As for [`Kms::describe_key_version`].
    pub async fn get_version_usage(
        &self,
        request: &RequestContext,
        name: &VersionName,
    ) -> Result<VersionUsage, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(name.key());
        trail.version = Some(name.version());
        let result = inner.version_usage(request, name, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn version_usage(
        &self,
        request: &RequestContext,
        name: &VersionName,
        trail: &mut Trail,
    ) -> Result<VersionUsage, ServiceError> {
        self.permit::<authz::GetVersionUsage>(request, Target::key(name.key()), trail)?;
        let choice = VersionChoice::Number(name.version());
        let Fresh { key, version } = self.fresh(name.key(), choice).await?;
        trail.key_uid = Some(key.row.uid);
        let uses = self.keyring.uses(key.row.uid, name.version()).await?;
        let now = self.clock.now();
        let subject = Subject {
            state: version.row.state_at(now),
            is_primary: key.row.primary == name.version(),
            uses,
            recipient_end: recipient_end(&version.row, key.row.recipient_usage_period),
        };
        let (retirement, evidence) = judge(&subject, now);
        Ok(VersionUsage {
            name: name.clone(),
            state: subject.state,
            uses,
            retirement,
            evidence,
            blind_spots: BLIND_SPOTS.map(str::to_owned).to_vec(),
        })
    }
}

struct Subject {
    state: VersionState,
    is_primary: bool,
    uses: Uses,
    /// The end of its recipient-usage period; of what never was in use there is none.
    recipient_end: Option<Timestamp>,
}

fn recipient_end(row: &VersionRow, period: Duration) -> Option<Timestamp> {
    // In PRE_ACTIVATION it is a plan.
    let since = row.activate_time.filter(|_| row.state != VersionState::PreActivation);
    since.map(|since| since.after(period))
}

/// Judges whether a version can be retired.
fn judge(subject: &Subject, now: Timestamp) -> (Retirement, Vec<String>) {
    let Subject { state, is_primary, uses, recipient_end } = subject;
    let mut evidence = vec![format!(
        "protected {}, processed {}, rewrapped away {}",
        uses.protect.count, uses.process.count, uses.rewrap.count
    )];
    let mut retirement = Retirement::Safe;
    let mut found = |verdict: Retirement, text: String| {
        retirement = retirement.max(verdict);
        evidence.push(text);
    };
    if *is_primary {
        found(Retirement::InUse, "it is the primary: rotate the key first".into());
    } else if *state == VersionState::PreActivation {
        found(Retirement::InUse, "it is staged: it is to be the next primary".into());
    } else if *state == VersionState::Active {
        found(
            Retirement::InUse,
            "it is ACTIVE: callers who pin it may still protect with it".into(),
        );
    }
    let opened = [uses.process, uses.rewrap, uses.refused].iter().filter_map(Tally::last).max();
    match opened.or(uses.protect.last()) {
        Some(last) if last.after(QUIET_PERIOD) > now => {
            found(Retirement::InUse, format!("used last at {last}, less than 30 days ago"));
        }
        Some(last) => {
            found(Retirement::Safe, format!("used last at {last}, more than 30 days ago"));
        }
        None => {}
    }
    if let Some(end) = recipient_end {
        let ends = if *end <= now { "ended" } else { "ends" };
        found(Retirement::Safe, format!("its recipient-usage period {ends} at {end}"));
    }
    if uses.refused.count > 0 {
        let last = uses.refused.last().map(|last| format!(", last at {last}")).unwrap_or_default();
        let text = format!(
            "wanted {} times while it was disabled or its destruction planned{last}",
            uses.refused.count
        );
        found(Retirement::Quiet, text);
    }
    let left = uses.protect.count.saturating_sub(uses.rewrap.count);
    if left > 0 {
        let text = format!(
            "{left} ciphertexts were made with it and not rewrapped away, as far as was seen"
        );
        found(Retirement::Quiet, text);
    }
    (retirement, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_ms(1_700_000_000_000);

    fn tally(count: u64, ago: Duration) -> Tally {
        let ms = i64::try_from(ago.as_millis()).unwrap();
        let time = Timestamp::from_unix_ms(NOW.as_unix_ms() - ms);
        Tally { count, span: (count > 0).then_some((time, time)) }
    }

    fn judged(state: VersionState, is_primary: bool, uses: Uses) -> Retirement {
        judge(&Subject { state, is_primary, uses, recipient_end: Some(NOW) }, NOW).0
    }

    #[test]
    fn what_may_still_be_used_is_in_use() {
        let old = QUIET_PERIOD * 2;
        let uses = Uses { protect: tally(1, old), rewrap: tally(1, old), ..Uses::default() };
        assert_eq!(judged(VersionState::Active, true, uses), Retirement::InUse);
        assert_eq!(judged(VersionState::Active, false, uses), Retirement::InUse);
        let unused = Uses::default();
        assert_eq!(judged(VersionState::PreActivation, false, unused), Retirement::InUse);
        assert_eq!(judged(VersionState::Suspended, true, uses), Retirement::InUse);
        assert_eq!(judged(VersionState::Deactivated, false, uses), Retirement::Safe);
    }

    #[test]
    fn it_is_quiet_when_30_days_have_passed_and_not_a_moment_before() {
        let just = QUIET_PERIOD.saturating_sub(Duration::from_millis(1));
        let uses = |ago| Uses { process: tally(1, ago), ..Uses::default() };
        assert_eq!(judged(VersionState::Deactivated, false, uses(just)), Retirement::InUse);
        assert_eq!(judged(VersionState::Deactivated, false, uses(QUIET_PERIOD)), Retirement::Safe);
    }

    #[test]
    fn ciphertexts_that_may_be_left_keep_it_from_being_safe() {
        let old = QUIET_PERIOD * 2;
        let uses = |protects, rewraps| Uses {
            protect: tally(protects, old),
            rewrap: tally(rewraps, old),
            refused: tally(0, old),
            process: Tally::default(),
        };
        assert_eq!(judged(VersionState::Deactivated, false, uses(3, 2)), Retirement::Quiet);
        assert_eq!(judged(VersionState::Deactivated, false, uses(3, 3)), Retirement::Safe);
        let (_, evidence) = judge(
            &Subject {
                state: VersionState::Deactivated,
                is_primary: false,
                uses: uses(3, 2),
                recipient_end: Some(NOW),
            },
            NOW,
        );
        assert!(evidence.iter().any(|line| line.starts_with("1 ciphertexts")), "{evidence:?}");
        assert!(evidence.iter().any(|line| line.contains("period ended at")), "{evidence:?}");
    }

    #[test]
    fn what_never_was_in_use_has_no_recipient_usage_period() {
        let mut row = crate::store::suite::new_key(1).version.row;
        let period = Duration::from_hours(1);
        (row.state, row.activate_time) = (VersionState::PreActivation, Some(NOW));
        assert_eq!(recipient_end(&row, period), None, "it is planned");
        row.state = VersionState::Active;
        assert_eq!(recipient_end(&row, period), Some(NOW.after(period)));
        (row.state, row.activate_time) = (VersionState::Compromised, None);
        assert_eq!(recipient_end(&row, period), None);
        let (state, recipient_end) = (VersionState::PreActivation, None);
        let subject = Subject { state, is_primary: false, uses: Uses::default(), recipient_end };
        let (_, evidence) = judge(&subject, NOW);
        assert!(!evidence.iter().any(|line| line.contains("period")), "{evidence:?}");
    }

    #[test]
    fn a_version_that_was_never_used_is_safe() {
        assert_eq!(judged(VersionState::Deactivated, false, Uses::default()), Retirement::Safe);
    }
}

//! Whether the database is the one that the log has last seen: a tenant's manifest beside the log's last stamp of it.
//!
//! The log says the manifest after each mutation, so a database that was put back, or another one, shows. A mutation is
//! committed before its outcome is in the log, and leaves its intent, applied, until it is: a manifest that is ahead of
//! the log is right exactly when such intents, which the log has begun and not ended, tell of every step between.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

use kms_core::audit::ManifestStamp;
use kms_core::id::Revision;
use kms_core::manifest::RowSet;

/// How the database and the log disagree about a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The tenant.
    pub tenant: String,
    /// Its last manifest in the log.
    pub seen: ManifestStamp,
    /// Its manifest in the database.
    pub stored: Option<ManifestStamp>,
}

impl Divergence {
    /// Compares a tenant's manifest with the log's last stamp of it. `applied` holds the stamps of the tenant's intents
    /// that are applied and open; their MACs must have been verified, and the log must await their outcomes.
    pub fn find(
        tenant: &str,
        seen: &ManifestStamp,
        stored: Option<&ManifestStamp>,
        applied: &[ManifestStamp],
    ) -> Option<Self> {
        let agrees = match stored {
            // Without a manifest it has no rows: what the log says after such a database was accepted.
            None => *seen == no_rows(),
            Some(stored) if stored.revision > seen.revision => {
                is_explained(seen.revision, stored, applied)
            }
            Some(stored) => !Self::is_behind(seen, stored),
        };
        let stored = stored.cloned();
        (!agrees).then(|| Self { tenant: tenant.to_owned(), seen: seen.clone(), stored })
    }

    /// Whether a manifest is older than the one that the log has seen, or another of the same revision.
    pub fn is_behind(seen: &ManifestStamp, stored: &ManifestStamp) -> bool {
        stored.revision < seen.revision
            || (stored.revision == seen.revision && stored.digest != seen.digest)
    }

    /// Returns the revision in the database; 0 when it has no manifest.
    pub fn stored_revision(&self) -> Revision {
        self.stored.as_ref().map_or(Revision::new(0), |stored| stored.revision)
    }

    /// Returns what the log says of the tenant from now on when this database is accepted.
    pub fn baseline(&self) -> ManifestStamp {
        self.stored.clone().unwrap_or_else(no_rows)
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, seen, stored } = self;
        let seen = seen.revision;
        let Some(stored) = stored else {
            return write!(
                f,
                "tenant `{tenant}` has no manifest in the database, and the log has seen revision {seen} of it: this is \
                 another database, or it was emptied"
            );
        };
        let stored = stored.revision;
        let what = match stored.cmp(&seen) {
            Ordering::Less => "the database was rolled back, or restored from an older copy",
            Ordering::Equal => "the database has other rows at this revision than the log has seen",
            Ordering::Greater => {
                "no open intent tells of the steps between: the log has lost its end, or is another's"
            }
        };
        write!(
            f,
            "tenant `{tenant}` is at revision {stored} in the database, and the log has seen revision {seen}: {what}"
        )
    }
}

/// Whether intents tell of every revision after `seen`, and of the last one as it is.
fn is_explained(seen: Revision, stored: &ManifestStamp, applied: &[ManifestStamp]) -> bool {
    let between: BTreeSet<u64> = applied
        .iter()
        .map(|stamp| stamp.revision)
        .filter(|revision| seen < *revision && *revision <= stored.revision)
        .map(Revision::get)
        .collect();
    let steps = stored.revision.get().saturating_sub(seen.get());
    applied.contains(stored) && between.len() as u64 == steps
}

/// The stamp of a tenant without rows.
fn no_rows() -> ManifestStamp {
    let digest = data_encoding::HEXLOWER.encode(&RowSet::empty().digest());
    ManifestStamp { revision: Revision::new(0), digest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(revision: u64, digest: &str) -> ManifestStamp {
        ManifestStamp { revision: Revision::new(revision), digest: digest.into() }
    }

    fn finds(seen: u64, stored: Option<&ManifestStamp>, applied: &[ManifestStamp]) -> bool {
        Divergence::find("t", &stamp(seen, "a"), stored, applied).is_some()
    }

    #[test]
    fn the_manifest_that_the_log_has_seen_agrees_and_others_do_not() {
        assert!(!finds(6, Some(&stamp(6, "a")), &[]));
        assert!(finds(6, Some(&stamp(6, "b")), &[]), "other rows");
        assert!(finds(6, Some(&stamp(5, "a")), &[]), "older");
        assert!(finds(6, Some(&stamp(7, "a")), &[]), "newer, and nothing tells of it");
        assert!(finds(6, None, &[]), "missing");
    }

    #[test]
    fn intents_explain_a_newer_manifest_when_they_tell_of_every_step() {
        let (seventh, eighth) = (stamp(7, "b"), stamp(8, "c"));
        assert!(!finds(6, Some(&seventh), std::slice::from_ref(&seventh)));
        let both = [eighth.clone(), seventh.clone()];
        assert!(!finds(6, Some(&eighth), &both));
        // Its outcome came first, and that of the seventh is still missing.
        assert!(!finds(8, Some(&stamp(8, "a")), &[seventh]));
        let gap = [eighth.clone(), stamp(6, "a"), eighth.clone()];
        assert!(finds(6, Some(&eighth), &gap), "a step is missing");
        assert!(finds(6, Some(&stamp(8, "x")), &both), "the last is another");
    }

    #[test]
    fn intents_explain_nothing_older() {
        assert!(finds(6, Some(&stamp(5, "a")), &[stamp(5, "a"), stamp(6, "a"), stamp(7, "a")]));
        assert!(finds(6, Some(&stamp(6, "b")), &[stamp(6, "b")]));
    }

    #[test]
    fn an_accepted_database_is_the_baseline_also_when_it_is_empty() {
        for stored in [Some(stamp(5, "b")), None] {
            let found = Divergence::find("t", &stamp(6, "a"), stored.as_ref(), &[]).unwrap();
            let again = Divergence::find("t", &found.baseline(), stored.as_ref(), &[]);
            assert_eq!(again, None);
        }
    }

    #[test]
    fn a_divergence_names_the_tenant_and_both_revisions() {
        for (stored, word) in [
            (Some(stamp(4, "a")), "rolled back"),
            (Some(stamp(6, "b")), "other rows"),
            (Some(stamp(9, "a")), "lost its end"),
            (None, "another database"),
        ] {
            let found = Divergence::find("t", &stamp(6, "a"), stored.as_ref(), &[]).unwrap();
            let text = found.to_string();
            let revision =
                stored.map_or("no manifest".into(), |s| format!("revision {}", s.revision));
            for part in ["`t`", "seen revision 6", word, &revision] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}

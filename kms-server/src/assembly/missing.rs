//! What is said when no root set is pinned: what was looked for, where, and what to bring back.

use std::fmt;
use std::path::PathBuf;

use kms_core::id::RootGeneration;
use kms_hsm::pkcs11::TokenSelector;
use kms_hsm::{HsmError, HsmHealth};

use crate::config::Config;
use crate::store::FIRST_GENERATION;

/// A database without a pinned root set.
#[derive(Debug, thiserror::Error)]
pub struct MissingRoots {
    /// Which database, and the key of the configuration that names it.
    store: (String, &'static str),
    module: PathBuf,
    token: TokenSelector,
    generation: RootGeneration,
    /// What keeps the token from being used. Said first: a refused PIN is to be corrected first, too.
    hsm: Option<String>,
    /// Whether a set was to be made, as in dev mode.
    was_to_be_made: bool,
}

impl MissingRoots {
    /// Nothing is pinned in the database, and nothing was to be made.
    pub(super) fn pinned(
        config: &Config,
        token: TokenSelector,
        health: Option<&HsmHealth>,
    ) -> Self {
        let hsm = match health {
            Some(HsmHealth::Latched(reason)) => Some(format!("the hsm is latched: {reason}")),
            Some(HsmHealth::Unavailable(detail)) => {
                Some(format!("the hsm is unavailable: {detail}"))
            }
            Some(HsmHealth::NoRoots | HsmHealth::Ready) | None => None,
        };
        Self {
            store: (config.store.place(), config.store.key()),
            module: config.hsm.module.clone(),
            token,
            generation: FIRST_GENERATION,
            hsm,
            was_to_be_made: false,
        }
    }

    /// Nothing is pinned in the database, and the first set could not be made.
    pub(super) fn made(config: &Config, token: TokenSelector, error: &HsmError) -> Self {
        let hsm = Some(error.to_string());
        Self { hsm, was_to_be_made: true, ..Self::pinned(config, token, None) }
    }

    /// Returns whether the token, not the database, is what has to be looked at.
    pub(super) const fn is_of_hsm(&self) -> bool {
        self.was_to_be_made
    }
}

impl fmt::Display for MissingRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(hsm) = &self.hsm {
            write!(f, "{hsm}; besides, ")?;
        }
        write!(
            f,
            "no root set is pinned in the database {} (generation {} was looked for, on the token with {} of {}): ",
            self.store.0,
            self.generation.get(),
            self.token,
            self.module.display(),
        )?;
        if !self.was_to_be_made {
            return write!(
                f,
                "if there was one, bring back the database that belongs to this token, or correct {}. A first root set is \
                 made by `kms-server dev` only",
                self.store.1
            );
        }
        f.write_str(
            "none could be made. `tokens`, `token-serial`, `user-pin` and `store.db` of a dev directory belong together: \
             bring back what is missing, or start anew with another --dir",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kms_hsm::error::LatchReason;

    use super::*;

    fn config() -> Config {
        let mut config = Config::default();
        config.store.path = "/var/lib/holdfast/store.db".into();
        config.hsm.module = "/usr/lib/module.so".into();
        config
    }

    fn token() -> TokenSelector {
        TokenSelector::Serial("0815".into())
    }

    #[test]
    fn what_was_looked_for_is_told_and_what_to_do() {
        let told = MissingRoots::pinned(&config(), token(), Some(&HsmHealth::NoRoots)).to_string();
        assert!(told.starts_with("no root set is pinned in the database /var/lib"), "{told}");
        for part in ["generation 1", "serial `0815`", "/usr/lib/module.so", "store.path"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn a_database_of_a_server_is_told_by_its_name_and_its_key() {
        let mut config = config();
        config.store.engine = crate::config::Engine::Postgres;
        let told = MissingRoots::pinned(&config, token(), None).to_string();
        for part in ["the database `holdfast` at localhost:5432 (", "correct store.postgres."] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_token_is_told_first() {
        let latched = HsmHealth::Latched(LatchReason::PinRefused);
        let told = MissingRoots::pinned(&config(), token(), Some(&latched)).to_string();
        assert!(told.starts_with("the hsm is latched: the token refused the PIN;"), "{told}");
        let retry_after = Duration::from_secs(1);
        let away = HsmError::Unavailable { detail: "no token".into(), retry_after };
        let told = MissingRoots::made(&config(), token(), &away).to_string();
        assert!(told.starts_with("the hsm is unavailable: no token; besides,"), "{told}");
        assert!(told.contains("start anew with another --dir"), "{told}");
    }
}

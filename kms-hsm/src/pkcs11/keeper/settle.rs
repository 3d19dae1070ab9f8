//! What an ambiguous failure of a job means, and a refusal of one that serves nobody's call: the open roots are the canary.
//!
//! SoftHSM 2.6.1 answers CKR_FUNCTION_FAILED when its storage is full. If that opened the breaker, one CreateKey would
//! take the token away from everyone, although every key that is there still works. The same of a re-wrap that the token
//! refuses by a policy of its own: the rollover of a root must not end the service.

use super::Keeper;
use crate::error::HsmError;
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::job::KeeperWork;

impl Keeper {
    /// Settles an ambiguous failure of a job that changes what is on the token or re-wraps it; passes any other on.
    pub(super) fn settle(&self, work: &KeeperWork, failure: Failure) -> Failure {
        match work {
            KeeperWork::CreateRoot(_)
            | KeeperWork::Generate(_)
            | KeeperWork::DestroyImportKey(_)
            | KeeperWork::DestroyResident(_)
            | KeeperWork::PutMark { .. } => {
                self.ask_roots(failure, |detail| self.shared.unavailable(detail))
            }
            // What was mended and is refused again, the token does not do: the roots decide whether it does anything.
            KeeperWork::Import(_) | KeeperWork::Rewrap { .. } => match failure {
                Failure::Object(detail) => self.judge(&detail, |detail| HsmError::Refused {
                    detail: format!("{detail}, while the roots answer"),
                }),
                other => self.ask_roots(other, |detail| self.shared.unavailable(detail)),
            },
            KeeperWork::OpenRoots(_)
            | KeeperWork::Load(_)
            | KeeperWork::ListTokenKeys
            | KeeperWork::ListMarks => failure,
        }
    }

    /// Settles an ambiguous failure of the call that would have made a token object: most likely it found no room.
    pub(super) fn settle_no_room(&self, failure: Failure) -> Failure {
        self.ask_roots(failure, |detail| HsmError::TokenFull {
            detail: format!("{detail}, while the roots answer: the token's storage may be full"),
        })
    }

    /// Makes an ambiguous failure the job's own, when the roots still work, and the device's, when they do not.
    fn ask_roots(&self, failure: Failure, answer: impl FnOnce(&str) -> HsmError) -> Failure {
        match failure {
            Failure::Ambiguous(detail) => self.judge(&detail, answer),
            other => other,
        }
    }

    fn judge(&self, detail: &str, answer: impl FnOnce(&str) -> HsmError) -> Failure {
        match self.roots_sing() {
            Ok(()) => {
                tracing::warn!(detail, "the token refused one job; the roots still work");
                Failure::Answer(answer(detail))
            }
            // Not even a latch: the prober initialises the module anew before it believes that a root has changed.
            Err(cause) => {
                Failure::Device(format!("{detail}, and of the roots: {}", cause.detail()))
            }
        }
    }

    fn roots_sing(&self) -> Result<(), Failure> {
        if self.pins.is_empty() {
            return Err(Failure::Device("none is open".into()));
        }
        self.token_is_there()?;
        self.verify_open_roots()
    }
}

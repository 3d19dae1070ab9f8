//! A key that goes through its life again and again: staged, activated, deactivated, planned to be destroyed, disabled, and
//! back. One step after another, so that each answer is known before it comes.

use kms_proto::v1 as proto;
use tonic::transport::Channel;

use super::client::{Gone, answer};
use super::ledger::Acknowledged;
use crate::support_dev::{event_id, request_id};

/// How the name of such a key ends; nothing is protected with it.
pub const LIVED: &str = "-lived";
/// The most versions of it.
const MAX_VERSIONS: u32 = 20;
/// The steps that make versions come first; these follow them.
const FIRST_OF_KEY: usize = 5;

/// Makes a request of a change of something with a name.
macro_rules! change {
    ($request:ident, $name:expr $(, $field:ident: $value:expr)*) => {
        proto::$request {
            name: $name,
            reason: "test".to_owned(),
            request_id: request_id(),
            $($field: $value,)*
        }
    };
}

/// Where the key stands.
#[derive(Clone, Debug)]
pub struct Lived {
    name: String,
    uid: String,
    step: usize,
    primary: u32,
    latest: u32,
    /// The primary before this one.
    old: u32,
}

/// One step, with its request id.
#[derive(Clone, Debug)]
pub enum Step {
    Stage(proto::StageKeyVersionRequest),
    Activate(proto::ActivateKeyVersionRequest),
    Deactivate(proto::DeactivateKeyVersionRequest),
    Schedule(proto::ScheduleKeyVersionDestructionRequest),
    Cancel(proto::CancelKeyVersionDestructionRequest),
    Disable(proto::DisableKeyRequest),
    ScheduleKey(proto::ScheduleKeyDestructionRequest),
    CancelKey(proto::CancelKeyDestructionRequest),
    Enable(proto::EnableKeyRequest),
    Discard(proto::DiscardKeyVersionRequest),
}

/// What a step was acknowledged with.
#[derive(Debug)]
pub enum Seen {
    Key(proto::Key),
    Version(proto::KeyVersion),
}

impl Lived {
    /// Takes over a key that was just created.
    pub fn new(key: &proto::Key) -> Self {
        let (name, uid) = (key.name.clone(), key.uid.clone());
        Self { name, uid, step: 0, primary: 1, latest: 1, old: 1 }
    }

    /// Returns the next step.
    pub fn next(&self) -> Step {
        let key = self.name.clone();
        let version = |number: u32| format!("{}/versions/{number}", self.name);
        match self.step {
            0 | 9 => Step::Stage(change!(StageKeyVersionRequest, key, activate_time: None)),
            1 => Step::Activate(change!(ActivateKeyVersionRequest, version(self.latest))),
            2 => Step::Deactivate(change!(DeactivateKeyVersionRequest, version(self.old))),
            3 => Step::Schedule(change!(
                ScheduleKeyVersionDestructionRequest,
                version(self.old),
                window: None,
                allow_recent_use: true,
                allow_consumers: false
            )),
            4 => Step::Cancel(change!(CancelKeyVersionDestructionRequest, version(self.old))),
            5 => Step::Disable(change!(DisableKeyRequest, key)),
            6 => Step::ScheduleKey(change!(
                ScheduleKeyDestructionRequest,
                key,
                window: None,
                allow_recent_use: true,
                allow_consumers: false
            )),
            7 => Step::CancelKey(change!(CancelKeyDestructionRequest, key)),
            8 => Step::Enable(change!(EnableKeyRequest, key)),
            _ => Step::Discard(change!(DiscardKeyVersionRequest, version(self.latest))),
        }
    }

    /// Learns what a step has done, and goes on; returns what is to be found from now on.
    pub fn learn(&mut self, operation: &str, seen: &Seen) -> Acknowledged {
        match operation {
            "StageKeyVersion" => self.latest += 1,
            "ActivateKeyVersion" => (self.old, self.primary) = (self.primary, self.latest),
            _ => {}
        }
        let (of, shown) = match seen {
            Seen::Key(key) => {
                assert_eq!((&key.name, &key.uid), (&self.name, &self.uid));
                assert_eq!(key.version_count, self.latest, "{key:?}");
                (0, key.state().as_str_name().to_owned())
            }
            Seen::Version(version) => (version.version, version.state().as_str_name().to_owned()),
        };
        assert_eq!(shown, self.expected(), "after {operation}, step {}", self.step);
        self.step = match self.step {
            8 | 10 if self.latest + 2 > MAX_VERSIONS => FIRST_OF_KEY,
            10 => 0,
            step => step + 1,
        };
        let (key, uid, version) = (self.name.clone(), self.uid.clone(), self.latest);
        Acknowledged { key, version, uid, shown, of, ..Acknowledged::default() }
    }

    /// Returns the state that this step leads to.
    fn expected(&self) -> &'static str {
        match self.step {
            0 | 9 => "PRE_ACTIVATION",
            1 => "ACTIVE",
            2 | 4 => "DEACTIVATED",
            3 => "DESTROY_SCHEDULED",
            5 | 7 => "KEY_STATE_DISABLED",
            6 => "KEY_STATE_DESTROY_SCHEDULED",
            8 => "KEY_STATE_ENABLED",
            _ => "DESTROYED",
        }
    }
}

impl Step {
    /// Asks for it; returns the operation, the id of its record, and what is there afterwards.
    pub async fn ask(self, channel: &Channel) -> Result<(&'static str, String, Seen), Gone> {
        let mut client = kms_testkit::client::key_client(channel);
        macro_rules! ask {
            ($operation:literal, $method:ident, $request:expr, $seen:expr) => {{
                let answer = answer(client.$method($request).await)?;
                let event = event_id(&answer);
                Ok(($operation, event, $seen(answer.into_inner())))
            }};
        }
        match self {
            Self::Stage(request) => {
                ask!(
                    "StageKeyVersion",
                    stage_key_version,
                    request,
                    |made: proto::StageKeyVersionResponse| Seen::Version(made.version.unwrap())
                )
            }
            Self::Activate(request) => {
                ask!(
                    "ActivateKeyVersion",
                    activate_key_version,
                    request,
                    |made: proto::ActivateKeyVersionResponse| Seen::Version(made.version.unwrap())
                )
            }
            Self::Deactivate(request) => {
                ask!("DeactivateKeyVersion", deactivate_key_version, request, Seen::Version)
            }
            Self::Schedule(request) => ask!(
                "ScheduleKeyVersionDestruction",
                schedule_key_version_destruction,
                request,
                Seen::Version
            ),
            Self::Cancel(request) => ask!(
                "CancelKeyVersionDestruction",
                cancel_key_version_destruction,
                request,
                Seen::Version
            ),
            Self::Disable(request) => ask!("DisableKey", disable_key, request, Seen::Key),
            Self::ScheduleKey(request) => {
                ask!("ScheduleKeyDestruction", schedule_key_destruction, request, Seen::Key)
            }
            Self::CancelKey(request) => {
                ask!("CancelKeyDestruction", cancel_key_destruction, request, Seen::Key)
            }
            Self::Enable(request) => ask!("EnableKey", enable_key, request, Seen::Key),
            Self::Discard(request) => {
                ask!("DiscardKeyVersion", discard_key_version, request, Seen::Version)
            }
        }
    }
}

//! Intents: what was begun, recorded before its effect and kept until its outcome is in the audit log.

use kms_core::audit::ManifestStamp;
use kms_core::clock::Timestamp;
use kms_core::id::{IntentId, KeyUid, KeyVersion};
use kms_core::key::{CkaId, Protection};
use kms_core::name::KeyName;

/// A mutation that was begun, and what became of it. It stays until its outcome is in the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Id.
    pub id: IntentId,
    /// What kind of mutation.
    pub kind: IntentKind,
    /// Who asked.
    pub principal: String,
    /// Tenant and name of the key.
    pub key_name: KeyName,
    /// The key.
    pub key_uid: KeyUid,
    /// The version that is to be made or changed.
    pub version: KeyVersion,
    /// Where its material is to live.
    pub protection: Protection,
    /// CKA_ID reserved for a token object.
    pub resident_id: CkaId,
    /// When it was begun.
    pub time: Timestamp,
    /// The tenant's manifest as the mutation left it; `None` as long as the mutation is not committed.
    pub applied: Option<ManifestStamp>,
}

/// Kinds of mutations that leave an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentKind {
    /// CreateKey.
    CreateKey,
    /// RotateKey.
    RotateKey,
    /// StageKeyVersion.
    StageKeyVersion,
    /// ActivateKeyVersion.
    ActivateKeyVersion,
    /// DiscardKeyVersion.
    DiscardKeyVersion,
    /// UpdateKey.
    UpdateKey,
    /// CreateImportJob.
    CreateImportJob,
    /// CancelImportJob, by a caller or because it has expired.
    CancelImportJob,
    /// ImportKey.
    ImportKey,
    /// ImportKeyVersion.
    ImportKeyVersion,
    /// RegisterConsumer.
    RegisterConsumer,
    /// RemoveConsumer.
    RemoveConsumer,
    /// CreateAlias.
    CreateAlias,
    /// UpdateAlias; the key is the one that the alias points to then.
    UpdateAlias,
    /// DeleteAlias.
    DeleteAlias,
    /// DisableKey.
    DisableKey,
    /// EnableKey.
    EnableKey,
    /// ScheduleKeyDestruction.
    ScheduleKeyDestruction,
    /// CancelKeyDestruction.
    CancelKeyDestruction,
    /// The destruction of a whole key begins, or has ended.
    DestroyKey,
    /// SuspendKeyVersion.
    SuspendKeyVersion,
    /// ResumeKeyVersion.
    ResumeKeyVersion,
    /// DeactivateKeyVersion.
    DeactivateKeyVersion,
    /// CompromiseKeyVersion.
    CompromiseKeyVersion,
    /// ScheduleKeyVersionDestruction.
    ScheduleKeyVersionDestruction,
    /// CancelKeyVersionDestruction.
    CancelKeyVersionDestruction,
    /// The destruction itself, when its time has come.
    DestroyKeyVersion,
    /// Rows of a tenant are sealed under a newer root; the key is the first of them.
    ResealRows,
}

impl IntentKind {
    /// All kinds.
    pub const ALL: [Self; 28] = [
        Self::CreateKey,
        Self::RotateKey,
        Self::StageKeyVersion,
        Self::ActivateKeyVersion,
        Self::DiscardKeyVersion,
        Self::UpdateKey,
        Self::CreateImportJob,
        Self::CancelImportJob,
        Self::ImportKey,
        Self::ImportKeyVersion,
        Self::RegisterConsumer,
        Self::RemoveConsumer,
        Self::CreateAlias,
        Self::UpdateAlias,
        Self::DeleteAlias,
        Self::DisableKey,
        Self::EnableKey,
        Self::ScheduleKeyDestruction,
        Self::CancelKeyDestruction,
        Self::DestroyKey,
        Self::SuspendKeyVersion,
        Self::ResumeKeyVersion,
        Self::DeactivateKeyVersion,
        Self::CompromiseKeyVersion,
        Self::ScheduleKeyVersionDestruction,
        Self::CancelKeyVersionDestruction,
        Self::DestroyKeyVersion,
        Self::ResealRows,
    ];

    /// Returns the name used in columns and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateKey => "CREATE_KEY",
            Self::RotateKey => "ROTATE_KEY",
            Self::StageKeyVersion => "STAGE_KEY_VERSION",
            Self::ActivateKeyVersion => "ACTIVATE_KEY_VERSION",
            Self::DiscardKeyVersion => "DISCARD_KEY_VERSION",
            Self::UpdateKey => "UPDATE_KEY",
            Self::CreateImportJob => "CREATE_IMPORT_JOB",
            Self::CancelImportJob => "CANCEL_IMPORT_JOB",
            Self::ImportKey => "IMPORT_KEY",
            Self::ImportKeyVersion => "IMPORT_KEY_VERSION",
            Self::RegisterConsumer => "REGISTER_CONSUMER",
            Self::RemoveConsumer => "REMOVE_CONSUMER",
            Self::CreateAlias => "CREATE_ALIAS",
            Self::UpdateAlias => "UPDATE_ALIAS",
            Self::DeleteAlias => "DELETE_ALIAS",
            Self::DisableKey => "DISABLE_KEY",
            Self::EnableKey => "ENABLE_KEY",
            Self::ScheduleKeyDestruction => "SCHEDULE_KEY_DESTRUCTION",
            Self::CancelKeyDestruction => "CANCEL_KEY_DESTRUCTION",
            Self::DestroyKey => "DESTROY_KEY",
            Self::SuspendKeyVersion => "SUSPEND_KEY_VERSION",
            Self::ResumeKeyVersion => "RESUME_KEY_VERSION",
            Self::DeactivateKeyVersion => "DEACTIVATE_KEY_VERSION",
            Self::CompromiseKeyVersion => "COMPROMISE_KEY_VERSION",
            Self::ScheduleKeyVersionDestruction => "SCHEDULE_KEY_VERSION_DESTRUCTION",
            Self::CancelKeyVersionDestruction => "CANCEL_KEY_VERSION_DESTRUCTION",
            Self::DestroyKeyVersion => "DESTROY_KEY_VERSION",
            Self::ResealRows => "RESEAL_ROWS",
        }
    }

    /// Returns whether it makes or changes the version that its intent names. An import job has none, and its key may not
    /// be there; an alias has none.
    pub const fn is_of_version(self) -> bool {
        !matches!(
            self,
            Self::CreateImportJob
                | Self::CancelImportJob
                | Self::CreateAlias
                | Self::UpdateAlias
                | Self::DeleteAlias
        )
    }

    /// Returns whether the state journal is told of it before it is done: then also when it is given up.
    pub const fn is_journaled(self) -> bool {
        matches!(
            self,
            Self::CompromiseKeyVersion
                | Self::DestroyKeyVersion
                | Self::DiscardKeyVersion
                | Self::DestroyKey
        )
    }

    /// Reads the name; `None` when it is not a kind.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

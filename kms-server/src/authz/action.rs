//! Actions: what a principal may be allowed to do, and the marker types that permits carry.

use serde::{Deserialize, Serialize};

mod sealed {
    pub trait Sealed {}
}

/// The type of an action; implemented by the markers below and by nothing else.
pub trait Action: sealed::Sealed {
    /// The action.
    const KIND: ActionKind;
}

/// Actions that use a key's primary to protect.
pub trait Protects: Action {}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// An action, as configuration and policy name it: the RPC in snake case, or a special permission.
        ///
        /// A batch form needs the action of its single form.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ActionKind {
            $($(#[$doc])* $name),+
        }

        impl ActionKind {
            /// All actions.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Returns the name used in configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;
            impl sealed::Sealed for $name {}
            impl Action for $name {
                const KIND: ActionKind = ActionKind::$name;
            }
        )+
    };
}

actions! {
    /// Wrap with the primary.
    Wrap = "wrap",
    /// Wrap with a pinned ACTIVE version; besides `wrap`.
    WrapPinned = "wrap_pinned",
    /// Unwrap.
    Unwrap = "unwrap",
    /// Unwrap with a COMPROMISED version; besides `unwrap`.
    UnwrapCompromised = "unwrap_compromised",
    /// Rewrap to the primary of the same key; does not need `unwrap`.
    Rewrap = "rewrap",
    /// Rewrap from a COMPROMISED version; besides `rewrap`.
    RewrapCompromised = "rewrap_compromised",
    /// Generate a data key.
    GenerateDataKey = "generate_data_key",
    /// Read the header of an envelope.
    DescribeCiphertext = "describe_ciphertext",
    /// Draw random bytes.
    GenerateRandom = "generate_random",
    /// Create a key.
    CreateKey = "create_key",
    /// Describe a key.
    DescribeKey = "describe_key",
    /// List keys.
    ListKeys = "list_keys",
    /// Change the metadata of a key.
    UpdateKey = "update_key",
    /// Roll a key over.
    RotateKey = "rotate_key",
    /// Stage the next version of a key.
    StageKeyVersion = "stage_key_version",
    /// Activate a staged version.
    ActivateKeyVersion = "activate_key_version",
    /// Discard a staged version.
    DiscardKeyVersion = "discard_key_version",
    /// Disable a key.
    DisableKey = "disable_key",
    /// Enable a key.
    EnableKey = "enable_key",
    /// Plan the destruction of a whole key.
    ScheduleKeyDestruction = "schedule_key_destruction",
    /// Give the planned destruction of a whole key up.
    CancelKeyDestruction = "cancel_key_destruction",
    /// Describe a version.
    DescribeKeyVersion = "describe_key_version",
    /// List versions.
    ListKeyVersions = "list_key_versions",
    /// Suspend a version.
    SuspendKeyVersion = "suspend_key_version",
    /// Resume a version.
    ResumeKeyVersion = "resume_key_version",
    /// Deactivate a version.
    DeactivateKeyVersion = "deactivate_key_version",
    /// Mark a version compromised.
    CompromiseKeyVersion = "compromise_key_version",
    /// Plan the destruction of a version.
    ScheduleKeyVersionDestruction = "schedule_key_version_destruction",
    /// Plan the destruction of what was used within 30 days; besides the permission to plan.
    DestroyRecentlyUsed = "destroy_recently_used",
    /// Plan the destruction of a key that has consumers, or of its version; besides the permission to plan.
    DestroyWithConsumers = "destroy_with_consumers",
    /// Give a planned destruction up.
    CancelKeyVersionDestruction = "cancel_key_version_destruction",
    /// Create an import job.
    CreateImportJob = "create_import_job",
    /// Describe an import job.
    DescribeImportJob = "describe_import_job",
    /// List the import jobs of a tenant.
    ListImportJobs = "list_import_jobs",
    /// Give an import job up; the server itself does it when one has expired.
    CancelImportJob = "cancel_import_job",
    /// Import a key.
    ImportKey = "import_key",
    /// Import a version of a key.
    ImportKeyVersion = "import_key_version",
    /// Register a consumer of a key.
    RegisterConsumer = "register_consumer",
    /// List the consumers of a key.
    ListConsumers = "list_consumers",
    /// Take a consumer of a key away.
    RemoveConsumer = "remove_consumer",
    /// Make an alias of a key.
    CreateAlias = "create_alias",
    /// Move an alias to another key.
    UpdateAlias = "update_alias",
    /// Delete an alias.
    DeleteAlias = "delete_alias",
    /// Describe an alias.
    DescribeAlias = "describe_alias",
    /// List the aliases of a tenant.
    ListAliases = "list_aliases",
    /// Read the history of a key.
    ListKeyHistory = "list_key_history",
    /// Read how a version was used.
    GetVersionUsage = "get_version_usage",
    /// Seal rows under the newest root: what the server does by itself when there is a newer one.
    RollOverRoot = "roll_over_root",
    /// Take a backup of the store, with the rows of all tenants; in whichever tenant it is granted.
    BackupStore = "backup_store",
}

impl Protects for Wrap {}
impl Protects for GenerateDataKey {}
impl Protects for Rewrap {}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActionSet(u64);

impl ActionSet {
    /// Adds an action; returns whether it was not in the set.
    pub fn insert(&mut self, action: ActionKind) -> bool {
        let added = !self.contains(action);
        self.0 |= Self::bit(action);
        added
    }

    /// Returns whether an action is in the set.
    pub const fn contains(self, action: ActionKind) -> bool {
        self.0 & Self::bit(action) != 0
    }

    /// Returns whether the set has no action.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds all actions of another set.
    pub const fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// There are no more than 64 actions; the test below fails before the shift could overflow.
    const fn bit(action: ActionKind) -> u64 {
        1 << action as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_a_bit_and_a_name_of_its_own() {
        assert!(ActionKind::ALL.len() <= 64);
        let mut set = ActionSet::default();
        for action in ActionKind::ALL {
            assert!(set.insert(*action), "{action:?}");
            let json = serde_json::to_string(action).unwrap();
            assert_eq!(json, format!("\"{}\"", action.as_str()));
        }
    }
}

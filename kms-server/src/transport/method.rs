//! The methods of the contract, as a closed list: for paths, audit records and metrics.

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident => $path:literal),+ $(,)?) => {
        /// A method of `kms.v1`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Method {
            $($(#[$doc])* $variant),+,
            /// A path that is no method of ours.
            Unknown,
        }

        impl Method {
            /// All methods, the unknown one last.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+, Self::Unknown];

            /// Returns service and method, `kms.v1.CryptoService/Wrap`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $path),+, Self::Unknown => "unknown" }
            }

            /// Reads the path of an HTTP request.
            pub fn from_path(path: &str) -> Self {
                match path.strip_prefix('/').unwrap_or_default() {
                    $($path => Self::$variant,)+
                    _ => Self::Unknown,
                }
            }
        }
    };
}

methods! {
    /// Wrap.
    Wrap => "kms.v1.CryptoService/Wrap",
    /// Unwrap.
    Unwrap => "kms.v1.CryptoService/Unwrap",
    /// Rewrap.
    Rewrap => "kms.v1.CryptoService/Rewrap",
    /// GenerateDataKey.
    GenerateDataKey => "kms.v1.CryptoService/GenerateDataKey",
    /// BatchWrap.
    BatchWrap => "kms.v1.CryptoService/BatchWrap",
    /// BatchUnwrap.
    BatchUnwrap => "kms.v1.CryptoService/BatchUnwrap",
    /// BatchRewrap.
    BatchRewrap => "kms.v1.CryptoService/BatchRewrap",
    /// RewrapStream.
    RewrapStream => "kms.v1.CryptoService/RewrapStream",
    /// BatchGenerateDataKey.
    BatchGenerateDataKey => "kms.v1.CryptoService/BatchGenerateDataKey",
    /// DescribeCiphertext.
    DescribeCiphertext => "kms.v1.CryptoService/DescribeCiphertext",
    /// GenerateRandom.
    GenerateRandom => "kms.v1.CryptoService/GenerateRandom",
    /// CreateKey.
    CreateKey => "kms.v1.KeyService/CreateKey",
    /// DescribeKey.
    DescribeKey => "kms.v1.KeyService/DescribeKey",
    /// ListKeys.
    ListKeys => "kms.v1.KeyService/ListKeys",
    /// UpdateKey.
    UpdateKey => "kms.v1.KeyService/UpdateKey",
    /// RotateKey.
    RotateKey => "kms.v1.KeyService/RotateKey",
    /// StageKeyVersion.
    StageKeyVersion => "kms.v1.KeyService/StageKeyVersion",
    /// ActivateKeyVersion.
    ActivateKeyVersion => "kms.v1.KeyService/ActivateKeyVersion",
    /// DiscardKeyVersion.
    DiscardKeyVersion => "kms.v1.KeyService/DiscardKeyVersion",
    /// DisableKey.
    DisableKey => "kms.v1.KeyService/DisableKey",
    /// EnableKey.
    EnableKey => "kms.v1.KeyService/EnableKey",
    /// ScheduleKeyDestruction.
    ScheduleKeyDestruction => "kms.v1.KeyService/ScheduleKeyDestruction",
    /// CancelKeyDestruction.
    CancelKeyDestruction => "kms.v1.KeyService/CancelKeyDestruction",
    /// DescribeKeyVersion.
    DescribeKeyVersion => "kms.v1.KeyService/DescribeKeyVersion",
    /// ListKeyVersions.
    ListKeyVersions => "kms.v1.KeyService/ListKeyVersions",
    /// SuspendKeyVersion.
    SuspendKeyVersion => "kms.v1.KeyService/SuspendKeyVersion",
    /// ResumeKeyVersion.
    ResumeKeyVersion => "kms.v1.KeyService/ResumeKeyVersion",
    /// DeactivateKeyVersion.
    DeactivateKeyVersion => "kms.v1.KeyService/DeactivateKeyVersion",
    /// CompromiseKeyVersion.
    CompromiseKeyVersion => "kms.v1.KeyService/CompromiseKeyVersion",
    /// ScheduleKeyVersionDestruction.
    ScheduleKeyVersionDestruction => "kms.v1.KeyService/ScheduleKeyVersionDestruction",
    /// CancelKeyVersionDestruction.
    CancelKeyVersionDestruction => "kms.v1.KeyService/CancelKeyVersionDestruction",
    /// CreateImportJob.
    CreateImportJob => "kms.v1.KeyService/CreateImportJob",
    /// DescribeImportJob.
    DescribeImportJob => "kms.v1.KeyService/DescribeImportJob",
    /// ListImportJobs.
    ListImportJobs => "kms.v1.KeyService/ListImportJobs",
    /// CancelImportJob.
    CancelImportJob => "kms.v1.KeyService/CancelImportJob",
    /// ImportKey.
    ImportKey => "kms.v1.KeyService/ImportKey",
    /// ImportKeyVersion.
    ImportKeyVersion => "kms.v1.KeyService/ImportKeyVersion",
    /// RegisterConsumer.
    RegisterConsumer => "kms.v1.KeyService/RegisterConsumer",
    /// ListConsumers.
    ListConsumers => "kms.v1.KeyService/ListConsumers",
    /// RemoveConsumer.
    RemoveConsumer => "kms.v1.KeyService/RemoveConsumer",
    /// CreateAlias.
    CreateAlias => "kms.v1.KeyService/CreateAlias",
    /// UpdateAlias.
    UpdateAlias => "kms.v1.KeyService/UpdateAlias",
    /// DeleteAlias.
    DeleteAlias => "kms.v1.KeyService/DeleteAlias",
    /// DescribeAlias.
    DescribeAlias => "kms.v1.KeyService/DescribeAlias",
    /// ListAliases.
    ListAliases => "kms.v1.KeyService/ListAliases",
    /// ListKeyHistory.
    ListKeyHistory => "kms.v1.KeyService/ListKeyHistory",
    /// GetVersionUsage.
    GetVersionUsage => "kms.v1.KeyService/GetVersionUsage",
    /// BackupStore; on the admin listener.
    BackupStore => "kms.v1.AdminService/BackupStore",
}

/// Path of the one method that lasts: a request to it is told when its connection ends.
pub const REWRAP_STREAM_PATH: &str = "/kms.v1.CryptoService/RewrapStream";

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_contract_is_listed_and_no_other() {
        let set = prost_types::FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut contract = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    contract.push(format!(
                        "{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
        let listed: Vec<_> = Method::ALL.iter().map(|method| method.as_str()).collect();
        assert_eq!(
            listed.split_last(),
            Some((&"unknown", &contract.iter().map(String::as_str).collect::<Vec<_>>()[..]))
        );
    }

    #[test]
    fn paths_read_back_and_others_are_unknown() {
        for method in Method::ALL {
            assert_eq!(Method::from_path(&format!("/{}", method.as_str())), *method);
        }
        for path in ["", "/", "kms.v1.CryptoService/Wrap", "/kms.v1.CryptoService/Wrap/", "//x"] {
            assert_eq!(Method::from_path(path), Method::Unknown, "{path:?}");
        }
    }
}

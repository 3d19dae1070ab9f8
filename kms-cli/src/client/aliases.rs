//! KeyService: names that stand for keys.

use kms_core::id::RequestId;
use kms_core::name::{AliasName, KeyName, KeyOrAlias, TenantName};
use kms_proto::v1;

use super::keys::{Page, once};
use super::{Client, ClientError, Repeat};

impl Client {
    /// Makes an alias of a key. The server refuses an alias in the key's place.
    pub async fn create_alias(
        &self,
        name: &AliasName,
        key: &KeyOrAlias,
        reason: String,
        id: RequestId,
    ) -> Result<v1::Alias, ClientError> {
        let request = v1::CreateAliasRequest {
            parent: name.tenant().to_string(),
            alias_id: name.alias_id().to_owned(),
            key: key.to_string(),
            reason,
            request_id: id.to_string(),
        };
        let send = |request| async { self.keys().create_alias(request).await };
        self.mutate(once(id), request, send).await
    }

    /// Moves an alias that is at `revision` to another key.
    pub async fn update_alias(
        &self,
        name: &AliasName,
        key: &KeyOrAlias,
        revision: u64,
        reason: String,
        id: RequestId,
    ) -> Result<v1::Alias, ClientError> {
        let request = v1::UpdateAliasRequest {
            name: name.to_string(),
            key: key.to_string(),
            revision,
            reason,
            request_id: id.to_string(),
        };
        let send = |request| async { self.keys().update_alias(request).await };
        self.mutate(at(id, revision), request, send).await
    }

    /// Deletes an alias that is at `revision`.
    pub async fn delete_alias(
        &self,
        name: &AliasName,
        revision: u64,
        reason: String,
        id: RequestId,
    ) -> Result<v1::Alias, ClientError> {
        let request = v1::DeleteAliasRequest {
            name: name.to_string(),
            revision,
            reason,
            request_id: id.to_string(),
        };
        let send = |request| async { self.keys().delete_alias(request).await };
        self.mutate(at(id, revision), request, send).await
    }

    /// Describes an alias.
    pub async fn describe_alias(&self, name: &AliasName) -> Result<v1::Alias, ClientError> {
        let request = v1::DescribeAliasRequest { name: name.to_string() };
        self.call(request, |request| async { self.keys().describe_alias(request).await }).await
    }

    /// Lists one page of a tenant's aliases, or of those that point to one key.
    pub async fn list_aliases(
        &self,
        tenant: &TenantName,
        key: Option<&KeyName>,
        page_size: u32,
        page_token: String,
    ) -> Result<Page<v1::Alias>, ClientError> {
        let key = key.map_or_else(String::new, ToString::to_string);
        let parent = tenant.to_string();
        let request = v1::ListAliasesRequest { parent, key, page_size, page_token };
        let send = |request| async { self.keys().list_aliases(request).await };
        let v1::ListAliasesResponse { aliases, next_page_token } = self.call(request, send).await?;
        Ok(Page { entries: aliases, next_page_token })
    }

    /// Describes the key that is named, or that an alias points to.
    pub async fn describe_key_or_alias(&self, name: &KeyOrAlias) -> Result<v1::Key, ClientError> {
        let request = v1::DescribeKeyRequest { name: name.to_string() };
        self.call(request, |request| async { self.keys().describe_key(request).await }).await
    }
}

/// A request that its id, the words of the command and the revision make.
const fn at(request_id: RequestId, revision: u64) -> Repeat {
    Repeat { request_id, revision: Some(revision) }
}

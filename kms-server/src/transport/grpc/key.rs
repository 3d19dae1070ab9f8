//! KeyService: one line a method. What they share is in `gateway`.

use kms_proto::v1 as proto;
use kms_proto::v1::key_service_server::KeyService;
use tonic::{Request, Response, Status};

use super::gateway::Gateway;
use super::{decode, encode};
use crate::transport::method::Method;

#[tonic::async_trait]
impl KeyService for Gateway {
    async fn create_key(
        &self,
        request: Request<proto::CreateKeyRequest>,
    ) -> Result<Response<proto::Key>, Status> {
        self.call(
            Method::CreateKey,
            request,
            decode::create_key,
            |kms, context, request| async move { kms.create_key(&context, request).await },
            encode::key,
        )
        .await
    }

    async fn update_key(
        &self,
        request: Request<proto::UpdateKeyRequest>,
    ) -> Result<Response<proto::Key>, Status> {
        self.call(
            Method::UpdateKey,
            request,
            decode::update_key,
            |kms, context, request| async move { kms.update_key(&context, request).await },
            encode::key,
        )
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<proto::RotateKeyRequest>,
    ) -> Result<Response<proto::RotateKeyResponse>, Status> {
        self.call(
            Method::RotateKey,
            request,
            decode::rotate_key,
            |kms, context, request| async move { kms.rotate_key(&context, request).await },
            encode::rotated,
        )
        .await
    }

    async fn suspend_key_version(
        &self,
        request: Request<proto::SuspendKeyVersionRequest>,
    ) -> Result<Response<proto::KeyVersion>, Status> {
        self.call(
            Method::SuspendKeyVersion,
            request,
            decode::suspend,
            |kms, context, request| async move { kms.suspend_key_version(&context, request).await },
            encode::version,
        )
        .await
    }

    async fn resume_key_version(
        &self,
        request: Request<proto::ResumeKeyVersionRequest>,
    ) -> Result<Response<proto::KeyVersion>, Status> {
        self.call(
            Method::ResumeKeyVersion,
            request,
            decode::resume,
            |kms, context, request| async move { kms.resume_key_version(&context, request).await },
            encode::version,
        )
        .await
    }

    async fn describe_key(
        &self,
        request: Request<proto::DescribeKeyRequest>,
    ) -> Result<Response<proto::Key>, Status> {
        self.call(
            Method::DescribeKey,
            request,
            decode::describe_key,
            |kms, context, request| async move { kms.describe_key(&context, &request).await },
            encode::key,
        )
        .await
    }

    async fn list_keys(
        &self,
        request: Request<proto::ListKeysRequest>,
    ) -> Result<Response<proto::ListKeysResponse>, Status> {
        self.call(
            Method::ListKeys,
            request,
            decode::list_keys,
            |kms, context, request| async move { kms.list_keys(&context, request).await },
            encode::keys,
        )
        .await
    }

    async fn describe_key_version(
        &self,
        request: Request<proto::DescribeKeyVersionRequest>,
    ) -> Result<Response<proto::KeyVersion>, Status> {
        self.call(
            Method::DescribeKeyVersion,
            request,
            decode::describe_key_version,
            |kms, context, request| async move { kms.describe_key_version(&context, &request).await },
            encode::version,
        )
        .await
    }

    async fn list_key_versions(
        &self,
        request: Request<proto::ListKeyVersionsRequest>,
    ) -> Result<Response<proto::ListKeyVersionsResponse>, Status> {
        self.call(
            Method::ListKeyVersions,
            request,
            decode::list_key_versions,
            |kms, context, request| async move { kms.list_key_versions(&context, request).await },
            encode::versions,
        )
        .await
    }
}

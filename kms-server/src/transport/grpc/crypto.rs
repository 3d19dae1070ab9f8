//! CryptoService: one line a method. What they share is in `gateway`.

use kms_proto::v1 as proto;
use kms_proto::v1::crypto_service_server::CryptoService;
use tonic::{Request, Response, Status};

use super::gateway::Gateway;
use super::{batch, decode, encode};
use crate::transport::method::Method;

/// A batch method: a status an item, one call of the service.
macro_rules! batch {
    ($method:ident, $self:ident, $request:ident, $call:ident, $decode:path, $encode:path, $module:ident, $answer:ident) => {
        $self
            .call(
                Method::$method,
                $request,
                |message| Ok(batch::decode(message.items, $decode)),
                |kms, context, items| async move { kms.$call(&context, items).await },
                |results| proto::$answer {
                    items: batch::encode(results, $encode, |status, result| proto::$module::Item {
                        status,
                        result,
                    }),
                },
            )
            .await
    };
}

#[tonic::async_trait]
impl CryptoService for Gateway {
    async fn wrap(
        &self,
        request: Request<proto::WrapRequest>,
    ) -> Result<Response<proto::WrapResponse>, Status> {
        self.call(
            Method::Wrap,
            request,
            decode::wrap,
            |kms, context, request| async move { kms.wrap(&context, request).await },
            encode::wrapped,
        )
        .await
    }

    async fn unwrap(
        &self,
        request: Request<proto::UnwrapRequest>,
    ) -> Result<Response<proto::UnwrapResponse>, Status> {
        self.call(
            Method::Unwrap,
            request,
            decode::unwrap,
            |kms, context, request| async move { kms.unwrap(&context, request).await },
            encode::unwrapped,
        )
        .await
    }

    async fn rewrap(
        &self,
        request: Request<proto::RewrapRequest>,
    ) -> Result<Response<proto::RewrapResponse>, Status> {
        self.call(
            Method::Rewrap,
            request,
            decode::rewrap,
            |kms, context, request| async move { kms.rewrap(&context, request).await },
            encode::rewrapped,
        )
        .await
    }

    async fn generate_data_key(
        &self,
        request: Request<proto::GenerateDataKeyRequest>,
    ) -> Result<Response<proto::GenerateDataKeyResponse>, Status> {
        self.call(
            Method::GenerateDataKey,
            request,
            decode::generate_data_key,
            |kms, context, request| async move { kms.generate_data_key(&context, request).await },
            encode::data_key,
        )
        .await
    }

    async fn batch_wrap(
        &self,
        request: Request<proto::BatchWrapRequest>,
    ) -> Result<Response<proto::BatchWrapResponse>, Status> {
        batch!(
            BatchWrap,
            self,
            request,
            batch_wrap,
            decode::wrap,
            encode::wrapped,
            batch_wrap_response,
            BatchWrapResponse
        )
    }

    async fn batch_unwrap(
        &self,
        request: Request<proto::BatchUnwrapRequest>,
    ) -> Result<Response<proto::BatchUnwrapResponse>, Status> {
        batch!(
            BatchUnwrap,
            self,
            request,
            batch_unwrap,
            decode::unwrap,
            encode::unwrapped,
            batch_unwrap_response,
            BatchUnwrapResponse
        )
    }

    async fn batch_rewrap(
        &self,
        request: Request<proto::BatchRewrapRequest>,
    ) -> Result<Response<proto::BatchRewrapResponse>, Status> {
        batch!(
            BatchRewrap,
            self,
            request,
            batch_rewrap,
            decode::rewrap,
            encode::rewrapped,
            batch_rewrap_response,
            BatchRewrapResponse
        )
    }

    async fn batch_generate_data_key(
        &self,
        request: Request<proto::BatchGenerateDataKeyRequest>,
    ) -> Result<Response<proto::BatchGenerateDataKeyResponse>, Status> {
        batch!(
            BatchGenerateDataKey,
            self,
            request,
            batch_generate_data_key,
            decode::generate_data_key,
            encode::data_key,
            batch_generate_data_key_response,
            BatchGenerateDataKeyResponse
        )
    }

    async fn describe_ciphertext(
        &self,
        request: Request<proto::DescribeCiphertextRequest>,
    ) -> Result<Response<proto::DescribeCiphertextResponse>, Status> {
        self.call(
            Method::DescribeCiphertext,
            request,
            decode::describe_ciphertext,
            |kms, context, ciphertext| async move {
                kms.describe_ciphertext(&context, &ciphertext).await
            },
            encode::ciphertext_description,
        )
        .await
    }

    async fn generate_random(
        &self,
        request: Request<proto::GenerateRandomRequest>,
    ) -> Result<Response<proto::GenerateRandomResponse>, Status> {
        self.call(
            Method::GenerateRandom,
            request,
            decode::generate_random,
            |kms, context, (tenant, length)| async move {
                kms.generate_random(&context, &tenant, length).await
            },
            encode::random,
        )
        .await
    }
}

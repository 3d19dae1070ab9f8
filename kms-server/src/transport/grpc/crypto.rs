//! CryptoService: one line a method. What they share is in `gateway`.

use http::Request;
use hyper::body::Incoming;
use kms_proto::v1 as proto;

use super::bounds::{CONTEXT, NONE, one};
use super::gateway::Call;
use super::route::Answer;
use super::{batch, decode, encode};
use crate::service::Kms;

/// A method that uses a key for one message.
macro_rules! single {
    ($method:ident, $decode:path, $encode:path) => {
        pub(super) fn $method(call: Call, request: Request<Incoming>) -> Answer {
            Box::pin(async move {
                let decode = one(CONTEXT, $decode);
                let work = |kms: Kms, context, request| async move {
                    kms.$method(&context, request).await
                };
                Ok(call.run(request, decode, work, $encode).await)
            })
        }
    };
}

/// The batch form of a method: a status an item, one call of the service.
macro_rules! batched {
    ($method:ident, $decode:path, $encode:path, $module:ident, $answer:ident) => {
        pub(super) fn $method(call: Call, request: Request<Incoming>) -> Answer {
            Box::pin(async move {
                let decode = batch::decoder(CONTEXT, $decode);
                let work =
                    |kms: Kms, context, items| async move { kms.$method(&context, items).await };
                let encode = |results| proto::$answer {
                    items: batch::encode(results, $encode, |status, result| proto::$module::Item {
                        status,
                        result,
                    }),
                };
                Ok(call.run(request, decode, work, encode).await)
            })
        }
    };
}

single!(wrap, decode::wrap, encode::wrapped);
single!(unwrap, decode::unwrap, encode::unwrapped);
single!(rewrap, decode::rewrap, encode::rewrapped);
single!(generate_data_key, decode::generate_data_key, encode::data_key);
batched!(batch_wrap, decode::wrap, encode::wrapped, batch_wrap_response, BatchWrapResponse);
batched!(
    batch_unwrap,
    decode::unwrap,
    encode::unwrapped,
    batch_unwrap_response,
    BatchUnwrapResponse
);
batched!(
    batch_rewrap,
    decode::rewrap,
    encode::rewrapped,
    batch_rewrap_response,
    BatchRewrapResponse
);
batched!(
    batch_generate_data_key,
    decode::generate_data_key,
    encode::data_key,
    batch_generate_data_key_response,
    BatchGenerateDataKeyResponse
);

pub(super) fn describe_ciphertext(call: Call, request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let decode = one(NONE, decode::describe_ciphertext);
        let work = |kms: Kms, context, ciphertext: Vec<u8>| async move {
            kms.describe_ciphertext(&context, &ciphertext).await
        };
        Ok(call.run(request, decode, work, encode::ciphertext_description).await)
    })
}

pub(super) fn generate_random(call: Call, request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let decode = one(NONE, decode::generate_random);
        let work = |kms: Kms, context, (tenant, length)| async move {
            kms.generate_random(&context, &tenant, length).await
        };
        Ok(call.run(request, decode, work, encode::random).await)
    })
}

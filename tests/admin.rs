//! The admin listener, health, and certificates that are read again while the server runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::collections::BTreeSet;

use common::{LIMIT, Rig, STRANGER, Server, TENANT, refusal};
use kms_testkit::deadline::eventually;
use kms_testkit::pki::Kind;
use rustix::process::Signal;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

const WRAP: &str = "kms.v1.CryptoService/Wrap";

async fn admin_channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.admin)).unwrap();
    endpoint.connect().await.unwrap()
}

async fn health(channel: Channel) -> ServingStatus {
    let mut client = HealthClient::new(channel);
    client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

async fn services(channel: Channel) -> Result<BTreeSet<String>, Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asking = tokio_stream::once(request);
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(asking).await?.into_inner();
    let answer = answers.message().await?.unwrap();
    let Some(MessageResponse::ListServicesResponse(ListServiceResponse { service })) =
        answer.message_response
    else {
        panic!("not a list of services");
    };
    Ok(service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn health_is_on_both_listeners_and_reflection_on_the_admin_one_only() {
    let server = Server::fresh();
    let operator = server.operator().await;
    assert_eq!(health(admin_channel(&server).await).await, ServingStatus::Serving);
    assert_eq!(health(operator.channel.clone()).await, ServingStatus::Serving);
    let known = services(admin_channel(&server).await).await.unwrap();
    for service in ["kms.v1.CryptoService", "kms.v1.KeyService", "grpc.health.v1.Health"] {
        assert!(known.contains(service), "{known:?}");
    }
    let refused = services(operator.channel.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn health_of_an_unknown_service_is_not_found_on_both_listeners() {
    let server = Server::fresh();
    for channel in [server.operator().await.channel, admin_channel(&server).await] {
        let asked = || HealthCheckRequest { service: "kms.v1.Nothing".to_owned() };
        let mut client = HealthClient::new(channel);
        refusal(client.check(asked()).await).is(Code::NotFound, "SERVICE_UNKNOWN");
        refusal(client.watch(asked()).await.map(drop)).is(Code::NotFound, "SERVICE_UNKNOWN");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_of_health_is_refused_alike_on_both_listeners() {
    let server = Server::fresh();
    let admin = admin_channel(&server).await;
    let public = server.operator().await.channel;
    for method in ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"] {
        for (message, reason) in [
            (vec![0xff], "MALFORMED_REQUEST"),
            (b"\x0a\x01\xff".to_vec(), "MALFORMED_REQUEST"),
            (vec![0; (4 << 20) + 1], "MESSAGE_TOO_LARGE"),
        ] {
            let ask = |channel| common::raw_call(channel, method, message.clone());
            let refused = refusal(ask(&admin).await);
            refused.is(Code::InvalidArgument, reason);
            assert_eq!(refused, refusal(ask(&public).await), "{method}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn what_reflection_does_not_know_is_refused_with_a_reason_behind_what_it_knows() {
    let server = Server::fresh();
    let asked = |wanted| ServerReflectionRequest { host: String::new(), message_request: wanted };
    let known = Some(MessageRequest::FileContainingSymbol("kms.v1.KeyService".to_owned()));
    for (wanted, code, reason) in [
        (
            Some(MessageRequest::FileContainingSymbol("kms.v1.Nothing".to_owned())),
            Code::NotFound,
            "SYMBOL_UNKNOWN",
        ),
        (
            Some(MessageRequest::FileByFilename("nothing.proto".to_owned())),
            Code::NotFound,
            "SYMBOL_UNKNOWN",
        ),
        (None, Code::InvalidArgument, "MALFORMED_REQUEST"),
    ] {
        let asking = tokio_stream::iter([asked(known.clone()), asked(wanted)]);
        let mut client = ServerReflectionClient::new(admin_channel(&server).await);
        let mut answers = client.server_reflection_info(asking).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().is_some());
        refusal(answers.message().await).is(code, reason);
    }
    server.stop().await;
}

#[tokio::test]
async fn no_use_of_keys_is_on_the_admin_listener() {
    let server = Server::fresh();
    let refused = common::raw_call(&admin_channel(&server).await, WRAP, vec![]).await;
    refusal(refused).is(Code::Unimplemented, "METHOD_UNKNOWN");
    server.stop().await;
}

#[tokio::test]
async fn what_there_is_not_is_refused_alike_on_both_listeners() {
    let server = Server::fresh();
    let admin = admin_channel(&server).await;
    let public = server.operator().await.channel;
    let unknown = [
        "kms.v1.CryptoService/Sign",
        "kms.v2.CryptoService/Wrap",
        "grpc.health.v1.Health/Nothing",
        "grpc.reflection.v1.ServerReflection/Nothing",
        "nothing",
        "",
    ];
    for method in unknown {
        let refused = refusal(common::raw_call(&admin, method, vec![]).await);
        refused.is(Code::Unimplemented, "METHOD_UNKNOWN");
        assert_eq!(refused, refusal(common::raw_call(&public, method, vec![]).await), "{method}");
    }
    // Who does not speak gRPC reads the status of HTTP.
    assert_eq!(server.get("/nothing"), (404, "no such path\n".to_owned()));
    assert_eq!(server.get("/livez").0, 200);
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_what_was_asked_and_refused() {
    let server = Server::fresh();
    let client = server.operator().await;
    let key = client.create("counted").await.name;
    client.wrap(&key, b"x", &[]).await.unwrap();
    let stranger = server.client(&server.rig.stranger).await;
    refusal(stranger.wrap(&key, b"x", &[]).await).is(Code::PermissionDenied, "ACCESS_DENIED");
    let (code, text) = server.get("/metrics");
    assert_eq!(code, 200);
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends so: {text}");
    let counted = |needles: &[&str]| {
        text.lines().any(|line| {
            !line.starts_with('#')
                && needles.iter().all(|needle| line.contains(needle))
                && line.ends_with(" 1")
        })
    };
    assert!(counted(&["holdfast_requests_ok_total{", "CryptoService/Wrap"]), "{text}");
    assert!(counted(&["CryptoService/Wrap", "ACCESS_DENIED"]), "{text}");
    assert!(!text.contains(&key) && !text.contains(STRANGER), "no names in metrics: {text}");
    server.stop().await;
}

#[tokio::test]
async fn after_sighup_another_authority_is_trusted_and_the_old_one_is_not() {
    let mut server = Server::fresh();
    let client = server.operator().await;
    let key = client.create("reloaded").await.name;
    let other = kms_testkit::Pki::create(&server.rig.path("other-pki"));
    let operator = other.issue_serial("operator", &Kind::Spiffe(common::OPERATOR), 300);
    let ours = server.rig.pki.ca();
    let old = std::fs::read(&ours).unwrap();
    // The file of trusted authorities is replaced whole, as an operator would.
    let fresh = server.rig.path("ca.new");
    std::fs::copy(other.ca(), &fresh).unwrap();
    std::fs::rename(&fresh, &ours).unwrap();
    server.process.signal(Signal::HUP);
    server.process.await_line("certificates reloaded", LIMIT);
    let status = client.wrap(&key, b"x", &[]).await.unwrap_err();
    let refused = common::Refusal::of(&status);
    refused.is(Code::Unauthenticated, "CERT_UNTRUSTED");
    // The server's own certificate is still of the old authority: the new client trusts that one.
    let trusted = server.rig.path("old-ca.pem");
    std::fs::write(&trusted, old).unwrap();
    let connecting = kms_testkit::client::connect(server.listen, &trusted, Some(&operator));
    let channel = kms_testkit::deadline::within(LIMIT, "a connection", connecting).await.unwrap();
    let renewed = common::Client { channel };
    assert!(renewed.wrap(&key, b"x", &[]).await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn the_end_of_the_certificate_in_force_is_in_the_metrics() {
    let mut server = Server::fresh();
    let line = |end: &str| {
        format!(
            "holdfast_tls_certificate_not_after_seconds{{listener=\"public\",certificate=\"server\"}} {end}\n"
        )
    };
    let before = server.get("/metrics").1;
    assert!(before.contains(&line("3786912000")), "2090: {before}");
    assert!(!before.contains("listener=\"admin\""), "it has no TLS: {before}");
    assert!(!before.contains("crl_next_update_seconds{"), "there are no lists: {before}");
    server.rig.pki.issue("server", &Kind::Expired);
    server.process.signal(Signal::HUP);
    server.process.await_line("certificates reloaded", LIMIT);
    let after = server.get("/metrics").1;
    assert!(after.contains(&line("1609459200")), "2021: {after}");
    server.stop().await;
}

#[tokio::test]
async fn a_broken_certificate_file_keeps_the_old_ones() {
    let mut server = Server::fresh();
    let client = server.operator().await;
    let key = client.create("kept").await.name;
    std::fs::write(server.rig.pki.ca().with_file_name("server.pem"), "rubbish").unwrap();
    server.process.signal(Signal::HUP);
    server.process.await_line("certificates not reloaded", LIMIT);
    assert!(client.wrap(&key, b"x", &[]).await.is_ok());
    assert!(server.operator().await.wrap(&key, b"x", &[]).await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_success_and_all_is_there_afterwards() {
    let server = Rig::new().start();
    let client = server.operator().await;
    let key = client.create("drained").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let rig = server.stop().await;
    let server = rig.start();
    let client = server.operator().await;
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    let parent = format!("tenants/{TENANT}");
    let list = kms_proto::v1::ListKeysRequest { parent, ..Default::default() };
    let listed = client.keys().list_keys(list).await.unwrap().into_inner().keys;
    assert_eq!(listed.into_iter().map(|key| key.name).collect::<Vec<_>>(), [key]);
    eventually(LIMIT, "readiness", || server.get("/readyz").0 == 200);
    server.stop().await;
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut server = Server::fresh();
    let client = server.operator().await;
    // In flight until its deadline, which is beyond this test's patience.
    let calling = tokio::spawn(async move {
        common::unfinished_call(&client.channel, WRAP, Some(vec![])).await.map(drop)
    });
    // A whole request on another connection takes longer than the first one needs to be on its way.
    server.operator().await.create("beside").await;
    server.process.signal(Signal::TERM);
    server.process.await_line("stopping: draining", LIMIT);
    // Another one, as the same is taken for an echo so soon.
    server.process.signal(Signal::INT);
    server.process.await_line("told to stop again", LIMIT);
    assert_eq!(server.process.await_end(LIMIT).code(), Some(143));
    assert!(calling.await.unwrap().is_err());
}

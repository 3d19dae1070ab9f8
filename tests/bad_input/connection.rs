//! Who does not get in: certificates that are not good, and peers that do not speak TLS.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use kms_testkit::Pki;
use kms_testkit::pki::{Identity, Kind};

use tonic::Code;

use crate::common::{LIMIT, OPERATOR, Rig, Server, TENANT, raw_call, refusal, unfinished_call};

/// A method of each kind: of the contract, of health, and one that there is not.
const METHODS: [&str; 5] = [
    "kms.v1.CryptoService/Wrap",
    "kms.v1.CryptoService/BatchWrap",
    "kms.v1.KeyService/CreateKey",
    "grpc.health.v1.Health/Check",
    "kms.v1.CryptoService/Sign",
];

/// Whether a call with this certificate gets any answer from a method.
async fn gets_in(server: &Server, identity: &Identity) -> bool {
    let Ok(client) = server.try_client(Some(identity)).await else { return false };
    let answer = client.wrap(&format!("tenants/{TENANT}/keys/x"), b"x", &[]).await;
    // An answer of ours carries an ErrorInfo; a broken connection does not.
    answer.is_ok() || !answer.unwrap_err().details().is_empty()
}

#[tokio::test]
async fn certificates_that_are_not_good_do_not_get_in() {
    let server = Server::fresh();
    let pki = &server.rig.pki;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Pki::create(elsewhere.path());
    let before = server.records().len();
    let bad = [
        ("expired", pki.issue_serial("expired", &Kind::Expired, 200)),
        ("not yet valid", pki.issue_serial("early", &Kind::NotYetValid, 201)),
        ("without client usage", pki.issue_serial("usage", &Kind::WithoutClientUsage, 202)),
        ("a server's", pki.issue_serial("another-server", &Kind::Server, 203)),
        ("of another CA", other.issue("operator", &Kind::Spiffe(OPERATOR))),
    ];
    for (what, identity) in &bad {
        assert!(!gets_in(&server, identity).await, "{what}");
    }
    assert_eq!(server.records().len(), before);
    assert!(gets_in(&server, &server.rig.operator).await);
    server.stop().await;
}

#[tokio::test]
async fn plain_text_on_the_tls_port_is_cut_off_and_the_server_goes_on() {
    let server = Server::fresh();
    let open = server.operator().await;
    let key = open.create("plain-text").await.name;
    let texts: [&[u8]; 3] = [
        b"GET / HTTP/1.1\r\nHost: kms\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"\x16\x03\x01\xff\xff\x01",
    ];
    for text in texts {
        let mut stream = TcpStream::connect(server.listen).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = vec![];
        // A reset is an end too. What comes before it is at most a TLS alert, never HTTP.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    }
    assert!(open.wrap(&key, b"x", &[]).await.is_ok(), "an open connection is not disturbed");
    assert!(server.operator().await.wrap(&key, b"x", &[]).await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn a_caller_without_a_principal_is_answered_before_its_message_is_read() {
    let server = Server::fresh();
    let nameless = server.rig.pki.issue_serial("nameless", &Kind::WithoutSan, 204);
    let client = server.client(&nameless).await;
    for method in METHODS {
        let answers = [
            raw_call(&client.channel, method, b"\x0f rubbish".to_vec()).await,
            unfinished_call(&client.channel, method, Some(b"\x0f rubbish".to_vec())).await,
            unfinished_call(&client.channel, method, None).await,
        ];
        for answer in answers {
            refusal(answer).is(Code::Unauthenticated, "CERT_NAMES_NOBODY");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_does_not_arrive_is_given_up_at_the_deadline() {
    let mut rig = Rig::new();
    rig.max_request_ms = 200;
    let server = rig.start();
    let client = server.operator().await;
    for method in METHODS.into_iter().take(4) {
        for message in [None, Some(vec![])] {
            let answer = unfinished_call(&client.channel, method, message).await;
            refusal(answer).is(Code::DeadlineExceeded, "REQUEST_DEADLINE");
        }
    }
    let parent = format!("tenants/{TENANT}");
    let list = kms_proto::v1::ListKeysRequest { parent, ..Default::default() };
    assert!(client.keys().list_keys(list).await.is_ok(), "the connection goes on");
    server.stop().await;
}

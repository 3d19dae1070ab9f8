//! Canaries: what is secret is nowhere but where it belongs. Not in logs at the most talkative level, not in the audit
//! log, the database, the metrics, error texts, the command line or the environment.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::path::Path;

use common::calls::{new_key, pairs};
use common::{Client, Rig, Server, TENANT};
use kms_proto::v1 as proto;
use tonic::Status;

/// Plain text that no file may hold.
const CANARY: &[u8] = b"CANARY-plaintext-5f1d0c";
/// Plain text of a request that is refused.
const REFUSED_CANARY: &[u8] = b"CANARY-refused-a77e03";
/// The plaintext of batches.
const BATCH_CANARY: &[u8] = b"canary-plaintext-that-only-batches-carry";

/// Something secret, and what to call it when it was found.
struct Secret {
    name: &'static str,
    bytes: Vec<u8>,
}

/// Returns the forms in which bytes leak: as they are, hex in both cases, base64 in its alphabets, and as the list of
/// numbers that `Debug` makes of a slice.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex = |upper: bool| -> String {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        let text: Vec<_> = digits.collect();
        if upper { text.concat().to_uppercase() } else { text.concat() }
    };
    let list = format!("{bytes:?}");
    let list = list.trim_start_matches('[').trim_end_matches(']').to_owned();
    let ascii: Vec<u8> = bytes.iter().flat_map(|byte| std::ascii::escape_default(*byte)).collect();
    let mut forms = vec![bytes.to_vec(), hex(false).into(), hex(true).into(), list.into(), ascii];
    for url in [false, true] {
        // The last group depends on what follows: whole groups of three bytes do not.
        forms.push(base64(&bytes[..bytes.len() / 3 * 3], url).into());
    }
    forms
}

fn base64(bytes: &[u8], url: bool) -> String {
    let alphabet = |value: u8| -> char {
        match (value, url) {
            (0..=25, _) => char::from(b'A' + value),
            (26..=51, _) => char::from(b'a' + value - 26),
            (52..=61, _) => char::from(b'0' + value - 52),
            (62, false) => '+',
            (62, true) => '-',
            (_, false) => '/',
            (_, true) => '_',
        }
    };
    let mut text = String::new();
    for group in bytes.chunks_exact(3) {
        let [a, b, c] = [group[0], group[1], group[2]];
        let values = [a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63];
        text.extend(values.map(alphabet));
    }
    text
}

/// Asserts that no form of any secret is in `hay`.
fn is_clean(place: &str, hay: &[u8], secrets: &[Secret]) {
    for secret in secrets {
        for form in forms(&secret.bytes) {
            let found = hay.windows(form.len()).any(|window| window == form);
            assert!(!found, "{} is in {place}", secret.name);
        }
    }
}

/// Returns all files below `directory`.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Wraps, unwraps and rewraps in batches, each with an item that is refused; and rewraps `wrapped` under the next version.
async fn batches(client: &Client, key: &str, wrapped: &[u8]) {
    let (name, context) = (key.to_owned(), pairs(&[("row", "1")]));
    let wrap = |plaintext: &[u8], context| proto::WrapRequest {
        key: name.clone(),
        plaintext: plaintext.to_vec().into(),
        context,
    };
    let refused = wrap(REFUSED_CANARY, pairs(&[("kms:reserved", "x")]));
    let items = vec![wrap(BATCH_CANARY, context.clone()), refused];
    let answer = client.crypto().batch_wrap(proto::BatchWrapRequest { items }).await.unwrap();
    let items = answer.into_inner().items;
    assert!(items[0].result.is_some() && items[1].result.is_none(), "{items:?}");
    let of_batch = items[0].result.clone().unwrap().ciphertext;
    let others = [wrapped.to_vec(), of_batch.to_vec(), REFUSED_CANARY.to_vec()];

    let unwrap = |ciphertext: &Vec<u8>| proto::UnwrapRequest {
        key: name.clone(),
        ciphertext: ciphertext.clone().into(),
        context: context.clone(),
    };
    let items = others.iter().map(unwrap).collect();
    let answer = client.crypto().batch_unwrap(proto::BatchUnwrapRequest { items }).await.unwrap();
    let opened = answer.into_inner().items.into_iter().map(|item| item.result);
    let opened: Vec<_> = opened.map(|result| result.map(|it| it.plaintext.to_vec())).collect();
    assert_eq!(opened, [Some(CANARY.to_vec()), Some(BATCH_CANARY.to_vec()), None]);

    client.rotate(key).await;
    let rewrap = |ciphertext: &Vec<u8>| proto::RewrapRequest {
        key: name.clone(),
        ciphertext: ciphertext.clone().into(),
        context: context.clone(),
    };
    let rewrapped = client.crypto().rewrap(rewrap(&others[0])).await.unwrap().into_inner();
    assert!(rewrapped.changed, "{rewrapped:?}");
    let items = others.iter().map(rewrap).collect();
    let answer = client.crypto().batch_rewrap(proto::BatchRewrapRequest { items }).await.unwrap();
    let changed = answer.into_inner().items.into_iter().map(|item| item.result);
    let changed: Vec<_> = changed.map(|result| result.is_some_and(|it| it.changed)).collect();
    assert_eq!(changed, [true, true, false]);
}

/// Makes requests of all kinds; returns the secrets that came of them, and the errors that callers saw.
async fn make_secrets(client: &Client, key: &str) -> (Vec<Secret>, Vec<Status>) {
    let mut secrets = vec![
        Secret { name: "a plaintext", bytes: CANARY.to_vec() },
        Secret { name: "a refused plaintext", bytes: REFUSED_CANARY.to_vec() },
    ];
    let wrapped = client.wrap(key, CANARY, &[("row", "1")]).await.unwrap().ciphertext;
    assert_eq!(client.unwrap(key, &wrapped, &[("row", "1")]).await.unwrap(), CANARY);
    let data_key = proto::GenerateDataKeyRequest { key: key.to_owned(), ..Default::default() };
    let batch = proto::BatchGenerateDataKeyRequest { items: vec![data_key.clone(); 2] };
    let single = client.crypto().generate_data_key(data_key).await.unwrap().into_inner();
    secrets.push(Secret { name: "a data key", bytes: single.plaintext.to_vec() });
    for item in client.crypto().batch_generate_data_key(batch).await.unwrap().into_inner().items {
        let bytes = item.result.unwrap().plaintext.to_vec();
        secrets.push(Secret { name: "a data key of a batch", bytes });
    }
    batches(client, key, &wrapped).await;
    secrets.push(Secret { name: "a plaintext of a batch", bytes: BATCH_CANARY.to_vec() });
    let parent = format!("tenants/{TENANT}");
    let random = proto::GenerateRandomRequest { length_bytes: 32, tenant: parent };
    let random = client.crypto().generate_random(random).await.unwrap().into_inner().random;
    secrets.push(Secret { name: "random bytes", bytes: random.to_vec() });

    let mut errors = vec![];
    for name in ["no name", "tenants/acme/keys/nowhere", "tenants/initech/keys/x"] {
        errors.push(client.wrap(name, REFUSED_CANARY, &[]).await.unwrap_err());
    }
    let long: Vec<u8> = REFUSED_CANARY.iter().copied().cycle().take(64 * 1024 + 1).collect();
    errors.push(client.wrap(key, &long, &[]).await.unwrap_err());
    let reserved = [("kms:reserved", "x")];
    errors.push(client.wrap(key, REFUSED_CANARY, &reserved).await.unwrap_err());
    errors.push(client.unwrap(key, &wrapped, &[("row", "2")]).await.unwrap_err());
    errors.push(client.unwrap(key, REFUSED_CANARY, &[]).await.unwrap_err());
    // A whole message that cannot be decoded: the plaintext is in it, and then a length beyond the end.
    let request = proto::WrapRequest {
        key: key.to_owned(),
        plaintext: REFUSED_CANARY.to_vec().into(),
        context: pairs(&[]),
    };
    let broken = [prost::Message::encode_to_vec(&request), vec![0x1a, 0x7f]].concat();
    let method = "kms.v1.CryptoService/Wrap";
    errors.push(common::raw_call(&client.channel, method, broken).await.map(drop).unwrap_err());
    (secrets, errors)
}

#[tokio::test]
async fn secrets_are_nowhere_but_with_the_caller() {
    secrets_are_nowhere_with(Rig::new()).await;
}

#[tokio::test]
async fn secrets_are_nowhere_in_json_logs_either() {
    let output = secrets_are_nowhere_with(Rig::production()).await;
    for line in output.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["fields"].is_object(), "{line}");
    }
}

/// Makes secrets, looks for them everywhere, and returns the log.
async fn secrets_are_nowhere_with(mut rig: Rig) -> String {
    rig.log_level = "trace";
    let pin = rig.pin();
    let server = rig.start();
    let client = server.operator().await;
    let mut resident = new_key("resident");
    resident.protection = proto::Protection::HsmResident.into();
    let resident = client.keys().create_key(resident).await.unwrap().into_inner().name;
    let mut secrets = vec![Secret { name: "the user PIN", bytes: pin.trim().into() }];
    let so_pin = std::fs::read_to_string(server.rig.path("so-pin")).unwrap();
    secrets.push(Secret { name: "the SO PIN", bytes: so_pin.trim().into() });
    let mut errors = vec![];
    for key in [client.create("secrets").await.name, resident] {
        let (more, seen) = make_secrets(&client, &key).await;
        secrets.extend(more);
        errors.extend(seen);
        client.rotate(&key).await;
    }
    let metrics = if server.rig.admin_tls {
        server.get_over_tls("/metrics").await.1
    } else {
        server.get("/metrics").1
    };
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    is_clean("the metrics", metrics.as_bytes(), &secrets);
    for error in &errors {
        is_clean("an error text", error.message().as_bytes(), &secrets);
        is_clean("the details of an error", error.details(), &secrets);
    }
    let proc = std::path::PathBuf::from(format!("/proc/{}", server.process.id()));
    for name in ["cmdline", "environ"] {
        match std::fs::read(proc.join(name)) {
            Ok(shown) => is_clean(name, &shown, &secrets),
            // The process hides its memory, of which the environment is a part, from all but root.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{name}"),
        }
    }
    let (rig, output) = stop_and_read(server).await;
    assert!(output.contains("TRACE"), "the log is at its most talkative: {output}");
    is_clean("the log", output.as_bytes(), &secrets);
    // Everything that the server wrote; the token's own files are the token's affair, and the PIN's file is its place.
    let mut searched = vec![];
    for file in files(&rig.path("")) {
        let name = file.strip_prefix(rig.path("")).unwrap().to_str().unwrap().to_owned();
        let places = ["user-pin", "so-pin"];
        if !name.starts_with("tokens/") && !places.contains(&name.as_str()) {
            is_clean(&name, &std::fs::read(&file).unwrap(), &secrets);
            searched.push(name);
        }
    }
    for needed in ["store.db", "audit/audit-00000001.jsonl"] {
        assert!(searched.iter().any(|name| name == needed), "{searched:?}");
    }
    output
}

/// Stops a server and returns all that it wrote to standard output and error.
async fn stop_and_read(server: Server) -> (Rig, String) {
    // Whatever comes at the end is in the files, which the process object still knows.
    let Server { process, rig, .. } = server;
    let (told, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut process = process;
        let code = process.terminate(common::LIMIT).code();
        told.send((code, process.stdout() + &process.stderr())).unwrap();
    });
    let (code, output) = ended.await.unwrap();
    assert_eq!(code, Some(0), "{output}");
    (rig, output)
}

#[test]
fn the_search_finds_what_it_must() {
    let secret = || vec![Secret { name: "it", bytes: b"CANARY?>".to_vec() }];
    let leaks: [&[u8]; 7] = [
        b"a CANARY?> b",
        b"x43414e4152593f3e",
        b"43414E4152593F3E",
        b"[67, 65, 78, 65, 82, 89, 63, 62]",
        b"plaintext: b\"CANARY?>\"",
        b"Q0FOQVJZPz4=",
        b"Q0FOQVJZ",
    ];
    for leak in leaks {
        let searched = std::panic::catch_unwind(|| is_clean("a leak", leak, &secret()));
        assert!(searched.is_err(), "{}", String::from_utf8_lossy(leak));
    }
    is_clean("nothing", b"CANARY", &secret());
}

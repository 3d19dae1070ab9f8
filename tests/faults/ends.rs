//! An HSM module that takes the server's process with it, by a crash or by hanging past its budget: what was acknowledged
//! is served by the next process on the same directory.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use kms_proto::v1 as proto;
use kms_testkit::deadline::{eventually, within};
use rustix::process::Signal;

use crate::common::calls::new_key;
use crate::common::{Client, LIMIT, Rig, Server};

/// Exit status of a server whose HSM module hangs: start it again.
const EXIT_HSM_HUNG: i32 = 75;
/// So many workers may hang and be replaced, and one more.
const WORKERS_TOO_MANY_TO_HANG: usize = 5;
/// Calls in flight when every call of the module hangs: many more than there are workers.
const CALLS_THAT_HANG: usize = 40;
/// Clients at work while the module crashes.
const CLIENTS: usize = 4;

/// What the server has acknowledged.
#[derive(Debug, Default)]
struct Told {
    /// Each key with its primary version; a later entry stands for an earlier one.
    primaries: Vec<(String, u32)>,
    /// Each ciphertext with its key.
    ciphertexts: Vec<(String, Vec<u8>)>,
}

impl Told {
    /// Wraps, and notes what is acknowledged.
    async fn wrap(&mut self, client: &Client, key: &str) -> Option<()> {
        let wrapped = client.wrap(key, key.as_bytes(), &[]).await.ok()?;
        self.ciphertexts.push((key.to_owned(), wrapped.ciphertext.to_vec()));
        Some(())
    }

    /// Creates a key, uses it, rotates it and uses it again; `None` when the server is gone.
    async fn life_of_a_key(&mut self, client: &Client, key_id: &str) -> Option<()> {
        let key = client.keys().create_key(new_key(key_id)).await.ok()?.into_inner().name;
        self.primaries.push((key.clone(), 1));
        self.wrap(client, &key).await?;
        let rotate = proto::RotateKeyRequest {
            name: key.clone(),
            reason: String::new(),
            request_id: crate::common::request_id(),
        };
        let rotated = client.keys().rotate_key(rotate).await.ok()?.into_inner();
        self.primaries.push((key.clone(), rotated.key?.primary_version));
        self.wrap(client, &key).await
    }

    /// Asserts that all of it is there.
    async fn is_served(&self, client: &Client) {
        for (key, version) in &self.primaries {
            let describe = proto::DescribeKeyRequest { name: key.clone() };
            let found = client.keys().describe_key(describe).await.unwrap().into_inner();
            assert!(found.primary_version >= *version, "{key}: {version} was acknowledged");
        }
        for (key, ciphertext) in &self.ciphertexts {
            assert_eq!(client.unwrap(key, ciphertext, &[]).await.unwrap(), key.as_bytes());
        }
    }
}

/// Makes and uses keys until the server is gone.
async fn work(client: Client, prefix: String) -> Told {
    let mut told = Told::default();
    for number in 0_u32.. {
        let key_id = format!("{prefix}-{number}");
        if told.life_of_a_key(&client, &key_id).await.is_none() {
            break;
        }
    }
    told
}

/// Waits for the server's end. Its directory, to start another on it, comes with the status.
fn ended(server: Server) -> (ExitStatus, String, Rig) {
    let Server { mut process, rig, .. } = server;
    let status = process.await_end(LIMIT);
    (status, process.stderr(), rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_crashes_costs_nothing_that_was_acknowledged() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let mut server = rig.start();
    let mut everything = vec![];
    // Under use, while a key is made, and while it is opened and tried; each in the midst of others' work.
    let crashes = ["C_Encrypt 60 crash", "C_WrapKey 40 crash", "C_UnwrapKey 30 crash"];
    for (round, crash) in crashes.iter().enumerate() {
        let mut working = tokio::task::JoinSet::new();
        faulty.script(&[crash]);
        for number in 0..CLIENTS {
            let client = server.operator().await;
            working.spawn(work(client, format!("crash-{round}-{number}")));
        }
        let told = within(LIMIT, "the clients' end", working.join_all()).await;
        assert!(told.iter().any(|told| !told.ciphertexts.is_empty()), "{crash}: too early");
        everything.extend(told);
        let (status, stderr, rig) = ended(server);
        assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()), "{crash}: {stderr}");

        faulty.heal();
        server = rig.start();
        let client = server.operator().await;
        for told in &everything {
            told.is_served(&client).await;
        }
    }
    server.stop().await;
}

/// Returns how many threads the server has; 0 when it is gone.
fn threads(server: &Server) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process.id()));
    tasks.map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_hangs_past_its_budget_ends_the_process_with_75_and_the_next_serves() {
    let mut rig = Rig::new();
    rig.hsm_workers = WORKERS_TOO_MANY_TO_HANG;
    let faulty = rig.use_faulty_module();
    // Its destructor would wait for the calls that hang.
    rig.environment.push(("HOLDFAST_FAULTY_END".to_owned(), "hang".to_owned()));
    let server = rig.start();
    let client = server.operator().await;
    let mut told = Told::default();
    told.life_of_a_key(&client, "before-the-hang").await.unwrap();
    let mark = faulty.mark();
    let threads_before = threads(&server);
    faulty.script(&["C_Encrypt * hang"]);
    let mut hanging = tokio::task::JoinSet::new();
    for _ in 0..CALLS_THAT_HANG {
        let (client, key) = (client.clone(), told.primaries[0].0.clone());
        hanging.spawn(async move { client.wrap(&key, b"x", &[]).await.is_ok() });
    }
    faulty.await_hangs(mark, ("C_Encrypt", WORKERS_TOO_MANY_TO_HANG), LIMIT);
    // A worker that hangs is replaced within its budget, and no call gets a thread of its own.
    let more = threads(&server).saturating_sub(threads_before);
    assert!(more <= WORKERS_TOO_MANY_TO_HANG, "{more} threads more, with every call hanging");
    let (status, stderr, mut rig) = ended(server);
    assert_eq!(status.code(), Some(EXIT_HSM_HUNG), "{stderr}");
    assert!(stderr.contains("only a new process can use the HSM again"), "{stderr}");
    assert!(!hanging.join_all().await.contains(&true), "nothing was answered");

    rig.environment.retain(|(name, _)| name != "HOLDFAST_FAULTY_END");
    faulty.heal();
    let server = rig.start();
    let client = server.operator().await;
    told.is_served(&client).await;
    told.life_of_a_key(&client, "after-the-hang").await.unwrap();
    eventually(LIMIT, "readiness", || server.get("/readyz").0 == 200);
    let rig = server.stop().await;
    assert!(rig.records().iter().any(|record| record["result"] == "OK"));
}

//! The two ends of a server's life: what its ports answer while it starts, and a stop at every moment.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::calls::new_key;
use common::rig::{admin_address, get, serving};
use common::{LIMIT, Rig, Server};
use kms_core::clock::{Clock as _, SystemClock};
use kms_testkit::Faulty;
use kms_testkit::deadline::eventually;
use rustix::process::Signal;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

/// Exit status of a server that the system refuses a socket.
const EXIT_SOCKET: i32 = 71;
/// Exit status of a server that was told twice to stop.
const EXIT_AT_ONCE: i32 = 143;
/// How long a signal that asked for a stop may come again and mean nothing more.
const ECHO: Duration = Duration::from_secs(1);
/// What is said when a second wish to stop is heeded.
const AGAIN: &str = "told to stop again: ending at once";
/// What an HSM that cannot be reached says.
const AWAY: [&str; 1] = ["C_Initialize * return CKR_DEVICE_ERROR"];

/// Keeps a port from others until it is dropped. A server may bind it, too, because nobody listens on it.
fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn the_public_port_listens_only_when_there_is_somebody_to_answer() {
    let mut rig = Rig::new();
    let (_reserved, listen) = reserve();
    rig.listen = listen;
    let faulty = rig.use_faulty_module();
    faulty.script(&AWAY);
    let mut process = rig.spawn();
    let admin = admin_address(&mut process);
    process.await_line("root sets cannot be opened yet", LIMIT);
    let refused = TcpStream::connect(listen).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "nobody would answer");
    let (code, told) = get(admin, "/readyz");
    assert_eq!(code, 503);
    assert!(told.contains("\"hsm\":false") && told.contains("\"serving\":false"), "{told}");

    faulty.heal();
    let server = serving(process, rig);
    assert_eq!(server.listen, listen);
    server.operator().await.create("late").await;
    server.stop().await;
}

#[test]
fn a_port_that_is_taken_is_told_while_the_hsm_is_away() {
    let mut rig = Rig::new();
    let others = TcpListener::bind("127.0.0.1:0").unwrap();
    rig.listen = others.local_addr().unwrap();
    rig.use_faulty_module().script(&AWAY);
    let mut process = rig.spawn();
    assert_eq!(process.await_end(LIMIT).code(), Some(EXIT_SOCKET));
    let told = process.stderr();
    assert!(told.contains(&format!("cannot listen on {}", rig.listen)), "{told}");
}

#[test]
fn sigterm_at_any_step_of_a_start_ends_it_with_0() {
    let rig = Rig::new();
    for step in ["the admin listener is open", "healthy part=\"store\"", "serving listen="] {
        let mut process = rig.spawn();
        process.await_line(step, LIMIT);
        assert_eq!(process.terminate(LIMIT).code(), Some(0), "{step}: {}", process.stderr());
        let told = process.stderr();
        assert!(!told.contains("panic"), "{step}: {told}");
        assert!(told.lines().last().unwrap().ends_with(" stopped"), "{step}: {told}");
        assert!(!told.contains("recovered"), "{step}: nothing was left to recover: {told}");
    }
}

#[tokio::test]
async fn sigterm_just_after_serving_began_drains_and_the_next_start_serves() {
    let rig = Rig::new().start().stop().await;
    let server = rig.start();
    server.operator().await.create("after").await;
    let rig = server.stop().await;
    assert!(rig.records().iter().any(|record| record["result"] == "OK"));
}

#[tokio::test]
async fn sigterm_while_the_hsm_is_away_ends_it_with_0() {
    let mut rig = Rig::new();
    rig.use_faulty_module().script(&AWAY);
    let mut process = rig.spawn();
    process.await_line("root sets cannot be opened yet", LIMIT);
    assert_eq!(process.terminate(LIMIT).code(), Some(0), "{}", process.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_in_the_hsm_does_not_keep_a_stop() {
    let mut rig = Rig::new();
    rig.drain_ms = 100;
    let faulty = rig.use_faulty_module();
    // Nor does a destructor that waits for that call.
    rig.environment.push(("HOLDFAST_FAULTY_END".to_owned(), "hang".to_owned()));
    let mut server = rig.start();
    let client = server.operator().await;
    let key = client.create("hang").await.name;
    let mark = faulty.mark();
    faulty.script(&["C_Encrypt 1 hang"]);
    let hanging = tokio::spawn(async move { client.wrap(&key, b"x", &[]).await.is_ok() });
    faulty.await_hang(mark, "C_Encrypt", LIMIT);
    let (code, told) = (server.process.terminate(LIMIT).code(), server.process.stderr());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("the drain was cut off at its deadline"), "{told}");
    assert!(!hanging.await.unwrap());
}

/// A server that drains beside a call that hangs, since the first SIGTERM.
struct Draining {
    server: Server,
    faulty: Faulty,
    /// Whether the call was answered well.
    hanging: JoinHandle<bool>,
    /// When it was about to be told.
    since: Instant,
}

async fn draining(mut rig: Rig) -> Draining {
    let faulty = rig.use_faulty_module();
    let mut server = rig.start();
    let client = server.operator().await;
    let mut key = new_key("hang");
    key.key_id = format!("hang-{}", faulty.mark());
    let key = client.keys().create_key(key).await.unwrap().into_inner().name;
    let mark = faulty.mark();
    faulty.script(&["C_Encrypt 1 hang"]);
    let hanging = tokio::spawn(async move { client.wrap(&key, b"x", &[]).await.is_ok() });
    faulty.await_hang(mark, "C_Encrypt", LIMIT);
    let since = SystemClock.monotonic();
    server.process.signal(Signal::TERM);
    server.process.await_line("stopping: draining", LIMIT);
    Draining { server, faulty, hanging, since }
}

/// Asserts that a drain was not finished, and that the status says so.
async fn was_cut_off(Draining { mut server, hanging, .. }: Draining) -> Rig {
    let code = server.process.await_end(LIMIT).code();
    let told = server.process.stderr();
    assert_eq!(code, Some(EXIT_AT_ONCE), "{told}");
    assert!(told.lines().last().unwrap().contains("the drain was not finished"), "{told}");
    assert!(!hanging.await.unwrap());
    server.rig
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_a_drain_at_once_and_the_status_says_so() {
    let mut draining = draining(Rig::new()).await;
    // Sent again and again, it counts when a second is over.
    eventually(LIMIT, "that one counts", || {
        draining.server.process.signal(Signal::TERM);
        draining.server.process.stderr().contains(AGAIN)
    });
    assert!(SystemClock.monotonic() - draining.since >= ECHO);
    was_cut_off(draining).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_signal_ends_a_drain_at_once() {
    let mut draining = draining(Rig::new()).await;
    draining.server.process.signal(Signal::INT);
    was_cut_off(draining).await;
}

/// GNU `timeout` sends its signal to the process and then to its group.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_signal_within_a_second_is_taken_for_one() {
    let mut rig = Rig::new();
    loop {
        let mut draining = draining(rig).await;
        draining.server.process.signal(Signal::TERM);
        let mut ignored = false;
        eventually(LIMIT, "what was made of it", || {
            let told = draining.server.process.stderr();
            ignored = told.contains("taken for one");
            ignored || told.contains(AGAIN)
        });
        if ignored {
            draining.faulty.heal();
            assert!(draining.hanging.await.unwrap(), "the drain went on");
            assert_eq!(draining.server.process.await_end(LIMIT).code(), Some(0));
            return;
        }
        // On a machine that stood still for that long it was no echo any more.
        assert!(SystemClock.monotonic() - draining.since >= ECHO, "it was told to go on");
        let faulty = draining.faulty.clone();
        rig = was_cut_off(draining).await;
        faulty.heal();
    }
}

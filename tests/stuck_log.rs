//! A reader of standard error who stops reading: the server goes on, counts what it drops, and stops when it is told to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Command;

use common::rig::{Server, address};
use common::{LIMIT, Rig};
use kms_testkit::deadline::within;
use serde_json::Value;

/// What standard error says when it is read again.
const SAID: &str = "log lines were dropped: standard error was not read";

/// Starts a server whose standard error is a pipe, and reads it until the server serves, not further.
fn start(mut rig: Rig, format: &'static str) -> (Server, BufReader<File>) {
    (rig.log_level, rig.log_format) = ("trace", format);
    let pipe = rig.path("stderr-pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let script = format!("exec \"$0\" \"$@\" 2>'{}'", pipe.display());
    rig.wrapper = vec!["sh".to_owned(), "-c".to_owned(), script];
    let process = rig.spawn();
    let mut pipe = BufReader::new(File::open(pipe).unwrap());
    let mut line = String::new();
    while !line.contains("serving") || !line.contains("listen") {
        line.clear();
        assert!(pipe.read_line(&mut line).unwrap() > 0, "the server ended");
    }
    let address = |field: &str| match serde_json::from_str::<Value>(&line) {
        Ok(line) => line["fields"][field].as_str().unwrap().parse().unwrap(),
        Err(_) => address(&line, &format!("{field}=")),
    };
    (Server { listen: address("listen"), admin: address("admin"), process, rig }, pipe)
}

fn dropped(server: &Server) -> u64 {
    let (code, metrics) = server.get("/metrics");
    assert_eq!(code, 200);
    let line = metrics.lines().find(|line| line.starts_with("holdfast_log_lines_dropped_total "));
    line.unwrap().split_once(' ').unwrap().1.parse().unwrap()
}

/// Works until lines are dropped: every call is answered.
async fn work_until_lines_are_dropped(server: &Server) {
    let client = server.operator().await;
    let key = within(LIMIT, "a key", client.create("stuck")).await.name;
    let working = async {
        while dropped(server) == 0 {
            client.wrap(&key, b"x", &[]).await.unwrap();
        }
    };
    within(LIMIT, "a dropped line", working).await;
    within(LIMIT, "an answer", client.wrap(&key, b"x", &[])).await.unwrap();
    assert_eq!(server.get("/readyz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_who_stops_reading_keeps_neither_calls_nor_the_end() {
    let (mut server, _unread) = start(Rig::new(), "text");
    work_until_lines_are_dropped(&server).await;
    assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_reads_again_gets_whole_lines_the_number_of_lost_ones_and_the_last_words() {
    for format in ["text", "json"] {
        let (mut server, mut pipe) = start(Rig::new(), format);
        work_until_lines_are_dropped(&server).await;
        let reading = std::thread::spawn(move || {
            let mut rest = String::new();
            pipe.read_to_string(&mut rest).unwrap();
            rest
        });
        // Calls go on, so that lines follow those that were dropped.
        let client = server.operator().await;
        within(LIMIT, "a key", client.create("read-again")).await;
        drop(client);
        assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
        let rest = reading.join().unwrap();
        assert!(rest.contains(SAID), "{format}");
        assert!(rest.lines().rev().take(20).any(|line| line.contains("stopped")), "{format}");
        for line in rest.lines() {
            match format {
                "json" => drop(serde_json::from_str::<Value>(line).unwrap()),
                _ => assert!(line.starts_with("20") && line.contains('Z'), "{line}"),
            }
        }
    }
}

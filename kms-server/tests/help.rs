//! The help texts of the server are pinned: options and exit statuses are what operators write into their units.
#![allow(clippy::unwrap_used, reason = "test program: a failure here is a failed test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use kms_hsm::pkcs11::EXIT_HSM_HUNG;
use kms_server::assembly::{
    EXIT_AT_ONCE, EXIT_CONFIG, EXIT_DIVERGED, EXIT_HELD, EXIT_HSM, EXIT_INTERNAL, EXIT_SOCKET,
    EXIT_STATE,
};

const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// As clap and success have them.
const EXIT_USAGE: u8 = 2;
const EXIT_OK: u8 = 0;

fn help(words: &[String]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kms-server"));
    let output = command.args(words).arg("--help").env("COLUMNS", "100").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the commands that a help text lists.
fn listed(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![] };
    let lines = list.lines().take_while(|line| !line.is_empty());
    // What a command is about may go on in lines that stand further in.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Writes the help of a command and of all below it.
fn walk(words: &[String], all: &mut String) {
    let text = help(words);
    let title = [words, &["--help".to_owned()]].concat().join(" ");
    let _ = write!(all, "===== kms-server {title} =====\n{text}\n");
    for name in listed(&text).into_iter().filter(|name| name != "help") {
        walk(&[words, &[name]].concat(), all);
    }
}

#[test]
fn the_help_of_every_command_is_pinned() {
    let mut all = String::new();
    walk(&[], &mut all);
    assert!(all.matches("=====\n").count() > 1, "no command was found");
    insta::assert_snapshot!(all);
}

/// Returns statuses and their meanings.
fn statuses<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<i32, String> {
    let status = |(number, meaning): (&str, &str)| {
        number.trim().parse().ok().map(|number| (number, meaning.trim().to_owned()))
    };
    lines.filter_map(status).collect()
}

#[test]
fn the_exit_statuses_of_help_documents_and_code_are_the_same() {
    let documented = OPERATIONS.lines().filter_map(|line| {
        let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
        row.split_once(" | ")
    });
    let documented = statuses(documented);
    for words in [&["--help"][..], &["dev", "--help"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kms-server"));
        let output = command.args(words).env("COLUMNS", "100").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let (_, listed) = help.split_once("Exit status:").unwrap();
        let listed = listed.lines().filter_map(|line| line.trim().split_once(' '));
        assert_eq!(statuses(listed), documented, "{words:?}");
    }
    let mut ours = vec![EXIT_HSM_HUNG];
    ours.extend(
        [
            EXIT_OK,
            EXIT_USAGE,
            EXIT_DIVERGED,
            EXIT_HSM,
            EXIT_INTERNAL,
            EXIT_SOCKET,
            EXIT_STATE,
            EXIT_HELD,
            EXIT_CONFIG,
            EXIT_AT_ONCE,
        ]
        .map(i32::from),
    );
    ours.sort_unstable();
    assert_eq!(documented.into_keys().collect::<Vec<_>>(), ours);
}

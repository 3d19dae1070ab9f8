//! The help texts of the server are pinned: options and exit statuses are what operators write into their units.
#![allow(clippy::unwrap_used, reason = "test program: a failure here is a failed test")]

use std::fmt::Write as _;
use std::process::Command;

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

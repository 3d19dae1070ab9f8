//! Help texts are pinned; completions and man pages cover every command.

use std::fmt::Write as _;

use super::common::kms;
use clap::CommandFactory as _;
use kms_cli::args::Cli;

/// Every command, as the words that call it.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
        for sub in command.get_subcommands() {
            let path = [path, &[sub.get_name().to_owned()]].concat();
            walk(sub, &path, all);
            all.push(path);
        }
    }
    let mut all = Vec::new();
    walk(&Cli::command(), &[], &mut all);
    all
}

#[test]
fn the_help_of_every_command_is_pinned() {
    let home = tempfile::tempdir().unwrap();
    let mut all = kms(home.path(), &["--help"]).text().to_owned();
    for path in commands() {
        let words: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let run = kms(home.path(), &words);
        assert_eq!(run.code, 0, "{words:?}: {}", run.stderr);
        // The global options are the same everywhere: once is enough.
        let own = run.text().split("Global options:").next().unwrap();
        let _ = write!(all, "\n===== kms {} =====\n{own}", path.join(" "));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn what_a_person_is_told_who_starts_the_plugin_is_pinned() {
    let run = |argument: &str| {
        let plugin = env!("CARGO_BIN_EXE_age-plugin-kms");
        std::process::Command::new(plugin).arg(argument).output().unwrap()
    };
    let help = run("--help");
    assert_eq!(help.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(help.stderr).unwrap());
    let version = String::from_utf8(run("--version").stdout).unwrap();
    assert_eq!(version, format!("age-plugin-kms {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_shell_completes_every_command() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = kms(home.path(), &["completions", shell]);
        assert_eq!(script.code, 0);
        for word in commands().iter().flatten() {
            assert!(script.text().contains(word.as_str()), "{shell} lacks `{word}`");
        }
    }
}

#[test]
fn every_command_has_a_man_page() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("man");
    assert_eq!(kms(home.path(), &["man", directory.to_str().unwrap()]).code, 0);
    assert!(directory.join("kms.1").is_file());
    for path in commands() {
        let page = directory.join(format!("kms-{}.1", path.join("-")));
        assert!(page.is_file(), "{} is missing", page.display());
    }
}

fn check_texts(command: &clap::Command, texts: &[&str]) {
    for option in command.get_arguments().filter(|option| option.get_long().is_some()) {
        let takes_text = option.get_action().takes_values();
        let known = texts.contains(&option.get_long().unwrap());
        assert!(!takes_text || known, "--{} of {}", option.get_long().unwrap(), command.get_name());
    }
    command.get_subcommands().for_each(|sub| check_texts(sub, texts));
}

#[test]
fn no_secret_can_be_given_in_argv() {
    // Every option that takes text is listed here: a new one must be looked at.
    let texts = [
        "activate-at",
        "batch-size",
        "bind",
        "ca",
        "cert",
        "check",
        "column",
        "concurrency",
        "config",
        "connections",
        "context",
        "cryptoperiod",
        "description",
        "duration",
        "field",
        "filter",
        "form",
        "format",
        "in",
        "key",
        "key-count",
        "key-file",
        "key-prefix",
        "label",
        "length",
        "lifetime",
        "limit",
        "method",
        "module",
        "op",
        "order-by",
        "out",
        "output",
        "owner",
        "page-token",
        "period",
        "pin-file",
        "plaintext-out",
        "protection",
        "public-key-out",
        "public-key-sha256",
        "reason",
        "recipient",
        "recipient-usage-period",
        "request-id",
        "revision",
        "rotation-due-before",
        "rotation-period",
        "rsa-bits",
        "sealed",
        "sensitivity",
        "serial",
        "server",
        "size",
        "state",
        "tenant",
        "timeout",
        "token",
        "unused-since",
        "usage",
        "via",
        "warmup",
        "window",
    ];
    check_texts(&Cli::command(), &texts);
}

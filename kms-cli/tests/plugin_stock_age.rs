//! Stock Debian `age` with our plugin, both ways. This program is the plugin too: `age` starts it by the name
//! `age-plugin-kms`, with a file-key service in memory whose keys are derived from names, so that processes agree. That
//! is why it has no test harness, which would write into the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "test program"
)]

mod backup_support;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use backup_support::{
    KEY, MemoryKms, NATIVE_IDENTITY, OTHER_KEY, key, native_identity, open, plaintext, refusal,
    seal,
};
use kms_cli::backup::plugin::{self, Connect};
use kms_cli::backup::{Address, FileKeyService, Recipients, reseal_file, seal_stream};
use tempfile::TempDir;

/// The primary version that the plugin process sees.
const PRIMARY: u32 = 7;

fn main() {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if let Some(state_machine) = argument.strip_prefix("--age-plugin=") {
        let connect: Box<Connect> = Box::new(|context| match context {
            Some("down") => Err(refusal("TEST_UNAVAILABLE")),
            _ => Ok(Arc::new(MemoryKms::at(PRIMARY)) as Arc<dyn FileKeyService>),
        });
        plugin::run(state_machine, connect).unwrap();
        return;
    }
    let tests: [(&str, fn()); 8] = [
        ("age_encrypts_and_we_open", age_encrypts_and_we_open),
        ("we_seal_and_age_decrypts", we_seal_and_age_decrypts),
        ("age_decrypts_what_was_resealed", age_decrypts_what_was_resealed),
        ("age_takes_several_recipients", age_takes_several_recipients),
        ("age_encrypts_to_an_identity", age_encrypts_to_an_identity),
        ("age_takes_the_longest_address", age_takes_the_longest_address),
        ("an_identity_of_another_key_is_refused", an_identity_of_another_key_is_refused),
        ("a_server_that_is_down_is_reported", a_server_that_is_down_is_reported),
    ];
    let list = std::env::args().any(|argument| argument == "--list");
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        if list {
            println!("{name}: test");
            continue;
        }
        test();
        println!("test {name} ... ok");
    }
}

/// A directory with the plugin on the path, and files for `age`.
struct Age {
    directory: TempDir,
}

impl Age {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("age-plugin-kms");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), plugin).unwrap();
        Self { directory }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        Command::new("age")
            .args(arguments)
            .current_dir(self.directory.path())
            .env("PATH", format!("{}:{path}", self.directory.path().display()))
            .output()
            .expect("`age` is needed: apt-get install age")
    }

    fn succeed(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "age {arguments:?}: {errors}");
        output.stdout
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "age {arguments:?} succeeded");
        assert!(output.stdout.is_empty());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn address(key: &str, context: Option<&str>) -> Address {
    Address::new(key.parse().unwrap(), context.map(Into::into)).unwrap()
}

fn recipient(key: &str) -> String {
    address(key, None).to_recipient().unwrap()
}

fn identity(key: &str) -> String {
    address(key, None).to_identity().unwrap()
}

fn assert_we_open(sealed: &[u8], expected: &[u8]) {
    let (result, opened) = open(&MemoryKms::at(PRIMARY), sealed);
    result.unwrap();
    assert_eq!(opened, expected);
}

fn age_encrypts_and_we_open() {
    let age = Age::new();
    let plaintext = plaintext(200_000);
    age.file("plain", &plaintext);
    assert_we_open(&age.succeed(&["-r", &recipient(KEY), "plain"]), &plaintext);
}

fn we_seal_and_age_decrypts() {
    let age = Age::new();
    let plaintext = plaintext(200_000);
    age.file("identity.txt", identity(KEY));
    // Without a native recipient, so that nothing but the plugin can help.
    let recipients = Recipients::new(key(), Vec::new()).unwrap();
    let mut sealed = Vec::new();
    seal_stream(&MemoryKms::at(3), &recipients, &plaintext[..], &mut sealed).unwrap();
    age.file("sealed.age", &sealed);
    assert_eq!(age.succeed(&["-d", "-i", "identity.txt", "sealed.age"]), plaintext);
}

fn age_decrypts_what_was_resealed() {
    let age = Age::new();
    let sealed = age.file("sealed.age", seal(&MemoryKms::at(3), b"resealed"));
    reseal_file(&MemoryKms::at(PRIMARY), None, &sealed).unwrap();
    for identity in [identity(KEY), NATIVE_IDENTITY.to_owned()] {
        age.file("identity.txt", identity);
        assert_eq!(age.succeed(&["-d", "-i", "identity.txt", "sealed.age"]), b"resealed");
    }
}

fn age_takes_several_recipients() {
    let age = Age::new();
    age.file("plain", "several");
    let native = native_identity().to_public().to_string();
    let arguments =
        ["-r", &recipient(KEY), "-r", &recipient(OTHER_KEY), "-r", &native, "-o", "out", "plain"];
    age.succeed(&arguments);
    for identity in [identity(KEY), identity(OTHER_KEY), NATIVE_IDENTITY.to_owned()] {
        age.file("identity.txt", identity);
        assert_eq!(age.succeed(&["-d", "-i", "identity.txt", "out"]), b"several");
    }
}

fn age_encrypts_to_an_identity() {
    let age = Age::new();
    age.file("plain", "to an identity");
    age.file("identity.txt", identity(KEY));
    assert_we_open(&age.succeed(&["-e", "-i", "identity.txt", "plain"]), b"to an identity");
}

fn age_takes_the_longest_address() {
    let age = Age::new();
    let key = format!("tenants/{}/keys/{}", "t".repeat(63), "k".repeat(63));
    let longest = address(&key, Some(&"c".repeat(63)));
    age.file("plain", "long");
    age.file("identity.txt", longest.to_identity().unwrap());
    age.succeed(&["-r", &longest.to_recipient().unwrap(), "-o", "out", "plain"]);
    assert_eq!(age.succeed(&["-d", "-i", "identity.txt", "out"]), b"long");
}

fn an_identity_of_another_key_is_refused() {
    let age = Age::new();
    age.file("sealed.age", seal(&MemoryKms::at(3), b"x"));
    age.file("identity.txt", identity(OTHER_KEY));
    let errors = age.fail(&["-d", "-i", "identity.txt", "sealed.age"]);
    assert!(errors.contains("no identity matched"), "{errors}");
    // Whoever reads it learns which key to ask for.
    assert!(errors.contains(&format!("sealed with `{KEY}`")), "{errors}");
    // An identity that comes after it is still tried.
    age.file("both.txt", format!("{}\n{NATIVE_IDENTITY}\n", identity(OTHER_KEY)));
    assert_eq!(age.succeed(&["-d", "-i", "both.txt", "sealed.age"]), b"x");
}

fn a_server_that_is_down_is_reported() {
    let age = Age::new();
    let down = address(KEY, Some("down"));
    age.file("plain", "x");
    age.file("sealed.age", seal(&MemoryKms::at(3), b"x"));
    age.file("identity.txt", down.to_identity().unwrap());
    for errors in [
        age.fail(&["-d", "-i", "identity.txt", "sealed.age"]),
        age.fail(&["-r", &down.to_recipient().unwrap(), "plain"]),
    ] {
        assert!(errors.contains("through context down: refused for a test"), "{errors}");
    }
}

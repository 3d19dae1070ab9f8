//! The shell scripts in softhsm/: what they leave alone, what they run, what they refuse.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../softhsm").join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory for PATH that has only what install.sh itself needs, and `fakes` that write down how they are called.
fn restricted_path(fakes: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for tool in ["sh", "id", "env", "touch", "chmod"] {
        let found = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool));
        symlink(found.iter().find(|path| path.exists()).unwrap(), directory.path().join(tool))
            .unwrap();
    }
    for fake in fakes {
        let path = directory.path().join(fake);
        // Installing makes `age` appear, as it should.
        let body = "#!/bin/sh\necho \"called: $0 $*\"\nhere=${0%/*}\n\
                    case \"$*\" in *\" age\"*) touch \"$here/age\"; chmod +x \"$here/age\" ;; esac\n";
        std::fs::write(&path, body).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    directory
}

fn install(path: &Path, wanted: &str) -> Output {
    Command::new("/bin/sh")
        .arg(script("install.sh"))
        .arg(wanted)
        .env("PATH", path)
        // Neither this machine's PostgreSQL nor its configuration.
        .env("HOLDFAST_POSTGRES_BIN", path)
        .env("HOLDFAST_CREATECLUSTER", path.join("createcluster.conf"))
        .output()
        .unwrap()
}

#[test]
fn set_up_twice_keeps_the_token_and_its_pins() {
    let directory = tempfile::tempdir().unwrap();
    let set_up = || {
        let output = Command::new(script("setup.sh")).arg(directory.path()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let tokens = std::fs::read_dir(directory.path().join("tokens")).unwrap();
        let mut names: Vec<_> = tokens.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        (names, std::fs::read(directory.path().join("user.pin")).unwrap())
    };
    let first = set_up();
    assert_eq!(first.0.len(), 1);
    assert_eq!(set_up(), first);
}

#[test]
fn a_token_label_has_at_most_32_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let set_up = |bytes: usize| {
        let mut command = Command::new(script("setup.sh"));
        command.arg(directory.path().join(bytes.to_string())).arg("x".repeat(bytes));
        command.output().unwrap().status.code()
    };
    assert_eq!(set_up(32), Some(0));
    assert_eq!(set_up(33), Some(64));
}

#[test]
fn what_is_missing_is_installed_and_the_command_is_shown() {
    for (manager, arguments) in [
        ("apt-get", "install -y --no-install-recommends age"),
        ("dnf", "install -y age"),
        ("apk", "add age"),
    ] {
        // `sudo` stands for root where the tests do not run as root.
        let path = restricted_path(&[manager]);
        std::fs::write(path.path().join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path.path().join("sudo"), executable).unwrap();
        let output = install(path.path(), "age");
        assert_eq!(output.status.code(), Some(0), "{manager}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains(arguments), "{manager}: {}", text(&output.stdout));
        assert!(text(&output.stderr).contains(arguments), "{manager}: {}", text(&output.stderr));
    }
}

/// The fakes bring nothing of this, so each ends with a complaint, after the call.
#[test]
fn packages_are_asked_for_by_the_names_that_each_manager_gives_them() {
    for (manager, wanted, arguments) in [
        ("apt-get", "softhsm", "install -y --no-install-recommends softhsm2"),
        ("dnf", "softhsm", "install -y softhsm"),
        ("apk", "softhsm", "add softhsm"),
        ("brew", "softhsm", "install softhsm"),
        ("apt-get", "cc", "install -y --no-install-recommends gcc libc6-dev"),
        ("dnf", "cc", "install -y gcc glibc-devel"),
        ("apk", "cc", "add gcc musl-dev"),
        ("apt-get", "postgresql", "install -y --no-install-recommends postgresql"),
        ("dnf", "postgresql", "install -y postgresql-server postgresql"),
        ("apk", "postgresql", "add postgresql postgresql-client"),
        ("brew", "postgresql", "install postgresql@17"),
        ("brew", "python3", "install python3"),
    ] {
        let path = restricted_path(&[manager]);
        std::fs::write(path.path().join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path.path().join("sudo"), executable).unwrap();
        let output = install(path.path(), wanted);
        assert_eq!(output.status.code(), Some(70), "{manager}: {}", text(&output.stderr));
        let called = format!("/{manager} {arguments}");
        let stdout = text(&output.stdout);
        let found =
            stdout.lines().any(|line| line.starts_with("called:") && line.ends_with(&called));
        assert!(found, "{manager} {wanted}: {stdout}");
    }
}

/// Debian's package would start a cluster; while it is installed it is told not to, and only then.
#[test]
fn the_system_gets_no_cluster_with_postgresql_and_its_configuration_stays_as_it_was() {
    for (before, told) in [
        ("ssl = on\n#create_main_cluster = true\n", "create_main_cluster = false"),
        ("create_main_cluster = true\n", "create_main_cluster = true"),
    ] {
        let path = restricted_path(&[]);
        for tool in ["grep", "sed", "cat"] {
            let found = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool));
            symlink(found.iter().find(|path| path.exists()).unwrap(), path.path().join(tool))
                .unwrap();
        }
        let executable = std::fs::Permissions::from_mode(0o755);
        let look = "case $1 in install) cat \"$HOLDFAST_CREATECLUSTER\"; exit 100 ;; esac";
        for (fake, body) in [("apt-get", look), ("sudo", "exec \"$@\"")] {
            std::fs::write(path.path().join(fake), format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(path.path().join(fake), executable.clone()).unwrap();
        }
        let configuration = path.path().join("createcluster.conf");
        std::fs::write(&configuration, before).unwrap();
        let mut command = Command::new("/bin/sh");
        command.arg(script("install.sh")).arg("postgresql").env("PATH", path.path());
        command.env("HOLDFAST_POSTGRES_BIN", path.path());
        let output = command.env("HOLDFAST_CREATECLUSTER", &configuration).output().unwrap();
        assert_eq!(output.status.code(), Some(100), "{}", text(&output.stderr));
        assert!(text(&output.stdout).lines().any(|line| line == told), "{before}");
        assert_eq!(std::fs::read_to_string(&configuration).unwrap(), before);
    }
}

#[test]
fn homebrew_is_never_run_as_another_user_and_not_asked_for_what_it_lacks() {
    let path = restricted_path(&["brew"]);
    // For whoever is not root, and without sudo.
    std::fs::remove_file(path.path().join("id")).unwrap();
    std::fs::write(path.path().join("id"), "#!/bin/sh\necho 1000\n").unwrap();
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path.path().join("id"), executable).unwrap();
    let output = install(path.path(), "age");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for wanted in ["strace", "cc"] {
        let output = install(path.path(), wanted);
        assert_eq!(output.status.code(), Some(69), "{wanted}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{wanted}: {}", text(&output.stdout));
    }
}

#[test]
fn what_is_there_is_left_alone() {
    let path = restricted_path(&["apt-get", "age"]);
    let output = install(path.path(), "age");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}

#[test]
fn a_module_that_is_named_counts_only_when_it_is_there() {
    let path = restricted_path(&["softhsm2-util"]);
    let install = |module: &str| {
        let mut command = Command::new("/bin/sh");
        command.arg(script("install.sh")).arg("softhsm").env("PATH", path.path());
        command.env("HOLDFAST_PKCS11_MODULE", module).output().unwrap()
    };
    assert_eq!(install("/bin/sh").status.code(), Some(0));
    let missing = install("/nonexistent/module.so");
    assert_eq!(missing.status.code(), Some(69));
    assert!(text(&missing.stderr).contains("/nonexistent/module.so"), "{}", text(&missing.stderr));
}

#[test]
fn without_a_package_manager_it_says_so() {
    let path = restricted_path(&[]);
    let output = install(path.path(), "age");
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("install by hand"), "{}", text(&output.stderr));
}

#[test]
fn what_a_manager_failed_to_bring_is_noticed() {
    // This fake brings `age` only.
    let path = restricted_path(&["apt-get"]);
    std::fs::write(path.path().join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path.path().join("sudo"), executable).unwrap();
    let output = install(path.path(), "strace");
    assert_eq!(output.status.code(), Some(70), "{}", text(&output.stderr));
}

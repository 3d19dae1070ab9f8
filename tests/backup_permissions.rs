//! Which permissions `open`, `reseal` and stock `age` need of a real server, and that each one is needed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test program: a failure here is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Grant, Rig, Server, TENANT};
use kms_testkit::pki::{Identity, Kind};
use kms_testkit::process::binary;

const PLAINTEXT: &[u8] = b"what the backup holds";

const OPENER: &str = "spiffe://holdfast.test/opener";
const SEALER: &str = "spiffe://holdfast.test/sealer";
const RESEALER: &str = "spiffe://holdfast.test/resealer";

/// A server, principals with some permissions each, and a file sealed under version 1 of a key at version 2.
struct World {
    server: Server,
    home: tempfile::TempDir,
    sealed: Vec<u8>,
}

struct Run {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl World {
    /// Principals are named by the last part of their SPIFFE ids.
    fn new(principals: &[(&'static str, &[&'static str])]) -> Self {
        let mut rig = Rig::new();
        for (serial, (principal, actions)) in (200..).zip(principals) {
            let (_, name) = principal.rsplit_once('/').unwrap();
            rig.pki.issue_serial(name, &Kind::Spiffe(principal), serial);
            rig.grants.push(Grant::new(principal, TENANT, actions));
        }
        let home = tempfile::tempdir().unwrap();
        let mut world = Self { server: rig.start(), home, sealed: vec![] };
        std::fs::write(world.path("plain"), PLAINTEXT).unwrap();
        let create = ["key", "create", "k", "--owner", "o", "--sensitivity", "low"];
        let create = [&create[..], &["--usage", "u", "--cryptoperiod", "30d"]].concat();
        world.kms("operator", &create).good();
        let seal = ["seal", "--key", "k", "--in", "plain", "--out", "sealed.age"];
        world.kms("operator", &seal).good();
        world.kms("operator", &["key", "rotate", "k"]).good();
        world.sealed = std::fs::read(world.path("sealed.age")).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a configuration for this principal, and returns its path.
    fn config(&self, who: &str) -> PathBuf {
        let (server, pki) = (self.server.listen, &self.server.rig.pki);
        let name = who.rsplit('/').next().unwrap();
        let identity = if name == "operator" {
            self.server.rig.operator.clone()
        } else {
            let file = |kind| pki.ca().with_file_name(format!("{name}.{kind}"));
            Identity::existing(file("pem"), file("key"))
        };
        let quoted = |path: &Path| format!("{:?}", path.to_str().unwrap());
        let text = format!(
            "current = \"c\"\n[contexts.c]\nserver = \"https://{server}\"\ntenant = \"{TENANT}\"\n\
             ca = {}\ncert = {}\nkey = {}\n",
            quoted(&pki.ca()),
            quoted(&identity.certificate),
            quoted(&identity.key)
        );
        let path = self.path(&format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, who: &str, program: &Path, args: &[&str]) -> Run {
        let path = std::env::var("PATH").unwrap();
        let ours = binary("age-plugin-kms");
        let output = Command::new(program)
            .args(args)
            .env("PATH", format!("{}:{path}", ours.parent().unwrap().display()))
            .env("KMS_CONFIG", self.config(who))
            .env_remove("KMS_CONTEXT")
            .current_dir(self.home.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Run { code: output.status.code().unwrap(), stdout: output.stdout, stderr }
    }

    fn kms(&self, who: &str, args: &[&str]) -> Run {
        self.run(who, &binary("kms"), args)
    }
}

impl Run {
    #[track_caller]
    fn good(self) -> Vec<u8> {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    #[track_caller]
    fn denied(&self) {
        assert_eq!(self.code, 3, "{}", self.stderr);
        assert!(self.stderr.contains("ACCESS_DENIED"), "{}", self.stderr);
    }
}

#[test]
fn unwrap_alone_opens_a_file_whose_key_is_named() {
    let world = World::new(&[(OPENER, &["unwrap"]), (SEALER, &["wrap"])]);
    let open = ["open", "--in", "sealed.age", "--key", "k"];
    assert_eq!(world.kms(OPENER, &open).good(), PLAINTEXT);
    // The operator is told whose file it is; the opener may not ask, and is told how to do without.
    let unnamed = ["open", "--in", "sealed.age"];
    assert_eq!(world.kms("operator", &unnamed).good(), PLAINTEXT);
    let refused = world.kms(OPENER, &unnamed);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("--key"), "{}", refused.stderr);
    let sealer = world.kms(SEALER, &open);
    sealer.denied();
    assert!(sealer.stdout.is_empty());

    let identity = world.kms(OPENER, &["age", "identity", "--key", "k"]).good();
    std::fs::write(world.path("identity.txt"), identity).unwrap();
    let decrypt = ["-d", "-i", "identity.txt", "sealed.age"];
    assert_eq!(world.run(OPENER, Path::new("age"), &decrypt).good(), PLAINTEXT);
    assert_ne!(world.run(SEALER, Path::new("age"), &decrypt).code, 0);
}

#[test]
fn wrap_and_unwrap_reseal_a_file_whose_key_is_named_and_one_of_them_does_not() {
    let world =
        World::new(&[(RESEALER, &["wrap", "unwrap"]), (OPENER, &["unwrap"]), (SEALER, &["wrap"])]);
    let reseal = ["reseal", "sealed.age", "--key", "k", "--output", "json"];
    for who in [OPENER, SEALER] {
        let refused = world.kms(who, &reseal);
        assert_eq!(refused.code, 3, "{who}: {}", refused.stderr);
        assert!(std::fs::read(world.path("sealed.age")).unwrap() == world.sealed, "{who}");
    }
    let status = |run: Run| {
        let report: serde_json::Value = serde_json::from_slice(&run.good()).unwrap();
        report["files"][0]["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(status(world.kms(RESEALER, &reseal)), "resealed");
    let resealed = std::fs::read(world.path("sealed.age")).unwrap();
    assert!(resealed != world.sealed);
    // Without being told, it finds out for itself that nothing is to be done.
    assert_eq!(status(world.kms(RESEALER, &reseal)), "current");
    assert!(std::fs::read(world.path("sealed.age")).unwrap() == resealed);
    assert_eq!(world.kms(RESEALER, &["reseal", "sealed.age"]).code, 3);
}

//! A SoftHSM token in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// User PIN of every test token.
pub const USER_PIN: &str = "test-user-pin-4711";
/// Security officer PIN of every test token.
pub const SO_PIN: &str = "test-so-pin-0815";
/// Label of every test token.
pub const TOKEN_LABEL: &str = "holdfast-test";
/// Names the module to test against; the default is Debian's SoftHSM.
pub const MODULE_VARIABLE: &str = "HOLDFAST_PKCS11_MODULE";

/// Where distributions put SoftHSM, one path a line; the server and softhsm/install.sh read the same list.
const MODULE_PLACES: &str = include_str!("../../softhsm/places.txt");

/// A SoftHSM configuration and token directory under one root.
#[derive(Clone, Debug)]
pub struct SoftHsm {
    root: PathBuf,
}

impl SoftHsm {
    /// Writes a configuration under `root` and initialises one token.
    pub fn create(root: &Path) -> Self {
        let this = Self { root: root.to_owned() };
        std::fs::create_dir_all(this.token_dir()).expect("create the token directory");
        let configuration = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n\
             slots.removable = false\nslots.mechanisms = ALL\nlibrary.reset_on_fork = false\n",
            this.token_dir().display()
        );
        std::fs::write(this.configuration(), configuration).expect("write softhsm2.conf");
        this.init_token(TOKEN_LABEL);
        this
    }

    /// Takes a directory that [`SoftHsm::create`] has prepared.
    pub fn existing(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Initialises another token in the same directory.
    pub fn init_token(&self, label: &str) {
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--so-pin", SO_PIN, "--pin", USER_PIN])
            .env("SOFTHSM2_CONF", self.configuration())
            .output()
            .expect(
                "run softhsm2-util; get it with `softhsm/install.sh` or `apt-get install softhsm2`",
            );
        assert!(output.status.success(), "softhsm2-util: {output:?}");
    }

    /// Returns the directory that everything is in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path for SOFTHSM2_CONF.
    pub fn configuration(&self) -> PathBuf {
        self.root.join("softhsm2.conf")
    }

    /// Returns the directory that the module keeps tokens in.
    pub fn token_dir(&self) -> PathBuf {
        self.root.join("tokens")
    }
}

/// Returns the token directory of the token that this process was started with, by SOFTHSM2_CONF.
pub fn token_dir() -> PathBuf {
    let configuration = std::env::var_os("SOFTHSM2_CONF").expect("SOFTHSM2_CONF is set");
    PathBuf::from(configuration).with_file_name("tokens")
}

/// Returns the path of the PKCS#11 module to test against.
pub fn module() -> PathBuf {
    if let Some(path) = std::env::var_os(MODULE_VARIABLE) {
        return path.into();
    }
    MODULE_PLACES.lines().map(PathBuf::from).find(|path| path.exists()).unwrap_or_else(|| {
        panic!("no SoftHSM module found; run `softhsm/install.sh` or set {MODULE_VARIABLE}")
    })
}

//! The faulty PKCS#11 module (softhsm/faulty.c): built once, scripted while a test runs, read afterwards.
//!
//! Must run in a process of its own ([`isolated_faulty`]): a module is process-global.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::deadline;
use crate::isolated::isolated_with;
use crate::softhsm::{self, SoftHsm};

/// Names of the files the module is made of.
const SOURCES: [&str; 5] = ["faulty.c", "plan.c", "plan.h", "pkcs11_min.h", "build.sh"];
/// Script and log, in the token's root directory.
const PLAN_FILE: &str = "faulty.plan";
const LOG_FILE: &str = "faulty.log";

/// Builds the faulty module, unless it is there and newer than its sources, and returns its path.
///
/// Parallel test processes build it once: a file lock orders them.
pub fn module() -> PathBuf {
    static MODULE: OnceLock<PathBuf> = OnceLock::new();
    MODULE.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../softhsm");
    let directory = crate::process::target_dir().join("faulty");
    std::fs::create_dir_all(&directory).expect("create the directory of the faulty module");
    let lock = File::create(directory.join("lock")).expect("create the lock file");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    let module = directory.join("libfaulty.so");
    let newest = SOURCES.iter().map(|name| modified(&sources.join(name))).max().flatten();
    if modified(&module) <= newest {
        let fresh = directory.join("libfaulty.so.new");
        let output =
            Command::new(sources.join("build.sh")).arg(&fresh).output().expect("run build.sh");
        assert!(
            output.status.success(),
            "the faulty module does not build; a C compiler is needed (`softhsm/install.sh cc`):\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::rename(&fresh, &module).expect("put the module in its place");
    }
    module
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|found| found.modified()).ok()
}

/// Runs `body` in a child process with a fresh token behind the faulty module, which forwards everything until
/// [`Faulty::script`] says otherwise. `test` is the full name of the calling test.
pub fn isolated_faulty(test: &str, body: impl FnOnce(&SoftHsm, &Faulty)) {
    isolated_faulty_with(test, &[], body);
}

/// Like [`isolated_faulty`], with more environment for the child.
pub fn isolated_faulty_with(
    test: &str,
    more: &[(&str, &str)],
    body: impl FnOnce(&SoftHsm, &Faulty),
) {
    let real = softhsm::module();
    let (plan, log) = (format!("{{root}}/{PLAN_FILE}"), format!("{{root}}/{LOG_FILE}"));
    let mut environment = vec![
        ("HOLDFAST_FAULTY_REAL", real.to_str().expect("module paths are UTF-8")),
        ("HOLDFAST_FAULTY_PLAN", plan.as_str()),
        ("HOLDFAST_FAULTY_LOG", log.as_str()),
    ];
    environment.extend_from_slice(more);
    isolated_with(test, &environment, |token| body(token, &Faulty::of(token)));
}

/// One line of the module's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the function, `C_...`.
    pub function: String,
    /// Handle of the session, 0 where there is none.
    pub session: u64,
    /// The CKR that was answered.
    pub rv: u64,
    /// Name of the thread, at most 15 bytes.
    pub thread: String,
    /// Whether only the length of the output was asked for.
    pub query: bool,
}

/// The controls of the faulty module of this process.
#[derive(Clone, Debug)]
pub struct Faulty {
    plan: PathBuf,
    log: PathBuf,
}

impl Faulty {
    /// Returns the controls of the module that runs on `token`.
    pub fn of(token: &SoftHsm) -> Self {
        Self { plan: token.root().join(PLAN_FILE), log: token.root().join(LOG_FILE) }
    }

    /// Returns the environment of another process that is to run on the token behind this module.
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("HOLDFAST_FAULTY_REAL", softhsm::module()),
            ("HOLDFAST_FAULTY_PLAN", self.plan.clone()),
            ("HOLDFAST_FAULTY_LOG", self.log.clone()),
        ]
    }

    /// Replaces the script; counts start again, and calls that hang go on. The rules stand in softhsm/plan.h.
    pub fn script(&self, rules: &[&str]) {
        let fresh = self.plan.with_extension("new");
        // The running number makes each script another file, whatever its length.
        let written = format!("# {}\n{}\n", next_number(), rules.join("\n"));
        std::fs::write(&fresh, written).expect("write the script");
        std::fs::rename(&fresh, &self.plan).expect("put the script in its place");
    }

    /// Stops all faults.
    pub fn heal(&self) {
        self.script(&[]);
    }

    /// Returns a place in the log, for [`Faulty::calls_since`].
    pub fn mark(&self) -> usize {
        std::fs::read(&self.log).map_or(0, |log| log.len())
    }

    /// Returns the calls that ended after `mark`, in the order in which they ended.
    pub fn calls_since(&self, mark: usize) -> Vec<Call> {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8(log.get(mark..).unwrap_or_default().to_vec());
        text.expect("the log is ASCII").lines().filter_map(parse).collect()
    }

    /// Counts calls of `function` after `mark`, length queries left out.
    pub fn count_since(&self, mark: usize, function: &str) -> usize {
        let calls = self.calls_since(mark);
        calls.iter().filter(|call| call.function == function && !call.query).count()
    }

    /// Waits until a call of `function` that started after `mark` hangs.
    pub fn await_hang(&self, mark: usize, function: &str, limit: Duration) {
        self.await_hangs(mark, (function, 1), limit);
    }

    /// Waits until so many calls of `function` that started after `mark` have begun to hang.
    pub fn await_hangs(&self, mark: usize, (function, calls): (&str, usize), limit: Duration) {
        let wanted = format!("enter {function} ");
        deadline::eventually(limit, &format!("{calls} hanging {function}"), || {
            let log = std::fs::read(&self.log).unwrap_or_default();
            let since = String::from_utf8_lossy(log.get(mark..).unwrap_or_default());
            since.matches(&wanted).count() >= calls
        });
    }
}

fn next_number() -> u64 {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn parse(line: &str) -> Option<Call> {
    let mut fields = line.split(' ');
    let function = fields.next().filter(|name| *name != "enter")?.to_owned();
    let session = fields.next()?.strip_prefix("session=")?.parse().ok()?;
    let rv = u64::from_str_radix(fields.next()?.strip_prefix("rv=0x")?, 16).ok()?;
    let thread = fields.next()?.strip_prefix("thread=")?.to_owned();
    Some(Call { function, session, rv, thread, query: fields.next() == Some("query") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_read() {
        let call = parse("C_Encrypt session=3 rv=0x30 thread=hsm-worker query").expect("a call");
        assert_eq!(
            (call.function.as_str(), call.session, call.rv, call.query),
            ("C_Encrypt", 3, 0x30, true)
        );
        assert_eq!(call.thread, "hsm-worker");
        assert_eq!(parse("enter C_Encrypt session=3"), None);
    }

    #[test]
    fn the_module_is_built_and_kept() {
        let path = module();
        let before = modified(&path).expect("the module is there");
        assert_eq!(modified(&build()), Some(before));
    }
}

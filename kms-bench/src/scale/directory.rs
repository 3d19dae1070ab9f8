//! Directories of dev servers that hold many keys: made in memory, measured on disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Place;
use super::seed::Seeding;
use crate::error::{Error, io};
use crate::processes::Peer;

impl Place {
    /// Makes a dev directory with keys, and returns where it stands on the disk.
    pub(super) fn seeded(&self, name: &str, seeding: Seeding) -> Result<PathBuf, Error> {
        let (memory, disk) = (self.tmpfs.join(name), self.disk.join(name));
        Peer::server(&self.server, &memory)?.0.stop()?;
        let this = std::env::current_exe().map_err(io("find this program"))?;
        let mut command = Command::new(this);
        command.arg("seed").arg(&memory).arg(seeding.keys.to_string());
        if seeding.due {
            command.arg("--due");
        }
        command.env("SOFTHSM2_CONF", memory.join("softhsm2.conf"));
        run("the seeding", &mut command)?;
        // Nothing is synced in memory, so the making is quick; what is measured stands where servers keep it.
        run("the copy", Command::new("cp").arg("-a").arg(&memory).arg(&disk))?;
        std::fs::remove_dir_all(&memory).map_err(io("remove what was made in memory"))?;
        rustix::fs::sync();
        Ok(disk)
    }

    /// Starts a server on a directory.
    pub(super) fn start(&self, directory: &Path) -> Result<Peer, Error> {
        Ok(Peer::server(&self.server, directory)?.0)
    }

    /// Makes the next root set of a directory that no server holds.
    pub(super) fn stage_root(&self, directory: &Path) -> Result<(), Error> {
        run(
            "root stage",
            Command::new(&self.server).args(["root", "stage", "--dir"]).arg(directory),
        )
    }
}

fn run(what: &'static str, command: &mut Command) -> Result<(), Error> {
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).output();
    let done = done.map_err(io("start a child"))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(Error::Child { what, detail: format!("{}: {}", done.status, said.trim()) })
}

//! A model of power loss: files as they may be found after it, rebuilt from a trace.
//!
//! What a completed fsync or fdatasync covers is there. Of everything later, any part may be: each write wholly, not at
//! all, or in sectors of 512 bytes; each change of length; each new or removed name, as long as its directory was not
//! synced (stricter than ext4, as POSIX allows). A lost write leaves what was there before, or zeros.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::strace::{Call, Effect};

const SECTOR: u64 = 512;

/// What happens to writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All are kept: the process died, the machine did not.
    Nothing,
    /// All are lost.
    Everything,
    /// Each is kept or lost.
    SomeWrites,
    /// Each sector of each is kept or lost.
    SomeSectors,
}

impl Loss {
    pub const ALL: [Self; 4] =
        [Self::Nothing, Self::Everything, Self::SomeWrites, Self::SomeSectors];
}

/// A change to one file or name.
#[derive(Clone, Debug)]
struct Change {
    start: usize,
    done: usize,
    synced: Option<usize>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Write { inode: usize, offset: u64, data: Vec<u8> },
    SetLength { inode: usize, length: u64 },
    Link { path: PathBuf, inode: usize },
    Unlink { path: PathBuf },
}

/// The history of all files below a directory.
#[derive(Debug)]
pub struct History {
    root: PathBuf,
    changes: Vec<Change>,
    told: Vec<(usize, String)>,
    ticks: Vec<usize>,
}

impl History {
    /// Reads a history from a trace. Files whose names end with one of `ignored` are left out.
    pub fn new(calls: &[Call], root: &Path, ignored: &[&str]) -> Self {
        let mut history =
            Self { root: root.to_owned(), changes: vec![], told: vec![], ticks: vec![] };
        let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut inodes = 0;
        let is_ours = |path: &Path| {
            let name = path.to_string_lossy();
            path.starts_with(root) && !ignored.iter().any(|ending| name.ends_with(ending))
        };
        for call in calls {
            let change = |kind| Change { start: call.start, done: call.done, synced: None, kind };
            match &call.effect {
                Effect::Told { data } => {
                    history.told.push((call.start, String::from_utf8_lossy(data).into_owned()));
                }
                Effect::Open { path, create: true, truncate } if is_ours(path) => {
                    if let Some(inode) = names.get(path) {
                        assert!(!truncate, "truncating opens are not modelled: inode {inode}");
                        continue;
                    }
                    names.insert(path.clone(), inodes);
                    history.changes.push(change(Kind::Link { path: path.clone(), inode: inodes }));
                    inodes += 1;
                }
                Effect::Unlink { path } if is_ours(path) && names.contains_key(path) => {
                    names.remove(path);
                    history.changes.push(change(Kind::Unlink { path: path.clone() }));
                }
                Effect::Write { path, offset, data } if is_ours(path) => {
                    let inode = names[path];
                    let kind = Kind::Write { inode, offset: *offset, data: data.clone() };
                    history.changes.push(change(kind));
                }
                Effect::SetLength { path, length } if is_ours(path) => {
                    let kind = Kind::SetLength { inode: names[path], length: *length };
                    history.changes.push(change(kind));
                }
                Effect::Sync { path } if is_ours(path) => {
                    let inode = names.get(path).copied();
                    history.sync(call, path, inode);
                }
                _ => continue,
            }
            history.ticks.extend([call.start, call.done]);
        }
        history.ticks.sort_unstable();
        history.ticks.dedup();
        history
    }

    fn sync(&mut self, call: &Call, synced_path: &Path, synced_inode: Option<usize>) {
        for change in &mut self.changes {
            let covered = match &change.kind {
                Kind::Write { inode, .. } | Kind::SetLength { inode, .. } => {
                    Some(*inode) == synced_inode
                }
                Kind::Link { path, .. } | Kind::Unlink { path } => {
                    path.parent() == Some(synced_path)
                }
            };
            if covered && change.done < call.start && change.synced.is_none() {
                change.synced = Some(call.done);
            }
        }
    }

    /// Returns the ticks at which something changed, at most `limit` of them, spread evenly.
    pub fn cuts(&self, limit: usize) -> Vec<usize> {
        let step = self.ticks.len().div_ceil(limit).max(1);
        self.ticks.iter().copied().step_by(step).chain(self.ticks.last().copied()).collect()
    }

    /// Returns the lines that had begun to be told at `cut`.
    pub fn told(&self, cut: usize) -> impl Iterator<Item = &str> {
        let told = self.told.iter().take_while(move |(tick, _)| *tick <= cut);
        told.flat_map(|(_, text)| text.lines())
    }

    /// Writes the files as they may be found after a loss of power at `cut` into `image`.
    pub fn rebuild(&self, cut: usize, loss: Loss, seed: u64, image: &Path) {
        let mut coin = Coin(seed);
        let mut names: BTreeMap<&Path, usize> = BTreeMap::new();
        let mut files: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for change in self.changes.iter().take_while(|change| change.start <= cut) {
            let durable = change.synced.is_some_and(|tick| tick <= cut);
            let whole = match loss {
                Loss::Nothing => true,
                Loss::Everything => false,
                Loss::SomeWrites | Loss::SomeSectors => coin.toss(),
            };
            match &change.kind {
                Kind::Write { inode, offset, data } => {
                    let file = files.entry(*inode).or_default();
                    for (at, sector) in sectors(*offset, data) {
                        let torn = loss == Loss::SomeSectors;
                        if durable || (torn && coin.toss()) || (!torn && whole) {
                            put(file, at, sector);
                        }
                    }
                }
                Kind::SetLength { inode, length } if durable || whole => {
                    let length = usize::try_from(*length).unwrap();
                    files.entry(*inode).or_default().resize(length, 0);
                }
                Kind::Link { path, inode } if durable || whole => {
                    names.insert(path, *inode);
                }
                Kind::Unlink { path } if durable || whole => {
                    names.remove(path.as_path());
                }
                Kind::SetLength { .. } | Kind::Link { .. } | Kind::Unlink { .. } => {}
            }
        }
        for (path, inode) in names {
            let target = image.join(path.strip_prefix(&self.root).unwrap());
            let mut directory = std::fs::DirBuilder::new();
            directory.recursive(true).mode(0o700).create(target.parent().unwrap()).unwrap();
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(target).unwrap();
            let bytes = files.get(&inode).map_or(&[][..], Vec::as_slice);
            std::io::Write::write_all(&mut file, bytes).unwrap();
        }
    }
}

/// Cuts a write at the borders of the disk's sectors.
fn sectors(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = offset;
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = usize::try_from(SECTOR - at % SECTOR).unwrap();
        let (sector, behind) = rest.split_at(room.min(rest.len()));
        let found = (at, sector);
        at += sector.len() as u64;
        rest = behind;
        Some(found)
    })
}

fn put(file: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let start = usize::try_from(at).unwrap();
    let end = start + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(bytes);
}

/// A seeded coin (splitmix64).
struct Coin(u64);

impl Coin {
    fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}

//! Where PostgreSQL's programs are, and who may run them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Names the directory of PostgreSQL's programs, and no other is looked in.
pub const BIN_VARIABLE: &str = "HOLDFAST_POSTGRES_BIN";
/// What a cluster takes; all of it is in one directory.
const PROGRAMS: [&str; 3] = ["initdb", "postgres", "psql"];
/// Where distributions put them, one pattern a line; softhsm/install.sh reads the same list.
const PLACES: &str = include_str!("../../../softhsm/postgresql-places.txt");
/// Who runs a cluster for root, which PostgreSQL refuses: the first of them that there is.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// Returns the directory that has PostgreSQL's programs: the newest version of those there are.
///
/// # Panics
/// When there is none: the test fails, with the way to get it.
pub(super) fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os(BIN_VARIABLE) {
        let named = PathBuf::from(named);
        assert!(is_complete(&named), "{BIN_VARIABLE} names {}: {MISSING}", named.display());
        return named;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    found(Path::new("/"), &path).unwrap_or_else(|| panic!("{MISSING}"))
}

/// What a test says that needs it and has none.
const MISSING: &str = "no PostgreSQL (initdb, postgres, psql) found there; get it with `make setup`, \
    `softhsm/install.sh postgresql` or `apt-get install postgresql`, or name its directory with HOLDFAST_POSTGRES_BIN";

fn found(root: &Path, path: &OsStr) -> Option<PathBuf> {
    let usual = PLACES.lines().flat_map(|pattern| matching(root, pattern.trim_start_matches('/')));
    let newest = usual.filter(|place| is_complete(place)).max_by_key(|place| version(place));
    newest.or_else(|| std::env::split_paths(path).find(|place| is_complete(place)))
}

fn is_complete(directory: &Path) -> bool {
    PROGRAMS.iter().all(|program| directory.join(program).is_file())
}

/// Returns the paths below `root` that a pattern means; `*` stands for anything within a name, once in each.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut places = vec![root.to_owned()];
    for part in pattern.split('/') {
        let Some((start, end)) = part.split_once('*') else {
            places = places.into_iter().map(|place| place.join(part)).collect();
            continue;
        };
        let entries = places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten();
        places = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(OsStr::to_str);
                name.is_some_and(|name| name.starts_with(start) && name.ends_with(end))
            })
            .collect();
    }
    places
}

/// Returns the last number in a path, which is the version in all the places there are.
fn version(place: &Path) -> u32 {
    let text = place.display().to_string();
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|digits| digits.parse().ok()).next_back().unwrap_or_default()
}

/// User and group of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Returns who is to run the cluster; `None` for whoever runs the test.
pub(super) fn user() -> Option<User> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let user = unprivileged(&accounts);
    Some(user.unwrap_or_else(|| panic!("none of the users {USERS:?} is there to run PostgreSQL")))
}

fn unprivileged(accounts: &str) -> Option<User> {
    USERS.iter().find_map(|wanted| {
        let mut lines = accounts.lines().map(|line| line.split(':'));
        let mut fields =
            lines.find_map(|mut fields| (fields.next()? == *wanted).then_some(fields))?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        (uid != 0).then_some(User { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts the programs, all or some, into a directory below `root`.
    fn put(root: &Path, place: &str, programs: &[&str]) -> PathBuf {
        let place = root.join(place);
        std::fs::create_dir_all(&place).unwrap();
        for program in programs {
            std::fs::write(place.join(program), "").unwrap();
        }
        place
    }

    #[test]
    fn the_newest_of_the_usual_places_is_taken_and_the_path_only_without_them() {
        let root = tempfile::tempdir().unwrap();
        let aside = put(root.path(), "aside", &PROGRAMS);
        let path = std::env::join_paths([root.path(), aside.as_path()]).unwrap();
        let find = |path: &OsStr| found(root.path(), path);
        assert_eq!(find(OsStr::new("")), None);
        assert_eq!(find(&path), Some(aside));
        put(root.path(), "usr/lib/postgresql/9/bin", &PROGRAMS);
        let newest = put(root.path(), "usr/lib/postgresql/15/bin", &PROGRAMS);
        put(root.path(), "usr/lib/postgresql/16/bin", &["psql", "initdb"]);
        assert_eq!(find(&path), Some(newest));
        let other = put(root.path(), "usr/pgsql-17/bin", &PROGRAMS);
        assert_eq!(find(&path), Some(other));
    }

    #[test]
    fn what_is_said_without_it_tells_how_to_get_it() {
        assert!(MISSING.contains("make setup") && MISSING.contains(BIN_VARIABLE), "{MISSING}");
    }

    #[test]
    fn root_is_never_taken() {
        let accounts = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\n";
        assert_eq!(unprivileged(accounts), Some(User { uid: 65534, gid: 65533 }));
        let with = format!("{accounts}postgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n");
        assert_eq!(unprivileged(&with), Some(User { uid: 101, gid: 104 }));
        assert_eq!(unprivileged("postgres:x:0:0::/:/bin/sh\n"), None);
        assert_eq!(unprivileged("postgresql:x:5:5::/:/bin/sh\n"), None);
    }
}

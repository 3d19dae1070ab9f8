//! Where distributions put SoftHSM.

use std::path::PathBuf;

/// Debian, Fedora, openSUSE, Alpine, self-built, Homebrew on both kinds of Mac; one path a line. softhsm/install.sh and
/// the tests read the same list.
const PLACES: &str = include_str!("../../../softhsm/places.txt");

/// Returns the first SoftHSM module there is.
pub fn find_module() -> Option<PathBuf> {
    PLACES.lines().map(PathBuf::from).find(|path| path.is_file())
}

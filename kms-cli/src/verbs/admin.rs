//! `kms admin`: backups.

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Session;
use crate::args::admin::{AdminCommand, Backup};
use crate::error::CliError;
use crate::output::{Format, Overwrite, PendingFile, at, show_json};

/// What the bar shows.
const ROWS: &str = "{wide_bar} {pos}/{len} rows {eta}";

/// Runs a verb of `kms admin`.
pub fn run(session: &Session, command: AdminCommand) -> Result<(), CliError> {
    match command {
        AdminCommand::Backup(args) => backup(session, args),
    }
}

/// Takes a backup. The file is begun before the server is asked, and there only when the server has said that all is there.
fn backup(session: &Session, args: Backup) -> Result<(), CliError> {
    let Backup { recipient, path, force, quiet } = args;
    let context = session.context()?;
    let mut file = PendingFile::create(&path, Overwrite::of(force)).map_err(at(&path))?;
    let bar = bar(quiet);
    let (bytes, rows) = session.with_client(&context, async |client| {
        let mut pieces = client.backup_store(recipient).await?;
        let (mut bytes, mut rows) = (0_u64, 0);
        while let Some(piece) = pieces.next().await? {
            let write =
                |source| crate::output::OutputError::Io { action: "write the backup", source };
            file.write_all(&piece.data).map_err(write).map_err(at(&path))?;
            bytes = bytes.saturating_add(piece.data.len() as u64);
            rows = piece.rows;
            if let Some(bar) = &bar {
                bar.set_length(piece.total_rows);
                bar.set_position(rows);
            }
        }
        Ok((bytes, rows))
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    file.commit().map_err(at(&path))?;
    if session.format == Format::Json {
        return show_json(&json!({ "bytes": bytes, "rows": rows }));
    }
    let text = format!("{rows} rows, {bytes} bytes: {}\n", path.display());
    crate::output::print(text.as_bytes())
}

fn bar(quiet: bool) -> Option<ProgressBar> {
    let shown = !quiet && io::stderr().is_terminal();
    shown.then(|| {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template(ROWS) {
            bar.set_style(style);
        }
        bar
    })
}

//! A progress bar on a terminal, for streams whose length is known.

use std::io::{self, IsTerminal as _, Read};

use indicatif::{ProgressBar, ProgressStyle};

/// What the bar shows.
const TEMPLATE: &str = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// Counts what is read, and shows it when standard error is a terminal.
pub(super) struct Progress<R> {
    inner: R,
    bar: Option<ProgressBar>,
}

impl<R: Read> Progress<R> {
    /// Shows a bar for `total_bytes`; none for a stream of unknown length, when told to be quiet, or off a terminal.
    pub(super) fn new(inner: R, total_bytes: Option<u64>, quiet: bool) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        let bar = total_bytes.filter(|_| shown).map(|total_bytes| {
            let bar = ProgressBar::new(total_bytes);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar
        });
        Self { inner, bar }
    }
}

impl<R: Read> Read for Progress<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(bar) = &self.bar {
            bar.inc(length as u64);
        }
        Ok(length)
    }
}

impl<R> Drop for Progress<R> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

//! Progress on a terminal: a bar, or for streams whose length is not known, a spinner.

use std::io::{self, IsTerminal as _, Read};

use indicatif::{ProgressBar, ProgressStyle};

/// What the bar shows.
const BAR: &str = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// What is shown of a stream that may end anywhere.
const SPINNER: &str = "{spinner} {bytes} {bytes_per_sec}";

/// Counts what is read, and shows it when standard error is a terminal.
pub(super) struct Progress<R> {
    inner: R,
    bar: Option<ProgressBar>,
}

impl<R: Read> Progress<R> {
    /// Shows a bar for `total_bytes`, or a spinner where that is not known; nothing when told to be quiet, or off a
    /// terminal.
    pub(super) fn new(inner: R, total_bytes: Option<u64>, quiet: bool) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        let bar = shown.then(|| {
            let (bar, template) = match total_bytes {
                Some(total_bytes) => (ProgressBar::new(total_bytes), BAR),
                None => (ProgressBar::new_spinner(), SPINNER),
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
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

//! The bar on a terminal: items, rate and time left.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressStyle};

/// What the bar shows while ciphertexts are rewrapped.
const ITEMS: &str = "{wide_bar} {pos}/{len} {per_sec} {eta}";

/// A bar, when standard error is a terminal. It goes when it is dropped.
#[derive(Debug)]
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Shows a bar for so many items.
    pub(super) fn of_items(items: u64, quiet: bool) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        Self(shown.then(|| {
            let bar = ProgressBar::new(items);
            if let Ok(style) = ProgressStyle::with_template(ITEMS) {
                bar.set_style(style);
            }
            bar
        }))
    }

    /// Moves on by so many items.
    pub(super) fn add(&self, items: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(items);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

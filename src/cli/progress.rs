//! Progress on stderr, only where it is a terminal.

use atombank::plan::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `total`, styled by `template`; hidden when quiet or not on a terminal.
pub(crate) fn bar(total: u64, template: &str, quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

/// A bar over bytes written, to be handed to the executor.
pub(crate) fn writing(quiet: bool) -> (ProgressBar, impl Fn(Progress) + Sync) {
    let bar = bar(0, "writing [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}", quiet);
    let shown = bar.clone();
    (bar, move |p: Progress| {
        shown.set_length(p.total_bytes);
        shown.set_position(p.done_bytes);
    })
}

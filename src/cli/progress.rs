//! Progress on stderr, only where it is a terminal.

use atombank::jobs::Step;
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

/// A bar over what a job computes before it writes.
pub(crate) fn steps(quiet: bool) -> (ProgressBar, impl Fn(Step) + Sync) {
    let bar = bar(0, "{msg} [{bar:30}] {pos}/{len} {eta}", quiet);
    let shown = bar.clone();
    (bar, move |step: Step| {
        shown.set_message(step.what);
        shown.set_length(step.total);
        shown.set_position(step.done);
    })
}

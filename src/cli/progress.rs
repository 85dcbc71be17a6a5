//! Progress bars on stderr, shown only on a terminal.

use atombank::jobs::Step;
use atombank::plan::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar with length `total` and the style `template`; hidden with `quiet` or if stderr isn't a
/// terminal.
pub(crate) fn bar(total: u64, template: &str, quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

/// A bar for written bytes, and the function for the executor that moves it.
pub(crate) fn writing(quiet: bool) -> (ProgressBar, impl Fn(Progress) + Sync) {
    let bar = bar(0, "writing [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}", quiet);
    let shown = bar.clone();
    (bar, move |p: Progress| {
        shown.set_length(p.total_bytes);
        shown.set_position(p.done_bytes);
    })
}

/// A bar for a job's computations before it writes, and the function that moves it.
pub(crate) fn steps(quiet: bool) -> (ProgressBar, impl Fn(Step) + Sync) {
    let bar = bar(0, "{msg} [{bar:30}] {pos}/{len} {eta}", quiet);
    let shown = bar.clone();
    (bar, move |step: Step| {
        shown.set_message(step.what);
        shown.set_length(step.total);
        shown.set_position(step.done);
    })
}

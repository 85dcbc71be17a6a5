//! Signals that end the program: ctrl-C, a request to end (SIGTERM), a closed terminal (SIGHUP).
//!
//! Unfinished outputs are deleted first. At the first signal, a command that can stop in an orderly way, such as
//! `train`, is asked to do so. A second signal ends it like any other command.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;

/// The exit code that shells use for a program ended by ctrl-C.
const INTERRUPTED: i32 = 130;

/// Set when the running command should stop.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether a signal ends the program even if its command could stop in an orderly way.
static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// Runs `work`, which has nothing to save, so a signal during it ends the program at once.
pub(crate) fn ending_at_once<T>(work: impl FnOnce() -> T) -> T {
    AT_ONCE.store(true, Ordering::Relaxed);
    let done = work();
    AT_ONCE.store(false, Ordering::Relaxed);
    done
}

/// Starts to handle signals.
pub(crate) fn watch() -> Result<()> {
    Ok(ctrlc::set_handler(|| {
        if let Some(stop) = STOP.get()
            && !AT_ONCE.load(Ordering::Relaxed)
            && !stop.swap(true, Ordering::Relaxed)
        {
            return;
        }
        atombank::plan::remove_unfinished();
        std::process::exit(INTERRUPTED);
    })?)
}

/// Returns the flag that the first signal sets instead of ending the program.
#[cfg(feature = "train")]
pub(crate) fn stop_flag() -> Arc<AtomicBool> {
    STOP.get_or_init(Arc::default).clone()
}

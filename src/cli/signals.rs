//! Signals that end the program: ctrl-C, a request to end (SIGTERM), a closed terminal (SIGHUP).
//!
//! Unfinished outputs are deleted first. A command that can stop in an orderly way, as `train` does, is asked to do so
//! at the first signal; a second one ends it like any other command.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;

/// The usual exit code in shells of a program that ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Set when the running command should stop.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether a signal ends the program although its command could stop in order.
static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// Does `work` that has nothing to save: a signal meanwhile ends the program.
pub(crate) fn ending_at_once<T>(work: impl FnOnce() -> T) -> T {
    AT_ONCE.store(true, Ordering::Relaxed);
    let done = work();
    AT_ONCE.store(false, Ordering::Relaxed);
    done
}

/// Watches for signals from now on.
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

/// The flag that the first signal sets instead of ending the program.
#[cfg(feature = "train")]
pub(crate) fn stop_flag() -> Arc<AtomicBool> {
    STOP.get_or_init(Arc::default).clone()
}

//! The number of threads for candle's element-wise operations.
//!
//! candle has a separate pool for them, whose threads wait for each other by spinning. If another program uses one of
//! the cores, every operation waits for the thread that isn't running, and training takes several times as long. Matrix
//! products, which take most of the time, use rayon's pool and stay parallel.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Environment variables from which candle and rayon read their number of threads.
const VARIABLES: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];

/// Gives candle's own pool one thread, unless the environment sets a number. candle reads the number from the
/// environment of the process, so the program replaces itself by another run of itself, with the variable set.
pub(crate) fn one_for_elementwise_operations() {
    if VARIABLES.iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // This returns only on failure; then candle uses its default, which may be slower.
    let _ = command.args(arguments).env(VARIABLES[0], "1").exec();
}

//! How many threads candle's element-wise operations get.
//!
//! candle has a pool of its own for them, whose threads wait for each other by spinning. Where another program
//! has one of the cores, every operation waits for the thread that isn't running, and training takes several
//! times as long. Matrix products, where the time goes, have rayon's pool and stay parallel.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What candle and rayon read their number of threads from.
const VARIABLES: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];

/// Gives candle's own pool one thread, unless the environment says otherwise. candle reads the number from the
/// environment of the process, so the program starts itself again with it there, as the same process.
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
    // It returns only where it failed; then candle has its default, which is slower at worst.
    let _ = command.args(arguments).env(VARIABLES[0], "1").exec();
}

//! What candle, rayon and the C library read from the environment when a program starts.
//!
//! candle has a separate pool of threads for element-wise operations, whose threads wait for each other by spinning. If
//! another program uses one of the cores, every operation waits for the thread that isn't running, and training takes
//! several times as long. Matrix products and our own operations, which take most of the time, use rayon's pool and stay
//! parallel.
//!
//! candle asks for the number of threads before every matrix product, and reads /proc/cpuinfo to tell it, which takes longer
//! than a small product. The variable that rayon reads, too, spares it that.
//!
//! glibc gives the memory of large values back when they are dropped, and takes it anew for the next ones, which costs a
//! page fault for every 4 KiB.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::available_parallelism;

/// Environment variables from which candle and rayon read their number of threads.
const THREADS: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];

/// Environment variables with which glibc keeps up to 1 GiB of memory that was used once, of values below 32 MiB, which
/// is the most that it takes here.
const MEMORY: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "1073741824")];

/// Gives candle's own pool one thread, tells it how many rayon's has, and lets glibc keep memory, unless the environment says otherwise. The program
/// replaces itself by another run of itself, with the variables set.
pub(crate) fn settings_for_training() {
    let mut variables = Vec::new();
    if THREADS.iter().all(|name| env::var_os(name).is_none()) {
        variables.push((THREADS[0], "1".to_owned()));
    }
    let threads = available_parallelism().map_or(1, usize::from);
    let others = MEMORY.map(|(name, value)| (name, value.to_owned())).into_iter();
    let others = others.chain([(THREADS[1], threads.to_string())]);
    variables.extend(others.filter(|(name, _)| env::var_os(name).is_none()));
    let Ok(program) = env::current_exe() else { return };
    if variables.is_empty() {
        return;
    }
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // This returns only on failure; then the defaults hold, which may be slower.
    let _ = command.args(arguments).envs(variables).exec();
}

//! What a training run takes of memory, before it begins.

use super::TrainConfig;
use crate::arch::ModelConfig;
use crate::error::{Finding, Result};
use crate::output::parse_size;

/// Memory that every run takes, in bytes: the program, decoded rows, a chunk of logits and its gradient.
const FIXED: u64 = 160 << 20;

/// Bytes of a run with all activations, and of one that computes them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Estimate {
    with_all: u64,
    computed_again: u64,
}

impl Estimate {
    /// For a batch of `tokens` tokens and `parameters` trained values. The numbers of values by layer were measured; they
    /// are those of the operations between two layers, with their gradients.
    fn of(config: &TrainConfig, base: &ModelConfig, parameters: usize, tokens: usize) -> Self {
        let (hidden, layers) = (base.hidden_size as u64, base.num_hidden_layers as u64);
        let of_layer = |layer: u64| {
            let linears = base.linears().iter().filter(|linear| linear.site.layer as u64 == layer);
            8 * hidden + linears.map(|linear| linear.d_out as u64 + linear.d_in as u64 / 2).sum::<u64>()
        };
        let widest = (0..layers).map(of_layer).max().unwrap_or(0);
        let all: u64 = (0..layers).map(of_layer).sum();
        let tokens = tokens as u64;
        // Values, gradients and the optimizer's two moments.
        let adapter = parameters as u64 * 16;
        let values: u64 = base.linears().iter().map(|linear| (linear.d_out * linear.d_in) as u64).sum();
        let tables = 2 * (base.vocab_size * base.hidden_size) as u64;
        let held = if config.training.resident { 4 * (values + tables) } else { 0 };
        let fixed = FIXED + adapter + held;
        Self {
            with_all: fixed + 4 * tokens * (all + 2 * widest),
            computed_again: fixed + 4 * tokens * (layers * hidden + 3 * widest),
        }
    }
}

/// Whether activations are computed again: because the settings say so, or because `max_memory` leaves no other way.
///
/// # Errors
/// [`crate::Error::Mismatch`] where `max_memory` doesn't suffice in either way, saying what would; and for one that isn't
/// a size.
pub(super) fn computes_again(
    config: &TrainConfig,
    base: &ModelConfig,
    parameters: usize,
    tokens: usize,
) -> Result<bool> {
    let training = &config.training;
    let Some(text) = &training.max_memory else { return Ok(training.checkpoint_activations) };
    let finding = || Finding::new(&config.file, "training.max_memory");
    let most = parse_size(text)
        .map_err(|expected| finding().expected(expected.trim_start_matches("expected ")).found(text).mismatch())?;
    let estimate = Estimate::of(config, base, parameters, tokens);
    if estimate.computed_again > most {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        return Err(finding()
            .expected(format_args!("at least {}MiB for batches of {tokens} tokens", mib(estimate.computed_again)))
            .found(text)
            .hint("a smaller training.batch_size or data.max_length takes less")
            .mismatch());
    }
    Ok(training.checkpoint_activations || estimate.with_all > most)
}

/// What the system says about the memory of this process, in bytes: `VmRSS`, what it has now, or `VmHWM`, the most that it
/// had.
pub(super) fn of_process(what: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

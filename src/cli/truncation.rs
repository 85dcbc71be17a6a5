//! Prints the errors of truncating to a rank as a table.

use atombank::merge::Truncation;
use atombank::plan::PlannedTensor;

/// Prints a line for each truncated module, and one for each tensor that is saved whole.
pub(crate) fn print_table(modules: &[Truncation], whole: &[PlannedTensor]) {
    let names = modules.iter().map(|of| of.module.as_str()).chain(whole.iter().map(|tensor| tensor.name.as_str()));
    let width = names.map(str::len).max().unwrap_or(0);
    let line = |name: &str, shape: &str, rank: &str, energy: &str, error: &str| {
        println!("{}", format!("{name:<width$}  {shape:<14} {rank:>5}  {energy:>8}  {error:>9}").trim_end());
    };
    line("module", "shape", "rank", "energy", "error");
    for of in modules {
        let (rank, shape) = (of.rank.to_string(), format!("{:?}", of.shape));
        line(&of.module, &shape, &rank, &format!("{:.6}", of.energy), &format!("{:.3e}", of.relative_error));
    }
    for tensor in whole {
        line(&tensor.name, &format!("{:?}", tensor.shape), "whole", "", "");
    }
}

/// Formats energy and error of all modules together, if there are any, for the end of a line.
pub(crate) fn together(found: Option<(f64, f64)>) -> String {
    found.map(|(energy, error)| format!("; energy {energy:.6}, error {error:.3e}")).unwrap_or_default()
}

//! Sizes of models: numbers of elements in all tensors, in experts and in the rest.
//!
//! Reference: llama.cpp `gguf-py/gguf/gguf_writer.py` (`get_total_parameter_count`) and `utility.py`
//! (`size_label`, `model_weight_count_rounded_notation`).

use crate::plan::Plan;

/// Numbers of elements of an output's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TensorTotals {
    /// Elements of all tensors; negative for an adapter, which says little about its model's size.
    pub(crate) total: i128,
    /// Elements of all tensors that aren't stacks of experts.
    pub(crate) shared: i128,
    /// Elements of one expert, over all layers.
    pub(crate) expert: i128,
    /// Experts per layer: the average, rounded down.
    pub(crate) experts: i128,
}

impl TensorTotals {
    /// Counts the tensors of `plan`, which have GGUF's names.
    ///
    /// The two factors of a LoRA count as the weight that they change. If they don't follow each other, nothing is
    /// counted.
    pub(crate) fn of(plan: &Plan) -> Self {
        Self::count(plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())))
    }

    fn count<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Self {
        let mut totals = Self::default();
        let (mut experts, mut stacks) = (0, 0);
        let mut lora_a: Option<(&str, &[usize])> = None;
        for (name, shape) in tensors {
            let mut dims: Vec<i128> = shape.iter().map(|&dim| dim as i128).collect();
            if let Some(stem) = name.strip_suffix(".lora_a") {
                lora_a = Some((stem, shape));
                continue;
            } else if let Some(stem) = name.strip_suffix(".lora_b") {
                let Some((_, inner)) = lora_a.filter(|(other, _)| *other == stem) else { return Self::default() };
                if let (Some(last), Some(&inner)) = (dims.last_mut(), inner.last()) {
                    *last = inner as i128;
                }
            }
            let size: i128 = dims.iter().product();
            // Counted from the end: the dimension of experts comes before rows and columns.
            let from_end = if name.contains(".bias") { 2 } else { 3 };
            let stacked = dims.len().checked_sub(from_end).and_then(|at| dims.get(at)).filter(|&&count| count > 0);
            match stacked {
                Some(count) if name.contains("_exps.") && dims.len() >= 3 => {
                    totals.expert += size / count;
                    experts += count;
                    stacks += 1;
                }
                _ => totals.shared += size,
            }
            totals.total += size;
        }
        totals.experts = if stacks > 0 { experts / stacks } else { 0 };
        if lora_a.is_some() {
            totals.total = -totals.total;
        }
        totals
    }

    /// The size for readers: `1.3M`, `8.0B`, `8x7.3B` with experts; `None` for an adapter and for no tensors.
    pub(super) fn label(&self) -> Option<String> {
        match self {
            Self { total: ..=0, .. } => None,
            Self { shared, expert, experts: 1.., .. } => {
                Some(format!("{}x{}", self.experts, rounded(shared.abs() + expert.abs())))
            }
            Self { total, .. } => Some(rounded(*total)),
        }
    }
}

/// A number of elements, rounded to at least two digits.
fn rounded(elems: i128) -> String {
    let total = elems as f64;
    let (scaled, suffix) = match total {
        t if t > 1e12 => (t * 1e-12, "T"),
        t if t > 1e9 => (t * 1e-9, "B"),
        t if t > 1e6 => (t * 1e-6, "M"),
        t => (t * 1e-3, "K"),
    };
    let digits = match scaled.round_ties_even() as u64 {
        0 => 0,
        n => n.to_string().len(),
    };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        let cases = [
            (1_262_848, "1.3M"),
            (12_600_000, "13M"),
            (8_030_261_248, "8.0B"),
            (494_032_768, "494M"),
            (950, "1.0K"),
            (0, "0.00K"),
        ];
        for (total, expected) in cases {
            assert_eq!(rounded(total), expected);
        }
    }

    #[test]
    fn experts_and_adapters_are_counted_as_upstream_counts_them() {
        let count = |tensors: &[(&str, &[usize])]| TensorTotals::count(tensors.iter().copied());
        let dense = count(&[("a.weight", &[10, 20]), ("b.bias", &[20])]);
        assert_eq!(dense, TensorTotals { total: 220, shared: 220, expert: 0, experts: 0 });
        assert_eq!(dense.label().as_deref(), Some("0.22K"));

        let experts = count(&[
            ("blk.0.ffn_up_exps.weight", &[8, 1000, 200]),
            ("blk.1.ffn_up_exps.weight", &[4, 1000, 200]),
            ("blk.1.ffn_up_exps.bias", &[4, 1000]),
            ("output.weight", &[1000, 1000]),
        ]);
        let expected = TensorTotals { total: 3_404_000, shared: 1_004_000, expert: 400_000, experts: 6 };
        assert_eq!(experts, expected);
        assert_eq!(experts.label().as_deref(), Some("6x1.4M"));

        let lora = count(&[("q.weight.lora_a", &[8, 64]), ("q.weight.lora_b", &[32, 8])]);
        assert_eq!(lora, TensorTotals { total: -2048, shared: 2048, expert: 0, experts: 0 });
        assert_eq!(lora.label(), None);
        let apart = count(&[("q.lora_a", &[8, 64]), ("v.lora_a", &[8, 64]), ("q.lora_b", &[32, 8])]);
        assert_eq!(apart, TensorTotals::default());
        let empty = count(&[("ffn_up_exps.weight", &[0, 2, 2])]);
        assert_eq!(empty, TensorTotals::default());
    }
}

//! Tensors of a base that share a storage, and which of their names stands for it.

use crate::plan::Plan;

/// Which tensors of a plan share a storage.
pub(super) struct SharedNames {
    /// For every tensor, the place of the one that stands for its storage.
    pub(super) main: Vec<usize>,
}

impl SharedNames {
    pub(super) fn of(weights: &Plan) -> Self {
        let first = weights.shared();
        let names: Vec<&str> = weights.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        // A module has parts if there are tensors below its path: those next to its name in alphabetical order.
        let mut sorted = names.clone();
        sorted.sort_unstable();
        let has_parts = |name: &str| {
            let Some((module, _)) = name.rsplit_once('.') else { return true };
            let below = format!("{module}.");
            let start = sorted.partition_point(|other| *other < below.as_str());
            let rest = sorted[start..].iter().map_while(|other| other.strip_prefix(below.as_str()));
            rest.into_iter().any(|rest| rest.contains('.'))
        };
        let mut is_shared = vec![false; first.len()];
        first
            .iter()
            .enumerate()
            .filter(|(place, first)| place != *first)
            .for_each(|(_, first)| is_shared[*first] = true);
        let mut main = first.clone();
        // From the last to the first, so that the first without parts stays.
        for place in (0..first.len()).rev() {
            if is_shared[first[place]] && !has_parts(names[place]) {
                main[first[place]] = place;
            }
        }
        let of_first = main.clone();
        for (place, first) in first.iter().enumerate() {
            main[place] = of_first[*first];
        }
        Self { main }
    }
}

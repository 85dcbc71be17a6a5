//! Tensors that share one storage under several names. A change to one of them is a change to all.

use std::collections::HashMap;

use super::{Expr, Plan};

/// Another name of a tensor that is written once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The name.
    pub name: String,
    /// The name under which the tensor is written.
    pub of: String,
    /// Its place among all names, in their order; [`usize::MAX`] if it isn't known, for a place after all tensors.
    pub at: usize,
}

impl Plan {
    /// For every tensor, the place of the first one that is the same values of the same storage: its own place for
    /// tensors with one name. Only tensors that are taken as they are can share one.
    pub fn shared(&self) -> Vec<usize> {
        let mut first: HashMap<_, usize> = HashMap::new();
        let places = self.tensors.iter().enumerate().map(|(place, tensor)| match tensor.expr.storage() {
            // Tensors without elements have nothing to share.
            Some(_) if tensor.shape.contains(&0) => place,
            Some(storage) => *first.entry((storage, &tensor.shape, tensor.dtype)).or_insert(place),
            None => place,
        });
        places.collect()
    }

    /// The plan with one name for each storage, and the other names. `shared` is what [`Plan::shared`] gives for the
    /// tensors that this plan was made of, in the same order. Names for which `keeps` is true stay.
    ///
    /// Of several names the first in alphabetical order is kept, as by `safetensors.torch.save_model`.
    pub fn with_one_name_each(&self, shared: &[usize], keeps: &dyn Fn(&str) -> bool) -> (Plan, Vec<Alias>) {
        let first = |place: usize| shared.get(place).copied().unwrap_or(place);
        let mut kept: HashMap<usize, usize> = HashMap::new();
        for (place, tensor) in self.tensors.iter().enumerate() {
            let best = kept.entry(first(place)).or_insert(place);
            if tensor.name < self.tensors[*best].name {
                *best = place;
            }
        }
        let (mut plan, mut aliases) = (Plan::default(), Vec::new());
        for (at, tensor) in self.tensors.iter().enumerate() {
            match kept.get(&first(at)) {
                Some(&of) if of != at && !keeps(&tensor.name) => {
                    aliases.push(Alias { name: tensor.name.clone(), of: self.tensors[of].name.clone(), at });
                }
                _ => plan.tensors.push(tensor.clone()),
            }
        }
        (plan, aliases)
    }

    /// The opposite of [`Plan::with_one_name_each`]: a tensor for every name, in the order of all names. `None` if there
    /// is an alias of no tensor, or at a place that there isn't.
    pub fn with_every_name(&self, aliases: &[Alias]) -> Option<Plan> {
        let places: HashMap<&str, usize> =
            self.tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.as_str(), place)).collect();
        let mut aliases: Vec<&Alias> = aliases.iter().collect();
        aliases.sort_by_key(|alias| alias.at);
        let mut tensors = self.tensors.clone();
        for alias in aliases {
            let mut tensor = self.tensors.get(*places.get(alias.of.as_str())?)?.clone();
            tensor.name.clone_from(&alias.name);
            match alias.at {
                usize::MAX => tensors.push(tensor),
                at if at <= tensors.len() => tensors.insert(at, tensor),
                _ => return None,
            }
        }
        Some(Plan { tensors })
    }
}

impl Expr {
    /// The open file and the tensor in it, by its first name, whose bytes these are.
    fn storage(&self) -> Option<(usize, usize)> {
        match self {
            Expr::Take(tensor) => Some(tensor.storage()),
            Expr::Reshape { of, .. } | Expr::Bits { of, .. } => of.storage(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PlannedTensor;
    use super::*;
    use crate::dtype::DType;

    fn plan(names: &[&str]) -> Plan {
        let tensor = |name: &&str| PlannedTensor {
            name: (*name).to_owned(),
            dtype: DType::F32,
            shape: vec![1],
            expr: Expr::Values { shape: vec![1], values: vec![0.0].into() },
        };
        Plan { tensors: names.iter().map(tensor).collect() }
    }

    #[test]
    fn one_name_is_kept_and_every_name_comes_back_in_its_place() {
        let all = plan(&["d", "x", "b", "a", "c", "y"]);
        // d, b and c share one storage, x and a another.
        let (one, aliases) = all.with_one_name_each(&[0, 1, 0, 1, 0, 5], &|_| false);
        let names = |plan: &Plan| plan.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&one), ["b", "a", "y"]);
        let pairs: Vec<_> = aliases.iter().map(|alias| (alias.name.as_str(), alias.of.as_str(), alias.at)).collect();
        assert_eq!(pairs, [("d", "b", 0), ("x", "a", 1), ("c", "b", 4)]);
        assert_eq!(names(&one.with_every_name(&aliases).unwrap()), names(&all));
        let (most, aliases) = all.with_one_name_each(&[0, 1, 0, 1, 0, 5], &|name| name == "d");
        assert_eq!((names(&most).len(), aliases.len()), (4, 2));
        assert_eq!(names(&most.with_every_name(&aliases).unwrap()), names(&all));
        for (of, at) in [("z", 0), ("a", 9)] {
            let alias = Alias { name: "n".into(), of: of.into(), at };
            assert!(one.with_every_name(&[alias]).is_none());
        }
    }
}

//! Checkpoints of the authors' research code, read as dense kernels.
//!
//! | code | tensors of a module | kernel |
//! |---|---|---|
//! | convnet_finetune | `base_layer.weight`, `coeff`, `bases` | the base's plus coefficients times atoms |
//! | DCFNet-Pytorch | `bases`, `weight` | coefficients times atoms |
//! | CL_Atom_Swapping | `coeff_list.N` for all tasks, `bases` of each | one for each task and member |

use std::collections::{BTreeMap, BTreeSet};

use super::size::KernelSize;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The model with dense kernels, and a note on the form that was recognized. `None` for a model without such tensors.
///
/// # Errors
/// [`crate::Error::Mismatch`] for tensors of such a form that don't fit each other.
pub fn dense_kernels(plan: &Plan) -> Result<Option<(Plan, String)>> {
    let names = Names { plan, by_name: plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect() };
    if names.coefficient_list().next().is_some() {
        return names
            .swapped()
            .map(|plan| plan.map(|plan| (plan, note("CL_Atom_Swapping: one kernel for each task and member"))));
    }
    let mut found: BTreeMap<&str, Vec<PlannedTensor>> = BTreeMap::new();
    let (mut used, mut tuned) = (BTreeSet::new(), false);
    for module in names.modules_with(".bases") {
        let part = |name: &str| names.by_name.get(format!("{module}.{name}").as_str()).copied();
        let Some(bases) = part("bases") else { continue };
        let made = match (part("coeff"), part("base_layer.weight"), part("weight")) {
            (Some(coefficients), Some(base), _) => {
                tuned = true;
                used.extend([&coefficients.name, &base.name, &bases.name]);
                let mut made = vec![finetuned(module, base, coefficients, bases)?];
                if let Some(bias) = part("base_layer.bias") {
                    used.insert(&bias.name);
                    made.push(PlannedTensor { name: format!("{module}.bias"), ..bias.clone() });
                }
                made
            }
            (None, None, Some(weight)) => match product(weight, bases) {
                Some(kernel) => {
                    used.extend([&weight.name, &bases.name]);
                    vec![kernel]
                }
                None => continue,
            },
            _ => continue,
        };
        found.insert(&bases.name, made);
    }
    if found.is_empty() {
        return Ok(None);
    }
    let mut tensors = Vec::with_capacity(plan.tensors.len());
    for tensor in &plan.tensors {
        match found.remove(tensor.name.as_str()) {
            Some(made) => tensors.extend(made),
            None if used.contains(&tensor.name) => {}
            None => tensors.push(tensor.clone()),
        }
    }
    let form = if tuned {
        "convnet_finetune: the base's kernels plus coefficients times atoms"
    } else {
        "DCFNet-Pytorch: coefficients times atoms"
    };
    Ok(Some((Plan { tensors }, note(form))))
}

fn note(form: &str) -> String {
    format!("read as a checkpoint of {form}")
}

/// The error for a tensor of another shape than the rest of its module has.
fn misshapen(tensor: &PlannedTensor, expected: impl std::fmt::Display) -> crate::Error {
    let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
    finding.expected(expected).found(show_shape(&tensor.shape)).mismatch()
}

/// Atoms as a matrix, `[M, taps]`, and the height and the width of each.
fn matrix(bases: &PlannedTensor) -> Option<(Expr, [usize; 2])> {
    let (height, width) = match *bases.shape.as_slice() {
        [_, height, width] | [_, 1, height, width] => (height, width),
        _ => return None,
    };
    let shape = vec![bases.shape[0], height * width];
    Some((Expr::Reshape { of: Box::new(bases.expr.clone()), shape }, [height, width]))
}

/// Coefficients as a matrix of a row for each pair of channels, `[R, M]`, and the numbers of channels.
fn rows(coefficients: &PlannedTensor, atoms: usize) -> Option<(Expr, [usize; 2])> {
    let (outputs, inputs) = match *coefficients.shape.as_slice() {
        [outputs, inputs, count] if count == atoms => (outputs, inputs),
        [outputs, several, 1, 1] if atoms > 0 && several.is_multiple_of(atoms) => (outputs, several / atoms),
        _ => return None,
    };
    let shape = vec![outputs * inputs, atoms];
    Some((Expr::Reshape { of: Box::new(coefficients.expr.clone()), shape }, [outputs, inputs]))
}

/// DCFNet's kernel; `None` for tensors that only have the names.
fn product(weight: &PlannedTensor, bases: &PlannedTensor) -> Option<PlannedTensor> {
    let (atoms, [height, width]) = matrix(bases)?;
    let (left, [outputs, inputs]) = rows(weight, bases.shape[0])?;
    let shape = vec![outputs, inputs, height, width];
    let expr = Expr::Reshape { of: Box::new(Expr::product(left, atoms)), shape: shape.clone() };
    Some(PlannedTensor { name: weight.name.clone(), dtype: weight.dtype, shape, expr })
}

/// convnet_finetune's kernel: the base's plus coefficients times atoms. An atom can be a block of `p` outputs and `q`
/// inputs, whose values are in the order output, height, input, width.
fn finetuned(
    module: &str,
    base: &PlannedTensor,
    coefficients: &PlannedTensor,
    bases: &PlannedTensor,
) -> Result<PlannedTensor> {
    let size = KernelSize::of_weight(&base.shape).filter(|size| size.dims == 2);
    let size = size.ok_or_else(|| misshapen(base, "the weight of a convolution of two dimensions"))?;
    let [outputs, inputs] = [base.shape[0], base.shape[1]];
    let [blocks_out, blocks_in, count] = *coefficients.shape.as_slice() else {
        return Err(misshapen(coefficients, "three dimensions: outputs, inputs, atoms"));
    };
    let divides = |blocks: usize, channels: usize| blocks > 0 && channels.is_multiple_of(blocks);
    if !divides(blocks_out, outputs) || !divides(blocks_in, inputs) {
        return Err(misshapen(coefficients, format_args!("divisors of {outputs} outputs and {inputs} inputs")));
    }
    let (p, q) = (outputs / blocks_out, inputs / blocks_in);
    let taps = p * size.height * q * size.width;
    let atoms = matrix(bases).filter(|(_, [height, width])| bases.shape[0] == count && height * width == taps);
    let Some((atoms, _)) = atoms else {
        return Err(misshapen(bases, format_args!("{count} atoms of {} x {} taps", p * size.height, q * size.width)));
    };
    let left = Expr::Reshape { of: Box::new(coefficients.expr.clone()), shape: vec![blocks_out * blocks_in, count] };
    let blocks = Expr::product(left, atoms);
    let delta = match (p, q) {
        (1, 1) => Expr::Reshape { of: Box::new(blocks), shape: base.shape.clone() },
        _ => {
            // Lines of taps: block of outputs, block of inputs, output, height, input.
            let (height, lines) = (size.height, blocks_out * blocks_in * p * size.height * q);
            let lines = Expr::Reshape { of: Box::new(blocks), shape: vec![lines, size.width] };
            let ranges =
                (0..outputs).flat_map(move |o| (0..inputs).flat_map(move |i| (0..height).map(move |h| (o, i, h))));
            let place = move |(o, i, h): (usize, usize, usize)| {
                let block = o / p * blocks_in + i / q;
                ((((block * p + o % p) * height + h) * q) + i % q, 1)
            };
            Expr::picked(lines, ranges.map(place), base.shape.clone())
        }
    };
    let expr = Expr::Add { of: Box::new(base.expr.clone()), delta: Box::new(delta) };
    Ok(PlannedTensor { name: format!("{module}.weight"), dtype: base.dtype, shape: base.shape.clone(), expr })
}

/// The tensors of a checkpoint by name.
struct Names<'a> {
    plan: &'a Plan,
    by_name: BTreeMap<&'a str, &'a PlannedTensor>,
}

impl<'a> Names<'a> {
    fn modules_with(&self, end: &str) -> Vec<&'a str> {
        let mut modules: Vec<&str> = self.by_name.keys().filter_map(|name| name.strip_suffix(end)).collect();
        modules.sort_by_key(|module| counted(module));
        modules
    }

    /// The coefficients that all tasks share, in order.
    fn coefficient_list(&self) -> impl Iterator<Item = &'a PlannedTensor> {
        (0..).map_while(|number| self.by_name.get(format!("coeff_list.{number}").as_str()).copied())
    }

    /// The kernels of all tasks: the modules of a branch that have atoms use the shared coefficients in order.
    fn swapped(&self) -> Result<Option<Plan>> {
        let coefficients: Vec<&PlannedTensor> = self.coefficient_list().collect();
        let mut branches: BTreeMap<Vec<Part<'a>>, usize> = BTreeMap::new();
        let mut made: BTreeMap<String, Vec<PlannedTensor>> = BTreeMap::new();
        for module in self.modules_with(".bases") {
            let bases = self.by_name[format!("{module}.bases").as_str()];
            let &[members, count, height, width] = bases.shape.as_slice() else { continue };
            // A branch is `branch_list.0`: everything up to the first number.
            let parts = counted(module);
            let end = parts.iter().position(|part| matches!(part, Part::Number(_))).map_or(0, |place| place + 1);
            let next = branches.entry(parts[..end].to_vec()).or_default();
            let finding = || Finding::new(bases.expr.source_path(), format!("tensor {:?}", bases.name));
            let Some(shared) = coefficients.get(*next) else {
                let expected = format!(
                    "at most {} modules with atoms in a branch, one for each of coeff_list",
                    coefficients.len()
                );
                return Err(finding().expected(expected).found("more").mismatch());
            };
            *next += 1;
            let Some((left, [outputs, inputs])) = rows(shared, count) else {
                return Err(misshapen(shared, format_args!("[outputs, {count} inputs, 1, 1] by {:?}", bases.name)));
            };
            let kernels = (0..members).map(|member| {
                let own = Expr::slice(
                    bases.expr.clone(),
                    member * count * height,
                    count * height,
                    vec![count * height, width],
                );
                let atoms = Expr::Reshape { of: Box::new(own), shape: vec![count, height * width] };
                let shape = vec![outputs, inputs, height, width];
                let expr = Expr::Reshape { of: Box::new(Expr::product(left.clone(), atoms)), shape: shape.clone() };
                let name = if members == 1 { format!("{module}.weight") } else { format!("{module}.{member}.weight") };
                PlannedTensor { name, dtype: bases.dtype, shape, expr }
            });
            made.insert(bases.name.clone(), kernels.collect());
        }
        if made.is_empty() {
            return Ok(None);
        }
        let mut tensors = Vec::new();
        for tensor in &self.plan.tensors {
            match made.remove(&tensor.name) {
                Some(kernels) => tensors.extend(kernels),
                None if tensor.name.starts_with("coeff_list.") => {}
                None => tensors.push(tensor.clone()),
            }
        }
        Ok(Some(Plan { tensors }))
    }
}

/// A part of a module's path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Number(usize),
    Text(&'a str),
}

/// A module's path in parts, of which numbers are in their order: `10` comes behind `9`.
fn counted(module: &str) -> Vec<Part<'_>> {
    module.split('.').map(|part| part.parse().map_or(Part::Text(part), Part::Number)).collect()
}

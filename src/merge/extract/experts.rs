//! Experts: a layer's experts are matrices of one parameter in the class, however the checkpoint stores them, and get
//! factors of one rank (PEFT's `target_parameters`).

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::{ExtractOptions, at_a_time, factors};
use crate::adapter::peft::{Base, ExpertParameter, ParameterUpdate};
use crate::arch::Naming;
use crate::arch::names::in_order;
use crate::error::Result;
use crate::merge::Truncation;
use crate::plan::{Expr, Pick, PlannedTensor, TensorRef};

/// A parameter with experts in both models.
#[derive(Debug)]
pub struct Experts {
    /// The path of its module in the class.
    pub module: String,
    /// Its name in the module.
    pub parameter: &'static str,
    /// The matrices of the finetuned model.
    pub of: Vec<PlannedTensor>,
    /// The base's.
    pub less: Vec<PlannedTensor>,
    /// Whether rows are inputs.
    pub transposed: bool,
    /// The base's tensors that it consists of.
    pub(super) names: Vec<String>,
}

impl Experts {
    /// The parameters of the tensors with these names, where the class has experts so.
    pub(super) fn all<'n>(base: &Base, finetuned: &Base, names: impl Iterator<Item = &'n str>) -> Vec<Self> {
        let naming = Naming::of(base.config());
        let modules: BTreeSet<String> = names.filter_map(module).collect();
        let mut all = Vec::new();
        for module in in_order(modules.iter().map(String::as_str)) {
            let of_other = ExpertParameter::all(finetuned, module);
            for less in ExpertParameter::all(base, module) {
                let names: Vec<String> = less.tensors().into_iter().map(|tensor| tensor.name.clone()).collect();
                let other = of_other.iter().find(|other| other.name == less.name && other.shape == less.shape);
                let Some(of) = other.filter(|_| names.iter().all(|name| naming.fuses_experts(name))) else { continue };
                let matrices = |of: &ExpertParameter| (0..of.shape[0]).map(|expert| of.matrix(expert)).collect();
                all.push(Self {
                    module: module.to_owned(),
                    parameter: less.name,
                    of: matrices(of),
                    less: matrices(&less),
                    transposed: less.transposed,
                    names,
                });
            }
        }
        all
    }

    /// The parameter's path.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.module, self.parameter)
    }

    /// The update of all experts and its errors together; `None` if nothing changed. Every expert gets the largest
    /// rank: PEFT has one for all.
    pub(super) fn update(&self, options: &ExtractOptions) -> Result<Option<(Truncation, ParameterUpdate)>> {
        let options = ExtractOptions { energy: None, ..*options };
        let rank = options.rank;
        let numbers: Vec<usize> = (0..self.of.len()).collect();
        let (mut truncations, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
        let one = |expert: &usize| self.one(*expert, &options);
        for numbers in numbers.chunks(at_a_time(&self.of, &options)) {
            for made in numbers.par_iter().map(one).collect::<Result<Vec<_>>>()? {
                truncations.extend(made.0);
                a.push(made.1);
                b.push(made.2);
            }
        }
        let Some((energy, relative_error)) = Truncation::together(&truncations) else { return Ok(None) };
        let [rows, cols] = [self.of[0].rows(), self.of[0].row_len()];
        let experts = self.of.len();
        let (d_out, d_in) = if self.transposed { (cols, rows) } else { (rows, cols) };
        let order = (0..rank).flat_map(|k| (0..experts).map(move |of| Pick { of, start: k, len: 1 })).collect();
        let truncation = Truncation {
            module: self.path(),
            shape: vec![experts, rows, cols],
            rank,
            energy,
            relative_error,
            norm_sqr: truncations.iter().map(|one| one.norm_sqr).sum(),
        };
        let update = ParameterUpdate {
            module: self.module.clone(),
            parameter: self.parameter,
            a: Expr::concat(a, vec![experts * rank, d_in]),
            b: Expr::Transpose(Box::new(Expr::Rows { shape: vec![experts * rank, d_out], of: b, picks: order })),
            rank,
        };
        Ok(Some((truncation, update)))
    }

    /// What one expert's update loses, its factor A, and B's transpose; zeros where it didn't change.
    fn one(&self, expert: usize, options: &ExtractOptions) -> Result<(Option<Truncation>, Expr, Expr)> {
        let (of, less, rank) = (&self.of[expert], &self.less[expert], options.rank);
        let (rows, cols) = (of.rows(), of.row_len());
        let found = factors(&self.path(), of, less, options)?.made();
        let (truncation, left, right) = found.map_or((None, Vec::new(), Vec::new()), |(t, l, r)| (Some(t), l, r));
        // Of the left factor, its transpose: runs of one value of each row.
        let own = truncation.as_ref().map_or(0, |truncation| truncation.rank);
        let mut left = super::transposed(&left, own);
        left.resize(rank * rows, 0.0);
        let mut right = right;
        right.resize(rank * cols, 0.0);
        let aside = |row_len: usize, values: &[f32]| TensorRef::spill(vec![rank, row_len], values).map(Expr::Take);
        let (left, right) = (aside(rows, &left)?, aside(cols, &right)?);
        Ok(if self.transposed { (truncation, left, right) } else { (truncation, right, left) })
    }
}

/// The module of an expert's tensor in transformers' classes.
fn module(name: &str) -> Option<String> {
    let end = name.find(".experts.")? + ".experts".len();
    Some(name[..end].replace(".block_sparse_moe.", ".mlp."))
}

//! Combining several LoRAs into one, with the methods of PEFT's `add_weighted_adapter`.
//!
//! The result has scale 1: PEFT gives its new adapter alpha = r. (Where the first adapter has
//! `use_rslora`, PEFT 0.21.2 keeps that flag and so multiplies what it has just made by sqrt(r); that is not
//! repeated here.)
//!
//! Values are f32 and every step is done as torch does it, so that factors agree to the last bit or nearly so.
//! Adapters saved in bf16 have many values of equal magnitude. Which of them pruning keeps is torch.topk's choice
//! here too, for tensors up to the size that [`super::topk`] documents.
//!
//! Reference: huggingface/peft `src/peft/tuners/lora/model.py` (`add_weighted_adapter`),
//! `src/peft/utils/merge_utils.py`, 0.21.2.

use std::collections::HashMap;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use super::election::{add_up, add_up_elected};
use super::lazy::{Combined, Measure, Pending};
use super::modules::Prelude;
use super::options::{CombineOptions, MajoritySign, by_name};
use super::sparsity::{Choice, Draws, Rescale, SparsityMask, sign};
use super::statistics::elems;
use super::svd;
use crate::adapter::peft::LowRank;
use crate::arch::names::in_order;
use crate::error::{Error, Finding, Result};
use crate::linalg::Stream;
use crate::plan::{Expr, Pick, RowMap};
use crate::source::{rows, show_shape};

/// A method that combines several LoRAs into one, by PEFT's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraMethod {
    /// Sums A and B separately, each weighted by the square root of its weight. This is not the sum of the updates.
    Linear,
    /// Concatenates the factors: the exact sum of the updates, of the summed rank.
    Cat,
    /// The sum of the updates, truncated to a rank.
    Svd,
    /// One of the pruning methods. With the flag whole updates are combined and truncated to a rank, without it
    /// the factors are combined.
    Pruned(Pruning, bool),
}

/// How updates are pruned before they are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    /// Keeps the largest values, then of these the ones that have the elected sign.
    Ties,
    /// Keeps random values.
    DareLinear,
    /// Keeps random values, then of these the ones that have the elected sign.
    DareTies,
    /// Keeps the largest values.
    MagnitudePrune,
}

const METHODS: &[(&str, LoraMethod)] = &[
    ("linear", LoraMethod::Linear),
    ("cat", LoraMethod::Cat),
    ("svd", LoraMethod::Svd),
    ("ties", LoraMethod::Pruned(Pruning::Ties, false)),
    ("ties_svd", LoraMethod::Pruned(Pruning::Ties, true)),
    ("dare_linear", LoraMethod::Pruned(Pruning::DareLinear, false)),
    ("dare_linear_svd", LoraMethod::Pruned(Pruning::DareLinear, true)),
    ("dare_ties", LoraMethod::Pruned(Pruning::DareTies, false)),
    ("dare_ties_svd", LoraMethod::Pruned(Pruning::DareTies, true)),
    ("magnitude_prune", LoraMethod::Pruned(Pruning::MagnitudePrune, false)),
    ("magnitude_prune_svd", LoraMethod::Pruned(Pruning::MagnitudePrune, true)),
];

impl LoraMethod {
    /// Every method's name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        METHODS.iter().map(|(name, _)| *name)
    }

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }

    /// Whether the factors themselves are summed, which requires one rank for all.
    fn sums_factors(self) -> bool {
        matches!(self, LoraMethod::Linear | LoraMethod::Pruned(_, false))
    }
}

impl FromStr for LoraMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name(METHODS, name)
    }
}

impl Pruning {
    fn choice(self, density: f64, draws: Draws) -> (Choice, Rescale) {
        match self {
            Pruning::Ties | Pruning::MagnitudePrune => (Choice::Topk { density }, Rescale::No),
            Pruning::DareLinear | Pruning::DareTies => (Choice::Random { density, draws }, Rescale::Density),
        }
    }

    fn elects(self) -> bool {
        matches!(self, Pruning::Ties | Pruning::DareTies)
    }

    fn draws(self) -> bool {
        matches!(self, Pruning::DareLinear | Pruning::DareTies)
    }
}

/// The updates of one module in every adapter that has one, with the adapters' weights and densities.
struct ModuleUpdates<'a> {
    name: &'a str,
    updates: Vec<&'a LowRank>,
    weights: Vec<f64>,
    densities: Vec<f64>,
}

/// Combines several LoRAs into one. `loras` has the updates of each adapter by module; for methods that draw random
/// numbers they must come in the model's order. A module that only some adapters change is combined from these. A
/// single adapter is combined by `linear`, as in PEFT.
///
/// # Errors
/// [`Error::Mismatch`] for updates of different shapes, for ranks that differ where factors are summed, for
/// weights or densities that aren't as many as adapters.
pub fn combine_loras(
    adapters: &[Vec<(String, LowRank)>],
    method: LoraMethod,
    options: &CombineOptions,
) -> Result<Combined<Vec<(String, LowRank)>>> {
    options.weights.check(adapters.len(), adapters.iter().flatten().map(|(name, _)| name.as_str()))?;
    let method = if adapters.len() == 1 && options.rank.is_none() { LoraMethod::Linear } else { method };
    let densities = options.densities(adapters.len())?;
    if matches!(method, LoraMethod::Pruned(..)) && densities.is_none() {
        let finding = Finding::new("", "density").expected(format_args!("a share from 0 to 1 for {}", method.name()));
        return Err(finding.found("none").setting());
    }
    let densities = densities.unwrap_or_else(|| vec![1.0; adapters.len()]);
    let modules = parts(adapters, &densities, options)?;
    let ranks: Vec<usize> = adapters.iter().map(|a| a.iter().map(|(_, u)| rank(u)).max().unwrap_or(0)).collect();
    let largest = ranks.iter().max().copied().unwrap_or(0);
    if let Some(rank) = options.rank {
        check_rank(rank, &modules)?;
    }
    let new_rank = match method {
        LoraMethod::Cat => ranks.iter().sum(),
        LoraMethod::Linear | LoraMethod::Pruned(_, false) => largest,
        LoraMethod::Svd | LoraMethod::Pruned(_, true) => options.rank.unwrap_or(largest),
    };
    let mut draws = DrawsOf::new(method, options.seed, &modules, new_rank);
    let mut pending = Pending::default();
    let mut combined = Vec::with_capacity(modules.len());
    let mut cuts = Vec::new();
    for parts in &modules {
        let mut cut = None;
        let mut keep = |(update, made)| {
            cut = Some(made);
            update
        };
        let mut update = match method {
            LoraMethod::Cat => parts.side_by_side(new_rank)?,
            LoraMethod::Linear => parts.factors(None, options, &mut draws, &mut pending)?,
            LoraMethod::Pruned(pruning, false) => parts.factors(Some(pruning), options, &mut draws, &mut pending)?,
            LoraMethod::Svd => keep(svd::cut(&parts.side_by_side(0)?, new_rank, &mut pending)),
            LoraMethod::Pruned(pruning, true) => {
                let (of, blend) = parts.whole(pruning, options, &mut draws)?;
                let like = parts.side_by_side(0)?;
                let delta = pending.map(of, blend);
                keep(svd::cut_whole(delta, &like, new_rank, &mut pending))
            }
        };
        if let (Some(rank), true) = (options.rank, matches!(method, LoraMethod::Cat) || method.sums_factors()) {
            update = keep(svd::cut(&update, rank, &mut pending));
        }
        cuts.extend(cut.map(|cut| (parts.name.to_owned(), cut)));
        combined.push((parts.name.to_owned(), update));
    }
    Ok(Combined::new(combined, pending).with_cuts(cuts))
}

/// Refuses a rank beyond the smaller dimension of every module: no update has it, and factors of it would be filled
/// up with zeros at any size.
fn check_rank(rank: usize, modules: &[ModuleUpdates]) -> Result<()> {
    let smaller_dimension = |update: &&LowRank| update.a.shape()[1].min(update.b.shape()[0]);
    let highest = modules.iter().flat_map(|module| &module.updates).map(smaller_dimension).max().unwrap_or(0);
    match (1..=highest).contains(&rank) {
        true => Ok(()),
        false => Err(Finding::new("rank", "")
            .expected(format_args!("1 to {highest}, the highest rank that an update of these modules can have"))
            .found(rank)
            .mismatch()),
    }
}

/// The rank of an update by its factors.
fn rank(update: &LowRank) -> usize {
    rows(&update.a.shape())
}

/// The updates of each module, in the model's order.
fn parts<'a>(
    adapters: &'a [Vec<(String, LowRank)>],
    densities: &[f64],
    options: &CombineOptions,
) -> Result<Vec<ModuleUpdates<'a>>> {
    let names = in_order(adapters.iter().flatten().map(|(name, _)| name.as_str()));
    let mut lookups: Vec<HashMap<&str, Vec<&LowRank>>> = vec![HashMap::new(); adapters.len()];
    for (lookup, adapter) in lookups.iter_mut().zip(adapters) {
        adapter.iter().for_each(|(name, update)| lookup.entry(name).or_default().push(update));
    }
    let mut modules: Vec<ModuleUpdates> = Vec::with_capacity(names.len());
    for name in names {
        let weights = options.weights.of(name);
        let mut parts = ModuleUpdates { name, updates: Vec::new(), weights: Vec::new(), densities: Vec::new() };
        for (i, lookup) in lookups.iter().enumerate() {
            let found = lookup.get(name).map(Vec::as_slice).unwrap_or_default();
            let &[update] = found else {
                let Some(update) = found.first() else { continue };
                return Err(parts.finding(update).expected("one update for it").found("several").unsupported());
            };
            update.check_numbers(|| parts.finding(update))?;
            if let Some(first) = parts.updates.first() {
                let shape = |u: &LowRank| (u.b.shape()[0], u.a.shape()[1], u.layout);
                if shape(first) != shape(update) {
                    let finding = parts.finding(update).expected(format_args!(
                        "{} and {}, as in {}",
                        show_shape(&first.a.shape()),
                        show_shape(&first.b.shape()),
                        first.a.source_path().display()
                    ));
                    let found = format!("{} and {}", show_shape(&update.a.shape()), show_shape(&update.b.shape()));
                    return Err(finding.found(found).mismatch());
                }
            }
            parts.updates.push(update);
            parts.weights.push(weights[i]);
            parts.densities.push(densities[i]);
        }
        modules.push(parts);
    }
    Ok(modules)
}

impl ModuleUpdates<'_> {
    fn finding(&self, update: &LowRank) -> Finding {
        Finding::new(update.a.source_path(), format!("tensor {:?}", self.name))
    }

    /// An update with these factors for the same module.
    fn update(&self, a: Expr, b: Expr) -> LowRank {
        LowRank { scale: 1.0, alpha: None, a, b, ..self.updates[0].clone() }
    }

    /// The exact sum: A scaled and stacked, B concatenated, padded with zeros to `rank` as PEFT does for modules
    /// that only some adapters have.
    fn side_by_side(&self, rank: usize) -> Result<LowRank> {
        let mut a = Vec::new();
        let mut b = Vec::new();
        for (update, weight) in self.updates.iter().zip(&self.weights) {
            // Two multiplications with a rounding each, as torch does it.
            let weighted = Expr::Scale { of: Box::new(update.a.clone()), factor: *weight };
            a.push(Expr::Scale { of: Box::new(weighted), factor: update.scale });
            b.push(update.b.clone());
        }
        let total: usize = a.iter().map(|a| rows(&a.shape())).sum();
        let (d_in, d_out) = (self.updates[0].a.shape()[1], self.updates[0].b.shape()[0]);
        if total < rank {
            a.push(zeros(vec![rank - total, d_in]));
            b.push(zeros(vec![d_out, rank - total]));
        }
        let rank = rank.max(total);
        Ok(self.update(Expr::concat(a, vec![rank, d_in]), beside(b, d_out, rank)))
    }

    /// Combines factors with factors.
    fn factors(
        &self,
        pruning: Option<Pruning>,
        options: &CombineOptions,
        draws: &mut DrawsOf,
        pending: &mut Pending,
    ) -> Result<LowRank> {
        let first = rank(self.updates[0]);
        if let Some(other) = self.updates.iter().find(|u| rank(u) != first) {
            let finding = self.finding(other).expected(format_args!("rank {first}, that of the first adapter"));
            let hint = "cat and the kinds that end in svd combine different ranks";
            return Err(finding.found(format_args!("rank {}", rank(other))).hint(hint).mismatch());
        }
        let by_weight = |scaled: f64| scaled.abs().sqrt();
        let scaled: Vec<f64> = self.updates.iter().zip(&self.weights).map(|(u, w)| w * u.scale).collect();
        // The sign of a weight goes to one factor only: on both it would cancel.
        let of_a: Vec<f32> =
            scaled.iter().map(|w| (by_weight(*w) * if *w < 0.0 { -1.0 } else { 1.0 }) as f32).collect();
        let of_b: Vec<f32> = scaled.iter().map(|w| by_weight(*w) as f32).collect();
        let mut blend = |of: Vec<Expr>, weights: Vec<f32>| {
            let blend = Blend::new(&of, weights, &self.densities, pruning, options, draws);
            if pruning.is_none() {
                // This method needs no numbers from whole tensors.
                return Ok::<_, crate::Error>(Expr::Map { map: blend.measure(&of)?, of });
            }
            Ok(pending.map(of, blend))
        };
        let a = blend(self.updates.iter().map(|u| u.a.clone()).collect(), of_a)?;
        let b = blend(self.updates.iter().map(|u| u.b.clone()).collect(), of_b)?;
        Ok(self.update(a, b))
    }

    /// The whole updates, and how they are combined.
    fn whole(&self, pruning: Pruning, options: &CombineOptions, draws: &mut DrawsOf) -> Result<(Vec<Expr>, Blend)> {
        // PEFT rounds to the base's type when it merges, not here.
        let exact = |update: &&LowRank| LowRank { rounded: None, ..(*update).clone() }.delta();
        let of: Vec<Expr> = self.updates.iter().map(exact).collect();
        let weights = self.weights.iter().map(|w| *w as f32).collect();
        let blend = Blend::new(&of, weights, &self.densities, Some(pruning), options, draws);
        Ok((of, blend))
    }
}

/// The random draws of a whole combination, handed out tensor by tensor.
struct DrawsOf {
    stream: Arc<Stream>,
    position: u64,
}

impl DrawsOf {
    fn new(method: LoraMethod, seed: u64, modules: &[ModuleUpdates], new_rank: usize) -> Self {
        let LoraMethod::Pruned(pruning, whole) = method else {
            return Self { stream: Arc::new(Stream::new(seed, 0)), position: 0 };
        };
        if !pruning.draws() {
            return Self { stream: Arc::new(Stream::new(seed, 0)), position: 0 };
        }
        let mut prelude = Prelude::default();
        let mut total = 0;
        for parts in modules {
            let update = parts.updates[0];
            let (d_in, d_out) = (update.a.shape()[1] as u64, update.b.shape()[0] as u64);
            prelude.add(d_in, d_out, new_rank as u64, update.layout);
            for update in &parts.updates {
                total += if whole { d_in * d_out } else { elems(&update.a) + elems(&update.b) };
            }
        }
        Self { stream: Arc::new(Stream::new(seed, prelude.words() + total)), position: prelude.words() }
    }

    fn take(&mut self, count: u64) -> Draws {
        let draws = Draws { stream: self.stream.clone(), position: self.position };
        self.position += count;
        draws
    }
}

/// One tensor that is combined from one tensor of each adapter.
#[derive(Debug)]
struct Blend {
    weights: Vec<f32>,
    choices: Vec<(Choice, Rescale)>,
    elects: Option<MajoritySign>,
}

impl Blend {
    fn new(
        of: &[Expr],
        weights: Vec<f32>,
        densities: &[f64],
        pruning: Option<Pruning>,
        options: &CombineOptions,
        draws: &mut DrawsOf,
    ) -> Self {
        let choice = |(of, density): (&Expr, &f64)| match pruning {
            Some(pruning) => {
                let draw = pruning.draws() && *density < 1.0;
                pruning.choice(*density, draws.take(if draw { elems(of) } else { 0 }))
            }
            None => (Choice::All, Rescale::No),
        };
        let choices = of.iter().zip(densities).map(choice).collect();
        Self { weights, choices, elects: pruning.filter(|p| p.elects()).map(|_| options.majority_sign) }
    }
}

impl Measure for Blend {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let sieves = of.iter().zip(&self.choices).map(|(of, (choice, rescale))| SparsityMask::of(of, choice, *rescale));
        Ok(Arc::new(Blended {
            weights: self.weights.clone(),
            sieves: sieves.collect::<Result<_>>()?,
            elects: self.elects,
        }))
    }
}

#[derive(Debug)]
struct Blended {
    weights: Vec<f32>,
    sieves: Vec<SparsityMask>,
    elects: Option<MajoritySign>,
}

impl RowMap for Blended {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let start = (rows.start * row_len) as u64;
        let mut tasks = vec![out.to_vec()];
        tasks.extend(others.iter().cloned());
        for (sieve, task) in self.sieves.iter().zip(&mut tasks) {
            sieve.walk(start).apply(row_len, task);
        }
        let Some(elects) = self.elects else {
            tasks.iter_mut().zip(&self.weights).for_each(|(task, weight)| task.iter_mut().for_each(|v| *v *= weight));
            return add_up(&tasks, out);
        };
        let mut elected = vec![0.0; out.len()];
        match elects {
            MajoritySign::Total => add_up(&tasks, &mut elected),
            MajoritySign::Frequency => {
                let signs: Vec<Vec<f32>> = tasks.iter().map(|task| task.iter().map(|v| sign(*v)).collect()).collect();
                add_up(&signs, &mut elected);
            }
        }
        let (ones, mut counts) = (vec![1.0; tasks.len()], vec![0.0f32; out.len()]);
        add_up_elected(&tasks, &self.weights, &ones, &elected, out, &mut counts);
        out.iter_mut().zip(&counts).for_each(|(sum, count)| *sum /= count.max(1.0));
    }
}

fn zeros(shape: Vec<usize>) -> Expr {
    let elems = shape.iter().product();
    Expr::Values { shape, values: vec![0.0; elems].into() }
}

/// Concatenates matrices of `height` rows along their columns, `width` columns in total. The rows are cut into
/// pieces whose length divides the width of every matrix, and the pieces are put in order, so nothing is transposed.
fn beside(of: Vec<Expr>, height: usize, width: usize) -> Expr {
    let widths: Vec<usize> = of.iter().map(|e| e.shape()[1]).collect();
    let piece = widths.iter().copied().fold(0, gcd).max(1);
    let mut picks = Vec::with_capacity(height * of.len());
    for row in 0..height {
        for (of, width) in widths.iter().enumerate() {
            picks.push(Pick { of, start: row * (width / piece), len: width / piece });
        }
    }
    let cut = |e: Expr| {
        let shape = vec![e.shape().iter().product::<usize>() / piece, piece];
        Expr::Reshape { of: Box::new(e), shape }
    };
    let of = of.into_iter().map(cut).collect();
    let pieces = Expr::Rows { shape: vec![height * width / piece, piece], of, picks: picks.into() };
    Expr::Reshape { of: Box::new(pieces), shape: vec![height, width] }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;

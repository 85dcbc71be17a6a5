//! Gives a model another model's vocabulary: rows of tokens that both have are kept, those of the others are approximated
//! from rows that both have.
//!
//! Reference: mergekit 0.1.5 `mergekit/scripts/tokensurgeon.py` and `mergekit/tokensurgeon/`. Computed in f32 or better,
//! where mergekit computes in the models' type.

mod combination;
mod drawn;
mod matches;
mod nearest;
mod points;
mod pursuit;
mod rope;
mod trained;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use combination::Combinations;
use drawn::Spread;
pub use matches::Matching;
use points::Points;
use rope::Rotation;

use crate::adapter::peft::Base;
use crate::arch::vocabulary::put_vocab_size;
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::merge::vocabulary::mean_row;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::tokenizer::{ComparableToken, EditedTokenizer, comparable};

/// How the rows of tokens that only the other model has are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approximation {
    /// Orthogonal matching pursuit: the row as a combination of shared rows, which are chosen one after the other.
    Omp,
    /// The nearest shared rows, weighted.
    CommonInterpolation(Distance, Weighting),
    /// The rows of the tokens into which the model's own tokenizer splits the text.
    Subword(Subwords),
    /// The mean of all rows.
    Mean,
    /// Zeros.
    Zero,
    /// Standard normal numbers.
    Randn,
    /// Normal numbers with the mean and the covariance of all rows.
    JohnHewitt,
    /// Matching pursuit, with shared rows that are turned as if they stood at other positions.
    MpRope,
}

/// The distance of two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// The length of the difference.
    Euclidean,
    /// One minus the cosine of the angle.
    Cosine,
}

/// The weights of the nearest rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// One by the distance; of cosines, the cosine.
    DistanceProportional,
    /// Those with the sum of 1 that come nearest.
    Barycentric,
    /// Those that come nearest.
    LeastSquares,
}

/// How the rows of a token's parts make its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subwords {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
    /// Their mean with weights: the first part counts most in embeddings, the last in the output head, as in mergekit.
    WeightedMean,
    /// The last part's in embeddings, the first part's in the output head.
    FirstLast,
}

/// Settings of [`transplant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurgeonSettings {
    /// How rows are made.
    pub approximation: Approximation,
    /// How many shared rows a row is made of.
    pub k: usize,
    /// The tensors in which a byte's row is that of its character, and the other way round.
    pub byte_match: Matching,
    /// The tensors in which a token has the row of the longest of the model's tokens with which it begins.
    pub prefix_match: Matching,
    /// Whether tokens that weren't trained in both models count as tokens of none, and those that were trained in neither
    /// get zeros.
    pub magikarp: bool,
    /// The seed of random numbers.
    pub seed: u64,
    /// The most memory that the computation takes, in bytes, besides the result's weights of rows.
    pub max_memory_bytes: u64,
}

/// A model with another vocabulary.
#[derive(Debug)]
pub struct Transplanted {
    /// Its tensors.
    pub plan: Plan,
    /// What became of the tokens.
    pub counts: TokenCounts,
}

/// What became of the tokens of the new vocabulary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens whose rows are the model's own.
    pub kept: usize,
    /// Tokens whose rows are approximated.
    pub approximated: usize,
    /// Ids without a token, or for whose token the donor has no row: zeros.
    pub zero: usize,
}

/// Fields of config.json that go with the vocabulary.
pub(crate) const TOKEN_IDS: [&str; 5] =
    ["bos_token_id", "eos_token_id", "mask_token_id", "pad_token_id", "unk_token_id"];

/// The tokens of both models, by row.
struct Tokens {
    model: HashMap<ComparableToken, usize>,
    donor: Vec<(ComparableToken, usize)>,
    /// The number of rows that the result gets.
    rows: usize,
    /// The ids of the donor's tokens that were trained in neither model.
    junk: HashSet<usize>,
    tokenizer: EditedTokenizer,
}

/// `model` with the vocabulary of `donor`; `model`'s config.json is changed accordingly. With `dry`, no values are read,
/// and the rows of tokens that only the donor has aren't computed. `done` is called with the number of rows that are made
/// and of those that will be.
///
/// # Errors
/// [`crate::Error::Mismatch`] for models without embeddings, tokenizers or shared tokens;
/// [`crate::Error::Setting`] for a `k` that is too large; errors of reading.
pub fn transplant(
    model: &mut Checkpoint,
    donor: &Checkpoint,
    settings: &SurgeonSettings,
    dry: bool,
    done: &(dyn Fn(u64, u64) + Sync),
) -> Result<Transplanted> {
    let mut tokens = tokens(model, donor)?;
    let mut plan = model.rounded().clone();
    let (base, of_donor) = (Base::of(model), Base::of(donor));
    let (own, theirs) = (matrix(&base, base.embeddings())?, matrix(&of_donor, of_donor.embeddings())?);
    if settings.magikarp && !dry {
        let own_head = base.head().filter(|_| base.tied_head().is_none());
        tokens.keep_trained((own, own_head), (theirs, of_donor.head().or(Some(theirs))))?;
    }
    let rotations = match settings.approximation {
        Approximation::MpRope => Some([Rotation::of(model, own.row_len())?, Rotation::of(donor, theirs.row_len())?]),
        _ => None,
    };
    let work = Work { tokens: &tokens, settings, dry, done, rotations, drawn: Cell::new(0) };
    let (embeddings, counts) = work.tensor(own, theirs, false)?;
    let mut changed = vec![embeddings];
    if let Some(head) = base.head().filter(|_| base.tied_head().is_none()) {
        let theirs = matrix(&of_donor, of_donor.head())?;
        changed.push(work.tensor(matrix(&base, Some(head))?, theirs, true)?.0);
        let bias = head.name.strip_suffix("weight").and_then(|module| plan.get(&format!("{module}bias")));
        changed.extend(bias.filter(|bias| bias.shape.len() == 1).map(|bias| work.bias(bias)));
    }
    for tensor in changed {
        if let Some(place) = plan.tensors.iter().position(|other| other.name == tensor.name) {
            plan.tensors[place] = tensor;
        }
    }
    // A tied checkpoint can have a head that no model uses.
    if let Some(head) = base.tied_head().map(|head| head.name.clone()) {
        plan.tensors.retain(|tensor| tensor.name != head);
    }
    put_vocab_size(&mut model.config_json, tokens.rows);
    for field in TOKEN_IDS {
        if let Some(id) = donor.config_json.get(field) {
            model.config_json.insert(field.to_owned(), id.clone());
        } else if model.config_json.contains_key(field) {
            model.config_json.insert(field.to_owned(), Value::Null);
        }
    }
    Ok(Transplanted { plan, counts })
}

fn tokens(model: &Checkpoint, donor: &Checkpoint) -> Result<Tokens> {
    let read = |folder: &Checkpoint| match EditedTokenizer::of(folder.tokenizer_folder(), &folder.config_json)? {
        Some(tokenizer) => Ok(tokenizer),
        None => {
            let finding = Finding::new(folder.path(), "tokenizer").expected("a tokenizer, to tell what its rows are");
            Err(finding.found("none").mismatch())
        }
    };
    let (tokenizer, of_donor) = (read(model)?, read(donor)?);
    let donor: Vec<(ComparableToken, usize)> = comparable(of_donor.listing());
    let rows = donor.last().map_or(0, |(_, id)| id.saturating_add(1)).max(donor.len());
    let model = comparable(tokenizer.listing()).into_iter().collect();
    Ok(Tokens { model, donor, rows, junk: HashSet::new(), tokenizer })
}

impl Tokens {
    /// Leaves out the model's tokens that weren't trained in both models. Of each model, its embeddings and output head.
    fn keep_trained(
        &mut self,
        own: (&PlannedTensor, Option<&PlannedTensor>),
        theirs: (&PlannedTensor, Option<&PlannedTensor>),
    ) -> Result<()> {
        let own = trained::trained_tokens(self.model.iter().map(|(token, id)| (token, *id)), own.0, own.1)?;
        let of_donor = self.donor.iter().map(|(token, id)| (token, *id));
        let theirs = trained::trained_tokens(of_donor, theirs.0, theirs.1)?;
        self.model.retain(|token, _| own.contains(token) && theirs.contains(token));
        let is_junk = |token: &ComparableToken| !own.contains(token) && !theirs.contains(token);
        self.junk = self.donor.iter().filter(|(token, _)| is_junk(token)).map(|(_, id)| *id).collect();
        Ok(())
    }
}

/// The tensor, which has to be a matrix.
fn matrix<'a>(base: &Base, tensor: Option<&'a PlannedTensor>) -> Result<&'a PlannedTensor> {
    let finding =
        || Finding::new(base.path(), "embeddings").expected("embeddings, and an output head where there is one");
    match tensor {
        Some(tensor) if tensor.shape.len() == 2 && tensor.elems() > 0 => Ok(tensor),
        Some(_) => Err(finding().found("one that is no matrix").unsupported()),
        None => Err(finding().found("none").mismatch()),
    }
}

/// What the work on both tensors has in common.
struct Work<'a> {
    tokens: &'a Tokens,
    settings: &'a SurgeonSettings,
    dry: bool,
    done: &'a (dyn Fn(u64, u64) + Sync),
    /// Those of the model and of the donor, where rows are turned.
    rotations: Option<[Rotation; 2]>,
    /// How many random words were drawn.
    drawn: Cell<u64>,
}

impl Work<'_> {
    /// The tensor `own` of the model with the rows of the new vocabulary; `theirs` is the donor's.
    fn tensor(
        &self,
        own: &PlannedTensor,
        theirs: &PlannedTensor,
        is_head: bool,
    ) -> Result<(PlannedTensor, TokenCounts)> {
        let (rows, width) = (self.tokens.rows, own.row_len());
        let own_rows: HashMap<ComparableToken, usize> = self
            .tokens
            .model
            .iter()
            .filter(|(_, row)| **row < own.shape[0])
            .map(|(t, row)| (t.clone(), *row))
            .collect();
        let (byte, prefix) = (self.settings.byte_match.holds(is_head), self.settings.prefix_match.holds(is_head));
        // Where each row comes from: an operand, and a row of it.
        let mut sources = vec![(ZERO, 0); rows];
        let (mut shared, mut new) = (Vec::new(), Vec::new());
        let mut counts = TokenCounts::default();
        for (token, id) in self.tokens.donor.iter().filter(|(_, id)| *id < theirs.shape[0]) {
            let exact = own_rows.get(token).copied();
            shared.extend(exact.map(|row| (*id, row)));
            let of_byte = || matches::of_byte(token, &own_rows).filter(|_| byte);
            let of_prefix = || matches::of_prefix(token, &own_rows).filter(|_| prefix);
            let is_junk = self.tokens.junk.contains(id);
            match exact.or_else(of_byte).or_else(of_prefix) {
                Some(row) => {
                    sources[*id] = (OWN, row);
                    counts.kept += usize::from(!is_junk);
                }
                None => {
                    new.push((token, *id));
                    counts.approximated += usize::from(!is_junk);
                }
            }
        }
        counts.zero = rows.saturating_sub(counts.kept + counts.approximated);
        let zero = Expr::Values { shape: vec![1, width], values: vec![0.0; width].into() };
        let mut of = vec![own.expr.clone(), zero];
        if !new.is_empty() && self.settings.approximation != Approximation::Zero {
            of.push(match self.settings.approximation {
                Approximation::Mean => mean_row(own.clone()),
                _ => self.approximated(own, theirs, &shared, &new, is_head)?,
            });
            let is_one = self.settings.approximation == Approximation::Mean;
            let made = new.iter().enumerate();
            made.for_each(|(place, (_, id))| sources[*id] = (MADE, if is_one { 0 } else { place }));
        }
        for id in self.tokens.junk.iter().filter(|id| **id < rows) {
            sources[*id] = (ZERO, 0);
        }
        let shape = vec![rows, width];
        let expr = Expr::picked_of(of, sources.into_iter().map(|(of, row)| (of, row, 1)), shape.clone());
        Ok((PlannedTensor { name: own.name.clone(), dtype: own.dtype, shape, expr }, counts))
    }

    /// The rows of `new`, as combinations of rows of `own`.
    fn approximated(
        &self,
        own: &PlannedTensor,
        theirs: &PlannedTensor,
        shared: &[(usize, usize)],
        new: &[(&ComparableToken, usize)],
        is_head: bool,
    ) -> Result<Expr> {
        let (method, seed) = (self.settings.approximation, self.settings.seed);
        if matches!(method, Approximation::Randn | Approximation::JohnHewitt) {
            let is_spread = method == Approximation::JohnHewitt && !self.dry;
            let spread = is_spread.then(|| Spread::of(own, self.settings.max_memory_bytes)).transpose()?;
            let mut drawn = self.drawn.get();
            let rows = drawn::rows(seed, &mut drawn, new.len(), own.row_len(), spread);
            self.drawn.set(drawn);
            return Ok(rows);
        }
        let mut combinations = match &self.rotations {
            Some([rotation, _]) => Combinations::turned(own.clone(), rotation.clone()),
            None => Combinations::new(own.clone()),
        };
        if self.dry {
            new.iter().for_each(|_| combinations.push(&[]));
            return Ok(combinations.rows());
        }
        if let Approximation::Subword(subwords) = self.settings.approximation {
            let splitter = combination::Splitter::of(&self.tokens.tokenizer)?;
            for (token, _) in new {
                let parts = splitter.split(&token.text())?;
                let parts: Vec<usize> = parts.into_iter().filter(|row| *row < own.shape[0]).collect();
                combinations.push(&subwords.weights(&parts, is_head));
            }
            return Ok(combinations.rows());
        }
        let k = self.settings.k;
        if k == 0 || k > shared.len() {
            let finding = Finding::new("", "k").expected(format_args!("from 1 to {}, the shared tokens", shared.len()));
            return Err(finding.found(k).setting());
        }
        let points = Points::new(theirs, shared.iter().map(|(id, _)| *id).collect());
        let targets: Vec<usize> = new.iter().map(|(_, id)| *id).collect();
        let batch = pursuit::batch(self.settings.max_memory_bytes, theirs.row_len(), k);
        let (mut made, total) = (0, targets.len() as u64);
        for targets in targets.chunks(batch) {
            made += targets.len() as u64;
            if let Some([_, rotation]) = &self.rotations {
                for mut found in rope::weights(theirs, targets, &points, k, rotation)? {
                    found.iter_mut().for_each(|(place, ..)| *place = shared[*place].1);
                    combinations.push_turned(&found);
                }
                (self.done)(made, total);
                continue;
            }
            let found = match self.settings.approximation {
                Approximation::CommonInterpolation(distance, weighting) => {
                    nearest::weights(theirs, targets, &points, k, distance, weighting)?
                }
                _ => pursuit::weights(theirs, targets, &points, k)?,
            };
            for found in found {
                let rows: Vec<(usize, f32)> =
                    found.into_iter().map(|(place, weight)| (shared[place].1, weight)).collect();
                combinations.push(&rows);
            }
            (self.done)(made, total);
        }
        Ok(combinations.rows())
    }

    /// A bias with a value for each token: the model's own for its tokens, zeros for the others.
    fn bias(&self, own: &PlannedTensor) -> PlannedTensor {
        let mut sources = vec![(ZERO, 0); self.tokens.rows];
        for (token, id) in &self.tokens.donor {
            if let Some(row) = self.tokens.model.get(token).filter(|row| **row < own.shape[0]) {
                sources[*id] = (OWN, *row);
            }
        }
        let zero = Expr::Values { shape: vec![1], values: vec![0.0].into() };
        let shape = vec![self.tokens.rows];
        let ranges = sources.into_iter().map(|(of, row)| (of, row, 1));
        let expr = Expr::picked_of(vec![own.expr.clone(), zero], ranges, shape.clone());
        PlannedTensor { name: own.name.clone(), dtype: own.dtype, shape, expr }
    }
}

/// The places of operands: the model's rows, zeros, rows that are made.
const OWN: usize = 0;
const ZERO: usize = 1;
const MADE: usize = 2;

impl Subwords {
    /// The weights of the rows of a token's parts.
    fn weights(self, parts: &[usize], is_head: bool) -> Vec<(usize, f32)> {
        let count = parts.len();
        let all = |weight: &dyn Fn(usize) -> f32| {
            parts.iter().enumerate().map(|(place, row)| (*row, weight(place))).collect::<Vec<_>>()
        };
        match self {
            Self::Mean => all(&|_| 1.0 / count as f32),
            Self::Sum => all(&|_| 1.0),
            Self::WeightedMean => {
                let sum = (count * (count + 1) / 2) as f32;
                all(&|place| (if is_head { place + 1 } else { count - place }) as f32 / sum)
            }
            Self::FirstLast => {
                let part = if is_head { parts.first() } else { parts.last() };
                part.map(|row| (*row, 1.0)).into_iter().collect()
            }
        }
    }
}

/// `tensor` as f32, whatever its type.
fn in_f32(tensor: &PlannedTensor) -> PlannedTensor {
    PlannedTensor { dtype: DType::F32, ..tensor.clone() }
}

#[cfg(test)]
mod tests;

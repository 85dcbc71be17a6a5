//! The rows of every model's embeddings in the order of the output's tokens.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Vocabulary;
use super::settings::{TokenName, TokenRow};
use crate::error::{Finding, Result};
use crate::plan::{Expr, PlannedTensor, RowMap};
use crate::source::show_shape;

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A row of a tensor, by the tensor's place.
    Tensor(usize, usize),
    /// A row of a group's mean, by the group's place.
    Mean(usize, usize),
    Zero,
}

/// Tokens of which the same tensors have rows, whose mean the others get.
struct Group {
    /// For each of these tensors, its place and its rows.
    of: Vec<(usize, Vec<usize>)>,
}

/// One tensor of several models, before its rows are aligned.
pub(super) struct Alignment<'a> {
    vocabulary: &'a Vocabulary,
    /// The models that have the tensor, and the tensor.
    of: &'a [(usize, &'a PlannedTensor)],
    /// The length of a row.
    width: usize,
    /// The row of the tokens that some tensors lack, or that the settings force, by id.
    shared: HashMap<usize, Origin>,
    groups: Vec<Group>,
}

impl<'a> Alignment<'a> {
    /// Decides where rows come from.
    pub(super) fn new(vocabulary: &'a Vocabulary, of: &'a [(usize, &'a PlannedTensor)]) -> Result<Self> {
        let width = of.first().map_or(0, |(_, tensor)| tensor.row_len());
        let mut made = Self { vocabulary, of, width, shared: HashMap::new(), groups: Vec::new() };
        for (_, tensor) in of {
            if tensor.shape.len() != 2 || tensor.row_len() != width || tensor.elems() == 0 {
                let expected = format!("rows of {width}, as {} has them", of[0].1.expr.source_path().display());
                return Err(finding(tensor).expected(expected).found(show_shape(&tensor.shape)).mismatch());
            }
        }
        let mut by_tensors: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for id in 0..vocabulary.texts.len() {
            if vocabulary.texts[id].is_none() {
                continue;
            }
            let having: Vec<usize> = (0..of.len()).filter(|at| made.own(*at, id).is_some()).collect();
            let chosen = vocabulary.chosen.get(&id);
            if having.len() == of.len() && !chosen.is_some_and(|chosen| chosen.force) {
                continue;
            }
            if let Some(chosen) = chosen {
                let from = made.chosen(id, chosen.row.as_ref())?;
                made.shared.insert(id, from);
                continue;
            }
            let base = having.iter().find(|at| Some(of[**at].0) == vocabulary.base);
            match (having.as_slice(), base) {
                ([], _) => drop(made.shared.insert(id, Origin::Zero)),
                ([at], _) | (_, Some(at)) => {
                    let row = made.own(*at, id).unwrap_or_default();
                    made.shared.insert(id, Origin::Tensor(*at, row));
                }
                _ => by_tensors.entry(having).or_default().push(id),
            }
        }
        for (tensors, ids) in by_tensors {
            let rows = |at: &usize| ids.iter().filter_map(|id| made.own(*at, *id)).collect();
            let of = tensors.iter().map(|at| (*at, rows(at))).collect();
            let group = made.groups.len();
            made.groups.push(Group { of });
            made.shared.extend(ids.iter().enumerate().map(|(row, id)| (*id, Origin::Mean(group, row))));
        }
        made.check_rows()?;
        Ok(made)
    }

    /// The row of token `id` that the tensor in place `at` has itself.
    fn own(&self, at: usize, id: usize) -> Option<usize> {
        self.vocabulary.places[self.of[at].0][id]
    }

    /// The row that the settings choose for token `id`.
    fn chosen(&self, id: usize, row: Option<&TokenRow>) -> Result<Origin> {
        let text = self.vocabulary.texts[id].as_deref().unwrap_or_default();
        let finding = |of: &PlannedTensor| finding(of).expected(format_args!("a row for the token {text:?}"));
        let place = |model: usize| match self.of.iter().position(|(of, _)| *of == model) {
            Some(at) => Ok(at),
            None => {
                let hint = "`tokens` names a model that lacks this tensor";
                Err(finding(self.of[0].1).found("no such tensor in its source").hint(hint).mismatch())
            }
        };
        let (at, found) = match row {
            Some(TokenRow::Zero) => return Ok(Origin::Zero),
            None => {
                let hint = "give it a `source` in `tokens`";
                return Err(finding(self.of[0].1).found("no source, and a model that lacks it").hint(hint).mismatch());
            }
            Some(TokenRow::Model(model)) => {
                let at = place(*model)?;
                (at, self.own(at, id))
            }
            Some(TokenRow::Token { model, token }) => {
                let at = place(*model)?;
                (at, self.named(*model, token).filter(|row| *row < self.of[at].1.shape[0]))
            }
        };
        let hint = "`tokens` names a model, or a token of it, that has no such row";
        match found {
            Some(row) => Ok(Origin::Tensor(at, row)),
            None => Err(finding(self.of[at].1).found("none in its source").hint(hint).mismatch()),
        }
    }

    fn named(&self, model: usize, token: &TokenName) -> Option<usize> {
        match token {
            TokenName::Id(id) => Some(*id),
            TokenName::Text(text) => self.vocabulary.members[model].id(text),
        }
    }

    /// Checks that the tensors have the rows that are taken of them.
    fn check_rows(&self) -> Result<()> {
        for (at, (model, tensor)) in self.of.iter().enumerate() {
            let last = self.vocabulary.places[*model].iter().flatten().max();
            if let Some(last) = last.filter(|last| **last >= tensor.shape[0]) {
                return Err(finding(self.of[at].1)
                    .expected(format_args!("at least {} rows, for its tokenizer and config.json", last + 1))
                    .found(show_shape(&tensor.shape))
                    .mismatch());
            }
        }
        Ok(())
    }

    /// The aligned tensors.
    pub(super) fn tensors(&self) -> Result<Vec<PlannedTensor>> {
        (0..self.of.len()).map(|at| self.tensor(at)).collect()
    }

    fn tensor(&self, at: usize) -> Result<PlannedTensor> {
        let tensor = self.of[at].1;
        let mut operands = Operands { of: Vec::new(), places: HashMap::new() };
        let mut ranges: Vec<(usize, usize, usize)> = Vec::with_capacity(self.vocabulary.texts.len());
        for id in 0..self.vocabulary.texts.len() {
            let is_forced = self.vocabulary.chosen.get(&id).is_some_and(|chosen| chosen.force);
            let own = self.own(at, id).filter(|_| !is_forced).map(|row| Origin::Tensor(at, row));
            let from = own.or_else(|| self.shared.get(&id).copied()).unwrap_or(Origin::Zero);
            let (operand, row) = match from {
                Origin::Tensor(of, row) => (operands.place((0, of), || self.of[of].1.expr.clone()), row),
                Origin::Mean(group, row) => (operands.place((1, group), || self.mean(group)), row),
                Origin::Zero => (operands.place((2, 0), || self.zeros()), 0),
            };
            ranges.push((operand, row, 1));
        }
        let shape = vec![self.vocabulary.texts.len(), self.width];
        let mut expr = Expr::picked_of(operands.of, ranges, shape.clone());
        let padding = self.vocabulary.rows - shape[0];
        if padding > 0 {
            let of = PlannedTensor { name: tensor.name.clone(), dtype: crate::dtype::DType::F32, shape, expr };
            expr = padded_with_mean(of, padding);
        }
        let shape = vec![self.vocabulary.rows, self.width];
        Ok(PlannedTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, expr })
    }

    fn zeros(&self) -> Expr {
        Expr::Values { shape: vec![1, self.width], values: vec![0.0; self.width].into() }
    }

    /// The mean rows of a group.
    fn mean(&self, group: usize) -> Expr {
        let rows = |(at, rows): &(usize, Vec<usize>)| {
            let picks = rows.iter().map(|row| (*row, 1));
            Expr::picked(self.of[*at].1.expr.clone(), picks, vec![rows.len(), self.width])
        };
        let of: Vec<Expr> = self.groups[group].of.iter().map(rows).collect();
        Expr::Map { of, map: Arc::new(Mean) }
    }
}

/// The operands of an expression, each once.
struct Operands {
    of: Vec<Expr>,
    places: HashMap<(usize, usize), usize>,
}

impl Operands {
    fn place(&mut self, key: (usize, usize), expr: impl FnOnce() -> Expr) -> usize {
        *self.places.entry(key).or_insert_with(|| {
            self.of.push(expr());
            self.of.len() - 1
        })
    }
}

fn finding(tensor: &PlannedTensor) -> Finding {
    Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
}

/// The mean of the operands: their sum, one after the other, divided by their number.
#[derive(Debug)]
struct Mean;

impl RowMap for Mean {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for other in others {
            out.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
        let count = (1 + others.len()) as f32;
        out.iter_mut().for_each(|sum| *sum /= count);
    }
}

/// `tensor` with `count` rows behind it that are the mean of its rows.
pub(crate) fn padded_with_mean(tensor: PlannedTensor, count: usize) -> Expr {
    let (rows, width) = (tensor.rows(), tensor.row_len());
    let of = tensor.expr.clone();
    let nothing = Expr::Values { shape: vec![1, width], values: vec![0.0; width].into() };
    let mean = Expr::Map { of: vec![nothing], map: Arc::new(MeanRow { tensor, mean: OnceLock::new() }) };
    let ranges = std::iter::once((0, 0, rows)).chain((0..count).map(|_| (1, 0, 1)));
    Expr::picked_of(vec![of, mean], ranges, vec![rows + count, width])
}

/// A row that is the mean of all rows of a tensor. They are read when it is first needed, some at a time.
#[derive(Debug)]
struct MeanRow {
    tensor: PlannedTensor,
    mean: OnceLock<Option<Vec<f32>>>,
}

/// Values of a tensor that are read at a time.
const READ_ELEMS: usize = 1 << 20;

impl MeanRow {
    fn read(&self) -> Result<Vec<f32>> {
        let (rows, width) = (self.tensor.rows(), self.tensor.row_len());
        let mut sums = vec![0.0f64; width];
        let step = (READ_ELEMS / width.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let values = self.tensor.read_rows(start..(start + step).min(rows))?;
            for row in values.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        }
        Ok(sums.iter().map(|sum| (sum / rows as f64) as f32).collect())
    }
}

impl RowMap for MeanRow {
    fn apply(&self, _: Range<usize>, _: usize, _: &[Vec<f32>], out: &mut [f32]) {
        // The executor refuses a NaN, and the source's own one first.
        match self.mean.get_or_init(|| self.read().ok()) {
            Some(mean) => out.copy_from_slice(mean),
            None => out.fill(f32::NAN),
        }
    }
}

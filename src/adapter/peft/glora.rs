//! GLoRA: `W + W * A + B`, elementwise, and `b + b * D + E + W C` for the bias.
//!
//! Reference: huggingface/peft `src/peft/tuners/glora/layer.py` (`merge`): every operation is rounded to the weight's
//! type. MKL sums `W C` in an order of its own; here it is summed in f64.

use std::ops::Range;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::module_weight::Weight;
use super::modules::each_module;
use super::rows::round;
use crate::dtype::DType;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, PlannedTensor, RowMap};

/// The most values of a weight that are read at a time.
const STRIP_ELEMS: usize = 1 << 20;

/// How a path of GLoRA is parameterised.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Path {
    LowRank,
    Vector,
    Constant,
    Nothing,
}

impl Path {
    fn read(fields: &mut Fields, name: &'static str, default: Self, allowed: &[(&str, Self)]) -> Result<Self> {
        let Some(text) = fields.get::<String>(name)? else { return Ok(default) };
        if let Some((_, path)) = allowed.iter().find(|(name, _)| *name == text) {
            return Ok(*path);
        }
        let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
        Err(fields.finding(name).expected(names.join(" or ")).found(text).unsupported())
    }
}

/// The changes of a GLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let r = fields.count_or("r", 8)?;
    let all =
        [("lora", Path::LowRank), ("vector", Path::Vector), ("constant", Path::Constant), ("none", Path::Nothing)];
    let weights = Path::read(fields, "config_A_B", Path::LowRank, &all)?;
    let coupling = Path::read(fields, "config_C", Path::LowRank, &[all[0], all[1], all[3]])?;
    let biases = Path::read(fields, "config_D_E", Path::Constant, &all[1..])?;
    fields.ignore(&["init_weights"]);
    let first = match weights {
        Path::LowRank => "glora_A.Xd",
        Path::Vector | Path::Constant => "glora_A.X",
        Path::Nothing => "glora_A.zeros",
    };
    each_module(fields, entries, base, first, |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "GLoRA")?;
        let bias = base.tensor(&format!("{module}.bias")).filter(|bias| bias.shape == [weight.d_out]);
        let mut found = Module { entries, base, weight: &weight, module, r };
        let (times, plus) = (found.matrix("A", weights)?, found.matrix("B", weights)?);
        let rounded = base.rounding(weight.tensor.dtype);
        let mut others = Vec::new();
        let mut operand = |factor: Factor| match factor {
            Factor::Matrix(expr) => {
                others.push(expr);
                Operand::Other(others.len() - 1)
            }
            Factor::Rows(values) => Operand::Rows(values),
        };
        let map = Weights { times: operand(times), plus: operand(plus), rounded };
        let mut changes = vec![weight.change(Change::Map { others, map: Arc::new(map), transposed: false })];
        let Some(bias) = bias else {
            for path in ["C", "D", "E"] {
                found.drop_zeros(path);
            }
            return Ok((weight, changes));
        };
        let coupled = found.coupled(coupling)?;
        let (times, plus) = (found.vector("D", biases)?, found.vector("E", biases)?);
        let map = Biases { times, plus, coupled, rounded: base.rounding(bias.dtype) };
        changes.push((bias.name.clone(), Change::Map { others: Vec::new(), map: Arc::new(map), transposed: false }));
        Ok((weight, changes))
    })
}

/// A factor or a summand of a weight.
enum Factor {
    /// `[d_out, d_in]`
    Matrix(Expr),
    /// One for each output.
    Rows(Arc<[f32]>),
}

/// A module whose tensors are read.
struct Module<'a, 'b> {
    entries: &'a mut Entries,
    base: &'a Base<'b>,
    weight: &'a Weight<'b>,
    module: &'a str,
    r: usize,
}

impl Module<'_, '_> {
    fn name(&self, path: &str, part: &str) -> String {
        format!("{}.glora_{path}.{part}", self.module)
    }

    /// Drops the zeros that PEFT saves for a path that there isn't.
    fn drop_zeros(&mut self, path: &str) {
        self.entries.take(&self.name(path, "zeros"));
    }

    /// `A` or `B`, rounded to the weight's type.
    fn matrix(&mut self, path: &str, kind: Path) -> Result<Factor> {
        let (d_out, d_in) = (self.weight.d_out, self.weight.d_in);
        if kind != Path::LowRank {
            let shape: &[usize] = if kind == Path::Vector { &[d_out, 1] } else { &[1] };
            return Ok(Factor::Rows(self.numbers(path, kind, shape, d_out)?));
        }
        let left = self.entries.shaped(&self.name(path, "Xd"), &[d_out, self.r])?.expr;
        let right = self.entries.shaped(&self.name(path, "Xu"), &[self.r, d_in])?.expr;
        Ok(Factor::Matrix(self.base.rounded(Expr::product(left, right), self.weight.tensor.dtype)))
    }

    /// `D` or `E`, rounded to the weight's type.
    fn vector(&mut self, path: &str, kind: Path) -> Result<Arc<[f32]>> {
        let d_out = self.weight.d_out;
        let shape = if kind == Path::Vector { [d_out] } else { [1] };
        self.numbers(path, kind, &shape, d_out)
    }

    /// `count` numbers, rounded to the weight's type: those of a vector, or one for all.
    fn numbers(&mut self, path: &str, kind: Path, shape: &[usize], count: usize) -> Result<Arc<[f32]>> {
        if kind == Path::Nothing {
            self.drop_zeros(path);
            return Ok(vec![0.0; count].into());
        }
        let mut values = self.entries.shaped(&self.name(path, "X"), shape)?.read()?;
        if kind == Path::Constant {
            values = vec![values.first().copied().unwrap_or_default(); count];
        }
        round(&mut values, self.base.rounding(self.weight.tensor.dtype));
        Ok(values.into())
    }

    /// `W C`, rounded to the weight's type. This reads the weight.
    fn coupled(&mut self, kind: Path) -> Result<Arc<[f32]>> {
        let (d_out, d_in) = (self.weight.d_out, self.weight.d_in);
        let rounded = self.base.rounding(self.weight.tensor.dtype);
        let mut column = match kind {
            Path::LowRank => {
                let left = self.entries.shaped(&self.name("C", "Xd"), &[d_in, self.r])?.expr;
                let right = self.entries.shaped(&self.name("C", "Xu"), &[self.r, 1])?.expr;
                let expr = Expr::product(left, right);
                PlannedTensor { name: String::new(), dtype: DType::F32, shape: vec![d_in, 1], expr }.read()?
            }
            Path::Vector | Path::Constant => self.entries.shaped(&self.name("C", "X"), &[d_in, 1])?.read()?,
            Path::Nothing => {
                self.drop_zeros("C");
                return Ok(vec![0.0; d_out].into());
            }
        };
        round(&mut column, rounded);
        let mut sums = Vec::with_capacity(d_out);
        let step = (STRIP_ELEMS / d_in).max(1);
        for start in (0..d_out).step_by(step) {
            let values = self.weight.tensor.read_rows(start..(start + step).min(d_out))?;
            for row in values.chunks_exact(d_in) {
                let products = row.iter().zip(&column).map(|(weight, c)| f64::from(*weight) * f64::from(*c));
                sums.push(products.sum::<f64>() as f32);
            }
        }
        round(&mut sums, rounded);
        Ok(sums.into())
    }
}

/// Where the numbers of a factor or a summand are.
#[derive(Debug)]
enum Operand {
    /// The other operand of this number.
    Other(usize),
    /// One for each row.
    Rows(Arc<[f32]>),
}

impl Operand {
    fn at(&self, others: &[Vec<f32>], rows: &Range<usize>, row_len: usize, index: usize) -> f32 {
        match self {
            Operand::Other(number) => others[*number][index],
            Operand::Rows(values) => values[rows.start + index / row_len],
        }
    }
}

/// `W + (W * times + plus)`.
#[derive(Debug)]
struct Weights {
    times: Operand,
    plus: Operand,
    rounded: Option<DType>,
}

impl RowMap for Weights {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let mut change = out.to_vec();
        let each = |of: &Operand, index| of.at(others, &rows, row_len, index);
        change.iter_mut().enumerate().for_each(|(index, value)| *value *= each(&self.times, index));
        round(&mut change, self.rounded);
        change.iter_mut().enumerate().for_each(|(index, value)| *value += each(&self.plus, index));
        round(&mut change, self.rounded);
        out.iter_mut().zip(&change).for_each(|(weight, change)| *weight += change);
    }
}

/// `b + ((b * times + plus) + coupled)`.
#[derive(Debug)]
struct Biases {
    times: Arc<[f32]>,
    plus: Arc<[f32]>,
    coupled: Arc<[f32]>,
    rounded: Option<DType>,
}

impl RowMap for Biases {
    fn apply(&self, rows: Range<usize>, _: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let mut change = out.to_vec();
        change.iter_mut().zip(&self.times[rows.clone()]).for_each(|(value, times)| *value *= times);
        round(&mut change, self.rounded);
        for summand in [&self.plus, &self.coupled] {
            change.iter_mut().zip(&summand[rows.clone()]).for_each(|(value, summand)| *value += summand);
            round(&mut change, self.rounded);
        }
        out.iter_mut().zip(&change).for_each(|(bias, change)| *bias += change);
    }
}

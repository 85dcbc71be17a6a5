//! LoKr: a Kronecker product. Each factor can be low-rank.
//!
//! Reference: huggingface/peft `src/peft/tuners/lokr/layer.py` (`get_delta_weight`, `make_kron`): one
//! multiplication for every element, then another by the scale.

use std::collections::{BTreeSet, HashSet};

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::loha::core_shape;
use super::lycoris::Settings;
use super::module_weight::Weight;
use super::targets::Targets;
use super::tucker::{First, Tucker};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;
use crate::source::show_shape;

/// The changes of a LoKr adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let settings = Settings::read(fields)?;
    // The shapes show how each factor is composed.
    fields.ignore(&["decompose_both", "decompose_factor"]);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    let mut modules: BTreeSet<String> = entries.modules("lokr_w1").into_iter().collect();
    modules.extend(entries.modules("lokr_w1_a"));
    for module in modules {
        let whole = format!("{module}.lokr_w1");
        let weight = base.not_turned(entries, &whole, &module, "LoKr")?;
        let rank = settings.rank(&module);
        let left = factor(entries, &whole, rank)?;
        let right = right_factor(entries, &weight, &module, rank)?;
        let scale = settings.scale(&module, rank);
        let shape = [weight.d_out, weight.d_in];
        let (l, r) = (left.shape(), right.matrix_shape());
        if !(0..2).all(|i| l[i].checked_mul(r[i]) == Some(shape[i])) {
            return Err(entries
                .finding(&whole)
                .expected(format_args!(
                    "a factor of {} by the base model, as {} is",
                    show_shape(&shape),
                    show_shape(&r)
                ))
                .found(show_shape(&l))
                .hint("this adapter belongs to another base model")
                .mismatch());
        }
        changes.push(weight.change(Change::Add(right.product(left, scale, &shape))));
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, "lokr_w1")?;
    Ok(changes)
}

/// The factor with a kernel's taps.
enum Right {
    /// `[rows, columns * taps]`
    Matrix(Expr),
    /// A kernel of one dimension as it is, `[rows, columns, taps]`. PEFT takes its rows for a further dimension in front,
    /// and the product for the kernel all the same, in training and when it merges: so this does, too.
    Rows(Expr),
}

impl Right {
    fn matrix_shape(&self) -> [usize; 2] {
        let shape = match self {
            Right::Matrix(of) | Right::Rows(of) => of.shape(),
        };
        [shape[0], shape[1..].iter().product()]
    }

    /// `scale` times the Kronecker product with `left`, in `shape`.
    fn product(self, left: Expr, scale: f64, shape: &[usize]) -> Expr {
        let of = match self {
            Right::Matrix(right) => return delta(left, right, scale),
            Right::Rows(of) => of,
        };
        let (rows, columns, taps) = (of.shape()[0], of.shape()[1], of.shape()[2]);
        let matrix = Expr::Reshape { of: Box::new(of), shape: vec![rows * columns, taps] };
        let of_row = |row: usize| {
            let right = Expr::slice(matrix.clone(), row * columns, columns, vec![columns, taps]);
            delta(left.clone(), right, scale)
        };
        let joined: Vec<Expr> = (0..rows).map(of_row).collect();
        let of_one = joined.first().map(Expr::shape).unwrap_or_default();
        let joined = Expr::concat(joined, [&[rows], &*of_one].concat());
        Expr::Reshape { of: Box::new(joined), shape: shape.to_vec() }
    }
}

/// The factor of a kernel with its taps, or of a linear layer.
fn right_factor(entries: &mut Entries, weight: &Weight, module: &str, rank: usize) -> Result<Right> {
    let (name, core) = (format!("{module}.lokr_w2"), format!("{module}.lokr_t2"));
    if !weight.is_kernel() {
        return factor(entries, &name, rank).map(Right::Matrix);
    }
    if entries.shape(&core).is_some() {
        let core = entries.shaped(&core, &core_shape(weight, rank))?.expr;
        let mut side = |part: &str| {
            let name = format!("{name}_{part}");
            let sizes = entries.row_len(&name).unwrap_or_default();
            Ok::<_, crate::Error>(entries.shaped(&name, &[rank, sizes])?.expr)
        };
        let (outputs, inputs) = (side("a")?, side("b")?);
        return Ok(Right::Matrix(Tucker { core, outputs, inputs }.matrix(First::Outputs)));
    }
    let taps = weight.taps();
    match entries.shape(&name) {
        Some([rows, columns, own @ ..]) if own == taps && !own.is_empty() => {
            let (rows, columns) = (*rows, *columns);
            let of = entries.shaped(&name, &weight.with_taps([rows, columns]))?.expr;
            let shape = vec![rows, columns * taps.iter().product::<usize>()];
            Ok(if taps.len() == 1 { Right::Rows(of) } else { Right::Matrix(Expr::Reshape { of: Box::new(of), shape }) })
        }
        _ => factor(entries, &name, rank).map(Right::Matrix),
    }
}

/// One of the two factors: the tensor called `name`, or a product of two tensors.
fn factor(entries: &mut Entries, name: &str, rank: usize) -> Result<Expr> {
    let found = match entries.take(name) {
        Some(tensor) => tensor.expr,
        None => {
            let (first, second) = (format!("{name}_a"), format!("{name}_b"));
            let (a, b) = (entries.need(&first)?, entries.need(&second)?);
            for (name, tensor, dimension) in [(&first, &a, 1), (&second, &b, 0)] {
                if tensor.shape.len() != 2 || tensor.shape[dimension] != rank {
                    return Err(entries
                        .finding(name)
                        .expected(format_args!("a matrix of rank {rank} by adapter_config.json"))
                        .found(show_shape(&tensor.shape))
                        .hint("its config is not its own")
                        .mismatch());
                }
            }
            Expr::product(a.expr, b.expr)
        }
    };
    match found.shape().len() {
        2 => Ok(found),
        _ => Err(entries.finding(name).expected("a matrix").found(show_shape(&found.shape())).unsupported()),
    }
}

/// `scale` times the Kronecker product, the scale last.
pub(in crate::adapter) fn delta(left: Expr, right: Expr, scale: f64) -> Expr {
    let product = Expr::Kronecker { left: Box::new(left), right: Box::new(right) };
    Expr::Scale { of: Box::new(product), factor: scale }
}

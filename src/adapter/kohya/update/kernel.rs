//! Updates of convolutions: LoCon, LoHa, LoKr, GLoRA and (IA)3, seen as matrices of outputs by inputs and taps.
//!
//! Reference: LyCORIS `lycoris/functional/{locon,loha,lokr,general}.py`, `lycoris/modules/{glora,ia3}.py`.

use std::sync::Arc;

use super::super::super::peft::{
    Change, First, LowRank, ScaleColumns, ScaleRows, Tucker, Weight, WeightLayout, hadamard, input_factors, kronecker,
    rescale,
};
use super::{OTHER_BASE, Update, UpdateKind};
use crate::error::Result;
use crate::plan::{Expr, RowMap, Sums};
use crate::source::show_shape;

fn matrix(of: Expr, shape: [usize; 2]) -> Expr {
    Expr::Reshape { of: Box::new(of), shape: shape.to_vec() }
}

/// The columns of a matrix in the order that `from` gives.
fn columns(of: Expr, from: impl Fn(usize) -> usize) -> Expr {
    let index = (0..of.shape()[1]).map(|column| from(column) as u32).collect();
    Expr::Columns { of: Box::new(of), index }
}

/// `left @ right` within an einsum.
fn einsum(left: Expr, right: Expr) -> Expr {
    Expr::Product { scale: 1.0, left: Box::new(left), right: Box::new(right), sums: Sums::Product }
}

impl Update {
    /// The changes of a kernel, in the order of application; `None` for a kind that isn't one of matrices.
    pub(super) fn of_kernel(&mut self, kind: UpdateKind, kernel: &Weight) -> Result<Option<Vec<Change>>> {
        let alone = |change: Change| Some(vec![kernel.of_tensor(change)]);
        let change = match kind {
            UpdateKind::Lora => self.locon(kernel)?,
            UpdateKind::Loha => {
                let (first, rank) = self.hadamard_side(kernel, '1')?;
                let (second, _) = self.hadamard_side(kernel, '2')?;
                Change::Add(hadamard(first, second, self.scale(rank)?))
            }
            UpdateKind::Lokr => self.kronecker_of_kernel(kernel)?,
            UpdateKind::Glora => return self.both_sides_of_kernel(kernel).map(alone),
            UpdateKind::Ia3 => return self.factors_of_kernel(kernel).map(alone),
            _ => return Ok(None),
        };
        let magnitudes = self.kernel_magnitudes(kernel, &change)?;
        Ok(Some([change].into_iter().chain(magnitudes).map(|change| kernel.of_tensor(change)).collect()))
    }

    fn locon(&mut self, kernel: &Weight) -> Result<Change> {
        let (down, up, mid) = ("lora_down.weight", "lora_up.weight", "lora_mid.weight");
        let rank = self.first(down)?;
        let b = matrix(self.shaped(up, &kernel.with_ones([kernel.d_out, rank]))?, [kernel.d_out, rank]);
        if self.parts.contains_key(mid) {
            let core = self.shaped(mid, &kernel.with_taps([rank, rank]))?;
            let inputs = self.shaped(down, &kernel.with_ones([rank, kernel.inputs()]))?;
            let tucker =
                Tucker { core, outputs: Expr::Transpose(Box::new(b)), inputs: matrix(inputs, [rank, kernel.inputs()]) };
            let factor = self.scale(rank)?;
            return Ok(Change::Add(Expr::Scale { of: Box::new(tucker.matrix(First::Outputs)), factor }));
        }
        let a = matrix(self.shaped(down, &kernel.with_taps([rank, kernel.inputs()]))?, [rank, kernel.d_in]);
        let (scale, layout) = (self.scale(rank)?, WeightLayout::OutputsFirst);
        Ok(Change::LowRank(LowRank { scale, alpha: None, a, b, layout, rounded: None }))
    }

    /// One of the two updates of a LoHa, and its rank.
    fn hadamard_side(&mut self, kernel: &Weight, number: char) -> Result<(Expr, usize)> {
        let [core, a, b] = [format!("hada_t{number}"), format!("hada_w{number}_a"), format!("hada_w{number}_b")];
        let rank = self.first(&b)?;
        if self.parts.contains_key(&core) {
            let tucker = Tucker {
                core: self.shaped(&core, &kernel.with_taps([rank, rank]))?,
                outputs: self.shaped(&a, &[rank, kernel.d_out])?,
                inputs: self.shaped(&b, &[rank, kernel.inputs()])?,
            };
            return Ok((tucker.matrix(First::Inputs), rank));
        }
        let (a, b) = (self.shaped(&a, &[kernel.d_out, rank])?, self.shaped(&b, &[rank, kernel.d_in])?);
        Ok((Expr::product(a, b), rank))
    }

    fn kronecker_of_kernel(&mut self, kernel: &Weight) -> Result<Change> {
        let (core, whole) = ("lokr_t2", "lokr_w2");
        let (left, left_rank) = self.factor("lokr_w1")?;
        let (right, right_rank) = if self.parts.contains_key(core) {
            let rank = self.first(core)?;
            let (rows, columns) = (self.dimension("lokr_w2_a", 1)?, self.dimension("lokr_w2_b", 1)?);
            let tucker = Tucker {
                core: self.shaped(core, &kernel.with_taps([rank, rank]))?,
                outputs: self.shaped("lokr_w2_a", &[rank, rows])?,
                inputs: self.shaped("lokr_w2_b", &[rank, columns])?,
            };
            (tucker.matrix(First::Outputs), Some(rank))
        } else if let Some([rows, columns, taps @ ..]) = self.parts.get(whole).map(|tensor| tensor.shape.as_slice())
            && taps == kernel.taps()
        {
            let sizes = [*rows, *columns];
            let of = self.shaped(whole, &kernel.with_taps(sizes))?;
            (matrix(of, [sizes[0], sizes[1] * kernel.taps().iter().product::<usize>()]), None)
        } else {
            self.factor(whole)?
        };
        let scale = self.scale_of_factors(left_rank, right_rank)?;
        let shape = [kernel.d_out, kernel.d_in];
        self.check_factors(&left, left_rank, &right, &shape)?;
        Ok(Change::Add(kronecker(left, right, scale)))
    }

    /// The update of a GLoRA, `s (B1 B2 + W A1 A2)`, where `A1 A2` mixes the inputs and leaves the taps.
    fn both_sides_of_kernel(&mut self, kernel: &Weight) -> Result<Change> {
        let (d_out, inputs, taps) = (kernel.d_out, kernel.inputs(), kernel.taps().iter().product::<usize>());
        let (inner, outer) = (self.first("a2.weight")?, self.first("b2.weight")?);
        let a1 = matrix(self.shaped("a1.weight", &kernel.with_ones([inputs, inner]))?, [inputs, inner]);
        let a2 = matrix(self.shaped("a2.weight", &kernel.with_ones([inner, inputs]))?, [inner, inputs]);
        let b1 = matrix(self.shaped("b1.weight", &kernel.with_ones([d_out, outer]))?, [d_out, outer]);
        let b2 = matrix(self.shaped("b2.weight", &kernel.with_taps([outer, inputs]))?, [outer, kernel.d_in]);
        // A row for each output and tap, a column for each input.
        let turned = columns(kernel.matrix().expr, |column| column % inputs * taps + column / inputs);
        let rows = matrix(turned, [d_out * taps, inputs]);
        let mixed = matrix(einsum(einsum(rows, a1), a2), [d_out, kernel.d_in]);
        let of_weight = columns(mixed, |column| column % taps * inputs + column / taps);
        let sum = Expr::Add { of: Box::new(Expr::product(b1, b2)), delta: Box::new(of_weight) };
        Ok(Change::Add(Expr::Scale { of: Box::new(sum), factor: self.scale(inner)? }))
    }

    /// The factors of an (IA)3, one for each output or for each input.
    fn factors_of_kernel(&mut self, kernel: &Weight) -> Result<Change> {
        let inputs = self.on_input()?;
        let count = if inputs { kernel.inputs() } else { kernel.d_out };
        let shape = kernel.with_ones([1, count]);
        let tensor = self.need("weight")?;
        if tensor.shape != shape {
            return Err(self.misshapen("weight", &shape, &tensor.shape));
        }
        let factors = tensor.read()?.into_iter().map(|value| value + 1.0);
        let taps: usize = kernel.taps().iter().product();
        let map: Arc<dyn RowMap> = match inputs {
            true => Arc::new(ScaleColumns(factors.flat_map(|factor| std::iter::repeat_n(factor, taps)).collect())),
            false => Arc::new(ScaleRows(factors.collect())),
        };
        Ok(Change::Map { others: Vec::new(), map, transposed: false })
    }

    /// DoRA's magnitudes: one for each output, or one for each input, whose norm goes over all outputs and taps.
    fn kernel_magnitudes(&mut self, kernel: &Weight, change: &Change) -> Result<Option<Change>> {
        let Some(tensor) = self.parts.remove("dora_scale") else { return Ok(None) };
        let of_matrix = kernel.matrix();
        if tensor.shape == kernel.with_ones([kernel.d_out, 1]) {
            return rescale(&of_matrix, change, &tensor.read()?.into(), false, f32::EPSILON).map(Some);
        }
        if tensor.shape == kernel.with_ones([1, kernel.inputs()]) {
            let factors = input_factors(&of_matrix, change, &tensor.read()?, f32::EPSILON)?;
            let map = Arc::new(ScaleColumns(factors));
            return Ok(Some(Change::Map { others: Vec::new(), map, transposed: false }));
        }
        Err(self
            .finding("dora_scale")
            .expected(format_args!("[{}, 1, ..] or [1, {}, ..] by the base model", kernel.d_out, kernel.inputs()))
            .found(show_shape(&tensor.shape))
            .hint(OTHER_BASE)
            .mismatch())
    }

    /// The first dimension of a part, which may have any number of them.
    fn first(&self, part: &str) -> Result<usize> {
        match self.parts.get(part).and_then(|tensor| tensor.shape.first()) {
            Some(size) if *size > 0 => Ok(*size),
            _ => self.dimension(part, 0),
        }
    }
}

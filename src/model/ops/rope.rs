//! Rotary positions: the first dimensions of each head are turned, the others pass.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::vectorized;
use super::rows::rows_at_once;
use super::slices::{slice, values};

/// Turns pairs of a head's dimensions by the angles of its position.
#[derive(Clone)]
pub(crate) struct Rope {
    /// `[B, T, rotary / 2]`
    cos: Tensor,
    sin: Tensor,
    /// Whether neighbours turn together, and not the two halves of what is turned.
    pairs: bool,
    /// 1, or -1 to turn back.
    direction: f32,
}

vectorized! {
    /// `sizes`: heads, a head's dimensions, how many pairs of them are turned.
    fn turn<'a>(
        out: &'a mut [f32],
        x: &'a [f32],
        cos: &'a [f32],
        sin: &'a [f32],
        sizes: (usize, usize, usize),
        direction: f32,
    ) {
        let (heads, d, half) = sizes;
        let rows = out.chunks_exact_mut(heads * d).zip(x.chunks_exact(heads * d));
        for ((out, x), (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
            for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let ((turned, rest), (x, x_rest)) = (out.split_at_mut(2 * half), x.split_at(2 * half));
                let ((low, high), (a, b)) = (turned.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    let sin = sin[i] * direction;
                    low[i] = a[i] * cos[i] - b[i] * sin;
                    high[i] = b[i] * cos[i] + a[i] * sin;
                }
                rest.copy_from_slice(x_rest);
            }
        }
    }
}

/// As [`turn`], for neighbours that turn together.
fn turn_pairs(
    out: &mut [f32],
    x: &[f32],
    (cos, sin): (&[f32], &[f32]),
    (heads, d, half): (usize, usize, usize),
    direction: f32,
) {
    let rows = out.chunks_exact_mut(heads * d).zip(x.chunks_exact(heads * d));
    for ((out, x), (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let ((turned, rest), (x, x_rest)) = (out.split_at_mut(2 * half), x.split_at(2 * half));
            let (turned, _) = turned.as_chunks_mut::<2>();
            for ((out, x), (cos, sin)) in turned.iter_mut().zip(x.as_chunks::<2>().0).zip(cos.iter().zip(sin)) {
                let sin = sin * direction;
                *out = [x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin];
            }
            rest.copy_from_slice(x_rest);
        }
    }
}

impl Rope {
    /// Turns by angles `[B, T, rotary / 2]`.
    pub(crate) fn new(cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Self> {
        Ok(Self { cos: cos.contiguous()?, sin: sin.contiguous()?, pairs, direction: 1.0 })
    }

    /// Turns back.
    pub(super) fn back(&self) -> Self {
        Self { direction: -self.direction, ..self.clone() }
    }

    /// `x` is `[.., heads, d]`.
    pub(super) fn turned(&self, x: &[f32], heads: usize, d: usize) -> Result<Vec<f32>> {
        let half = self.cos.dim(D::Minus1)?;
        if 2 * half > d {
            candle_core::bail!("rope: {half} angles for heads of {d} dimensions");
        }
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        let (cos, sin, width, sizes) = (&*cos, &*sin, heads * d, (heads, d, half));
        let mut out = vec![0f32; x.len()];
        let rows = rows_at_once(width);
        let parts = out.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width));
        let angles = cos.par_chunks((rows * half).max(1)).zip(sin.par_chunks((rows * half).max(1)));
        parts.zip(angles).for_each(|((out, x), (cos, sin))| match self.pairs {
            true => turn_pairs(out, x, (cos, sin), sizes, self.direction),
            false => turn(out, x, cos, sin, sizes, self.direction),
        });
        Ok(out)
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, heads, d) = layout.shape().dims4()?;
        Ok((CpuStorage::F32(self.turned(slice(storage, layout)?, heads, d)?), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, heads, d) = x.dims4()?;
        let gradient = gradient.contiguous()?;
        let turned = self.back().turned(&values(&gradient)?, heads, d)?;
        Ok(Some(Tensor::from_vec(turned, x.shape(), x.device())?))
    }
}

/// Turns the first dimensions of each head: `x` `[B, T, heads, d]`, `cos` and `sin` `[B, T, rotary / 2]`. Neighbours
/// turn together if `pairs`, else the two halves of the `rotary` dimensions.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Rope::new(cos, sin, pairs)?);
    }
    plain_rope(x, cos, sin, pairs)
}

fn plain_rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    let (half, d) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
    let turned = x.narrow(D::Minus1, 0, 2 * half)?;
    let (rows, tokens, heads, _) = x.dims4()?;
    let (a, b) = match pairs {
        false => (turned.narrow(D::Minus1, 0, half)?, turned.narrow(D::Minus1, half, half)?),
        true => {
            let both = turned.contiguous()?.reshape((rows, tokens, heads, half, 2))?;
            (both.narrow(4, 0, 1)?.squeeze(4)?, both.narrow(4, 1, 1)?.squeeze(4)?)
        }
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = match pairs {
        false => Tensor::cat(&[first, second], D::Minus1)?,
        true => Tensor::stack(&[first, second], 4)?.reshape((rows, tokens, heads, 2 * half))?,
    };
    match d - 2 * half {
        0 => Ok(turned),
        rest => Tensor::cat(&[turned, x.narrow(D::Minus1, 2 * half, rest)?], D::Minus1),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn turning_is_the_composition_with_its_gradient() {
        for (half, pairs) in [(8, false), (8, true), (3, false), (3, true)] {
            let angles = random(&[2, 5, half], 3);
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            agree(
                &[random(&[2, 5, 3, 16], 4)],
                |x| rope(&x[0], &cos, &sin, pairs),
                |x| plain_rope(&x[0], &cos, &sin, pairs),
            );
        }
    }
}

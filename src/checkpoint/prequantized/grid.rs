//! One number for each block of a tensor: scales by tensor, by channel, by group and by block.

use std::ops::Range;
use std::sync::Arc;

use super::parts::{self, SCALES, check_type, finding, numbers};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Packing, TensorRef};
use crate::source::show_shape;

/// A tensor that is divided into equal blocks. The last block of a dimension may be smaller.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    /// Number of blocks in each dimension.
    cells: Vec<usize>,
    /// Size of a block in each dimension.
    block: Vec<usize>,
    /// The tensor's shape.
    shape: Vec<usize>,
}

impl Grid {
    /// Divides a tensor of `shape` into blocks; `cells` is the shape of the scales. `block` has the block sizes for the
    /// last dimensions. Without it, each dimension of the scales must be 1 or equal to the tensor's, starting with the
    /// first.
    fn new(shape: &[usize], cells: &[usize], block: Option<&[usize]>) -> Option<Self> {
        let mut grid = Self { cells: vec![1; shape.len()], block: shape.to_vec(), shape: shape.to_vec() };
        if block.is_none() && cells.iter().all(|cells| *cells == 1) {
            return (cells.len() <= shape.len().max(1)).then_some(grid);
        }
        let sizes = match block {
            Some(block) if cells.len() == shape.len() && block.len() <= shape.len() => block,
            Some(_) => return None,
            None if cells.len() <= shape.len() => &[],
            None => return None,
        };
        let leading = shape.len() - sizes.len();
        for (at, found) in cells.iter().enumerate() {
            let (dim, of_block) = (shape[at], if at < leading { None } else { Some(sizes[at - leading]) });
            let size = match of_block {
                Some(size) if *found == dim.div_ceil(size) => size,
                None if *found == dim => 1,
                None if *found == 1 => dim,
                _ => return None,
            };
            (grid.cells[at], grid.block[at]) = (*found, size.max(1));
        }
        Some(grid)
    }

    /// The range of scales for row `row` of the tensor.
    fn cells_of(&self, row: usize) -> Range<usize> {
        let last = self.shape.len() - 1;
        let (mut rest, mut cell, mut stride) = (row, 0, 1);
        for at in (0..last).rev() {
            let coordinate = rest % self.shape[at].max(1);
            rest /= self.shape[at].max(1);
            cell += coordinate / self.block[at].max(1) * stride;
            stride *= self.cells[at];
        }
        cell * self.cells[last]..(cell + 1) * self.cells[last]
    }
}

/// The packing of a weight: each value minus the zero point of its block, times the scale of its block. The parts are
/// values, scales, and zero points if there are any.
#[derive(Debug)]
pub(super) struct Scaled {
    grid: Grid,
}

impl Scaled {
    /// The values `values * scales`, or `(values - zeros) * scales`, computed in f32.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where types or shapes don't fit.
    pub(super) fn of(
        values: TensorRef,
        scales: TensorRef,
        zeros: Option<TensorRef>,
        block: Option<&[usize]>,
    ) -> Result<Expr> {
        use DType::{F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, I8};
        check_type(&values, &[F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, I8])?;
        check_type(&scales, &SCALES)?;
        let shape = values.info().shape.clone();
        if shape.len() < 2 {
            return Err(finding(&values).expected("at least two dimensions").found(show_shape(&shape)).mismatch());
        }
        let Some(grid) = Grid::new(&shape, &scales.info().shape, block) else {
            let expected = match block {
                Some(block) => format!("a scale for each block of {} in {}", show_shape(block), show_shape(&shape)),
                None => format!("one scale, or one for each row of {}", show_shape(&shape)),
            };
            let found = show_shape(&scales.info().shape);
            return Err(finding(&scales).expected(expected).found(found).mismatch());
        };
        let mut of = vec![values, scales];
        if let Some(zeros) = zeros {
            let types = [DType::I8, DType::I32, DType::F32, DType::F16, DType::BF16, DType::F8_E4M3];
            check_type(&zeros, &types)?;
            parts::check_shape(&zeros, &of[1].info().shape, "as the scales have")?;
            of.push(zeros);
        }
        Ok(Expr::Packed { shape, parts: of, packing: Arc::new(Scaled { grid }) })
    }
}

impl Packing for Scaled {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        let [values, scales, zeros @ ..] = parts else { return };
        numbers(values, rows.start * row_len..rows.end * row_len, out);
        let width = self.grid.block.last().copied().unwrap_or(1).max(1);
        let cells = self.grid.cells.last().copied().unwrap_or(1);
        let (mut scale, mut zero, mut there) = (vec![0.0; cells], vec![0.0; cells], 0..0);
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len.max(1))) {
            let wanted = self.grid.cells_of(row);
            if wanted != there {
                numbers(scales, wanted.clone(), &mut scale);
                if let Some(zeros) = zeros.first() {
                    numbers(zeros, wanted.clone(), &mut zero);
                }
                there = wanted;
            }
            for ((out, scale), zero) in out.chunks_mut(width).zip(&scale).zip(&zero) {
                match zeros.is_empty() {
                    true => out.iter_mut().for_each(|value| *value *= scale),
                    false => out.iter_mut().for_each(|value| *value = (*value - zero) * scale),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_for_every_row() {
        let grid = Grid::new(&[2, 5, 7], &[2, 3, 2], Some(&[2, 4])).unwrap();
        assert_eq!(grid.cells_of(0), 0..2);
        assert_eq!(grid.cells_of(3), 2..4);
        assert_eq!(grid.cells_of(4), 4..6);
        assert_eq!(grid.cells_of(5), 6..8, "the second matrix");
        let channel = Grid::new(&[2, 5, 7], &[2, 5, 1], None).unwrap();
        assert_eq!(channel.cells_of(9), 9..10);
        let expert = Grid::new(&[2, 5, 7], &[2], None).unwrap();
        assert_eq!((expert.cells_of(4), expert.cells_of(5)), (0..1, 1..2));
        assert_eq!(Grid::new(&[5, 7], &[], None).unwrap().cells_of(4), 0..1);
        assert_eq!(Grid::new(&[5, 7], &[1], None).unwrap().cells_of(4), 0..1);
        for (cells, block) in [
            (&[2, 2][..], Some(&[2, 4][..])),
            (&[3, 1], Some(&[2, 4])),
            (&[3], Some(&[2, 4])),
            (&[7], None),
            (&[5, 2], None),
            (&[1, 1, 1], None),
        ] {
            assert!(Grid::new(&[5, 7], cells, block).is_none(), "{cells:?} {block:?}");
        }
    }
}

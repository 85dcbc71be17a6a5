//! A module's weight in the base of an adapter.

use super::Named;
use super::change::{Change, WeightLayout};
use crate::plan::{Expr, PlannedTensor};

/// A module's weight in the base. The kernel of a convolution, `[d_out, inputs, taps..]`, is seen as a matrix.
#[derive(Debug, Clone, Copy)]
pub(in crate::adapter) struct Weight<'a> {
    /// The weight, under its name in the file.
    pub(in crate::adapter) tensor: &'a PlannedTensor,
    /// The number of outputs of the module, whether or not the weight is transposed.
    pub(in crate::adapter) d_out: usize,
    /// The number of inputs; of a convolution, those of one group times the taps.
    pub(in crate::adapter) d_in: usize,
    /// Whether the weight is stored as `[d_in, d_out]`, as in a Conv1D.
    pub(in crate::adapter) transposed: bool,
}

impl<'a> Weight<'a> {
    /// `tensor` as the kernel of a convolution of one, two or three dimensions; `None` for a tensor of other dimensions.
    pub(in crate::adapter) fn of_kernel(tensor: &'a PlannedTensor) -> Option<Self> {
        if !(3..=5).contains(&tensor.shape.len()) || tensor.shape.contains(&0) {
            return None;
        }
        let (d_out, d_in) = (tensor.shape[0], tensor.shape[1..].iter().product());
        Some(Self { tensor, d_out, d_in, transposed: false })
    }

    /// The layout in which the base stores it.
    pub(in crate::adapter) fn layout(&self) -> WeightLayout {
        WeightLayout::of_linear(self.transposed)
    }

    /// The sizes of a convolution's kernel; empty for a linear layer.
    pub(in crate::adapter) fn taps(&self) -> &[usize] {
        &self.tensor.shape[2..]
    }

    /// Whether it is the kernel of a convolution.
    pub(in crate::adapter) fn is_kernel(&self) -> bool {
        !self.taps().is_empty()
    }

    /// The inputs of one group.
    pub(in crate::adapter) fn inputs(&self) -> usize {
        self.d_in / self.taps().iter().product::<usize>().max(1)
    }

    /// `sizes`, and those of the kernel behind them.
    pub(in crate::adapter) fn with_taps(&self, sizes: [usize; 2]) -> Vec<usize> {
        [&sizes[..], self.taps()].concat()
    }

    /// `sizes`, and a one behind them for each dimension of the kernel.
    pub(in crate::adapter) fn with_ones(&self, sizes: [usize; 2]) -> Vec<usize> {
        [&sizes[..], &vec![1; self.taps().len()]].concat()
    }

    /// A change of the matrix as one of the tensor.
    pub(in crate::adapter) fn of_tensor(&self, change: Change) -> Change {
        match self.is_kernel() {
            true => Change::Kernel { matrix: [self.d_out, self.d_in], change: Box::new(change) },
            false => change,
        }
    }

    /// The same, with the tensor's name.
    pub(in crate::adapter) fn change(&self, change: Change) -> Named {
        (self.tensor.name.clone(), self.of_tensor(change))
    }

    /// The weight as a matrix.
    pub(in crate::adapter) fn matrix(&self) -> PlannedTensor {
        let mut matrix = self.tensor.clone();
        if self.is_kernel() {
            matrix.shape = vec![self.d_out, self.d_in];
            matrix.expr = Expr::Reshape { of: Box::new(matrix.expr), shape: matrix.shape.clone() };
        }
        matrix
    }
}

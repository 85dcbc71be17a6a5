//! Sizes of convolution kernels.

use crate::source::show_shape;

/// The most taps of a kernel: the second moment of this many has 16.8 million numbers.
pub const MAX_TAPS: usize = 4096;

/// The size of a convolution kernel. A kernel of one dimension has only a time, one of two only height and width; the
/// other sizes are 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelSize {
    /// Taps along the first axis of a kernel of three dimensions, or the only one of a kernel of one.
    pub time: usize,
    /// Taps along the height.
    pub height: usize,
    /// Taps along the width.
    pub width: usize,
    /// The number of dimensions, 1 to 3.
    pub dims: usize,
}

impl KernelSize {
    /// The size of a kernel of one dimension.
    pub fn line(time: usize) -> Self {
        Self { time, height: 1, width: 1, dims: 1 }
    }

    /// The size of a kernel of two dimensions.
    pub fn plane(height: usize, width: usize) -> Self {
        Self { time: 1, height, width, dims: 2 }
    }

    /// The size of a kernel of three dimensions.
    pub fn volume(time: usize, height: usize, width: usize) -> Self {
        Self { time, height, width, dims: 3 }
    }

    /// The kernel size of a convolution's weight, whose shape has two numbers of channels in front. `None` for other
    /// shapes, and for weights without elements.
    pub fn of_weight(shape: &[usize]) -> Option<Self> {
        if shape.contains(&0) {
            return None;
        }
        match *shape {
            [_, _, time] => Some(Self::line(time)),
            [_, _, height, width] => Some(Self::plane(height, width)),
            [_, _, time, height, width] => Some(Self::volume(time, height, width)),
            _ => None,
        }
    }

    /// Taps of a spatial atom.
    pub fn area(&self) -> usize {
        self.height * self.width
    }

    /// Taps of the kernel; the largest number where it overflows.
    pub fn taps(&self) -> usize {
        self.time.saturating_mul(self.height).saturating_mul(self.width)
    }

    /// The sizes of the axes that a kernel of these dimensions has, as in a weight's shape.
    pub fn axes(&self) -> Vec<usize> {
        match self.dims {
            1 => vec![self.time],
            2 => vec![self.height, self.width],
            _ => vec![self.time, self.height, self.width],
        }
    }

    /// Whether kernels of these dimensions have temporal atoms.
    pub fn has_time(&self) -> bool {
        self.dims != 2
    }

    /// Whether kernels of these dimensions have spatial atoms.
    pub fn has_space(&self) -> bool {
        self.dims != 1
    }

    /// The shape of `count` spatial atoms.
    pub fn spatial_shape(&self, count: usize) -> Vec<usize> {
        vec![count, self.height, self.width]
    }

    /// The shape of a kernel's coefficients, behind the channels.
    pub fn coefficient_axes(&self, temporal: usize, spatial: usize) -> Vec<usize> {
        match self.dims {
            1 => vec![temporal],
            2 => vec![spatial],
            _ => vec![temporal, spatial],
        }
    }

    /// The size as a model's code gives it: `(5, 3, 3)`.
    pub fn tuple(&self) -> String {
        tuple(&self.axes())
    }
}

/// Numbers as Python shows them: `(1, 0, 0)`, or `3` for one alone.
pub fn tuple(values: &[usize]) -> String {
    match values {
        [one] => one.to_string(),
        several => show_shape(several).replace('[', "(").replace(']', ")"),
    }
}

impl std::fmt::Display for KernelSize {
    /// `3x3x3`, `3x3` or `9`: also the name in a bank's tensors.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let axes: Vec<String> = self.axes().iter().map(ToString::to_string).collect();
        f.write_str(&axes.join("x"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_shapes() {
        let size = |shape: &[usize]| KernelSize::of_weight(shape).map(|size| size.to_string());
        assert_eq!(size(&[8, 4, 9]).unwrap(), "9");
        assert_eq!(size(&[8, 4, 3, 5]).unwrap(), "3x5");
        assert_eq!(size(&[8, 4, 3, 5, 7]).unwrap(), "3x5x7");
        assert_eq!((size(&[8, 4]), size(&[8, 0, 3]), size(&[1; 6])), (None, None, None));
        assert_eq!(KernelSize::volume(5, 3, 3).tuple(), "(5, 3, 3)");
        assert_eq!(KernelSize::line(5).tuple(), "5");
        assert_eq!(KernelSize::volume(usize::MAX, 2, 2).taps(), usize::MAX);
    }
}

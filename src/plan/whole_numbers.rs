//! Tensors of whole numbers, which plans carry but don't compute with.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::TensorRef;
use crate::dtype::DType;
use crate::source::{Source, TensorInfo};

/// Whole numbers in memory.
struct WholeNumbers {
    info: [TensorInfo; 1],
    bytes: Vec<u8>,
}

impl Source for WholeNumbers {
    fn path(&self) -> &Path {
        Path::new("")
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.info
    }

    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]> {
        self.info[index].slice(&self.bytes, rows).into()
    }
}

impl TensorRef {
    /// A tensor of whole numbers in memory, of type I32 or I64. `None` if a number is out of the type's range, or the
    /// type is another one.
    pub(crate) fn of_whole_numbers(dtype: DType, shape: Vec<usize>, numbers: &[i64]) -> Option<TensorRef> {
        let bytes = match dtype {
            DType::I64 => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            DType::I32 => {
                let numbers = numbers.iter().map(|number| i32::try_from(*number).ok());
                numbers.collect::<Option<Vec<i32>>>()?.into_iter().flat_map(i32::to_le_bytes).collect()
            }
            _ => return None,
        };
        let info = [TensorInfo { name: String::new(), dtype, shape }];
        let source: Arc<dyn Source> = Arc::new(WholeNumbers { info, bytes });
        TensorRef::all(&source).next()
    }

    /// The values, if they are whole numbers of 32 or 64 bits.
    pub(crate) fn whole_numbers(&self) -> Option<Vec<i64>> {
        let bytes = self.rows(0..crate::source::rows(&self.info().shape));
        match self.info().dtype {
            DType::I64 => {
                let (numbers, _) = bytes.as_chunks();
                Some(numbers.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
            }
            DType::I32 => {
                let (numbers, _) = bytes.as_chunks();
                Some(numbers.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_in_either_type() {
        let numbers = [0, -1, 7, i64::from(i32::MAX)];
        for dtype in [DType::I32, DType::I64] {
            let tensor = TensorRef::of_whole_numbers(dtype, vec![2, 2], &numbers).unwrap();
            assert_eq!(tensor.whole_numbers().unwrap(), numbers);
        }
        assert!(TensorRef::of_whole_numbers(DType::I32, vec![1], &[1 << 31]).is_none());
        assert!(TensorRef::of_whole_numbers(DType::F32, vec![1], &[1]).is_none());
    }
}

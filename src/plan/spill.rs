//! Values that are computed before the pass and are too many to keep in memory until then. They are kept in a temporary
//! file.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::TensorRef;
use crate::dtype::DType;
use crate::error::Result;
use crate::quant;
use crate::source::{MappedFile, Source, TensorInfo};

/// How many values are encoded and written at once.
const CHUNK: usize = 1 << 16;

/// A temporary file that holds one tensor.
struct Spilled {
    file: MappedFile,
    info: [TensorInfo; 1],
}

impl Source for Spilled {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.info
    }

    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]> {
        self.info[index].slice(self.file.bytes(), rows).into()
    }
}

impl TensorRef {
    /// Stores `values` as a tensor of f32 with shape `shape` in a temporary file (`TMPDIR`), which is deleted with the
    /// last reference. Like values in memory, the tensor has neither path nor name.
    ///
    /// # Errors
    /// [`crate::Error::Io`], naming the folder for temporary files.
    ///
    /// # Panics
    /// If the number of `values` isn't the number of elements in `shape`.
    pub fn spill(shape: Vec<usize>, values: &[f32]) -> Result<TensorRef> {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let file = MappedFile::temporary(Path::new(""), |put| {
            let mut bytes = vec![0; CHUNK.min(values.len()) * size_of::<f32>()];
            values.chunks(CHUNK).try_for_each(|values| {
                let bytes = &mut bytes[..size_of_val(values)];
                quant::encode(DType::F32, values, bytes);
                put(bytes)
            })
        })?;
        let info = [TensorInfo { name: String::new(), dtype: DType::F32, shape }];
        let source: Arc<dyn Source> = Arc::new(Spilled { file, info });
        Ok(TensorRef::all(&source).next().expect("one tensor"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Expr, PlannedTensor};

    #[test]
    fn spilled_rows_can_be_read_in_any_order() {
        let values: Vec<f32> = (0..3 * CHUNK).map(|i| i as f32 - 0.5).collect();
        let shape = vec![3, CHUNK];
        let aside = TensorRef::spill(shape.clone(), &values).unwrap();
        let tensor = PlannedTensor { name: String::new(), dtype: DType::F32, shape, expr: Expr::Take(aside) };
        assert_eq!(tensor.read_rows(2..3).unwrap(), values[2 * CHUNK..]);
        assert_eq!(tensor.read().unwrap(), values);
        let empty = TensorRef::spill(vec![0, 4], &[]).unwrap();
        assert!(empty.rows(0..0).is_empty());
    }
}

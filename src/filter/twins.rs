//! Tensors of a PyTorch file that are one storage under several names.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::dtype::DType;
use crate::plan::{Expr, Plan};

/// For each tensor of a plan, the first one with the same bytes in the same file.
#[derive(Debug)]
pub struct Twins {
    first: Vec<usize>,
}

impl Twins {
    /// Compares the places of all tensors that are taken as they are. Only files of torch can have a storage twice.
    pub fn of(plan: &Plan) -> Self {
        let mut places: HashMap<(usize, DType, &[usize]), usize> = HashMap::new();
        let mut first = Vec::with_capacity(plan.tensors.len());
        for (place, tensor) in plan.tensors.iter().enumerate() {
            first.push(place);
            let Expr::Take(source) = &tensor.expr else { continue };
            let info = source.info();
            if source.text_metadata().is_some() || info.elems() == 0 {
                continue;
            }
            if let Cow::Borrowed(bytes) = source.rows(0..info.rows()) {
                let key = (bytes.as_ptr().addr(), info.dtype, info.shape.as_slice());
                first[place] = *places.entry(key).or_insert(place);
            }
        }
        Self { first }
    }

    /// The place of the first tensor with the storage of the one at `place`; itself, if there is no other.
    pub fn first(&self, place: usize) -> usize {
        self.first.get(place).copied().unwrap_or(place)
    }
}

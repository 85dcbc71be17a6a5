//! The tensors of a file: one by one, and totals by type.

use serde::Serialize;

use crate::plan::{Plan, PlannedTensor};
use crate::source::TensorInfo;

/// The report on one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// The name of its type.
    pub dtype: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The size in bytes.
    pub bytes: u64,
    /// The name of the first tensor whose storage this one shares, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// All tensors of one type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeReport {
    /// The type's name.
    pub dtype: String,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of elements.
    pub elements: u64,
    /// The size in bytes.
    pub bytes: u64,
}

/// The tensors of a file or folder.
#[derive(Debug, Clone, Serialize)]
pub struct TensorsReport {
    /// The number of storages: less than that of tensors if some have several names.
    pub storages: usize,
    /// The number of all elements.
    pub elements: u64,
    /// The size of all tensors in bytes.
    pub bytes: u64,
    /// Totals by type, largest size first.
    pub by_type: Vec<TypeReport>,
    /// The tensors, in the file's order.
    pub list: Vec<TensorReport>,
}

impl TensorsReport {
    /// Counts the tensors of a plan, with the plan's types.
    pub fn of_plan(plan: &Plan) -> Self {
        let mut report = Self::of(&plan.tensors.iter().map(PlannedTensor::info).collect::<Vec<_>>());
        for (place, first) in plan.shared().into_iter().enumerate().filter(|(place, first)| place != first) {
            report.list[place].same_as = Some(plan.tensors[first].name.clone());
            report.storages -= 1;
        }
        report
    }

    /// Counts `tensors`.
    pub fn of<'a>(tensors: impl IntoIterator<Item = &'a TensorInfo>) -> Self {
        let mut report = Self { storages: 0, elements: 0, bytes: 0, by_type: Vec::new(), list: Vec::new() };
        for t in tensors {
            let elements = t.elems() as u64;
            let row_len = t.shape.last().copied().unwrap_or(1).max(t.dtype.block_elems());
            let bytes = t.dtype.bytes_of(elements, row_len as u64).unwrap_or(0);
            report.elements += elements;
            report.bytes += bytes;
            let name = t.dtype.name();
            match report.by_type.iter_mut().find(|r| r.dtype == name) {
                Some(r) => (r.tensors, r.elements, r.bytes) = (r.tensors + 1, r.elements + elements, r.bytes + bytes),
                None => report.by_type.push(TypeReport { dtype: name.into(), tensors: 1, elements, bytes }),
            }
            let (dtype, shape, same_as) = (name.into(), t.shape.clone(), None);
            report.list.push(TensorReport { name: t.name.clone(), dtype, shape, bytes, same_as });
            report.storages += 1;
        }
        report.by_type.sort_by_key(|r| std::cmp::Reverse(r.bytes));
        report
    }
}

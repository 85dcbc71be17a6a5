//! The tensors of a packed checkpoint: which ones belong together, and which were taken.

use std::collections::HashMap;

use super::settings::Settings;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::quant;
use crate::source::show_shape;

/// Names of scales that belong to activations, not to weights.
const OF_ACTIVATIONS: [&str; 11] = [
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".activation_scale",
    "_activation_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".qscale_act",
];

/// Ends of names that only parts of packed weights have.
const PARTS: [&str; 13] = [
    ".weight_g_idx",
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    "_scale_inv",
    ".weight_zero_point",
    ".weight_global_scale",
    ".weight_scale_2",
    ".SCB",
    ".absmax",
    ".quant_map",
];

/// The stored tensors. Each is to be taken once.
pub(super) struct Parts<'a> {
    plan: &'a Plan,
    places: HashMap<&'a str, usize>,
    taken: Vec<bool>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        let places = plan.tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.as_str(), place)).collect();
        Self { plan, places, taken: vec![false; plan.tensors.len()] }
    }

    /// Names that end in `suffix`, each with the part before it, in the files' order.
    pub(super) fn ending(&self, suffix: &str) -> Vec<(&'a str, &'a str)> {
        let names = self.plan.tensors.iter().map(|tensor| tensor.name.as_str());
        names.filter_map(|name| Some((name, name.strip_suffix(suffix)?))).collect()
    }

    /// Names that contain `middle`, each with the part before it.
    pub(super) fn with(&self, middle: &str) -> Vec<(&'a str, &'a str)> {
        let names = self.plan.tensors.iter().map(|tensor| tensor.name.as_str());
        names.filter_map(|name| Some((name, name.split_once(middle)?.0))).collect()
    }

    /// The position of the tensor called `name`.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// Takes the tensor called `name`, if it exists.
    pub(super) fn take(&mut self, name: &str) -> Option<TensorRef> {
        let place = self.place(name)?;
        let Expr::Take(tensor) = &self.plan.tensors[place].expr else { return None };
        self.taken[place] = true;
        Some(tensor.clone())
    }

    /// Takes the tensor called `name`, which `owner` needs.
    pub(super) fn need(&mut self, owner: &str, name: &str) -> Result<TensorRef> {
        self.take(name).ok_or_else(|| {
            let file = self.place(owner).map(|place| self.plan.tensors[place].expr.source_path());
            Finding::new(file.unwrap_or_default(), format!("tensor {owner:?}"))
                .expected(format_args!("{name:?} beside it"))
                .found("none of that name")
                .hint("is the download complete?")
                .mismatch()
        })
    }

    /// The stored tensor called `name`, without taking it.
    pub(super) fn peek(&self, name: &str) -> Option<&'a PlannedTensor> {
        self.place(name).map(|place| &self.plan.tensors[place])
    }

    /// Whether the tensor at `place` was taken.
    pub(super) fn is_taken(&self, place: usize) -> bool {
        self.taken[place]
    }

    /// The tensors that weren't taken.
    pub(super) fn rest(&self) -> impl Iterator<Item = &'a PlannedTensor> {
        self.plan.tensors.iter().zip(&self.taken).filter(|(_, taken)| !**taken).map(|(tensor, _)| tensor)
    }

    /// Takes the scales of activations, which no weight needs, and adds a note.
    pub(super) fn leave_out_activations(&mut self, notes: &mut Vec<String>) {
        // Only a single number is a scale of activations: a model may have a larger parameter with
        // such a name.
        let is_one = |tensor: &PlannedTensor| {
            tensor.elems() == 1 && OF_ACTIVATIONS.iter().any(|suffix| tensor.name.ends_with(suffix))
        };
        let found: Vec<usize> =
            (0..self.taken.len()).filter(|at| !self.taken[*at] && is_one(&self.plan.tensors[*at])).collect();
        let Some(first) = found.first() else { return };
        notes.push(format!(
            "left out, because plain weights have no use for it: scales of activations, {} tensors like {}",
            found.len(),
            self.plan.tensors[*first].name
        ));
        found.into_iter().for_each(|place| self.taken[place] = true);
    }

    /// Checks that no tensor remains that only the method's own code could read.
    pub(super) fn check_nothing_packed(&self, settings: &Settings) -> Result<()> {
        let smoothing = self.rest().find(|tensor| tensor.name.ends_with(".pre_quant_scale"));
        let packed = self.rest().find(|tensor| {
            let odd = is_eight_bit_float(tensor.dtype) || matches!(tensor.dtype, DType::I8 | DType::U8);
            let part = PARTS.iter().any(|suffix| tensor.name.ends_with(suffix));
            odd && tensor.shape.len() > 1 || part
        });
        let Some(tensor) = smoothing.or(packed) else { return Ok(()) };
        let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
        Err(finding
            .expected(format_args!("tensors as {} packs weights", settings.method.name))
            .found(format_args!("{} {} that belongs to none", tensor.dtype, show_shape(&tensor.shape)))
            .hint("other tensors of the same weight may be missing; is the download complete?")
            .mismatch())
    }

    /// Positions of tensors that were only cast to an eight-bit float. If `unsaid`, no config
    /// describes them; then a scale for one of them is an error.
    pub(super) fn casts(&self, unsaid: bool) -> Result<Vec<usize>> {
        let mut casts = Vec::new();
        for (place, tensor) in self.plan.tensors.iter().enumerate() {
            if self.taken[place] || !is_eight_bit_float(tensor.dtype) || tensor.dtype == DType::F8_E8M0 {
                continue;
            }
            let stem = tensor.name.strip_suffix("weight").unwrap_or(&tensor.name);
            let scales =
                [(&*tensor.name, "_scale_inv"), (&*tensor.name, "_scale"), (stem, "scale"), (stem, "qscale_weight")];
            let mut scales = scales.iter().filter(|_| unsaid).map(|(start, end)| format!("{start}{end}"));
            if let Some(scale) = scales.find(|name| self.places.contains_key(name.as_str())) {
                return Err(Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
                    .expected("a quantization_config in config.json that says how it is scaled")
                    .found(format_args!("none, and {scale:?}"))
                    .mismatch());
            }
            casts.push(place);
        }
        Ok(casts)
    }
}

/// Whether `dtype` is an eight-bit float.
pub(super) fn is_eight_bit_float(dtype: DType) -> bool {
    matches!(dtype, DType::F8_E4M3 | DType::F8_E5M2 | DType::F8_E8M0 | DType::F8_E4M3FNUZ | DType::F8_E5M2FNUZ)
}

/// A finding about a stored tensor.
pub(super) fn finding(tensor: &TensorRef) -> Finding {
    Finding::new(tensor.path(), format!("tensor {:?}", tensor.info().name))
}

/// Checks that `tensor` has one of these types.
pub(super) fn check_type(tensor: &TensorRef, types: &[DType]) -> Result<()> {
    let dtype = tensor.info().dtype;
    if types.contains(&dtype) {
        return Ok(());
    }
    let names: Vec<&str> = types.iter().map(|dtype| dtype.name()).collect();
    Err(finding(tensor).expected(names.join(" or ")).found(dtype).mismatch())
}

/// Checks that `tensor` has this shape; `why` says from what the shape follows.
pub(super) fn check_shape(tensor: &TensorRef, shape: &[usize], why: &str) -> Result<()> {
    if tensor.info().shape == shape {
        return Ok(());
    }
    let found = show_shape(&tensor.info().shape);
    Err(finding(tensor).expected(format_args!("{} {why}", show_shape(shape))).found(found).mismatch())
}

/// Rows and columns of a tensor that must be a matrix.
pub(super) fn matrix(tensor: &TensorRef) -> Result<(usize, usize)> {
    match tensor.info().shape[..] {
        [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => {
            let found = show_shape(&tensor.info().shape);
            Err(finding(tensor).expected("a matrix").found(found).mismatch())
        }
    }
}

/// Possible types of scales.
pub(super) const SCALES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8_E8M0];

/// Reads elements `elems` as numbers; integers work, too.
pub(super) fn numbers(tensor: &TensorRef, elems: std::ops::Range<usize>, out: &mut [f32]) {
    let bytes = tensor.elements(elems);
    match tensor.info().dtype {
        DType::I8 => out.iter_mut().zip(&*bytes).for_each(|(out, byte)| *out = f32::from(*byte as i8)),
        DType::U8 => out.iter_mut().zip(&*bytes).for_each(|(out, byte)| *out = f32::from(*byte)),
        DType::I32 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, word)| *out = i32::from_le_bytes(*word) as f32);
        }
        dtype if quant::can_decode(dtype) && dtype.is_plain() => quant::decode(dtype, &bytes, out),
        _ => out.fill(f32::NAN),
    }
}

//! Dense kernels, and three plain convolutions, made of a bank: the plan of the model with them.

use std::collections::HashMap;
use std::path::Path;

use super::atoms::Atoms;
use super::bank::{BankLayer, FilterBank};
use super::layer::Mode;
use super::names::coefficients_name;
use super::size::KernelSize;
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::linalg::to_rows;
use crate::plan::{Expr, Plan, PlannedTensor, Sums};
use crate::source::show_shape;

/// The number of columns from which products are summed in one way, as torch does it. Narrower ones are widened by
/// zeros, so that a kernel's values don't depend on the zeros between its taps.
const COLUMNS: usize = 12;

/// What a bank makes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Dense kernels, as the model had them.
    Dense,
    /// Three convolutions in the place of each: temporal atoms, spatial atoms, coefficients.
    ThreeConvolutions,
}

/// A model with the kernels of a bank.
#[derive(Debug)]
pub struct Baked {
    /// The model's tensors, in its order. What the bank doesn't have is as it was.
    pub plan: Plan,
    /// For every tensor, the place of the first that is the same values of the same storage, as in [`Plan::shared`].
    pub shared: Vec<usize>,
    /// One line for everything that was assumed, or that the user has to do.
    pub notes: Vec<String>,
}

impl FilterBank {
    /// The model with the weights `plan` and this bank's kernels, in the types that its own kernels have. `model` is
    /// for messages.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a model without a module of the bank, or with other channels.
    pub fn baked(&self, plan: &Plan, model: &Path, form: Form) -> Result<Baked> {
        if self.config.mode != Mode::Replace {
            let finding = Finding::new(&self.path, "mode").expected("replace, a bank that stands for whole kernels");
            return Err(finding
                .found("atoms, other atoms for the base's coefficients")
                .hint("`jobs::merge` merges it")
                .mismatch());
        }
        let places: HashMap<&str, usize> =
            plan.tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.as_str(), place)).collect();
        let shared = plan.shared();
        // The layer of each changed tensor, by the first name of its storage.
        let mut changed: HashMap<usize, &BankLayer> = HashMap::new();
        for layer in &self.layers {
            let place = places.get(format!("{}.weight", layer.module).as_str()).copied();
            let Some(place) = place else { return Err(self.absent(layer, plan, model)) };
            self.check_base(layer, &plan.tensors[place], model)?;
            if let Some(other) = changed.insert(shared[place], layer).filter(|other| !other.same_kernel(layer)) {
                return Err(self.two_of_one(layer, other));
            }
        }
        let (mut tensors, mut notes) = (Vec::with_capacity(plan.tensors.len()), Notes::default());
        // The first tensor that was made of each tensor of the model, and the storages of all.
        let (mut starts, mut storages) = (Vec::with_capacity(plan.tensors.len()), Vec::new());
        for (place, tensor) in plan.tensors.iter().enumerate() {
            let module = tensor.name.strip_suffix(".weight");
            starts.push(tensors.len());
            match (module, changed.get(&shared[place])) {
                (Some(module), Some(layer)) => {
                    notes.watch(module, layer, tensor, form);
                    match form {
                        Form::Dense => tensors.push(dense(layer, tensor)),
                        Form::ThreeConvolutions => tensors.extend(three(self, layer, tensor, module)?),
                    }
                }
                _ => tensors.push(tensor.clone()),
            }
            // What is made of two names of one storage is the same, part by part.
            storages.extend((0..tensors.len() - starts[place]).map(|part| starts[shared[place]] + part));
        }
        if form == Form::ThreeConvolutions {
            let is_changed = |(place, _): &(usize, &PlannedTensor)| changed.contains_key(&shared[*place]);
            move_biases(&mut tensors, plan.tensors.iter().enumerate().filter(is_changed).map(|(_, tensor)| tensor));
        }
        Ok(Baked { plan: Plan { tensors }, shared: storages, notes: notes.lines() })
    }

    fn finding(&self, layer: &BankLayer) -> Finding {
        Finding::new(&self.file, format!("tensor {:?}", coefficients_name(&layer.module)))
    }

    /// Checks that the model's kernel has the channels and the dimensions of the bank's. Its size may differ: atoms can
    /// have been exchanged for some of another size.
    fn check_base(&self, layer: &BankLayer, tensor: &PlannedTensor, model: &Path) -> Result<()> {
        let Some(coefficients) = &layer.coefficients else { return Ok(()) };
        let size = KernelSize::of_weight(&tensor.shape);
        let fits = size.is_some_and(|size| size.dims == layer.config.size.dims)
            && tensor.shape[..2] == coefficients.shape[..2];
        if !fits {
            let axes = layer.config.size.axes();
            let axes: String = axes.iter().map(|_| ", _").collect();
            return Err(self
                .finding(layer)
                .expected(format_args!(
                    "the channels of {}.weight in {}, {}",
                    layer.module,
                    model.display(),
                    show_shape(&tensor.shape)
                ))
                .found(format_args!("[{}, {}{axes}]", coefficients.shape[0], coefficients.shape[1]))
                .hint("this bank belongs to another model")
                .mismatch());
        }
        if !tensor.dtype.is_float() {
            let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
            return Err(finding.expected("a kernel of floating-point numbers").found(tensor.dtype).unsupported());
        }
        Ok(())
    }

    /// The error for a model that doesn't have the module of a layer.
    fn absent(&self, layer: &BankLayer, plan: &Plan, model: &Path) -> Error {
        let kernels = plan.tensors.iter().filter(|tensor| KernelSize::of_weight(&tensor.shape).is_some());
        let some: Vec<&str> = kernels.filter_map(|tensor| tensor.name.strip_suffix(".weight")).take(5).collect();
        let finding = self
            .finding(layer)
            .expected(format_args!("a module of {}", model.display()))
            .found("none of that name there");
        match some.is_empty() {
            true => finding,
            false => finding.hint(format_args!("its convolutions are called like {}", some.join(", "))),
        }
        .mismatch()
    }

    fn two_of_one(&self, layer: &BankLayer, other: &BankLayer) -> Error {
        let finding = self
            .finding(layer)
            .expected(format_args!("the kernel of {:?}, which is the same storage in the model", other.module));
        finding.found("another one").mismatch()
    }
}

impl BankLayer {
    /// Whether both have the same coefficients and atoms, as far as their files' bytes say.
    fn same_kernel(&self, other: &BankLayer) -> bool {
        let (Some(own), Some(others)) = (&self.coefficients, &other.coefficients) else { return false };
        self.atoms.atoms == other.atoms.atoms && own.same_values(others).unwrap_or(false)
    }
}

/// The product of all pairs of atoms with the coefficients, in the shape of a weight.
fn dense_expr(coefficients: &PlannedTensor, atoms: &Atoms) -> Expr {
    let (n, m) = atoms.counts();
    let channels = &coefficients.shape[..2];
    let left = Expr::Reshape { of: Box::new(coefficients.expr.clone()), shape: vec![channels[0] * channels[1], n * m] };
    let shape = [channels, &atoms.size.axes()].concat();
    Expr::Reshape { of: Box::new(times(left, &atoms.products(), atoms.size.taps(), 1.0)), shape }
}

/// `scale * (left @ right)`, where `right` has `columns` columns.
fn times(left: Expr, right: &[f64], columns: usize, scale: f64) -> Expr {
    let width = columns.max(COLUMNS);
    let mut values = vec![0.0f32; right.len() / columns * width];
    for (wide, row) in values.chunks_exact_mut(width).zip(right.chunks_exact(columns)) {
        wide.iter_mut().zip(row).for_each(|(wide, value)| *wide = *value as f32);
    }
    let right = Expr::Values { shape: vec![values.len() / width, width], values: values.into() };
    let product = Expr::Product { scale, left: Box::new(left), right: Box::new(right), sums: Sums::Product };
    match width == columns {
        true => product,
        false => Expr::Columns { of: Box::new(product), index: (0..columns as u32).collect() },
    }
}

/// What has to be added to the kernel `weight` to put `new` atoms in the place of the `old` ones that its coefficients
/// are taken over, times `scale`.
pub fn map_of_taps(weight: &PlannedTensor, old: &Atoms, new: &Atoms, scale: f64) -> Expr {
    let (taps, shape) = (old.size.taps(), weight.shape.clone());
    let rows = shape[..2].iter().product();
    let left = Expr::Reshape { of: Box::new(weight.expr.clone()), shape: vec![rows, taps] };
    Expr::Reshape { of: Box::new(times(left, &old.change_to(new), taps, scale)), shape }
}

/// The dense kernel of a layer, in the place of `old`.
fn dense(layer: &BankLayer, old: &PlannedTensor) -> PlannedTensor {
    let Some(coefficients) = &layer.coefficients else { return old.clone() };
    let expr = dense_expr(coefficients, &layer.atoms.atoms);
    PlannedTensor { name: old.name.clone(), dtype: old.dtype, shape: expr.shape(), expr }
}

/// The weights of the convolutions in the place of `old`: of temporal atoms and of spatial atoms, each for every
/// channel, and of coefficients. A set that kernels of these dimensions don't have is left out.
fn three(bank: &FilterBank, layer: &BankLayer, old: &PlannedTensor, module: &str) -> Result<Vec<PlannedTensor>> {
    let Some(coefficients) = &layer.coefficients else { return Ok(vec![old.clone()]) };
    let (atoms, size, dtype) = (&layer.atoms.atoms, layer.config.size, old.dtype);
    let (n, m) = atoms.counts();
    let (outputs, inputs) = (coefficients.shape[0], coefficients.shape[1]);
    let groups = layer.config.geometry.groups.unwrap_or(1);
    if !outputs.is_multiple_of(groups) {
        let finding = Finding::new(&bank.path, format!("layers.{module}.groups"));
        return Err(finding.expected(format_args!("a divisor of {outputs} outputs")).found(groups).mismatch());
    }
    let channels = inputs * groups;
    let named = |number: usize, expr: Expr| PlannedTensor {
        name: format!("{module}.{number}.weight"),
        dtype,
        shape: expr.shape(),
        expr,
    };
    let mut made = Vec::new();
    if size.has_time() {
        let axes = if size.dims == 1 { vec![size.time] } else { vec![size.time, 1, 1] };
        made.push(named(0, repeated(to_rows(&atoms.temporal), n, channels, &axes)));
    }
    if size.has_space() {
        let axes = if size.dims == 2 { vec![size.height, size.width] } else { vec![1, size.height, size.width] };
        made.push(named(1, repeated(to_rows(&atoms.spatial), m, channels * n, &axes)));
    }
    let shape = [vec![outputs, inputs * n * m], vec![1; size.dims]].concat();
    made.push(named(2, Expr::Reshape { of: Box::new(coefficients.expr.clone()), shape }));
    Ok(made)
}

/// `count` atoms, `times` times one after the other, as the weight of a convolution of single channels.
fn repeated(values: Vec<f32>, count: usize, times: usize, axes: &[usize]) -> Expr {
    let taps = values.len() / count;
    let atoms = Expr::Values { shape: vec![count, taps], values: values.into() };
    // A row of one tap is written as a matrix of one column, whose rows are elements all the same.
    let rows = Expr::picked(atoms, (0..times).map(|_| (0, count)), vec![times * count, taps]);
    Expr::Reshape { of: Box::new(rows), shape: [&[times * count, 1], axes].concat() }
}

/// Moves the biases of the changed layers to the last of their three convolutions.
fn move_biases<'a>(tensors: &mut [PlannedTensor], changed: impl Iterator<Item = &'a PlannedTensor>) {
    let modules: Vec<&str> = changed.filter_map(|tensor| tensor.name.strip_suffix(".weight")).collect();
    for tensor in tensors {
        if let Some(module) = tensor.name.strip_suffix(".bias").filter(|module| modules.contains(module)) {
            tensor.name = format!("{module}.2.bias");
        }
    }
}

/// What a user has to know about the changed layers.
#[derive(Default)]
struct Notes {
    resized: Vec<String>,
    ungrouped: usize,
    widened: Option<DType>,
}

impl Notes {
    fn watch(&mut self, module: &str, layer: &BankLayer, old: &PlannedTensor, form: Form) {
        let (was, is) = (KernelSize::of_weight(&old.shape), layer.config.size);
        if let Some(was) = was.filter(|was| *was != is) {
            self.resized.push(format!("{module}: {was} -> {is}"));
        }
        if form == Form::ThreeConvolutions && layer.config.geometry.groups.is_none() {
            self.ungrouped += 1;
        }
        self.widened = self.widened.or(Some(old.dtype).filter(|dtype| *dtype == DType::F64));
    }

    fn lines(self) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut lines = Vec::new();
        if !self.resized.is_empty() {
            let more = self.resized.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown = self.resized.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            lines.push(format!("kernels have other sizes than the model's: {shown}{more}; build the model for them"));
        }
        if self.ungrouped > 0 {
            lines.push(format!(
                "{} layers have no `groups` in adapter_config.json and are taken to have one group: a state dict doesn't \
                 say",
                self.ungrouped
            ));
        }
        if self.widened.is_some() {
            lines.push("kernels of F64 are computed in F32".to_owned());
        }
        lines
    }
}

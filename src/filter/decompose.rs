//! Decomposing the kernels of a model into a bank of atoms and coefficients.

use std::sync::Arc;

use super::atoms::{Atoms, Search};
use super::bank::BankConfig;
use super::fit::{Missed, missed};
use super::layer::{LayerConfig, Mode};
use super::moment::Moment;
use super::names::{Part, atoms_name, coefficients_name};
use super::select::{Chosen, Selection};
use crate::dtype::DType;
use crate::error::Result;
use crate::linalg::to_rows;
use crate::plan::{Expr, Plan, PlannedTensor};

/// How many atoms there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Counts {
    /// These numbers, or all taps where there are fewer or no number is given.
    Given {
        /// Temporal atoms.
        temporal: Option<usize>,
        /// Spatial atoms.
        spatial: Option<usize>,
    },
    /// As few as keep this share of a layer's energy, or of a group's.
    Energy(f64),
}

/// A layer of a new bank.
#[derive(Debug, Clone)]
pub struct Fitted<'a> {
    /// The convolution.
    pub of: Chosen<'a>,
    /// Its atoms, which have orthonormal rows.
    pub atoms: Arc<Atoms>,
    /// What they miss of it.
    pub missed: Missed,
}

impl Fitted<'_> {
    /// The number of coefficients.
    fn coefficients(&self) -> usize {
        let (n, m) = self.atoms.counts();
        self.of.taps().rows() * n * m
    }

    /// The number of values of the layer: coefficients and atoms.
    pub fn values(&self) -> usize {
        let (n, m) = self.atoms.counts();
        let size = self.of.size;
        let temporal = if size.has_time() { n * size.time } else { 0 };
        let spatial = if size.has_space() { m * size.area() } else { 0 };
        self.coefficients() + temporal + spatial
    }
}

/// A model's kernels as a bank.
#[derive(Debug, Clone)]
pub struct Decomposition<'a> {
    /// The layers, in the model's order.
    pub layers: Vec<Fitted<'a>>,
    /// Whether layers of one kernel size share their atoms.
    pub shared: bool,
    /// How many layers have fewer taps than atoms were asked for.
    pub cut: usize,
}

impl<'a> Decomposition<'a> {
    /// Decomposes the selected layers, in two passes over each; `done` is called after each of them.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for a NaN or an infinity in a kernel.
    pub fn of(selection: &Selection<'a>, counts: Counts, shared: bool, done: &dyn Fn()) -> Result<Self> {
        let layers = &selection.layers;
        let mut atoms: Vec<Option<Arc<Atoms>>> = vec![None; layers.len()];
        for group in groups(layers, shared) {
            let mut moment = Moment::zero(layers[group[0]].size);
            for &place in group.iter().filter(|place| layers[**place].twin_of.is_none()) {
                moment.add_at_unit_norm(&Moment::of(&layers[place].taps())?);
                done();
            }
            let search = Search::new(&moment);
            let found = match counts {
                Counts::Energy(energy) => search.reaching(energy).0,
                Counts::Given { temporal, spatial } => {
                    search.atoms(temporal.unwrap_or(usize::MAX), spatial.unwrap_or(usize::MAX)).0
                }
            };
            let found = Arc::new(found);
            group.iter().for_each(|place| atoms[*place] = Some(found.clone()));
        }
        let mut fitted: Vec<Fitted> = Vec::with_capacity(layers.len());
        for (of, atoms) in layers.iter().zip(atoms) {
            let Some(atoms) = atoms else { continue };
            let missed = match of.twin_of.and_then(|twin| fitted.get(twin)) {
                Some(twin) => twin.missed,
                None => missed(&of.taps(), &atoms)?,
            };
            done();
            fitted.push(Fitted { of: of.clone(), atoms, missed });
        }
        let asked = |of: &Chosen| match counts {
            Counts::Energy(_) => false,
            Counts::Given { temporal, spatial } => {
                of.size.has_time() && temporal.is_some_and(|n| n > of.size.time)
                    || of.size.has_space() && spatial.is_some_and(|m| m > of.size.area())
            }
        };
        let cut = layers.iter().filter(|of| asked(of)).count();
        Ok(Self { layers: fitted, shared, cut })
    }

    /// How many times `done` is called.
    pub fn steps(selection: &Selection) -> u64 {
        let twins = selection.layers.iter().filter(|layer| layer.twin_of.is_some()).count();
        (2 * selection.layers.len() - twins) as u64
    }

    /// What all layers miss together.
    pub fn missed(&self) -> Missed {
        self.layers.iter().map(|layer| layer.missed).fold(Missed::default(), Missed::and)
    }

    /// The settings of the bank.
    pub fn config(&self, base: &str) -> BankConfig {
        let layer = |layer: &Fitted| {
            let (temporal_atoms, spatial_atoms) = layer.atoms.counts();
            let config =
                LayerConfig { size: layer.of.size, temporal_atoms, spatial_atoms, geometry: Default::default() };
            (layer.of.module.to_owned(), config)
        };
        BankConfig {
            mode: Mode::Replace,
            shared: self.shared,
            scale: 1.0,
            layers: self.layers.iter().map(layer).collect(),
            base_model_name_or_path: base.to_owned(),
        }
    }

    /// The tensors of the bank, of type `dtype`. Coefficients are computed when they are written.
    pub fn plan(&self, dtype: DType) -> Plan {
        let mut tensors: Vec<PlannedTensor> = Vec::new();
        for layer in &self.layers {
            tensors.push(coefficients(layer, dtype));
            let own = (!self.shared).then_some(layer.of.module);
            for (part, atoms) in [(Part::Temporal, &layer.atoms.temporal), (Part::Spatial, &layer.atoms.spatial)] {
                let name = atoms_name(own, layer.of.size, part, false);
                let exists = self.shared && tensors.iter().any(|tensor| tensor.name == name);
                if part.is_of(layer.of.size) && !exists {
                    let shape = part.shape(layer.of.size, atoms.nrows());
                    let expr = Expr::Values { shape: shape.clone(), values: to_rows(atoms).into() };
                    tensors.push(PlannedTensor { name, dtype, shape, expr });
                }
            }
        }
        Plan { tensors }
    }
}

/// The places of layers that have the same atoms.
fn groups(layers: &[Chosen], shared: bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (place, layer) in layers.iter().enumerate() {
        let same = |group: &&mut Vec<usize>| {
            let other = group[0];
            let twins = layer.twin_of.is_some_and(|twin| group.contains(&twin));
            twins || shared && layers[other].size == layer.size
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(place),
            None => groups.push(vec![place]),
        }
    }
    groups
}

/// The coefficients of a layer: its rows of taps times the transposed products of atoms.
fn coefficients(layer: &Fitted, dtype: DType) -> PlannedTensor {
    let weight = layer.of.weight;
    let (taps, (n, m)) = (layer.of.size.taps(), layer.atoms.counts());
    let products = layer.atoms.products();
    let transposed = (0..taps * n * m).map(|i| products[i % (n * m) * taps + i / (n * m)] as f32);
    let right = Expr::Values { shape: vec![taps, n * m], values: transposed.collect() };
    let rows = Expr::Reshape { of: Box::new(weight.expr.clone()), shape: vec![layer.of.taps().rows(), taps] };
    let shape = [weight.shape[..2].to_vec(), layer.of.size.coefficient_axes(n, m)].concat();
    let expr = Expr::Reshape { of: Box::new(Expr::product(rows, right)), shape: shape.clone() };
    PlannedTensor { name: coefficients_name(layer.of.module), dtype, shape, expr }
}

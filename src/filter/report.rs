//! A report on a bank of filter atoms: its layers, its atoms one by one, what they carry, and how similar they are.

use serde::Serialize;

use super::atoms::Atoms;
use super::bank::{BankLayer, FilterBank};
use super::size::KernelSize;
use crate::error::Result;
use crate::linalg::Matrix;
use crate::plan::PlannedTensor;

/// Values of coefficients in memory at a time.
const CHUNK_ELEMS: usize = 1 << 18;

/// The report on one atom.
#[derive(Debug, Clone, Serialize)]
pub struct FilterAtomReport {
    /// Its norm.
    pub norm: f64,
    /// Its share of the squared norm of coefficients times atoms; `None` without coefficients.
    pub share: Option<f64>,
    /// Its relative distance from the atom of the base that it replaces; `None` in a bank of whole kernels.
    pub change: Option<f64>,
    /// Its taps, row by row.
    pub taps: Vec<f64>,
}

/// The report on the atoms of a layer, or of all layers of one kernel size.
#[derive(Debug, Clone, Serialize)]
pub struct AtomSetReport {
    /// The module, or the kernel size whose layers share the atoms.
    pub of: String,
    /// The number of layers.
    pub layers: usize,
    /// The height and width of spatial atoms.
    pub grid: [usize; 2],
    /// Temporal atoms; none for kernels of two dimensions.
    pub temporal: Vec<FilterAtomReport>,
    /// Spatial atoms; none for kernels of one dimension.
    pub spatial: Vec<FilterAtomReport>,
    /// Cosines between temporal atoms.
    pub temporal_likeness: Vec<Vec<f64>>,
    /// Cosines between spatial atoms.
    pub spatial_likeness: Vec<Vec<f64>>,
}

/// The report on one layer.
#[derive(Debug, Clone, Serialize)]
pub struct FilterLayerReport {
    /// The module's path.
    pub module: String,
    /// The kernel size: `3x3x3`.
    pub kernel: String,
    /// The number of temporal atoms.
    pub temporal_atoms: usize,
    /// The number of spatial atoms.
    pub spatial_atoms: usize,
    /// Outputs and inputs per group; `None` without coefficients.
    pub channels: Option<[usize; 2]>,
    /// The norm of its coefficients.
    pub norm: Option<f64>,
}

/// The report on a bank of filter atoms.
#[derive(Debug, Clone, Serialize)]
pub struct FilterReport {
    /// What it stands for: replace or atoms.
    pub mode: &'static str,
    /// Whether layers of one kernel size share atoms.
    pub shared: bool,
    /// The factor of the change, of an adapter of atoms.
    pub scale: f64,
    /// The model that it was made of, if it says so.
    pub base: String,
    /// The number of values in its file.
    pub values: usize,
    /// The layers.
    pub layers: Vec<FilterLayerReport>,
    /// The sets of atoms.
    pub sets: Vec<AtomSetReport>,
}

impl FilterReport {
    /// The report of `bank`. It reads all coefficients once.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for a NaN or an infinity in coefficients.
    pub fn of(bank: &FilterBank) -> Result<Self> {
        let (mut layers, mut sets) = (Vec::new(), Vec::<AtomSetReport>::new());
        let mut energies: Vec<Option<Energies>> = Vec::new();
        for layer in &bank.layers {
            energies.push(layer.coefficients.as_ref().map(|of| Energies::of(of, &layer.atoms.atoms)).transpose()?);
        }
        let groups = groups(bank);
        for (layer, energies) in bank.layers.iter().zip(&energies) {
            layers.push(FilterLayerReport {
                module: layer.module.clone(),
                kernel: layer.config.size.to_string(),
                temporal_atoms: layer.config.temporal_atoms,
                spatial_atoms: layer.config.spatial_atoms,
                channels: layer.coefficients.as_ref().map(|of| [of.shape[0], of.shape[1]]),
                norm: energies.as_ref().map(|energies| energies.norm_sqr.sqrt()),
            });
        }
        for (of, places) in groups {
            let first = &bank.layers[places[0]];
            let of_group: Option<Vec<&Energies>> = places.iter().map(|place| energies[*place].as_ref()).collect();
            sets.push(set(of, places.len(), first, of_group.as_deref()));
        }
        let own: usize = layers
            .iter()
            .filter_map(|layer| {
                Some(layer.channels?.iter().product::<usize>() * layer.temporal_atoms * layer.spatial_atoms)
            })
            .sum();
        let doubled = if bank.layers.iter().any(|layer| layer.base.is_some()) { 2 } else { 1 };
        let taps = |atoms: &[FilterAtomReport]| atoms.iter().map(|atom| atom.taps.len()).sum::<usize>();
        let atoms: usize = sets.iter().map(|set| taps(&set.temporal) + taps(&set.spatial)).sum();
        Ok(Self {
            mode: bank.config.mode.name(),
            shared: bank.config.shared,
            scale: bank.config.scale,
            base: bank.config.base_model_name_or_path.clone(),
            values: own + doubled * atoms,
            layers,
            sets,
        })
    }
}

/// The places of the layers that have each set of atoms.
fn groups(bank: &FilterBank) -> Vec<(String, Vec<usize>)> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (place, layer) in bank.layers.iter().enumerate() {
        let of = if bank.config.shared { layer.config.size.to_string() } else { layer.module.clone() };
        match groups.iter_mut().find(|(known, _)| *known == of) {
            Some((_, places)) => places.push(place),
            None => groups.push((of, vec![place])),
        }
    }
    groups
}

/// The squared norms of coefficients times atoms, by atom.
struct Energies {
    temporal: Vec<f64>,
    spatial: Vec<f64>,
    /// The squared norm of the coefficients alone.
    norm_sqr: f64,
}

impl Energies {
    fn of(coefficients: &PlannedTensor, atoms: &Atoms) -> Result<Self> {
        let (n, m) = atoms.counts();
        let squares = |of: &Matrix| of.row_iter().map(|row| row.norm_squared()).collect::<Vec<f64>>();
        let (temporal, spatial) = (squares(&atoms.temporal), squares(&atoms.spatial));
        let mut sums = vec![0.0; n * m];
        let rows = coefficients.shape[0] * coefficients.shape[1];
        let stored = n * m / coefficients.row_len();
        let at_a_time = (CHUNK_ELEMS / (n * m)).max(1);
        for start in (0..rows).step_by(at_a_time) {
            let end = (start + at_a_time).min(rows);
            for row in coefficients.read_rows(start * stored..end * stored)?.chunks_exact(n * m) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
            }
        }
        let at = |k: usize, j: usize| sums[k * m + j] * temporal[k] * spatial[j];
        Ok(Self {
            temporal: (0..n).map(|k| (0..m).map(|j| at(k, j)).sum()).collect(),
            spatial: (0..m).map(|j| (0..n).map(|k| at(k, j)).sum()).collect(),
            norm_sqr: sums.iter().sum(),
        })
    }
}

/// The report on one set of atoms; `energies` are those of its layers.
fn set(of: String, layers: usize, first: &BankLayer, energies: Option<&[&Energies]>) -> AtomSetReport {
    let KernelSize { height, width, .. } = first.config.size;
    let base = first.base.as_ref().map(|stored| &stored.atoms);
    let atoms = &first.atoms.atoms;
    let shares = |of: fn(&Energies) -> &[f64]| {
        energies.map(|energies| {
            let mut sums = vec![0.0; of(energies[0]).len()];
            for layer in energies {
                // Each layer counts alike, as when shared atoms are found.
                let total: f64 = of(layer).iter().sum::<f64>().max(f64::MIN_POSITIVE);
                sums.iter_mut().zip(of(layer)).for_each(|(sum, value)| *sum += value / total / energies.len() as f64);
            }
            sums
        })
    };
    let report =
        |has: bool, atoms: &Matrix, base: Option<&Matrix>, shares: Option<Vec<f64>>| -> Vec<FilterAtomReport> {
            let atom = |(i, row): (usize, nalgebra::RowDVector<f64>)| FilterAtomReport {
                norm: row.norm(),
                share: shares.as_ref().map(|shares| shares[i]),
                change: base.map(|base| (&row - base.row(i)).norm() / base.row(i).norm().max(f64::MIN_POSITIVE)),
                taps: row.iter().copied().collect(),
            };
            let rows = atoms.row_iter().map(|row| row.into_owned()).enumerate();
            if has { rows.map(atom).collect() } else { Vec::new() }
        };
    let likeness = |has: bool, atoms: &Matrix| -> Vec<Vec<f64>> {
        let cosine = |a: usize, b: usize| {
            let (a, b) = (atoms.row(a), atoms.row(b));
            a.dot(&b) / (a.norm() * b.norm()).max(f64::MIN_POSITIVE)
        };
        let count = if has { atoms.nrows() } else { 0 };
        (0..count).map(|a| (0..count).map(|b| cosine(a, b)).collect()).collect()
    };
    let size = first.config.size;
    AtomSetReport {
        of,
        layers,
        grid: [height, width],
        temporal: report(size.has_time(), &atoms.temporal, base.map(|base| &base.temporal), shares(|e| &e.temporal)),
        spatial: report(size.has_space(), &atoms.spatial, base.map(|base| &base.spatial), shares(|e| &e.spatial)),
        temporal_likeness: likeness(size.has_time(), &atoms.temporal),
        spatial_likeness: likeness(size.has_space(), &atoms.spatial),
    }
}

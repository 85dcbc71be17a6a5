//! Filter atoms: kernels of convolutions as banks of temporal and spatial atoms with joint coefficients, and back.
//!
//! A kernel is `W[o, i, t, h, w] = sum_k sum_j A[o, i, k, j] V[k, t] S[j, h, w]`: coefficients `A` that mix channels,
//! temporal atoms `V` and spatial atoms `S` that are the same for all channels, and that layers of one kernel size can
//! share. Kernels of one dimension have temporal atoms alone, kernels of two spatial ones. `docs/filter-atoms.md`
//! describes files and commands.
//!
//! - [`Selection`] chooses the convolutions of a model, [`Decomposition`] finds their atoms.
//! - [`FilterBank`] is an open bank: [`FilterBank::baked`] makes a model with its kernels, [`FilterBank::sampled`] and
//!   [`FilterBank::with_atoms_of`] exchange its atoms.

mod atoms;
mod authors;
mod bake;
mod bank;
mod decompose;
mod fit;
mod layer;
mod moment;
mod names;
mod report;
mod select;
mod size;
mod swap;

pub use atoms::{Atoms, Search};
pub use authors::dense_kernels;
pub use bake::{Baked, Form, map_of_taps};
pub use bank::{BankConfig, BankLayer, FilterBank, PEFT_TYPE, StoredAtoms};
pub use decompose::{Counts, Decomposition, Fitted};
pub use fit::{Missed, missed};
pub use layer::{Geometry, LayerConfig, Mode};
pub use moment::{Moment, Taps};
pub use names::Part;
pub use report::{AtomSetReport, FilterAtomReport, FilterLayerReport, FilterReport};
pub use select::{Chosen, Selection, Targets};
pub use size::{KernelSize, MAX_TAPS};
pub use swap::{Sampling, SizeChange, Swapped};

#[cfg(test)]
mod tests;

//! Banks that have grown: their sizes before each growth, and the bank as it was.
//!
//! A grown bank computes what it did before for every instruction that its newer atoms don't take part in. It does so with
//! the tensors it had then, so that not one bit changes. docs/formats/bank.md describes growth.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AtomBank;
use super::config::{BankConfig, PRIOR_BIAS};
use crate::adapter::HostTensor;
use crate::error::{Finding, Result};

/// The sizes of a bank before it grew, and the settings that depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are those of adapter_config.json.
pub struct BankStage {
    pub r: usize,
    pub lora_alpha: f64,
    pub num_atoms: usize,
    pub top_k: usize,
    pub descriptor_dim: usize,
    pub prior_temperature: f64,
}

/// How often a bank can grow. Each growth keeps the sizes before it, and a loaded bank its tensors.
pub(super) const MAX_GROWTHS: usize = 256;

impl BankStage {
    /// Those of a bank with these settings.
    pub fn of(config: &BankConfig) -> Self {
        Self {
            r: config.r,
            lora_alpha: config.lora_alpha,
            num_atoms: config.num_atoms,
            top_k: config.top_k,
            descriptor_dim: config.descriptor_dim,
            prior_temperature: config.prior_temperature,
        }
    }

    fn fits_in(&self, later: &Self) -> bool {
        self.r <= later.r && self.num_atoms < later.num_atoms && self.descriptor_dim <= later.descriptor_dim
    }
}

impl BankConfig {
    /// The rank that makes the state: the bank's rank before it grew first.
    pub fn state_rank(&self) -> usize {
        self.growth.first().map_or(self.r, |stage| stage.r)
    }

    /// The settings before the last growth, if there was one.
    pub(super) fn before(&self) -> Option<Self> {
        let (stage, earlier) = self.growth.split_last()?;
        Some(Self {
            r: stage.r,
            lora_alpha: stage.lora_alpha,
            num_atoms: stage.num_atoms,
            top_k: stage.top_k,
            descriptor_dim: stage.descriptor_dim,
            prior_temperature: stage.prior_temperature,
            growth: earlier.to_vec(),
            ..self.clone()
        })
    }

    /// Checks that each growth made the bank larger, and that the bank was sound before it.
    pub(super) fn check_growth(&self, path: &Path, prefix: &str) -> Result<()> {
        if self.growth.len() > MAX_GROWTHS {
            let finding = Finding::new(path, format!("{prefix}growth")).expected(format_args!("at most {MAX_GROWTHS}"));
            return Err(finding.found(self.growth.len()).mismatch());
        }
        let sizes = self.growth.iter().copied().chain([BankStage::of(self)]);
        if let Some((before, _)) = self.growth.iter().zip(sizes.skip(1)).find(|(before, after)| !before.fits_in(after))
        {
            return Err(Finding::new(path, format!("{prefix}growth"))
                .expected("smaller sizes before each growth, and fewer atoms")
                .found(format_args!("r {}, num_atoms {}", before.r, before.num_atoms))
                .mismatch());
        }
        match self.before() {
            Some(before) => before.check_as(path, &format!("{prefix}growth: ")),
            None => Ok(()),
        }
    }
}

impl AtomBank {
    /// Whether growth trains a part of the tensor called `name`: the atoms, of which one is new, and the factors.
    pub(crate) fn grows(name: &str) -> bool {
        name == "atom_bank.atoms" || name.contains(".lora_")
    }

    /// The number of values that the last growth added to atoms and factors, which are those that it trains; 0 for a bank
    /// that hasn't grown.
    pub fn grown_parameters(&self) -> usize {
        let Some(before) = self.before_growth() else { return 0 };
        let size = |bank: &Self| -> usize {
            bank.tensors.iter().filter(|(name, _)| Self::grows(name)).map(|(_, tensor)| tensor.values.len()).sum()
        };
        // Old atoms are padded with zeros, which stay.
        let padding = before.config.num_atoms * (self.config.r.pow(2) - before.config.r.pow(2));
        size(self) - size(&before) - padding
    }

    /// The bank before its last growth; `None` for one that hasn't grown.
    pub fn before_growth(&self) -> Option<Self> {
        let config = self.config.before()?;
        let sizes: Vec<_> = config.global_tensors().into_iter().chain(config.optional_tensors()).collect();
        let mut tensors = self.tensors.clone();
        for (name, tensor) in &mut tensors {
            let own = sizes.iter().find(|(own, _)| own == name).map(|(_, shape)| shape.as_slice());
            let shape: Vec<usize> = match (own, tensor.shape.as_slice()) {
                (Some(own), found) => own.iter().zip(found).map(|(own, found)| own.unwrap_or(*found)).collect(),
                (None, [_, d_in]) if name.ends_with(".lora_A.weight") => vec![config.r, *d_in],
                (None, [d_out, _]) => vec![*d_out, config.r],
                (None, found) => found.to_vec(),
            };
            *tensor = leading(tensor, &shape);
        }
        // Growth gives a bank a bias. One of zeros, in place of none, would change nothing.
        if tensors.get(PRIOR_BIAS).is_some_and(|bias| bias.values.iter().all(|value| *value == 0.0)) {
            tensors.remove(PRIOR_BIAS);
        }
        Some(Self { path: self.path.clone(), config, tensors, instructions: Vec::new() })
    }
}

/// Calls `visit` with the places of every row of a box of `shape` within `outer`: the row's number in the box, and where
/// it begins in the larger tensor. Rows are those of the last dimension.
fn rows_within(shape: &[usize], outer: &[usize], mut visit: impl FnMut(usize, usize)) {
    let Some((_, lead)) = shape.split_last() else { return };
    for row in 0..lead.iter().product() {
        let (mut left, mut start, mut stride) = (row, 0, outer.last().copied().unwrap_or(1));
        for (own, outer) in lead.iter().zip(&outer[..lead.len()]).rev() {
            start += left % own * stride;
            left /= own;
            stride *= outer;
        }
        visit(row, start);
    }
}

/// The leading part of `tensor` that has `shape`, which has as many dimensions and is nowhere larger.
pub(super) fn leading(tensor: &HostTensor, shape: &[usize]) -> HostTensor {
    if tensor.shape == shape {
        return tensor.clone();
    }
    let width = shape.last().copied().unwrap_or(1);
    let mut values = Vec::with_capacity(shape.iter().product());
    rows_within(shape, &tensor.shape, |_, start| values.extend_from_slice(&tensor.values[start..start + width]));
    HostTensor { shape: shape.to_vec(), values: values.into() }
}

/// A tensor of `shape` whose leading part is `tensor`; the rest is zero.
#[cfg(any(feature = "train", test))]
pub(super) fn padded(tensor: &HostTensor, shape: &[usize]) -> HostTensor {
    let width = tensor.shape.last().copied().unwrap_or(1);
    let mut values = vec![0.0; shape.iter().product()];
    rows_within(&tensor.shape, shape, |row, start| {
        values[start..start + width].copy_from_slice(&tensor.values[row * width..(row + 1) * width]);
    });
    HostTensor { shape: shape.to_vec(), values: values.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_tensor_has_the_old_one_in_front_and_zeros_behind() {
        let small = HostTensor { shape: vec![2, 2, 1], values: vec![1.0, 2.0, 3.0, 4.0].into() };
        let large = padded(&small, &[3, 2, 2]);
        assert_eq!(*large.values, [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(leading(&large, &small.shape), small);
        let vector = HostTensor { shape: vec![2], values: vec![1.0, 2.0].into() };
        assert_eq!(*padded(&vector, &[3]).values, [1.0, 2.0, 0.0]);
        assert_eq!(leading(&padded(&vector, &[3]), &[2]), vector);
    }
}

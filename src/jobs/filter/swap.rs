//! Exchanges the atoms of a bank of filter atoms.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::settings::setting;
use super::open_bank;
use crate::error::Result;
use crate::filter::{Sampling, SizeChange};
use crate::output::{Destination, Output};

/// Settings of [`swap`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapSettings {
    /// The bank whose coefficients stay.
    pub bank: PathBuf,
    /// The new bank's folder.
    pub destination: Destination,
    /// The distance between temporal taps.
    #[serde(default)]
    pub dilate_time: Option<usize>,
    /// The distance between spatial taps.
    #[serde(default)]
    pub dilate_space: Option<usize>,
    /// The new number of temporal taps.
    #[serde(default)]
    pub resize_time: Option<usize>,
    /// The new height and width.
    #[serde(default)]
    pub resize_space: Option<(usize, usize)>,
    /// The bank whose atoms are taken.
    #[serde(default)]
    pub atoms_from: Option<PathBuf>,
    /// Whether the output is only described.
    #[serde(default)]
    pub dry_run: bool,
}

impl SwapSettings {
    /// Settings that exchange nothing yet.
    pub fn new(bank: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            bank: bank.into(),
            destination: Destination::new(output),
            dilate_time: None,
            dilate_space: None,
            resize_time: None,
            resize_space: None,
            atoms_from: None,
            dry_run: false,
        }
    }

    fn sampling(&self) -> Result<Sampling> {
        let Self { dilate_time, dilate_space, resize_time, resize_space, .. } = *self;
        for (field, factor) in [("dilate_time", dilate_time), ("dilate_space", dilate_space)] {
            if factor == Some(0) {
                return Err(setting(field).expected("a number above 0").found(0).setting());
            }
        }
        if let Some(size) = resize_time.filter(|size| *size < 2) {
            return Err(setting("resize_time").expected("a size above 1").found(size).setting());
        }
        if let Some((height, width)) = resize_space.filter(|(height, width)| *height < 2 || *width < 2) {
            let finding = setting("resize_space").expected("sizes above 1");
            return Err(finding.found(format_args!("{height}x{width}")).setting());
        }
        let both = [
            ("dilate_time", dilate_time.is_some() && resize_time.is_some()),
            ("dilate_space", dilate_space.is_some() && resize_space.is_some()),
        ];
        if let Some((field, _)) = both.iter().find(|(_, both)| *both) {
            let other = field.replace("dilate", "resize");
            return Err(setting(field).expected(format_args!("none with `{other}`")).found("both").setting());
        }
        let sampling = Sampling { dilate_time, dilate_space, resize_time, resize_space };
        match (sampling == Sampling::default(), &self.atoms_from) {
            (true, None) => Err(setting("atoms_from")
                .expected("a swap: `dilate_time`, `dilate_space`, `resize_time`, `resize_space` or `atoms_from`")
                .found("none")
                .setting()),
            (false, Some(_)) => Err(setting("atoms_from").expected("no other swap with it").found("both").setting()),
            _ => Ok(sampling),
        }
    }
}

/// A bank with other atoms.
#[derive(Debug)]
pub struct SwappedBank {
    /// The bank's folder.
    pub output: Output,
    /// The kernel sizes of all layers, before and after.
    pub sizes: Vec<SizeChange>,
}

/// Exchanges atoms.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening the banks; those of [`crate::filter::FilterBank::sampled`] and
/// [`crate::filter::FilterBank::with_atoms_of`].
pub fn swap(settings: &SwapSettings) -> Result<SwappedBank> {
    let sampling = settings.sampling()?;
    if !settings.dry_run {
        settings.destination.check()?;
    }
    let bank = open_bank(&settings.bank)?;
    let swapped = match &settings.atoms_from {
        None => bank.sampled(sampling)?,
        Some(other) => bank.with_atoms_of(&open_bank(other)?)?,
    };
    let mut output = Output::adapter(&swapped.config.to_json(), swapped.plan);
    output.notes = swapped.notes;
    if sampling.dilate_time.is_some() || sampling.dilate_space.is_some() {
        output.notes.push(
            "dilation alone needs no swap: a model with this dilation, and padding times it, computes the same with \
             the old kernels"
                .to_owned(),
        );
    }
    Ok(SwappedBank { output, sizes: swapped.sizes })
}

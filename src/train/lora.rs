//! A LoRA that is trained: its start, which can depend on the base's weights, and what is written of it.
//!
//! PiSSA starts with the principal part of every weight in the factors, and trains the rest of the weight as the base.
//! Here the base stays as it is, and the factors of the start are taken away instead: `W - s B0 A0 + s B A`. What is
//! written is a plain LoRA of twice the rank, `s [B, -B0] [A; A0]`, which adds to the untouched base, as PEFT's
//! `path_initial_model_for_weight_conversion` makes it. A checkpoint has the same form, so the start can be had back from
//! it, bit by bit.
//!
//! References: Meng, Wang and Zhang, "PiSSA" (arXiv:2404.02948); huggingface/peft `src/peft/tuners/lora/layer.py`
//! (`pissa_init`), `src/peft/tuners/lora/dora.py` (`update_layer`).

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::TrainConfig;
use super::config::Start;
use crate::adapter::{HostTensor, Lora, LoraConfig, Tensors};
use crate::arch::{LinearLayer, ModelConfig};
use crate::error::{Finding, Result};
use crate::linalg::{Sketch, Svd, from_rows, svd, to_rows, truncated_svd};
use crate::model::hooks::to_host;
use crate::model::ops::{FrozenMatrix, row_lengths};
use crate::model::{LoadedAdapter, ModelWeights};
use crate::plan::PlannedTensor;

/// The largest weight, in values, that is decomposed completely for PiSSA. That takes about a second; the time is cubic
/// in the smaller dimension.
const WHOLE: usize = 1 << 19;

/// Passes over a larger weight, unless the settings name their number.
const ITERATIONS: usize = 4;

/// A LoRA that is trained.
#[derive(Debug, Clone)]
pub(super) struct TrainedLora {
    /// The trained factors and magnitudes.
    pub(super) lora: Lora,
    /// The factors with which PiSSA began, by the same names.
    start: Option<Tensors>,
}

impl TrainedLora {
    /// Makes the LoRA that `config` describes, before anything of the base's weights is known; errors name `path`.
    pub(super) fn fresh(path: &Path, config: &TrainConfig, base: &ModelConfig) -> Result<Self> {
        let settings = LoraConfig { target_modules: Some(config.targets(base)), ..config.lora_config()? };
        let mut lora = Lora::fresh(path, settings, base, config.seed)?;
        if config.start()? == Start::Gaussian {
            let mut random = crate::linalg::Random::new(config.seed);
            for site in lora.layers() {
                let Some(a) = lora.tensors.get_mut(&site.factor_name('A')) else { continue };
                let deviation = 1.0 / a.shape[0] as f32;
                a.values = (0..a.values.len()).map(|_| deviation * random.normal()).collect();
            }
        }
        Ok(Self { lora, start: None })
    }

    /// The same with what its start takes from the base's weights: PiSSA's factors, DoRA's magnitudes.
    pub(super) fn started(self, config: &TrainConfig, weights: &ModelWeights) -> Result<Self> {
        let Self { mut lora, mut start } = self;
        if lora.config.use_dora {
            for site in lora.layers() {
                let lengths = magnitudes(weights, site)?;
                lora.tensors.insert(site.magnitude_name(), lengths);
            }
        }
        if let Start::Principal { iterations } = config.start()? {
            let mut factors = Tensors::new();
            for site in lora.layers() {
                let (rank, scale) = (lora.config.rank_of(site), lora.config.scale_of(site));
                let (planned, is_turned) = weights.planned(site)?;
                let [a, b] = principal_of(planned, is_turned, rank, scale, iterations)?;
                factors.insert(site.factor_name('A'), a);
                factors.insert(site.factor_name('B'), b);
            }
            lora.tensors.extend(factors.clone());
            start = Some(factors);
        }
        Ok(Self { lora, start })
    }

    /// Reads the LoRA of a checkpoint of a run with these settings.
    pub(super) fn open(folder: &Path, config: &TrainConfig) -> Result<Self> {
        let saved = Lora::open(folder)?;
        if !matches!(config.start()?, Start::Principal { .. }) {
            return Ok(Self { lora: saved, start: None });
        }
        let settings = LoraConfig { target_modules: saved.config.target_modules.clone(), ..config.lora_config()? };
        let (mut tensors, mut start) = (saved.tensors.clone(), Tensors::new());
        for site in saved.layers() {
            let rank = settings.rank_of(site);
            let (a, b) = saved.factors(site);
            let is_double = a.shape.first() == Some(&(2 * rank)) && b.shape.get(1) == Some(&(2 * rank));
            if !is_double {
                return Err(Finding::new(folder, format!("the factors of {site}"))
                    .expected(format_args!("rank {}, twice that of the run", 2 * rank))
                    .found(format_args!("{:?}", a.shape))
                    .hint("the checkpoint belongs to another run")
                    .mismatch());
            }
            let [(a, first_a), (b, first_b)] = [halves_of_rows(a), halves_of_columns(b)];
            let first_b = negative(&first_b);
            for (which, trained, first) in [('A', a, first_a), ('B', b, first_b)] {
                tensors.insert(site.factor_name(which), trained);
                start.insert(site.factor_name(which), first);
            }
        }
        Ok(Self { lora: Lora { config: settings, tensors, ..saved }, start: Some(start) })
    }

    /// A LoRA whose update begins with that of `start` taken away.
    #[cfg(test)]
    pub(super) fn with_start(lora: Lora, start: Option<Tensors>) -> Self {
        Self { lora, start }
    }

    /// What is written: a plain LoRA that adds to the untouched base.
    pub(super) fn saved(&self) -> Lora {
        let Some(start) = &self.start else { return self.lora.clone() };
        let mut tensors = self.lora.tensors.clone();
        for (name, first) in start {
            let Some(trained) = tensors.get(name) else { continue };
            let joined = match LinearLayer::of_factor(name, 'A') {
                Some(_) => below(trained, first),
                None => beside(trained, &negative(first)),
            };
            tensors.insert(name.clone(), joined);
        }
        Lora { config: self.lora.config.doubled(), tensors, ..self.lora.clone() }
    }

    /// The same LoRA with other values.
    pub(super) fn with_tensors(self, tensors: Tensors) -> Self {
        Self { lora: Lora { tensors, ..self.lora }, ..self }
    }

    /// Its variables on a device.
    pub(super) fn trainable(&self, device: &Device) -> Result<LoadedAdapter> {
        let Lora { tensors, config, .. } = &self.lora;
        let loaded = LoadedAdapter::trainable(tensors, &[], config.scale(), device)?.with_settings(&self.lora);
        match &self.start {
            Some(start) => loaded.without(start),
            None => Ok(loaded),
        }
    }
}

/// The lengths of the rows of the weight of `site`, `[d_out]`.
fn magnitudes(weights: &ModelWeights, site: LinearLayer) -> Result<HostTensor> {
    let (planned, is_turned) = weights.planned(site)?;
    let weight = FrozenMatrix::mapped(Arc::new(planned.clone()), is_turned);
    let (d_out, d_in) = weight.size()?;
    let none = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let lengths = to_host(&row_lengths(&weight, (&none((1, d_in))?, &none((d_out, 1))?, 0.0))?)?;
    match lengths.values.iter().position(|length| *length == 0.0) {
        Some(output) => Err(Finding::new(weights.path(), format!("tensor {:?}", planned.name))
            .expected("outputs with a direction, for DoRA to give a magnitude")
            .found(format_args!("output {output}, whose weights are all zero"))
            .hint("exclude the module with adapter.exclude_modules, or train without use_dora")
            .not_finite()),
        None => Ok(lengths),
    }
}

/// `A` `[rank, d_in]` and `B` `[d_out, rank]` whose product times `scale` is the principal part of a weight, with zeros
/// where the weight's rank is lower. The weight is stored as `[d_in, d_out]` if `is_turned`.
pub(super) fn principal_of(
    planned: &PlannedTensor,
    is_turned: bool,
    rank: usize,
    scale: f32,
    iterations: Option<usize>,
) -> Result<[HostTensor; 2]> {
    let (rows, cols) = (planned.rows(), planned.row_len());
    let svd = match (rows * cols <= WHOLE, iterations) {
        (true, None) => {
            let mut all = svd(from_rows(rows, cols, &planned.read()?));
            all.truncate(rank);
            all
        }
        _ => {
            let power_iterations = iterations.unwrap_or(ITERATIONS);
            truncated_svd(planned, rank, Sketch { oversampling: rank.max(10), power_iterations, seed: 0 })?.0
        }
    };
    let Svd { u, s, vt } = match is_turned {
        true => Svd { u: svd.vt.transpose(), s: svd.s, vt: svd.u.transpose() },
        false => svd,
    };
    let (mut a, mut b) = (vt, u);
    for (i, s) in s.iter().enumerate() {
        let root = (s / f64::from(scale)).sqrt();
        a.row_mut(i).scale_mut(root);
        b.column_mut(i).scale_mut(root);
    }
    let (a, b) = (a.resize_vertically(rank, 0.0), b.resize_horizontally(rank, 0.0));
    let host = |m: &crate::linalg::Matrix| HostTensor { shape: vec![m.nrows(), m.ncols()], values: to_rows(m).into() };
    Ok([host(&a), host(&b)])
}

fn negative(tensor: &HostTensor) -> HostTensor {
    HostTensor { shape: tensor.shape.clone(), values: tensor.values.iter().map(|value| -value).collect() }
}

/// The rows of two matrices of the same width, `[2 r, width]`.
fn below(above: &HostTensor, below: &HostTensor) -> HostTensor {
    let values = above.values.iter().chain(&*below.values).copied().collect();
    HostTensor { shape: vec![above.shape[0] + below.shape[0], above.shape[1]], values }
}

/// The columns of two matrices of the same height, `[height, 2 r]`.
fn beside(left: &HostTensor, right: &HostTensor) -> HostTensor {
    let (widths, rows) = ((left.shape[1], right.shape[1]), left.shape[0]);
    let rows_of = left.values.chunks_exact(widths.0.max(1)).zip(right.values.chunks_exact(widths.1.max(1)));
    let values = rows_of.flat_map(|(left, right)| left.iter().chain(right).copied()).collect();
    HostTensor { shape: vec![rows, widths.0 + widths.1], values }
}

/// The first and the last rows of a matrix: what [`below`] joins.
fn halves_of_rows(joined: &HostTensor) -> (HostTensor, HostTensor) {
    let shape = vec![joined.shape[0] / 2, joined.shape[1]];
    let (above, below) = joined.values.split_at(joined.values.len() / 2);
    (HostTensor { shape: shape.clone(), values: above.into() }, HostTensor { shape, values: below.into() })
}

/// The first and the last columns of a matrix: what [`beside`] joins.
fn halves_of_columns(joined: &HostTensor) -> (HostTensor, HostTensor) {
    let half = joined.shape[1] / 2;
    let part = |start: usize| {
        let rows = joined.values.chunks_exact((2 * half).max(1));
        let values = rows.flat_map(|row| row[start..start + half].iter().copied()).collect();
        HostTensor { shape: vec![joined.shape[0], half], values }
    };
    (part(0), part(half))
}

//! The gates: for every layer and expert a vector, whose scalar product with a token's state says how much the expert is
//! wanted.

use std::sync::Arc;

use super::GateMode;
use crate::linalg::{Normals, Stream, from_rows, svd};

/// Above this ratio of singular values, the gates of a layer are nearly dependent.
const DEGENERATE: f64 = 5.0;

/// The gates of a mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct Gates {
    /// The length of each.
    pub width: usize,
    /// By layer, then by expert: those of the experts that have a gate, one after the other.
    pub by_layer: Vec<Vec<f32>>,
}

/// The vectors of one group of prompts, by layer.
pub type Group = Vec<Vec<f64>>;

/// What random gates of this mode take of a sequence of random words: `None` for other modes.
pub fn random_words(mode: GateMode, layers: usize, experts: usize, width: usize) -> Option<u64> {
    let count = (layers as u64).saturating_mul(experts as u64).saturating_mul(width as u64);
    match mode {
        GateMode::Random => Some(Normals::words(count)),
        GateMode::UniformRandom => Some(count),
        _ => None,
    }
}

impl Gates {
    /// Gates of zeros.
    pub fn zeros(layers: usize, experts: usize, width: usize) -> Self {
        Self { width, by_layer: vec![vec![0.0; experts * width]; layers] }
    }

    /// Random gates: the first numbers of `stream`.
    pub(super) fn random(stream: &Arc<Stream>, mode: GateMode, layers: usize, experts: usize, width: usize) -> Self {
        let mut all = vec![0.0; layers * experts * width];
        match mode {
            GateMode::UniformRandom => {
                stream.at(0).fill(&mut all);
                let scale = (1.0 / width as f64).sqrt() as f32;
                all.iter_mut().for_each(|value| *value = *value * 2.0 * scale - scale);
            }
            _ => Normals::new(stream, 0, all.len() as u64).fill(0, &mut all),
        }
        Self { width, by_layer: all.chunks(experts * width).map(<[f32]>::to_vec).collect() }
    }

    /// The gates of experts whose prompts gave these vectors, by expert and layer.
    pub fn of_experts(experts: &[Group], width: usize) -> Self {
        let layers = experts.first().map_or(0, Vec::len);
        let of_layer =
            |layer: usize| experts.iter().flat_map(|expert| &expert[layer]).map(|value| *value as f32).collect();
        Self { width, by_layer: (0..layers).map(of_layer).collect() }
    }

    /// A note on layers whose gates are so similar that some experts are hardly chosen; `None` if there are none.
    pub fn degenerate_note(&self) -> Option<String> {
        let is_degenerate = |gates: &Vec<f32>| {
            let rows = gates.len() / self.width.max(1);
            // Those that are rounding errors are left out.
            let singular = svd(from_rows(rows, self.width, gates)).s;
            let spread =
                singular.first().zip(singular.last()).map_or(f64::INFINITY, |(largest, least)| largest / least);
            singular.len() < rows.min(self.width) || spread > DEGENERATE
        };
        let layers: Vec<String> = (self.by_layer.iter().enumerate())
            .filter(|(_, gates)| is_degenerate(gates))
            .map(|(layer, _)| layer.to_string())
            .collect();
        let which = match layers.len() {
            0 => return None,
            count if count == self.by_layer.len() => "all layers".to_owned(),
            _ => format!("layers {}", layers.join(", ")),
        };
        Some(format!(
            "the gates of {which} are nearly dependent, as of prompts that are too similar: some experts will \
                      hardly be chosen"
        ))
    }
}

/// Each vector divided by its length.
pub fn normalized(mut group: Group) -> Group {
    for vector in &mut group {
        let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-8);
        vector.iter_mut().for_each(|value| *value /= length);
    }
    group
}

/// The gates of an expert: what its positive prompts gave without what its negative ones gave, of length 1.
pub fn difference(mut positive: Group, negative: Option<Group>) -> Group {
    for (vector, less) in positive.iter_mut().zip(negative.unwrap_or_default()) {
        vector.iter_mut().zip(less).for_each(|(value, less)| *value -= less);
    }
    normalized(positive)
}

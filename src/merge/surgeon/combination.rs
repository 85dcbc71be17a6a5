//! Rows that are combinations of rows of a tensor, and the split of a token's text into parts.

use std::ops::Range;
use std::sync::Arc;

use super::in_f32;
use super::rope::{Rotation, Turned};
use crate::error::{Finding, Result};
use crate::plan::{Expr, Pick, PlannedTensor, RowMap};
use crate::tokenizer::EditedTokenizer;

/// Rows as combinations of rows of a tensor. Only the weights are in memory.
#[derive(Debug)]
pub(super) struct Combinations {
    of: PlannedTensor,
    /// Where each row's weights end.
    ends: Vec<usize>,
    /// Rows of the tensor, and their weights.
    weights: Vec<(u32, f32)>,
    /// The rotation of rows, and the position of each.
    turns: Option<(Rotation, Vec<f32>)>,
}

impl Combinations {
    /// No rows yet, of `of`.
    pub(super) fn new(of: PlannedTensor) -> Self {
        Self { of: in_f32(&of), ends: Vec::new(), weights: Vec::new(), turns: None }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, weights: &[(usize, f32)]) {
        self.weights.extend(weights.iter().filter_map(|(row, weight)| Some((u32::try_from(*row).ok()?, *weight))));
        self.ends.push(self.weights.len());
    }

    /// No rows yet, of `of`, whose rows are turned.
    pub(super) fn turned(of: PlannedTensor, rotation: Rotation) -> Self {
        Self { turns: Some((rotation, Vec::new())), ..Self::new(of) }
    }

    /// Adds a row of turned ones.
    pub(super) fn push_turned(&mut self, weights: &[Turned]) {
        let plain: Vec<(usize, f32)> = weights.iter().map(|(row, weight, _)| (*row, *weight)).collect();
        self.push(&plain);
        if let Some((_, positions)) = &mut self.turns {
            positions.extend(weights.iter().map(|(_, _, position)| *position));
        }
    }

    /// All rows.
    pub(super) fn rows(self) -> Expr {
        let (rows, width) = (self.ends.len(), self.of.row_len());
        let zero = Expr::Values { shape: vec![1, width], values: vec![0.0; width].into() };
        let picks = (0..rows).map(|_| Pick { of: 0, start: 0, len: 1 }).collect();
        let zeros = Expr::Rows { shape: vec![rows, width], of: vec![zero], picks };
        Expr::Map { of: vec![zeros], map: Arc::new(self) }
    }
}

impl RowMap for Combinations {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let mut row = Vec::new();
        for (place, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
            for at in start..self.ends[place] {
                let (of, weight) = self.weights[at];
                let of = of as usize;
                let read = self.of.read_rows_into(of..of + 1, &mut row);
                if let Some((rotation, positions)) = &self.turns {
                    let mut turned: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
                    rotation.turn(&mut turned, f64::from(positions[at]));
                    row.iter_mut().zip(turned).for_each(|(value, turned)| *value = turned as f32);
                }
                match read {
                    Ok(()) => out.iter_mut().zip(&row).for_each(|(sum, value)| *sum += weight * value),
                    // The executor refuses a NaN.
                    Err(_) => out.fill(f32::NAN),
                }
            }
        }
    }
}

/// A tokenizer that splits texts.
pub(super) struct Splitter {
    #[cfg(feature = "convert")]
    tokenizer: tokenizers::Tokenizer,
    #[cfg(feature = "convert")]
    folder: std::path::PathBuf,
}

impl Splitter {
    /// The tokenizers library's, of a tokenizer.json.
    #[cfg(feature = "convert")]
    pub(super) fn of(tokenizer: &EditedTokenizer) -> Result<Self> {
        let folder = tokenizer.folder().to_owned();
        let Some(json) = &tokenizer.listing().json else {
            let finding = Finding::new(&folder, "tokenizer").expected("a tokenizer.json, to split texts with");
            return Err(finding.found("a vocabulary in another form").unsupported());
        };
        let text = serde_json::to_vec(json).unwrap_or_default();
        match crate::tokenizer::library::load(&text) {
            Ok(tokenizer) => Ok(Self { tokenizer, folder }),
            Err(why) => {
                Err(Finding::new(&folder, "tokenizer.json").expected("a tokenizer that works").found(why).format())
            }
        }
    }

    /// Without the tokenizers library, nothing is split.
    #[cfg(not(feature = "convert"))]
    pub(super) fn of(tokenizer: &EditedTokenizer) -> Result<Self> {
        let finding = Finding::new(tokenizer.folder(), "tokenizer").expected("another approximation than subword");
        Err(finding.found("a library that was built without the feature `convert`").unsupported())
    }

    /// The ids of the parts of a text.
    #[cfg(feature = "convert")]
    pub(super) fn split(&self, text: &str) -> Result<Vec<usize>> {
        match crate::tokenizer::library::guarded(|| self.tokenizer.encode(text, false)) {
            Ok(parts) => Ok(parts.get_ids().iter().map(|id| *id as usize).collect()),
            Err(why) => {
                let finding = Finding::new(&self.folder, format!("text {text:?}")).expected("a text that can be split");
                Err(finding.found(why).format())
            }
        }
    }

    /// Nothing.
    #[cfg(not(feature = "convert"))]
    pub(super) fn split(&self, _: &str) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }
}

//! What an adapter has to know of its base: names, shapes and row order of the weights it changes.

use std::ops::Range;

use crate::checkpoint::{Architecture, HfFolder, ModelConfig, expected_tensors};
use crate::convert::{gguf_name, hf_name, keys};
use crate::error::Result;
use crate::plan::{Expr, PlannedTensor};

/// The order of a weight's rows in GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As in transformers.
    Kept,
    /// Within each head, from halves to neighbouring pairs: ggml's layout of rotary embeddings.
    Pairs {
        /// The number of heads; rows divide into heads of an even number of rows.
        heads: usize,
    },
}

impl RowOrder {
    /// `of`, with rows as transformers has them, with its rows as GGUF has them.
    pub(super) fn to_gguf(self, of: Expr) -> Expr {
        self.reordered(of, |row, half| row % 2 * half + row / 2)
    }

    /// [`RowOrder::to_gguf`] backwards.
    pub(super) fn to_hf(self, of: Expr) -> Expr {
        self.reordered(of, |row, half| row % half * 2 + row / half)
    }

    /// Whether `rows` rows can be put in this order.
    pub(super) fn fits(self, rows: usize) -> bool {
        match self {
            RowOrder::Kept => true,
            RowOrder::Pairs { heads } => {
                rows > 0 && rows.checked_rem(heads) == Some(0) && (rows / heads).is_multiple_of(2)
            }
        }
    }

    /// `from` has the row within a head and half of the head's rows.
    fn reordered(self, of: Expr, from: impl Fn(usize, usize) -> usize) -> Expr {
        let RowOrder::Pairs { heads } = self else { return of };
        let per_head = crate::formats::rows(&of.shape()) / heads;
        Expr::reordered(of, |row| row / per_head * per_head + from(row % per_head, per_head / 2))
    }
}

/// A base model, as far as adapters meet it. Modules are called as transformers does, by path:
/// `model.layers.0.self_attn.q_proj`; weights as GGUF does: `blk.0.attn_q.weight`.
pub trait BaseModel {
    /// The architecture's name in GGUF.
    fn architecture(&self) -> &str;

    /// The number of layers.
    fn layers(&self) -> usize;

    /// Whether the output head is the embeddings.
    fn tied(&self) -> bool;

    /// Name and row order in GGUF of the weight of `module`; `None` where it has no counterpart
    /// that holds the same numbers.
    fn to_gguf(&self, module: &str) -> Option<(String, RowOrder)>;

    /// The module whose weight GGUF calls `name`, and the weight's row order there.
    fn to_hf(&self, name: &str) -> Option<(String, RowOrder)>;

    /// The shape of the weight of `module` in transformers: `[d_out, d_in]`.
    fn shape(&self, module: &str) -> Option<Vec<usize>>;

    /// The weight of `module`, where the base's weights are at hand.
    fn weight(&self, _module: &str) -> Option<&PlannedTensor> {
        None
    }
}

impl BaseModel for ModelConfig {
    fn architecture(&self) -> &str {
        keys::architecture(self.architecture)
    }

    fn layers(&self) -> usize {
        self.num_hidden_layers
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings
    }

    fn to_gguf(&self, module: &str) -> Option<(String, RowOrder)> {
        let name = gguf_name(self.architecture, &format!("{module}.weight"))?;
        Some((name, row_order(self, module)))
    }

    fn to_hf(&self, name: &str) -> Option<(String, RowOrder)> {
        let name = hf_name(self.architecture, name)?;
        let module = name.strip_suffix(".weight")?;
        Some((module.to_owned(), row_order(self, module)))
    }

    fn shape(&self, module: &str) -> Option<Vec<usize>> {
        let name = format!("{module}.weight");
        expected_tensors(self).into_iter().find(|(expected, _)| *expected == name).map(|(_, shape)| shape)
    }
}

/// ggml's Llama rotates neighbouring dimensions where transformers rotates the halves of a head.
fn row_order(config: &ModelConfig, module: &str) -> RowOrder {
    let permutes = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
    match module {
        _ if permutes && module.ends_with(".q_proj") => RowOrder::Pairs { heads: config.num_attention_heads },
        _ if permutes && module.ends_with(".k_proj") => RowOrder::Pairs { heads: config.num_key_value_heads },
        _ => RowOrder::Kept,
    }
}

impl BaseModel for HfFolder {
    fn architecture(&self) -> &str {
        self.config.architecture()
    }

    fn layers(&self) -> usize {
        self.config.layers()
    }

    fn tied(&self) -> bool {
        self.config.tied()
    }

    fn to_gguf(&self, module: &str) -> Option<(String, RowOrder)> {
        self.config.to_gguf(module)
    }

    fn to_hf(&self, name: &str) -> Option<(String, RowOrder)> {
        self.config.to_hf(name)
    }

    fn shape(&self, module: &str) -> Option<Vec<usize>> {
        self.config.shape(module)
    }

    fn weight(&self, module: &str) -> Option<&PlannedTensor> {
        self.weights().get(&format!("{module}.weight"))
    }
}

/// Whether two tensors hold the same values, looked at some rows at a time.
pub(super) fn same_values(a: &PlannedTensor, b: &PlannedTensor) -> Result<bool> {
    const ROWS: usize = 1024;
    if a.shape != b.shape {
        return Ok(false);
    }
    let total = a.rows();
    for start in (0..total).step_by(ROWS) {
        let rows: Range<usize> = start..(start + ROWS).min(total);
        if a.read_rows(rows.clone())? != b.read_rows(rows)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_paired_by_head_and_back() {
        let of = Expr::Values { shape: vec![8, 1], values: (0..8).map(|i| i as f32).collect() };
        let order = RowOrder::Pairs { heads: 2 };
        let read = |expr: Expr| {
            let planned = PlannedTensor { name: "t".into(), dtype: crate::dtype::DType::F32, shape: vec![8, 1], expr };
            planned.read_rows(0..8).unwrap()
        };
        assert_eq!(read(order.to_gguf(of.clone())), [0., 2., 1., 3., 4., 6., 5., 7.]);
        assert_eq!(read(order.to_hf(order.to_gguf(of.clone()))), read(of));
        assert!(order.fits(8) && !order.fits(6) && !order.fits(7) && !order.fits(0));
        assert!(!RowOrder::Pairs { heads: 0 }.fits(8));
    }
}

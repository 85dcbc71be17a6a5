//! What an adapter has to know of its base: names, shapes and row order of the weights it changes.

use std::path::Path;
use std::sync::Arc;

use crate::arch::params::Params;
use crate::arch::{Config, Transform};
use crate::checkpoint::Checkpoint;
use crate::convert::tensors::{Found, Known, find, named, qkv_rows, shape_of};
use crate::error::Result;
use crate::plan::{Expr, Plan, PlannedTensor};

/// The order of a weight's rows in GGUF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOrder {
    /// As in transformers.
    Kept,
    /// Within each head, from halves to neighbouring pairs: ggml's layout of rotary embeddings.
    Pairs {
        /// The number of heads; rows divide into heads of an even number of rows.
        heads: usize,
    },
    /// Row by row: where each row of GGUF is in transformers. Every row is there once.
    Listed(Arc<[usize]>),
}

impl RowOrder {
    /// `of`, with rows as transformers has them, with its rows as GGUF has them.
    pub(super) fn to_gguf(&self, of: Expr) -> Expr {
        match self {
            RowOrder::Kept => of,
            RowOrder::Pairs { heads } => in_heads(*heads, of, |row, half| row % 2 * half + row / 2),
            RowOrder::Listed(from) => Expr::reordered(of, |row| from[row]),
        }
    }

    /// [`RowOrder::to_gguf`] backwards.
    pub(super) fn to_hf(&self, of: Expr) -> Expr {
        match self {
            RowOrder::Kept => of,
            RowOrder::Pairs { heads } => in_heads(*heads, of, |row, half| row % half * 2 + row / half),
            RowOrder::Listed(from) => {
                let mut back = vec![0; from.len()];
                from.iter().enumerate().for_each(|(there, &here)| back[here] = there);
                Expr::reordered(of, |row| back[row])
            }
        }
    }

    /// Whether `rows` rows can be put in this order.
    pub(super) fn fits(&self, rows: usize) -> bool {
        match self {
            RowOrder::Kept => true,
            RowOrder::Pairs { heads } => {
                rows > 0 && rows.checked_rem(*heads) == Some(0) && (rows / heads).is_multiple_of(2)
            }
            RowOrder::Listed(from) => from.len() == rows,
        }
    }
}

/// `from` has the row within a head and half of the head's rows.
fn in_heads(heads: usize, of: Expr, from: impl Fn(usize, usize) -> usize) -> Expr {
    let per_head = crate::source::rows(&of.shape()) / heads;
    Expr::reordered(of, |row| row / per_head * per_head + from(row % per_head, per_head / 2))
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

    /// Outputs and inputs of `module`: `[d_out, d_in]`, the shape of a linear layer's weight. A
    /// Conv1D keeps its weight transposed; the factors of a LoRA are the same for both.
    fn shape(&self, module: &str) -> Option<Vec<usize>>;

    /// The weight of `module`, where the base's weights are at hand.
    fn weight(&self, _module: &str) -> Option<&PlannedTensor> {
        None
    }
}

/// A model folder as a base, by the table of its architecture.
pub struct TableBase {
    params: Params,
    layers: usize,
    weights: Plan,
}

impl TableBase {
    /// The base in `folder`; `None` where its class has no table.
    ///
    /// # Errors
    /// As [`crate::convert::to_gguf`] for config.json.
    pub fn open(folder: &Checkpoint) -> Result<Option<Self>> {
        Self::of(folder.path(), &folder.config_json, folder.weights().clone())
    }

    /// As [`TableBase::open`], for a config and weights that need not stand in a folder; errors name
    /// `folder`.
    ///
    /// # Errors
    /// As there.
    pub fn of(folder: &Path, config: &Config, weights: Plan) -> Result<Option<Self>> {
        let Some(params) = Params::read(folder, config, &mut Vec::new())? else { return Ok(None) };
        let layers = params.layers()?;
        Ok(Some(Self { params, layers, weights }))
    }

    /// The module's weight in the table; `None` for another, and for a layer past the last.
    fn known<'a>(&self, weight: &'a str) -> Option<Known<'a>> {
        match find(self.params.arch, weight) {
            Found::Known(known) if known.layer.is_none_or(|layer| layer < self.layers) => Some(known),
            _ => None,
        }
    }

    /// `None` where the weight becomes a part of another tensor, or is changed on the way.
    fn order(&self, transform: Transform) -> Option<RowOrder> {
        match transform {
            Transform::Same | Transform::TrimVocab | Transform::Transposed => Some(RowOrder::Kept),
            Transform::Pairs(heads) => Some(RowOrder::Pairs { heads: self.params.count(heads).ok()? }),
            Transform::HeadwiseQkv | Transform::GroupedQkv => {
                Some(RowOrder::Listed(qkv_rows(&self.params, transform).ok()?.into()))
            }
            Transform::Stack(_) | Transform::PlusOne | Transform::FromPosition => None,
        }
    }
}

impl BaseModel for TableBase {
    fn architecture(&self) -> &str {
        self.params.arch.gguf
    }

    fn layers(&self) -> usize {
        self.layers
    }

    fn tied(&self) -> bool {
        self.params.flag("tie_word_embeddings", false)
    }

    fn to_gguf(&self, module: &str) -> Option<(String, RowOrder)> {
        let weight = format!("{module}.weight");
        let known = self.known(&weight)?;
        Some((known.gguf_name(), self.order(known.tensor.transform)?))
    }

    fn to_hf(&self, name: &str) -> Option<(String, RowOrder)> {
        let stem = name.strip_suffix(".weight")?;
        let layer = stem.split('.').find_map(|part| part.parse::<usize>().ok().filter(|n| n.to_string() == part));
        if layer.is_some_and(|layer| layer >= self.layers) {
            return None;
        }
        self.params.arch.tensors.iter().copied().flatten().find_map(|tensor| {
            if named(tensor.gguf, layer, None, "weight") != name {
                return None;
            }
            let module = named(tensor.hf, layer, None, "weight").strip_suffix(".weight")?.to_owned();
            Some((module, self.order(tensor.transform)?))
        })
    }

    fn shape(&self, module: &str) -> Option<Vec<usize>> {
        let weight = format!("{module}.weight");
        let tensor = self.known(&weight)?.tensor;
        let mut shape = shape_of(&self.params, tensor, false).ok()?;
        if tensor.transform == Transform::Transposed {
            shape.reverse();
        }
        Some(shape)
    }

    fn weight(&self, module: &str) -> Option<&PlannedTensor> {
        self.weights.get(&format!("{module}.weight"))
    }
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
        assert_eq!(read(order.to_hf(order.to_gguf(of.clone()))), read(of.clone()));
        assert!(order.fits(8) && !order.fits(6) && !order.fits(7) && !order.fits(0));
        assert!(!RowOrder::Pairs { heads: 0 }.fits(8));
        let listed = RowOrder::Listed([3, 0, 7, 1, 2, 6, 5, 4].into());
        assert_eq!(read(listed.to_gguf(of.clone())), [3., 0., 7., 1., 2., 6., 5., 4.]);
        assert_eq!(read(listed.to_hf(listed.to_gguf(of.clone()))), read(of));
        assert!(listed.fits(8) && !listed.fits(4));
    }

    #[test]
    fn conv1d_and_fused_layers_have_the_factors_of_linear_ones() {
        let base = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert").join(name).join("model");
            TableBase::open(&Checkpoint::open(&folder).unwrap()).unwrap().unwrap()
        };
        let gpt2 = base("gpt2");
        let (name, order) = gpt2.to_gguf("transformer.h.0.mlp.c_fc").unwrap();
        assert_eq!((name.as_str(), order), ("blk.0.ffn_up.weight", RowOrder::Kept));
        let (up, down) = (gpt2.shape("transformer.h.0.mlp.c_fc").unwrap(), gpt2.weight("transformer.h.0.mlp.c_fc"));
        assert!(up[0] == 4 * up[1] && down.unwrap().shape == [up[1], up[0]], "{up:?}");
        for (name, module) in [
            ("gpt-neox", "gpt_neox.layers.1.attention.query_key_value"),
            ("falcon", "transformer.h.1.self_attention.query_key_value"),
        ] {
            let base = base(name);
            let (weight, order) = base.to_gguf(module).unwrap();
            assert_eq!(weight, "blk.1.attn_qkv.weight");
            assert!(
                matches!(&order, RowOrder::Listed(rows) if order.fits(base.shape(module).unwrap()[0]) && rows[0] == 0)
            );
            assert_eq!(base.to_hf(&weight).unwrap(), (module.to_owned(), order));
        }
    }
}

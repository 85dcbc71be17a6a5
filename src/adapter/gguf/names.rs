//! What must be known of a base to convert its LoRA to or from GGUF: names, shapes and row order of the weights.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::updates::MANY;
use crate::adapter::peft::Base;
use crate::arch::lookup::{Match, class_spelling, expected, matches};
use crate::arch::params::Params;
use crate::arch::steps::{Step, steps};
use crate::arch::{Config, Naming};
use crate::dtype::DType;
use crate::error::{Finding, Result};
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
    /// The row in transformers for each row in GGUF. Every row occurs once.
    Listed(Arc<[usize]>),
}

impl RowOrder {
    /// Reorders the rows of `of` from transformers' order to GGUF's.
    #[cfg(test)]
    pub(crate) fn to_gguf(&self, of: Expr) -> Expr {
        match self {
            RowOrder::Kept => of,
            RowOrder::Pairs { heads } => in_heads(*heads, of, |row, half| row % 2 * half + row / 2),
            RowOrder::Listed(from) => Expr::reordered(of, |row| from[row]),
        }
    }

    /// Reorders the rows of `of` from GGUF's order to transformers'.
    pub(crate) fn to_hf(&self, of: Expr) -> Expr {
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
    pub(crate) fn fits(&self, rows: usize) -> bool {
        match self {
            RowOrder::Kept => true,
            RowOrder::Pairs { heads } => {
                rows > 0 && rows.checked_rem(*heads) == Some(0) && (rows / heads).is_multiple_of(2)
            }
            RowOrder::Listed(from) => from.len() == rows,
        }
    }
}

/// `from` maps a row within a head, given half the number of the head's rows, to its source row.
fn in_heads(heads: usize, of: Expr, from: impl Fn(usize, usize) -> usize) -> Expr {
    let per_head = crate::source::rows(&of.shape()) / heads;
    Expr::reordered(of, |row| row / per_head * per_head + from(row % per_head, per_head / 2))
}

/// The names in GGUF of a base's weights, by the family of its class.
pub(crate) struct GgufNames {
    pub(super) params: Params,
    naming: Naming,
    layers: usize,
    /// The number of the model's own layers.
    pub(super) main: Option<usize>,
}

/// A module's weight in GGUF.
pub(crate) struct GgufWeight {
    /// The module's path in transformers: `model.layers.0.self_attn.q_proj`.
    pub(crate) module: String,
    /// The weight's name in GGUF: `blk.0.attn_q.weight`.
    pub(crate) name: String,
    /// Outputs and inputs of the module, `[d_out, d_in]`. A Conv1D stores its weight transposed, but the factors of a
    /// LoRA are the same for both layouts.
    pub(crate) shape: Vec<usize>,
    /// The order of the weight's rows in GGUF.
    pub(crate) order: RowOrder,
}

impl GgufNames {
    /// Makes the names for `base`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] where its class has no family; errors of reading its config.
    pub(crate) fn of(base: &Base) -> Result<Self> {
        let Some(params) = Params::read(base.path(), base.config(), &mut Vec::new())? else {
            let finding = Finding::new(base.path(), "architectures").expected("a class with a counterpart in GGUF");
            return Err(finding.found("another").unsupported());
        };
        let main = params.size("main")?;
        let params = params.with_weights(base.stored())?;
        let layers = params.layers()?;
        Ok(Self { params, naming: Naming::of(base.config()), layers, main })
    }

    /// The architecture's name in GGUF.
    pub(crate) fn architecture(&self) -> &'static str {
        &self.params.family.gguf
    }

    /// The number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// Whether the output head is tied to the embeddings.
    pub(crate) fn tied(&self) -> bool {
        self.params.flag("tie_word_embeddings", false)
    }

    /// The GGUF form of the base's weight `tensor`; `None` if no tensor in GGUF holds the same numbers.
    pub(crate) fn weight(&self, tensor: &PlannedTensor) -> Option<GgufWeight> {
        let uses = matches(self.params.family, &tensor.name, self.main);
        let [known] = uses.as_slice() else { return None };
        if known.layer.is_some_and(|layer| layer >= self.layers) {
            return None;
        }
        let transposed = known.row.is_transposed();
        let mut shape = tensor.shape.clone();
        if transposed {
            shape.reverse();
        }
        let own_name = self.naming.class_name(&tensor.name)?;
        let (module, name) = (own_name.strip_suffix(".weight")?.to_owned(), known.gguf_name()?);
        Some(GgufWeight { module, name, shape, order: self.order(known, &tensor.shape)? })
    }

    /// The GGUF form of every weight of `base` that has one, by its name in GGUF.
    pub(crate) fn weights(&self, base: &Base) -> HashMap<String, GgufWeight> {
        let weights = base.stored().filter_map(|tensor| self.weight(tensor));
        weights.map(|weight| (weight.name.clone(), weight)).collect()
    }

    /// `None` where the weight becomes a part of another tensor, or its values change in the conversion.
    fn order(&self, known: &Match, shape: &[usize]) -> Option<RowOrder> {
        if !known.is_whole() {
            return None;
        }
        let form = &known.row.forms[known.form];
        let operations: Vec<_> = known.part().operations.iter().chain(&form.operations).cloned().collect();
        let steps = steps(&self.params, &operations, shape, known.layer, &|| Ok(usize::MAX)).ok()?.ok()?;
        match steps.as_slice() {
            [] | [Step::Trim { .. }] => Some(RowOrder::Kept),
            [Step::Permute(_)] if known.row.is_transposed() => Some(RowOrder::Kept),
            [Step::Index { dim: 0, of, index }] if index.len() == *of => Some(RowOrder::Listed(index.clone())),
            _ => None,
        }
    }
}

/// Adds to `weights` the tensors that the config asks for and that are missing, with name and shape but without values.
/// That describes a base of which only config.json is available.
///
/// # Errors
/// As [`GgufNames::of`].
pub(crate) fn with_expected(path: &Path, config: &Config, mut weights: Plan) -> Result<Plan> {
    let Some(params) = Params::read(path, config, &mut Vec::new())? else { return Ok(weights) };
    let main = params.size("main")?;
    let there: HashSet<String> =
        weights.tensors.iter().map(|tensor| class_spelling(params.family, &tensor.name, main)).collect();
    for wanted in expected(&params, MANY, |_| false)? {
        let Some(shape) = wanted.whole_shape() else { continue };
        if !there.contains(&wanted.name) {
            let expr = Expr::Values { shape: shape.clone(), values: Arc::from([]) };
            weights.tensors.push(PlannedTensor { name: wanted.name, dtype: DType::F32, shape, expr });
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

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
    fn a_wrapped_text_model_has_the_names_of_its_class() {
        for (case, file, class) in [
            ("vlm-gemma3-conditional", "language_model.model.", "model.language_model."),
            ("names-language-model", "model.language_model.", "model."),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases").join(case).join("model");
            let folder = Checkpoint::open(&folder).unwrap();
            let base = Base::of(&folder);
            let q = "layers.0.self_attn.q_proj";
            let tensor = base.tensor(&format!("{class}{q}.weight")).unwrap();
            assert_eq!(tensor.name, format!("{file}{q}.weight"));
            assert_eq!(
                GgufNames::of(&base).unwrap().weights(&base)["blk.0.attn_q.weight"].module,
                format!("{class}{q}")
            );
            assert_eq!(base.tied_head().unwrap().shape, [320, 32]);
            let known = with_expected(folder.path(), &folder.config_json, folder.weights().clone()).unwrap();
            assert_eq!(known.tensors.len(), folder.weights().tensors.len(), "nothing is missing");
        }
    }

    #[test]
    fn conv1d_and_fused_layers_have_the_factors_of_linear_ones() {
        let check = |name: &str, check: &dyn Fn(&HashMap<String, GgufWeight>, &Base)| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert").join(name).join("model");
            let folder = Checkpoint::open(&folder).unwrap();
            let base = Base::of(&folder);
            check(&GgufNames::of(&base).unwrap().weights(&base), &base);
        };
        check("gpt2", &|weights, base| {
            let up = &weights["blk.0.ffn_up.weight"];
            assert_eq!((up.module.as_str(), &up.order), ("transformer.h.0.mlp.c_fc", &RowOrder::Kept));
            let kept = base.named().find(|(name, _)| name.ends_with("h.0.mlp.c_fc.weight")).unwrap().1;
            assert!(up.shape[0] == 4 * up.shape[1] && kept.shape == [up.shape[1], up.shape[0]], "{:?}", up.shape);
        });
        for (name, module) in [
            ("gpt-neox", "gpt_neox.layers.1.attention.query_key_value"),
            ("falcon", "transformer.h.1.self_attention.query_key_value"),
        ] {
            check(name, &|weights, _| {
                let qkv = &weights["blk.1.attn_qkv.weight"];
                assert_eq!(qkv.module, module);
                assert!(matches!(&qkv.order, RowOrder::Listed(rows) if qkv.order.fits(qkv.shape[0]) && rows[0] == 0));
            });
        }
    }
}

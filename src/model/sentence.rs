//! A sentence encoder of the BERT family with mean pooling.
//!
//! Reference: transformers `models/bert/modeling_bert.py`; sentence-transformers' mean pooling.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use serde_json::json;

use super::ops::FrozenMatrix;
use super::{TextEncoder, ops, softmax_last};
use crate::arch::INERT;
use crate::checkpoint::open_weights;
use crate::error::{Finding, Result};
use crate::json::{Fields, read_json_object};
use crate::source::show_shape;

/// A BERT with mean pooling.
pub struct SentenceEncoder {
    text: TextEncoder,
    hidden_size: usize,
    layers: usize,
    heads: usize,
    eps: f64,
    max_tokens: usize,
    tensors: HashMap<String, Tensor>,
}

impl SentenceEncoder {
    /// Opens a folder with config.json, model.safetensors and tokenizer.json.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for another architecture or pooling; [`crate::Error::Mismatch`] for
    /// tensors that don't fit the config.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let path = folder.join("config.json");
        let json = read_json_object(&path)?;
        let mut f = Fields::new(&path, &json);
        f.only("model_type", &[json!("bert")])?;
        f.only("hidden_act", &[json!("gelu")])?;
        f.only("position_embedding_type", &[json!("absolute")])?;
        let (hidden_size, heads) = (f.count("hidden_size")?, f.count("num_attention_heads")?);
        let (layers, inner) = (f.small_count("num_hidden_layers")?, f.count("intermediate_size")?);
        let (vocab, positions) = (f.count("vocab_size")?, f.count("max_position_embeddings")?);
        let (types, eps) = (f.count_or("type_vocab_size", 2)?, f.get("layer_norm_eps")?.unwrap_or(1e-12));
        f.ignore(INERT);
        f.ignore(&[
            "attention_probs_dropout_prob",
            "bos_token_id",
            "classifier_dropout",
            "eos_token_id",
            "gradient_checkpointing",
            "hidden_dropout_prob",
            "num_key_value_heads",
            "tie_word_embeddings",
        ]);
        if !hidden_size.is_multiple_of(heads) {
            let finding = f.finding("num_attention_heads");
            return Err(finding.expected(format_args!("a divisor of {hidden_size}")).found(heads).mismatch());
        }
        f.finish()?;
        check_pooling(folder)?;
        let plan = open_weights(folder, None)?.plan;
        plan.check()?;
        let mut tensors = HashMap::new();
        for (name, shape) in expected(hidden_size, inner, layers, [vocab, positions, types]) {
            let planned = plan.get(&name).or_else(|| plan.get(&format!("bert.{name}")));
            let finding = || Finding::new(folder, format!("tensor {name:?}")).expected(show_shape(&shape));
            let planned = planned.ok_or_else(|| finding().found("none of that name").mismatch())?;
            if planned.shape != shape {
                return Err(finding().found(show_shape(&planned.shape)).mismatch());
            }
            tensors.insert(name, Tensor::from_vec(planned.read()?, shape, device)?);
        }
        let text = TextEncoder::open(folder)?;
        Ok(Self { text, hidden_size, layers, heads, eps, max_tokens: positions, tensors })
    }

    /// The length of its embeddings.
    pub fn dim(&self) -> usize {
        self.hidden_size
    }

    /// The tokens of `text`, with the tokenizer's special tokens.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a text that has no tokens, or more than the encoder reads.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.text.encode(text, true)?;
        if ids.is_empty() || ids.len() > self.max_tokens {
            return Err(Finding::new(self.text.path(), "instruction")
                .expected(format_args!("1 to {} tokens", self.max_tokens))
                .found(ids.len())
                .mismatch());
        }
        Ok(ids)
    }

    /// The hidden states of the last layer, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn hidden(&self, ids: &[u32]) -> Result<Tensor> {
        let (n, d) = (ids.len(), self.hidden_size / self.heads);
        let table = |name: &str| &self.tensors[&format!("embeddings.{name}.weight")];
        let words = table("word_embeddings").index_select(&Tensor::new(ids, table("word_embeddings").device())?, 0)?;
        let positions = table("position_embeddings").narrow(0, 0, n)?;
        let sum = (words + positions)?.broadcast_add(&table("token_type_embeddings").get(0)?)?;
        let mut x = self.layer_norm("embeddings.LayerNorm", &sum)?;
        for layer in 0..self.layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let split = |part: &str| -> Result<Tensor> {
                let y = self.linear(&name(&format!("attention.self.{part}")), &x)?;
                Ok(y.reshape((n, self.heads, d))?.transpose(0, 1)?.contiguous()?)
            };
            let (q, k, v) = (split("query")?, split("key")?, split("value")?);
            let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * (1.0 / (d as f64).sqrt()))?;
            let mixed = softmax_last(&scores)?.matmul(&v)?.transpose(0, 1)?.reshape((n, self.hidden_size))?;
            let attended = (self.linear(&name("attention.output.dense"), &mixed)? + &x)?;
            let attended = self.layer_norm(&name("attention.output.LayerNorm"), &attended)?;
            let inner = self.linear(&name("intermediate.dense"), &attended)?.gelu_erf()?;
            let out = (self.linear(&name("output.dense"), &inner)? + attended)?;
            x = self.layer_norm(&name("output.LayerNorm"), &out)?;
        }
        Ok(x)
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (&self.tensors[&format!("{name}.weight")], &self.tensors[&format!("{name}.bias")]);
        Ok(ops::frozen_linear(x, &FrozenMatrix::held(weight.clone()), Some(bias))?)
    }

    fn layer_norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normed = centred.broadcast_div(&deviation)?.broadcast_mul(&self.tensors[&format!("{name}.weight")])?;
        Ok(normed.broadcast_add(&self.tensors[&format!("{name}.bias")])?)
    }
}

/// Checks that `1_Pooling/config.json` of sentence-transformers asks for mean pooling.
fn check_pooling(folder: &Path) -> Result<()> {
    let path = folder.join("1_Pooling").join("config.json");
    if !path.is_file() {
        return Ok(());
    }
    let json = read_json_object(&path)?;
    match json.get("pooling_mode_mean_tokens") {
        Some(serde_json::Value::Bool(false)) => {
            Err(Finding::new(&path, "pooling_mode_mean_tokens").expected(true).found(false).unsupported())
        }
        _ => Ok(()),
    }
}

/// Names and shapes of a BERT's weights, without the pooler; `tables` are the sizes of the
/// embeddings of words, positions and types.
fn expected(hidden: usize, inner: usize, layers: usize, tables: [usize; 3]) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for (name, rows) in ["word", "position", "token_type"].into_iter().zip(tables) {
        tensors.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, hidden]));
    }
    let mut pair = |name: String, weight: Vec<usize>, bias: usize| {
        tensors.push((format!("{name}.weight"), weight));
        tensors.push((format!("{name}.bias"), vec![bias]));
    };
    pair("embeddings.LayerNorm".into(), vec![hidden], hidden);
    for layer in 0..layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            pair(name(&format!("attention.{part}")), vec![hidden, hidden], hidden);
        }
        pair(name("attention.output.LayerNorm"), vec![hidden], hidden);
        pair(name("intermediate.dense"), vec![inner, hidden], inner);
        pair(name("output.dense"), vec![hidden, inner], hidden);
        pair(name("output.LayerNorm"), vec![hidden], hidden);
    }
    tensors
}

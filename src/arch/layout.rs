//! Which tensors a decoder has, by its config.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::names::is_buffer;
use super::{LinearLayer, ModelConfig, Module};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// Name and shape of every tensor that `config` asks for, in Hugging Face's names.
pub fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        for module in Module::ALL {
            let site = LinearLayer { layer, module };
            let (d_out, d_in) = module.shape(config);
            tensors.push((site.weight_name(), vec![d_out, d_in]));
            let bias = match module {
                Module::Q | Module::K | Module::V => config.qkv_bias,
                Module::O => config.o_bias,
                Module::Gate | Module::Up | Module::Down => config.mlp_bias,
            };
            if bias {
                tensors.push((format!("{site}.bias"), vec![d_out]));
            }
        }
        let norm = |name: &str| format!("model.layers.{layer}.{name}.weight");
        tensors.push((norm("input_layernorm"), vec![hidden]));
        tensors.push((norm("post_attention_layernorm"), vec![hidden]));
        if config.qk_norm {
            tensors.push((norm("self_attn.q_norm"), vec![config.head_dim]));
            tensors.push((norm("self_attn.k_norm"), vec![config.head_dim]));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// Checks that `weights` holds every tensor that `config` asks for in its shape, and no other but
/// buffers and, where embeddings are tied, an output head that repeats them.
///
/// # Errors
/// [`crate::Error::Mismatch`], naming the file and the tensor.
pub fn check_tensors(folder: &Path, config: &ModelConfig, weights: &Plan) -> Result<()> {
    let expected = expected_tensors(config);
    let mut found: HashMap<&str, &PlannedTensor> = weights.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let finding = |tensor: &PlannedTensor| {
        let file = tensor.expr.sources().first().map_or(folder, |source| source.path());
        Finding::new(file, format!("tensor {:?}", tensor.name))
    };
    if found.len() < weights.tensors.len() {
        let mut names = HashSet::new();
        if let Some(tensor) = weights.tensors.iter().find(|t| !names.insert(&t.name)) {
            return Err(finding(tensor).expected("each name once").found("it twice").mismatch());
        }
    }
    let head = ("lm_head.weight".to_owned(), vec![config.vocab_size, config.hidden_size]);
    let tied_head = config.tie_word_embeddings && found.contains_key(head.0.as_str());
    for (name, shape) in expected.iter().chain(tied_head.then_some(&head)) {
        match found.remove(name.as_str()) {
            Some(tensor) if &tensor.shape == shape => {}
            Some(tensor) => {
                return Err(finding(tensor)
                    .expected(format_args!("{} by config.json", show_shape(shape)))
                    .found(show_shape(&tensor.shape))
                    .mismatch());
            }
            None => {
                return Err(Finding::new(folder, format!("tensor {name:?}"))
                    .expected(format_args!("{} by config.json", show_shape(shape)))
                    .found("none of that name")
                    .hint("config.json and weights may be of different models")
                    .mismatch());
            }
        }
    }
    let surplus = weights.tensors.iter().find(|t| found.contains_key(t.name.as_str()) && !is_buffer(&t.name));
    match surplus {
        None => Ok(()),
        Some(tensor) => Err(finding(tensor)
            .expected("only tensors that config.json asks for")
            .found(format_args!("this one, {}", show_shape(&tensor.shape)))
            .hint("config.json and weights may be of different models")
            .mismatch()),
    }
}

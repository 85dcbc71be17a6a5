//! Which tensors a decoder has, by its config.

use super::{ModelConfig, Module, Site};

/// Name and shape of every tensor that `config` asks for, in Hugging Face's names.
pub fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        for module in Module::ALL {
            let site = Site { layer, module };
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

/// Tensors that old checkpoints carry and nothing needs: rotary tables that the config determines,
/// and the output head of a model that says it shares its embedding.
pub fn is_droppable(config: &ModelConfig, name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
}

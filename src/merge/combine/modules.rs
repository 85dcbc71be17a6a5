//! The order of a model's modules, and the random numbers that PEFT draws before it combines them.

/// Modules in the order in which transformers' classes make them, where the names are known: numbers count,
/// the rest stays as it was. The tensors of a file are in no such order.
pub(in crate::merge) fn in_order<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    found.extend(names.into_iter().filter(|name| seen.insert(*name)));
    found.sort_by_cached_key(|name| name.split('.').map(place).collect::<Vec<_>>());
    found
}

/// Names of modules in the order in which their parents make them.
const ORDER: &[&str] = &[
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "wpe",
    "model",
    "transformer",
    "gpt_neox",
    "layers",
    "h",
    "ln_1",
    "input_layernorm",
    "self_attn",
    "attn",
    "self_attention",
    "attention",
    "c_attn",
    "query_key_value",
    "q_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "query",
    "key",
    "value",
    "dense",
    "out_proj",
    "mlp",
    "block_sparse_moe",
    "gate",
    "experts",
    "w1",
    "w2",
    "w3",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
    "c_fc",
    "c_proj",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "fc1",
    "fc2",
    "shared_expert",
    "norm",
    "embed_out",
    "lm_head",
];

/// A part of a path as a number that is ordered as modules are.
fn place(part: &str) -> usize {
    match part.parse::<usize>() {
        Ok(number) => number,
        // Names that are not known stay where they are, behind those that are.
        Err(_) => ORDER.iter().position(|known| *known == part).unwrap_or(ORDER.len()),
    }
}

/// Words that PEFT draws for the new adapter before it combines the others: the factors are made and
/// initialised like those of any new adapter. `torch.manual_seed` before `add_weighted_adapter` then gives
/// what the same seed gives here.
///
/// Reference: huggingface/peft `src/peft/tuners/lora/layer.py` (`update_layer`, `reset_lora_parameters`),
/// 0.21.2, with `init_lora_weights=True`.
#[derive(Debug, Default)]
pub(super) struct Prelude(u64);

impl Prelude {
    /// Adds the draws of one module.
    pub(super) fn add(&mut self, d_in: u64, d_out: u64, rank: u64, name: &str, transposed: bool) {
        let embedding = ["embed_tokens", "wte", "wpe", "embed_in", "word_embeddings"];
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let is_embedding = transposed && embedding.contains(&module.rsplit('.').next().unwrap_or(module));
        self.0 += if is_embedding {
            // A and B are made by randn, then B is drawn once more.
            normal(rank * d_in) + 2 * normal(d_out * rank)
        } else {
            // nn.Linear initialises itself, and A is initialised again.
            2 * rank * d_in + d_out * rank
        };
    }

    pub(super) fn words(&self) -> u64 {
        self.0
    }
}

/// Words that `count` normally distributed numbers take: 16 at a time, the last 16 once more where they
/// are not full; fewer than 16 are made in pairs of doubles.
fn normal(count: u64) -> u64 {
    match count {
        0..16 => count.div_ceil(2) * 4,
        _ if count.is_multiple_of(16) => count,
        _ => count + 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_as_their_classes_make_them() {
        let names = [
            "lm_head.weight",
            "model.layers.10.self_attn.q_proj.weight",
            "model.layers.2.mlp.down_proj.weight",
            "model.layers.2.mlp.gate_proj.weight",
            "model.layers.2.self_attn.o_proj.weight",
            "model.layers.2.self_attn.v_proj.weight",
            "model.embed_tokens.weight",
        ];
        let expected = [6, 5, 4, 3, 2, 1, 0].map(|i| names[i]);
        assert_eq!(in_order(names), expected);
    }

    #[test]
    fn normal_numbers_take_the_words_that_torch_takes() {
        assert_eq!([5, 16, 17, 100, 999, 10000].map(normal), [12, 16, 33, 116, 1015, 10000]);
    }
}

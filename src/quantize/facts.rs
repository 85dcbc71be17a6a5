//! The facts about a model that mixtures need: its numbers of blocks, heads and experts.
//!
//! Reference: llama.cpp `src/llama-model.cpp` (`llama_model_base::load_hparams`), `src/llama-hparams.cpp` (`n_gqa`) and
//! `load_arch_hparams` of the architectures named here.

use crate::error::Result;
use crate::formats::gguf::{Array, Metadata, Value};

/// The facts of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelFacts {
    pub architecture: String,
    /// The number of blocks as llama.cpp counts them; for some architectures, it is more than the file has.
    pub blocks: usize,
    /// The number of experts; 0 for models without.
    pub experts: usize,
    /// How many query heads share one key-value head, in the first block; `None` for encoders of images and sound, for
    /// which llama-quantize doesn't read the keys.
    pub heads_per_kv: Option<usize>,
    /// Whether llama.cpp calls it a 70B model.
    pub is_70b: bool,
}

/// The largest number of blocks that llama.cpp reads (`LLAMA_MAX_LAYERS`).
const MAX_BLOCKS: usize = 512;

/// The numbers of layers by which llama.cpp recognizes 70B models; see also [`is_70b`].
const LAYERS_OF_70B: [(&str, usize); 6] =
    [("llama", 80), ("llama-embed", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)];

impl ModelFacts {
    /// Reads the facts from a file's keys.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for keys that are missing, as in files that aren't models (such as LoRAs), or of
    /// another type; [`crate::Error::Mismatch`] for more blocks than llama.cpp reads.
    pub fn read(metadata: &Metadata) -> Result<Self> {
        let architecture = metadata.text("general.architecture")?.to_owned();
        if architecture == "clip" {
            return Ok(Self { architecture, blocks: 0, experts: 0, heads_per_kv: None, is_70b: false });
        }
        let key = |name: &str| format!("{architecture}.{name}");
        let optional = |name: &str| optional(metadata, &key(name));
        let in_file = metadata.u32(&key("block_count"))? as usize;
        if !(1..=MAX_BLOCKS).contains(&in_file) {
            let finding = metadata.finding(&key("block_count")).expected(format_args!("1 to {MAX_BLOCKS}"));
            return Err(finding.found(in_file).mismatch());
        }
        let experts = optional("expert_count")?.unwrap_or(0);
        let heads = first(metadata, &key("attention.head_count"))?.unwrap_or(0);
        let kv_heads = first(metadata, &key("attention.head_count_kv"))?.unwrap_or(heads);
        let layers = in_file.saturating_sub(optional("nextn_predict_layers")?.unwrap_or(0));
        let blocks = match architecture.as_str() {
            "nanbeige" => layers.saturating_mul(optional("num_loops")?.unwrap_or(1).max(1)).min(MAX_BLOCKS),
            "graniteswitch" => layers + 1,
            _ => in_file,
        };
        let is_70b = is_70b(&architecture, layers, experts, heads == kv_heads);
        Ok(Self { architecture, blocks, experts, heads_per_kv: Some(heads.checked_div(kv_heads).unwrap_or(0)), is_70b })
    }
}

fn is_70b(architecture: &str, layers: usize, experts: usize, own_kv: bool) -> bool {
    let llama = matches!(architecture, "llama" | "llama-embed");
    LAYERS_OF_70B.contains(&(architecture, layers)) && !(llama && (own_kv || experts == 8))
}

fn optional(metadata: &Metadata, key: &str) -> Result<Option<usize>> {
    Ok(if metadata.get(key).is_some() { Some(metadata.u32(key)? as usize) } else { None })
}

/// A number, or the first element of an array with one number for each block.
fn first(metadata: &Metadata, key: &str) -> Result<Option<usize>> {
    let number = match metadata.get(key) {
        Some(Value::Array(Array::U32(numbers))) => numbers.first().copied(),
        Some(Value::Array(Array::I32(numbers))) => numbers.first().and_then(|n| u32::try_from(*n).ok()),
        _ => return optional(metadata, key),
    };
    let wrong = || metadata.finding(key).expected("whole numbers, one for each block").found("others").format();
    number.map(|n| Some(n as usize)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(architecture: &str, keys: &[(&str, u32)]) -> Result<ModelFacts> {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("general.architecture", architecture);
        for (key, value) in keys {
            metadata.insert(format!("{architecture}.{key}"), *value);
        }
        ModelFacts::read(&metadata)
    }

    #[test]
    fn seventy_billion_is_a_matter_of_architecture_and_layers() {
        let llama = [("block_count", 80), ("attention.head_count", 64), ("attention.head_count_kv", 8)];
        for (architecture, is_70b) in [("llama", true), ("llama-embed", true), ("qwen2", true), ("qwen3", false)] {
            assert_eq!(facts(architecture, &llama).unwrap().is_70b, is_70b, "{architecture}");
        }
        assert!(!facts("llama", &llama[..2]).unwrap().is_70b, "a 65B model shares no keys");
        assert!(facts("deci", &llama[..2]).unwrap().is_70b);
        assert!(!facts("llama", &[llama[0], llama[1], llama[2], ("expert_count", 8)]).unwrap().is_70b);
        assert!(!facts("jais2", &llama).unwrap().is_70b);
        assert!(facts("jais2", &[("block_count", 69), ("nextn_predict_layers", 1)]).unwrap().is_70b);
    }

    #[test]
    fn heads_may_differ_from_block_to_block() {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("general.architecture", "deci");
        metadata.insert("deci.block_count", 2u32);
        metadata.insert("deci.attention.head_count", Array::U32(vec![64, 32]));
        metadata.insert("deci.attention.head_count_kv", Array::I32(vec![16, 0]));
        assert_eq!(ModelFacts::read(&metadata).unwrap().heads_per_kv, Some(4));
        metadata.insert("deci.attention.head_count_kv", Array::U32(vec![0, 8]));
        assert_eq!(ModelFacts::read(&metadata).unwrap().heads_per_kv, Some(0));
        for wrong in [Array::U32(vec![]), Array::I32(vec![-1])] {
            metadata.insert("deci.attention.head_count_kv", wrong);
            let message = ModelFacts::read(&metadata).unwrap_err().to_string();
            assert!(message.contains("deci.attention.head_count_kv"), "{message}");
        }
    }

    #[test]
    fn some_architectures_count_more_blocks_than_the_file_has() {
        let blocks = |architecture, keys: &[_]| facts(architecture, keys).unwrap().blocks;
        assert_eq!(blocks("nanbeige", &[("block_count", 10), ("num_loops", 3)]), 30);
        assert_eq!(blocks("graniteswitch", &[("block_count", 10)]), 11);
        assert_eq!(blocks("deepseek2", &[("block_count", 62), ("nextn_predict_layers", 1)]), 62);
        assert_eq!(blocks("clip", &[]), 0);
        for keys in [&[][..], &[("block_count", 0)], &[("block_count", 513)]] {
            let message = facts("llama", keys).unwrap_err().to_string();
            assert!(message.contains("llama.block_count"), "{message}");
        }
    }
}

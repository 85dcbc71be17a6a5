//! The number of tokens of models that pad their embedding to a multiple.
//!
//! Reference: llama.cpp `set_vocab` of `conversion/mamba.py`, `granite.py` and `nemotron.py`.

use serde_json::Value as Json;

use super::Vocab;
use crate::error::Result;
use crate::tokenizer::from_hf::files::{Files, MAX_TOKENS};

/// What the number of tokens is a multiple of, in config.json.
const FIELD: &str = "pad_vocab_size_multiple";

impl Files {
    /// Returns the number of tokens of a kind that pads, or has it elsewhere; `None` for all other kinds.
    pub(in crate::tokenizer::from_hf) fn padded_size(&self, vocab: Vocab) -> Result<Option<usize>> {
        let multiple = match vocab {
            Vocab::Mamba => self.multiple(8)?,
            Vocab::Mamba2 => self.multiple(16)?,
            Vocab::GraniteHybrid if self.has_ssm_layers() => 8,
            Vocab::GraniteHybrid => 1,
            Vocab::NemotronH => 8,
            // The settings of Qwen3-TTS have the number under another name.
            Vocab::Qwen3Tts => return self.talker_size("text_vocab_size"),
            _ => return Ok(None),
        };
        let Some(size) = self.vocab_size()? else {
            let finding = self.finding_in("config.json", "vocab_size").expected("the number of tokens");
            return Err(finding.found("none").mismatch());
        };
        match size.checked_next_multiple_of(multiple).filter(|size| *size <= MAX_TOKENS) {
            Some(size) => Ok(Some(size)),
            None => Err(self
                .finding_in("config.json", "vocab_size")
                .expected(format_args!("at most {MAX_TOKENS}, padded to a multiple of {multiple}"))
                .found(size)
                .format()),
        }
    }

    fn multiple(&self, default: usize) -> Result<usize> {
        Ok(self.size_of(FIELD)?.unwrap_or(default))
    }

    /// Returns whether a Granite has layers that aren't attention. A list of types tells it, or a list of the layers
    /// with attention, or the distance between them.
    fn has_ssm_layers(&self) -> bool {
        let number = |name: &str| self.hparam(name).and_then(Json::as_u64);
        let list = |name: &str| self.hparam(name).and_then(Json::as_array).filter(|list| !list.is_empty());
        let names = ["n_layers", "num_hidden_layers", "n_layer", "num_layers"];
        // The numbers of layers are compared, so that a large one costs nothing.
        let layers = names.into_iter().find_map(number).unwrap_or_default();
        let with_attention = if let Some(types) = list("layer_types") {
            let attention = types.iter().zip(0..layers).filter(|(kind, _)| kind.as_str() == Some("attention"));
            attention.count() as u64
        } else if let Some(listed) = list("attn_layer_indices") {
            let listed: std::collections::HashSet<u64> = listed.iter().filter_map(Json::as_u64).collect();
            listed.iter().filter(|layer| **layer < layers).count() as u64
        } else {
            return number("attn_layer_period") != Some(1);
        };
        with_attention < layers
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn size(vocab: Vocab, config: Json) -> Result<Option<usize>> {
        Files::for_test(json!({}), json!({}), config).padded_size(vocab)
    }

    #[test]
    fn sizes_are_the_next_multiple() {
        let mamba = json!({"vocab_size": 50277});
        assert_eq!(size(Vocab::Mamba, mamba.clone()).unwrap(), Some(50280));
        assert_eq!(size(Vocab::Mamba2, mamba.clone()).unwrap(), Some(50288));
        assert_eq!(size(Vocab::NemotronH, mamba.clone()).unwrap(), Some(50280));
        assert_eq!(size(Vocab::Bpe, mamba).unwrap(), None);
        let asked = json!({"vocab_size": 30, "pad_vocab_size_multiple": 7});
        assert_eq!(size(Vocab::Mamba, asked.clone()).unwrap(), Some(35));
        assert_eq!(size(Vocab::NemotronH, asked).unwrap(), Some(32));
    }

    #[test]
    fn granite_pads_only_beside_ssm_layers() {
        let of = |mut config: Json| {
            config["vocab_size"] = json!(9);
            config["num_hidden_layers"] = json!(2);
            size(Vocab::GraniteHybrid, config).unwrap()
        };
        assert_eq!(of(json!({"layer_types": ["mamba", "attention"]})), Some(16));
        assert_eq!(of(json!({"layer_types": ["attention", "attention"]})), Some(9));
        assert_eq!(of(json!({"attn_layer_indices": [1, 1]})), Some(16));
        assert_eq!(of(json!({"attn_layer_indices": [0, 1]})), Some(9));
        assert_eq!(of(json!({"attn_layer_period": 2, "attn_layer_offset": 1})), Some(16));
        assert_eq!(of(json!({"attn_layer_period": 1, "attn_layer_offset": 0})), Some(9));
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        let message = size(Vocab::Mamba, json!({})).unwrap_err().to_string();
        assert!(message.contains("config.json: vocab_size: expected the number of tokens, found none"), "{message}");
        for hostile in [json!(0), json!(-8), json!(1u64 << 40), json!("8")] {
            let config = json!({"vocab_size": 9, "pad_vocab_size_multiple": hostile});
            let message = size(Vocab::Mamba, config).unwrap_err().to_string();
            assert!(message.contains("pad_vocab_size_multiple: expected a count from 1 to 4194304"), "{message}");
        }
        let message = size(Vocab::Mamba, json!({"vocab_size": 4_194_304, "pad_vocab_size_multiple": 4_194_303}));
        assert!(message.unwrap_err().to_string().contains("padded to a multiple of 4194303"));
    }
}

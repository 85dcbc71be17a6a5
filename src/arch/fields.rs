//! Fields of config.json: those that every config may have, and those of a family's class.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use super::{ALL, Config, Family};

/// Fields that every config may have and that don't change what the weights compute. They concern
/// training, generation or other programs, or how weights were packed, which is handled when a
/// checkpoint is opened.
pub(crate) const INERT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "compression_config",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "finetuning_task",
    "gradient_checkpointing",
    "head_dim_orig",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "quantization_config",
    "repetition_penalty",
    "residual_in_fp32",
    "return_dict",
    "rope_interleaved",
    "router_aux_loss_coef",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
];

/// The parsed defaults of all tables.
struct Tables {
    /// The parsed fields, by the text of [`Family::defaults`].
    defaults: HashMap<&'static str, Config>,
    /// Every field of any class.
    known: HashSet<String>,
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let parsed = |text: &str| -> Config { serde_json::from_str(text).expect("every table's defaults are tested") };
        let defaults: HashMap<&str, Config> =
            ALL.iter().map(|family| (family.defaults, parsed(family.defaults))).collect();
        let known = defaults.values().flat_map(|fields| fields.keys().cloned()).collect();
        Tables { defaults, known }
    })
}

/// Whether any class has a field of this name.
pub(super) fn is_known(name: &str) -> bool {
    tables().known.contains(name)
}

impl Family {
    /// The class's fields with transformers' defaults.
    pub(crate) fn default_fields(&self) -> &'static Config {
        &tables().defaults[self.defaults]
    }

    /// Whether the class has a field of this name.
    pub(crate) fn has_field(&self, name: &str) -> bool {
        self.default_fields().contains_key(name)
    }
}

//! Special tokens: their names in the files of Hugging Face, and their keys in GGUF.

/// A special token that Hugging Face's files and GGUF both have a name for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpecialToken {
    Bos,
    Eos,
    Unk,
    Sep,
    Pad,
    Cls,
    Mask,
    Eot,
    Eom,
}

impl SpecialToken {
    /// Every special token, its name in tokenizer_config.json without `_token`, and the key of its id in
    /// GGUF.
    pub(super) const ALL: [(SpecialToken, &'static str, &'static str); 9] = [
        (SpecialToken::Bos, "bos", "tokenizer.ggml.bos_token_id"),
        (SpecialToken::Eos, "eos", "tokenizer.ggml.eos_token_id"),
        (SpecialToken::Unk, "unk", "tokenizer.ggml.unknown_token_id"),
        // The format's own spelling.
        (SpecialToken::Sep, "sep", "tokenizer.ggml.seperator_token_id"),
        (SpecialToken::Pad, "pad", "tokenizer.ggml.padding_token_id"),
        (SpecialToken::Cls, "cls", "tokenizer.ggml.cls_token_id"),
        (SpecialToken::Mask, "mask", "tokenizer.ggml.mask_token_id"),
        (SpecialToken::Eot, "eot", "tokenizer.ggml.eot_token_id"),
        (SpecialToken::Eom, "eom", "tokenizer.ggml.eom_token_id"),
    ];
}

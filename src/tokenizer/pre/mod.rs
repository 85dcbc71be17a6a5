//! llama.cpp's pre-tokenizers: how each splits text, and how a tokenizer is recognised as one.
//!
//! llama.cpp has its splitting rules built in and picks them by name (`tokenizer.ggml.pre`). A rule
//! splits each piece that the rules before it left; text that it doesn't match stays a piece too.
//! Both directions use one table: a conversion to GGUF looks for the name of a tokenizer, a
//! conversion back writes the rules of a name. A new pre-tokenizer is one entry in `table.rs`.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe`, `llama_vocab::impl::load`),
//! `src/unicode.cpp` (the rules with code of their own), `conversion/base.py`
//! (`get_vocab_base_pre`, the hashes).

pub(super) mod rules;
mod steps;
mod table;

use serde_json::Value as Json;

use rules::QWEN2;
pub(super) use steps::Steps;
use table::TABLE;

/// A pre-tokenizer of llama.cpp.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// Its value in `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    /// Its rules in order; `None` where llama.cpp reads no rules for it (WordPiece).
    rules: Option<&'static [&'static str]>,
    /// Other rules that models' files have for it, and that split text in the same way.
    also_written: &'static [&'static [&'static str]],
    pub(super) letters: Letters,
    /// Whether words that are tokens are taken whole, before any merge.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the beginning-of-text token where no key says so.
    pub(super) add_bos: bool,
    /// Whether they do whatever the key says.
    pub(super) always_bos: bool,
    /// Whether pairs of texts are separated where no key says so.
    pub(super) add_sep: bool,
    /// Whether there is a default beginning-of-text token.
    pub(super) default_bos: bool,
    /// Which tokenizers with its rules get its name.
    named_by_rules: NamedByRules,
    /// SHA-256 of the tokens that known tokenizers make of a fixed text.
    hashes: &'static [&'static str],
}

/// How the characters of a vocabulary's tokens represent text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// Each character represents a byte (GPT-2's table).
    Bytes,
    /// Text as it is, spaces as U+2581; bytes without a token as `<0xNN>` (SentencePiece's form).
    Escaped,
    /// Text as it is, in words between whitespace, which is dropped.
    Words,
}

/// Which tokenizers get a pre-tokenizer's name because they have its rules. Several names share
/// their rules and differ in other ways (spaces before punctuation in output, the token before a
/// text), so one name is the general one and others are for certain models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedByRules {
    /// None: another name of the same rules is taken.
    Never,
    /// Those of models of these types (`model_type` of config.json).
    Models(&'static [&'static str]),
    /// Those of all models that have no name of their own.
    Any,
}

impl PreTokenizer {
    /// A pre-tokenizer of byte-level BPE with these rules and no special behaviour.
    const fn new(name: &'static str, rules: &'static [&'static str]) -> Self {
        Self {
            name,
            rules: Some(rules),
            also_written: &[],
            letters: Letters::Bytes,
            ignore_merges: false,
            add_bos: false,
            always_bos: false,
            add_sep: false,
            default_bos: true,
            named_by_rules: NamedByRules::Never,
            hashes: &[],
        }
    }

    /// A name that the reference gives WordPiece tokenizers; llama.cpp doesn't read it for them.
    const fn of_word_piece(name: &'static str) -> Self {
        Self { rules: None, ..Self::new(name, &[]) }
    }

    const fn letters(self, letters: Letters) -> Self {
        Self { letters, ..self }
    }

    const fn ignoring_merges(self) -> Self {
        Self { ignore_merges: true, ..self }
    }

    const fn adding_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }

    const fn always_adding_bos(self) -> Self {
        Self { always_bos: true, ..self }
    }

    const fn adding_sep(self) -> Self {
        Self { add_sep: true, ..self }
    }

    const fn without_default_bos(self) -> Self {
        Self { default_bos: false, ..self }
    }

    const fn for_any_model(self) -> Self {
        Self { named_by_rules: NamedByRules::Any, ..self }
    }

    const fn for_models(self, model_types: &'static [&'static str]) -> Self {
        Self { named_by_rules: NamedByRules::Models(model_types), ..self }
    }

    const fn also_written(self, rules: &'static [&'static [&'static str]]) -> Self {
        Self { also_written: rules, ..self }
    }

    const fn hashes(self, hashes: &'static [&'static str]) -> Self {
        Self { hashes, ..self }
    }

    /// Whether it splits as Qwen2's tokenizer in transformers does.
    pub(super) fn is_qwen2(&self) -> bool {
        self.rules == Some(&[QWEN2])
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub(super) fn pre_tokenizer(&self) -> Json {
        steps::pre_tokenizer(self.rules.unwrap_or_default(), self.letters)
    }

    /// Whether a tokenizer with these rules in tokenizer.json splits text as this one.
    fn has_rules(&self, rules: &[String]) -> bool {
        // The rules of the other letters are llama.cpp's alone, `also_written` says what files have.
        let own = self.rules.filter(|_| self.letters == Letters::Bytes);
        own.into_iter().chain(self.also_written.iter().copied()).any(|known| known == rules)
    }

    /// Whether tokenizers with its rules can get its name.
    fn is_named_by_rules(&self) -> bool {
        self.named_by_rules != NamedByRules::Never
    }
}

/// Whether llama.cpp has a pre-tokenizer of this name.
pub(super) fn has_name(name: &str) -> bool {
    TABLE.iter().any(|known| known.name == name)
}

/// The pre-tokenizer that llama.cpp picks by `name` for text in BPE; `None` for a name that it
/// doesn't know. No name stands for the default.
pub(super) fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    let name = if name.is_empty() { "default" } else { name };
    TABLE.iter().find(|known| known.name == name && known.rules.is_some())
}

/// The name of a tokenizer whose tokens of the fixed text have this SHA-256.
#[cfg(feature = "convert")]
pub(super) fn name_by_hash(hash: &str) -> Option<&'static str> {
    TABLE.iter().find(|known| known.hashes.contains(&hash)).map(|known| known.name)
}

/// The name of a tokenizer with these rules, of a model of this type. Where names share the rules
/// and differ in whether words that are tokens are taken whole, `ignore_merges` decides.
pub(super) fn name_by_rules(rules: &[String], ignore_merges: bool, model_type: &str) -> Option<&'static str> {
    let sharing = || TABLE.iter().filter(|known| known.is_named_by_rules() && known.has_rules(rules));
    let differ = sharing().any(|known| known.ignore_merges) && sharing().any(|known| !known.ignore_merges);
    let mut fitting = sharing().filter(|known| !differ || known.ignore_merges == ignore_merges);
    let own = |known: &&PreTokenizer| matches!(known.named_by_rules, NamedByRules::Models(types) if types.contains(&model_type));
    let named = fitting.clone().find(own).or_else(|| fitting.find(|known| known.named_by_rules == NamedByRules::Any));
    named.map(|known| known.name)
}

/// The names that a tokenizer can get by its rules.
pub(super) fn names_by_rules() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|known| known.is_named_by_rules()).map(|known| known.name)
}

#[cfg(test)]
mod tests;

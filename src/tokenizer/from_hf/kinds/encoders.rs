//! Kinds of encoders: RoBERTa, Nomic, Jina.
//!
//! Reference: llama.cpp `conversion/bert.py` (`set_vocab` of `RobertaModel`, `NomicBertModel`, `JinaBertV2Model`).

use serde_json::Value as Json;

use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::auto::{Auto, ModelKind};
use crate::tokenizer::from_hf::files::shortened;
use crate::tokenizer::from_hf::unigram::{self, Mask};
use crate::tokenizer::keys;

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn roberta(&mut self) -> Result<()> {
        let files = self.files;
        if files.tokenizer.is_none() {
            // The reference treats such a folder like BERT's.
            if files.folder.join("vocab.txt").is_file() {
                return self.word_piece();
            }
            return Err(files
                .finding_in("", "tokenizer")
                .expected("tokenizer.json")
                .found("no such file")
                .hint("load the tokenizer with transformers and save it with save_pretrained")
                .mismatch());
        }
        self.bpe()?;
        self.metadata.insert(keys::TOKEN_TYPE_COUNT, files.type_vocab_size()?);
        Ok(())
    }

    /// Unigram if the tokenizer is XLM-RoBERTa's, else WordPiece: Nomic's encoders.
    pub(in crate::tokenizer::from_hf) fn nomic_bert(&mut self) -> Result<()> {
        let files = self.files;
        let is_unigram = match &files.tokenizer {
            Some(_) => Auto::load(files)?.model == ModelKind::Unigram,
            None => files.folder.join(unigram::MODEL).is_file(),
        };
        match is_unigram {
            true => {
                // Only the mixture of experts has a mask token that the model's file lacks.
                let experts = files.hparam("moe_every_n_layers").and_then(Json::as_u64).unwrap_or_default();
                self.unigram(if experts > 0 { Mask::Nomic } else { Mask::Left })
            }
            false => self.word_piece(),
        }
    }

    /// The tokenizer's class decides: WordPiece, or BPE, or whole words: Jina's second encoders.
    pub(in crate::tokenizer::from_hf) fn jina_bert_v2(&mut self) -> Result<()> {
        let files = self.files;
        let class = files.setting("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
        match (class.strip_suffix("Fast").unwrap_or(class), files.recorded_model()) {
            ("BertTokenizer", _) | (_, Some("bert")) => return self.word_piece(),
            ("RobertaTokenizer", _) | (_, Some("gpt2" | "whitespace")) => {}
            (other, _) => {
                return Err(files
                    .finding_in("tokenizer_config.json", "tokenizer_class")
                    .expected("BertTokenizer or RobertaTokenizer, as this architecture has it")
                    .found(if other.is_empty() { "none".to_owned() } else { shortened(other) })
                    .unsupported());
            }
        }
        let tokenizer = files.tokenizer.as_ref();
        let steps = tokenizer.and_then(|json| json.get("pre_tokenizer")?.get("type")?.as_str());
        match (steps, files.recorded_model()) {
            (Some("Whitespace"), None) | (_, Some("whitespace")) => self.whole_words()?,
            _ => self.bpe()?,
        }
        self.metadata.insert(keys::TOKEN_TYPE_COUNT, 2_u32);
        Ok(())
    }
}

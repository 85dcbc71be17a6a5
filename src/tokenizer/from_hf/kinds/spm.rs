//! Kinds that begin with SentencePiece: Llama, Gemma, Phi-3 and others.
//!
//! Reference: llama.cpp `set_vocab` of `conversion/llama.py`, `gemma.py`, `phi.py`, `jamba.py`, `mpt.py`, `deci.py`,
//! `ernie.py` and `nemotron.py`.

use serde_json::{Value as Json, json};

use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::mistral;
use crate::tokenizer::from_hf::sentencepiece::{self, Reading, ScoredTokens};
use crate::tokenizer::from_hf::special::{SpecialTokens, id_key};
use crate::tokenizer::from_hf::vocabulary::AddedTexts;
use crate::tokenizer::keys;
use crate::tokenizer::token::{GEMMA4_SHOWN, TokenKind};

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn llama(&mut self) -> Result<()> {
        let files = self.files;
        let has_no_other = || files.tokenizer.is_none() && !files.folder.join("tokenizer.model").is_file();
        if (files.is_mistral_format || has_no_other())
            && let Some(name) = mistral::file(files)?
        {
            return self.mistral(&name);
        }
        if let Some(prefix) = files.setting("add_prefix_space").and_then(Json::as_bool) {
            self.metadata.insert(keys::ADD_SPACE_PREFIX, prefix);
        }
        if files.setting("tokenizer_class") == Some(&json!("HybridDNATokenizer")) {
            return self.hybrid_dna();
        }
        if !self.sentencepiece(Reading::Usual)? {
            match self.of_tokenizer_json()? {
                true => {}
                false => self.bpe()?,
            }
        }
        match files.vocab_size()? {
            // Code Llama's tokens for code completion. The reference has no keys for the first three.
            Some(32016) => {
                let ids = [("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)];
                self.infill(&ids, true)
            }
            // The small Granite models.
            Some(49152) => {
                self.metadata.insert(keys::ADD_BOS, false);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// SentencePiece, which has to be there.
    pub(in crate::tokenizer::from_hf) fn spm(&mut self, reading: Reading) -> Result<()> {
        match self.sentencepiece_or_json(reading)? {
            true => Ok(()),
            false => Err(sentencepiece::missing(self.files)),
        }
    }

    /// SentencePiece, else BPE.
    pub(in crate::tokenizer::from_hf) fn spm_or_bpe(&mut self) -> Result<()> {
        match self.sentencepiece(Reading::Usual)? {
            true => Ok(()),
            false => self.bpe(),
        }
    }

    /// SentencePiece, with the flag of tokenizer_config.json: ERNIE 4.5, Pangu.
    pub(in crate::tokenizer::from_hf) fn spm_with_prefix(&mut self) -> Result<()> {
        self.spm(Reading::Usual)?;
        self.configured_prefix();
        Ok(())
    }

    /// Writes whether a space is put before texts, if tokenizer_config.json says so.
    pub(in crate::tokenizer::from_hf) fn configured_prefix(&mut self) {
        if let Some(prefix) = self.files.setting("add_prefix_space") {
            self.metadata.insert(keys::ADD_SPACE_PREFIX, prefix.as_bool().unwrap_or_default());
        }
    }

    pub(in crate::tokenizer::from_hf) fn gemma(&mut self) -> Result<()> {
        self.spm(Reading::Usual)?;
        self.infill(&[("prefix", 67), ("suffix", 69), ("middle", 68), ("fsep", 70), ("eot", 107)], false)?;
        self.no_space_prefix()
    }

    pub(in crate::tokenizer::from_hf) fn gemma2(&mut self) -> Result<()> {
        self.spm(Reading::Usual)?;
        self.no_space_prefix()
    }

    pub(in crate::tokenizer::from_hf) fn gemma3(&mut self) -> Result<()> {
        match self.sentencepiece_or_json(Reading::Usual)? {
            true => self.no_space_prefix(),
            false => self.bpe(),
        }
    }

    /// BPE that falls back to bytes, with merges: Gemma 4.
    pub(in crate::tokenizer::from_hf) fn gemma4(&mut self) -> Result<()> {
        let Some(mut tokens) = sentencepiece::llama_hf(self.files, self.notes)? else {
            return Err(sentencepiece::no_byte_fallback(self.files));
        };
        for (text, kind) in tokens.texts.iter().zip(&mut tokens.kinds) {
            if GEMMA4_SHOWN.contains(&text.as_str()) {
                *kind = TokenKind::UserDefined;
            }
        }
        self.metadata.insert(keys::MODEL, "gemma4");
        self.scored_tokens(tokens);
        self.merges()?;
        self.specials(None)?;
        self.metadata.insert(keys::ADD_SPACE_PREFIX, false);
        self.metadata.insert(keys::ADD_BOS, true);
        Ok(())
    }

    pub(in crate::tokenizer::from_hf) fn no_space_prefix(&mut self) -> Result<()> {
        self.metadata.insert(keys::ADD_SPACE_PREFIX, false);
        Ok(())
    }

    pub(in crate::tokenizer::from_hf) fn phi3(&mut self) -> Result<()> {
        // Phi-4 has this class.
        if self.files.setting("tokenizer_class") == Some(&json!("GPT2Tokenizer")) {
            return self.bpe();
        }
        self.spm(Reading::Phi3)
    }

    /// SentencePiece, else a tokenizer.json that was made of it: Jamba.
    pub(in crate::tokenizer::from_hf) fn jamba(&mut self) -> Result<()> {
        if self.sentencepiece(Reading::Usual)? {
            return Ok(());
        }
        match self.of_tokenizer_json()? {
            true => self.no_space_prefix(),
            false => Err(sentencepiece::missing(self.files)),
        }
    }

    /// BPE if there are as many tokens as Llama 3 has: DeciLM.
    pub(in crate::tokenizer::from_hf) fn deci(&mut self) -> Result<()> {
        if self.files.vocab_size()?.is_none_or(|size| size == 128_256) {
            return self.bpe();
        }
        match self.of_tokenizer_json()? {
            true => Ok(()),
            false => Err(sentencepiece::no_byte_fallback(self.files)),
        }
    }

    /// BPE, else SentencePiece with ids of its own: MPT, SEA-LION.
    pub(in crate::tokenizer::from_hf) fn mpt(&mut self) -> Result<()> {
        if self.has_bpe() || !self.sentencepiece(Reading::Usual)? {
            return self.bpe();
        }
        self.metadata.insert(keys::ADD_BOS, false);
        self.put_ids(&[("pad", 3), ("eos", 1), ("unk", 0)]);
        Ok(())
    }

    /// SentencePiece, with ids for padding and unknown text: Nemotron.
    pub(in crate::tokenizer::from_hf) fn nemotron(&mut self) -> Result<()> {
        self.spm(Reading::Usual)?;
        self.put_ids(&[("pad", 0), ("unk", 1)]);
        Ok(())
    }

    /// SentencePiece, else BPE whose added tokens keep their text: Dream.
    pub(in crate::tokenizer::from_hf) fn dream(&mut self) -> Result<()> {
        match self.sentencepiece(Reading::Usual)? {
            true => Ok(()),
            false => self.bpe_with(AddedTexts::Plain, &[]),
        }
    }

    /// Writes ids of special tokens, whatever they were.
    pub(in crate::tokenizer::from_hf) fn put_ids(&mut self, ids: &[(&str, u32)]) {
        for (kind, id) in ids {
            if let Some(key) = id_key(kind) {
                self.metadata.insert(key, *id);
            }
        }
    }

    /// Does the same as [`Self::sentencepiece`], but also accepts a tokenizer.json made from a SentencePiece model.
    pub(in crate::tokenizer::from_hf) fn sentencepiece_or_json(&mut self, reading: Reading) -> Result<bool> {
        match sentencepiece::of_model_or_json(self.files, reading, self.notes)? {
            Some(tokens) => self.llama_tokens(tokens).map(|()| true),
            None => Ok(false),
        }
    }

    /// Writes a SentencePiece vocabulary (`_set_vocab_sentencepiece`). Returns false if there is no tokenizer.model.
    pub(in crate::tokenizer::from_hf) fn sentencepiece(&mut self, reading: Reading) -> Result<bool> {
        match sentencepiece::tokens(self.files, reading, self.notes)? {
            Some(tokens) => self.llama_tokens(tokens).map(|()| true),
            None => Ok(false),
        }
    }

    /// Writes the tokens of a tokenizer.json that was made of a SentencePiece model, each with the same score
    /// (`_set_vocab_llama_hf`). Returns false for any other tokenizer.json.
    fn of_tokenizer_json(&mut self) -> Result<bool> {
        // A folder made of a GGUF has the kinds of its tokens in tokenizer.model.
        if self.files.recorded_model() == Some("llama") && self.sentencepiece(Reading::Usual)? {
            return Ok(true);
        }
        let Some(tokens) = sentencepiece::llama_hf(self.files, self.notes)? else { return Ok(false) };
        self.notes.push(
            "without tokenizer.model every token gets one score, as in llama.cpp's converter: llama.cpp may split texts \
             differently from the model's tokenizer"
                .to_owned(),
        );
        self.llama_tokens(tokens).map(|()| true)
    }

    /// Writes tokens of the kind that GGUF calls "llama", and the special tokens.
    pub(in crate::tokenizer::from_hf) fn llama_tokens(&mut self, tokens: ScoredTokens) -> Result<()> {
        let count = tokens.texts.len();
        self.scored("llama", tokens);
        self.specials(Some(count))
    }

    /// Writes the special tokens for code completion, with these ids unless a file gives others.
    fn infill(&mut self, ids: &[(&'static str, u32)], with_template: bool) -> Result<()> {
        let kinds: Vec<&'static str> = ids.iter().map(|(kind, _)| *kind).collect();
        // The lookup of the usual kinds has already added the same notes.
        let said = &mut Vec::new();
        let mut specials = SpecialTokens::load(self.files, &kinds, None, said)?;
        for (kind, id) in ids {
            specials.set(self.files, kind, &json!(id), said)?;
        }
        if !with_template {
            specials.template = None;
        }
        specials.write(self.metadata);
        Ok(())
    }
}

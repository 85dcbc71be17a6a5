//! Kinds of byte-level BPE with rules of their own: Laguna, MiniMax, Refact, Hunyuan and others.
//!
//! Reference: llama.cpp `set_vocab` of `conversion/laguna.py`, `minimax.py`, `refact.py`, `hunyuan.py`, `deepseek.py`,
//! `kimi_linear.py` and `qwen3tts.py`.

use serde_json::Value as Json;

use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::auto::Auto;
use crate::tokenizer::from_hf::bpe;
use crate::tokenizer::from_hf::files::{read_text, shortened};
use crate::tokenizer::from_hf::sentencepiece::{self, Reading};
use crate::tokenizer::from_hf::special::{SpecialTokens, USUAL};
use crate::tokenizer::from_hf::tiktoken::{self, Ends};
use crate::tokenizer::from_hf::vocabulary::{self, AddedTexts, Token};
use crate::tokenizer::keys;
use crate::tokenizer::templates;
use crate::tokenizer::token::TokenKind;

/// The file of a chat template.
const TEMPLATE: &str = "chat_template.jinja";

impl VocabWriter<'_> {
    /// BPE with flags before all other keys: encoders.
    pub(in crate::tokenizer::from_hf) fn bpe_after(&mut self, flags: &[(&str, bool)]) -> Result<()> {
        for (key, flag) in flags {
            self.metadata.insert(*key, *flag);
        }
        self.bpe()
    }

    /// BPE whose added tokens keep their text, with a token before every text: LLaDA.
    pub(in crate::tokenizer::from_hf) fn llada(&mut self) -> Result<()> {
        self.bpe_with(AddedTexts::Plain, &[])?;
        self.metadata.insert(keys::ADD_BOS, true);
        Ok(())
    }

    /// BPE whose word for a finished turn is a control token: Laguna.
    pub(in crate::tokenizer::from_hf) fn laguna(&mut self) -> Result<()> {
        const TURN_END: &str = "</assistant>";
        let files = self.files;
        let auto = bpe::tokenizer(files)?;
        let mut tokens = vocabulary::tokens(files, &auto, AddedTexts::Usual, self.notes)?;
        for token in tokens.iter_mut().filter(|token| token.text == TURN_END) {
            token.kind = TokenKind::Control;
        }
        self.bpe_tokens(&auto, tokens)?;
        self.specials(None)?;
        self.template_of_file()?;
        // config.json lists two ends: of texts, which is the beginning too, and of turns.
        let bos = files.hparam("bos_token_id");
        let ends = files.hparam("eos_token_id").and_then(Json::as_array);
        match ends.into_iter().flatten().find(|end| Some(*end) != bos) {
            Some(end) => self.put_configured_id("eos_token_id", "eot", end),
            None => Ok(()),
        }
    }

    /// BPE whose end of a turn, if the tokenizer has it, is an added token: Muse Glimmer.
    pub(in crate::tokenizer::from_hf) fn muse_glimmer(&mut self) -> Result<()> {
        self.bpe()?;
        let id = Auto::load(self.files)?.id("<|eot|>").and_then(|id| u32::try_from(id).ok());
        if let Some(id) = id {
            self.put_ids(&[("eot", id)]);
        }
        Ok(())
    }

    /// BPE with the chat template of a file of its own, else the one that llama.cpp has for the model: MiniMax.
    pub(in crate::tokenizer::from_hf) fn minimax(&mut self) -> Result<()> {
        self.bpe()?;
        if !self.template_of_file()? {
            self.metadata.insert(keys::CHAT_TEMPLATE, templates::MINIMAX_M1);
            self.notes.push("no chat_template.jinja: llama.cpp's template for MiniMax-M1 is written".to_owned());
        }
        Ok(())
    }

    /// BPE with the tokens for code completion that the files name: Refact.
    pub(in crate::tokenizer::from_hf) fn refact(&mut self) -> Result<()> {
        self.bpe()?;
        let kinds = ["prefix", "suffix", "middle", "eot"];
        let mut specials = SpecialTokens::load(self.files, &kinds, None, &mut Vec::new())?;
        specials.template = None;
        specials.write(self.metadata);
        Ok(())
    }

    /// BPE, or a file of tiktoken: DeepSeek V2 and Kimi.
    pub(in crate::tokenizer::from_hf) fn bpe_or_tiktoken(&mut self, ends: Ends) -> Result<()> {
        match tiktoken::file(self.files)? {
            Some(name) => self.tiktoken(&name, ends),
            None => self.bpe(),
        }
    }

    /// The same as Kimi Linear's, but config.json's end counts, and the template is the model's code: Kimi K3.
    pub(in crate::tokenizer::from_hf) fn kimi_k3(&mut self) -> Result<()> {
        self.bpe_or_tiktoken(Ends::Tokenizer)?;
        if let Some(end) = self.files.hparam("eos_token_id") {
            self.put_configured_id("eos_token_id", "eos", end)?;
        }
        if self.metadata.get(keys::CHAT_TEMPLATE).is_none() && self.metadata.get(keys::CHAT_TEMPLATES).is_none() {
            self.metadata.insert(keys::CHAT_TEMPLATE, templates::KIMI_K3);
            self.notes.push("no chat template: llama.cpp's template for Kimi K3 is written".to_owned());
        }
        Ok(())
    }

    /// BPE that adds a token before every text: DeepSeek V3.2.
    pub(in crate::tokenizer::from_hf) fn deepseek32(&mut self) -> Result<()> {
        let adds = self.files.setting("add_bos_token");
        if adds != Some(&Json::Bool(true)) {
            let finding = self.files.finding_in("tokenizer_config.json", "add_bos_token");
            return Err(finding
                .expected("true: the model needs a token before every text")
                .found(adds.map_or("none".to_owned(), Json::to_string))
                .hint("change it to true")
                .mismatch());
        }
        self.bpe()
    }

    /// A file of tiktoken whose texts begin with a token of a fixed id: Hunyuan's mixture of experts.
    pub(in crate::tokenizer::from_hf) fn hunyuan_moe(&mut self) -> Result<()> {
        self.bpe_or_tiktoken(Ends::Configured)?;
        // <|bos|>
        self.put_ids(&[("bos", 127_959)]);
        Ok(())
    }

    /// BPE, or a file of tiktoken: Hunyuan. config.json and generation_config.json name the ends.
    pub(in crate::tokenizer::from_hf) fn hunyuan(&mut self) -> Result<()> {
        let files = self.files;
        match tiktoken::file(files)? {
            Some(name) => {
                self.tiktoken(&name, Ends::Configured)?;
                if files.hparam("hidden_size").and_then(Json::as_u64) == Some(4096) {
                    // <|startoftext|>
                    self.put_ids(&[("bos", 127_958)]);
                }
            }
            None => {
                let auto = bpe::tokenizer(files)?;
                let tokens = vocabulary::tokens(files, &auto, AddedTexts::Usual, self.notes)?;
                self.bpe_tokens(&auto, tokens)?;
                let no_pad = files.hparam("pad_token_id").and_then(Json::as_i64).is_some_and(|id| id < 0);
                let kinds: Vec<&'static str> =
                    USUAL.iter().copied().filter(|kind| !(no_pad && *kind == "pad")).collect();
                SpecialTokens::load(files, &kinds, None, self.notes)?.write(self.metadata);
            }
        }
        if let Some(end) = files.hparam("eod_token_id") {
            self.put_configured_id("eod_token_id", "eos", end)?;
        }
        let generation = files.json("generation_config.json")?.unwrap_or_default();
        match generation.get("eos_token_id").and_then(Json::as_array).map(Vec::as_slice) {
            Some([first, _, ..]) => self.put_configured_id("eos_token_id", "eot", first),
            _ => Ok(()),
        }
    }

    /// SentencePiece, else BPE, with tokens for sounds behind it: Qwen3-TTS.
    pub(in crate::tokenizer::from_hf) fn qwen3_tts(&mut self) -> Result<()> {
        let sounds = self.sounds()?;
        if let Some(mut tokens) = sentencepiece::tokens(self.files, Reading::Usual, self.notes)? {
            for text in sounds {
                tokens.push(&text, 0.0, TokenKind::Control);
            }
            return self.llama_tokens(tokens);
        }
        let files = self.files;
        let auto = bpe::tokenizer(files)?;
        let mut tokens = vocabulary::tokens(files, &auto, AddedTexts::Usual, self.notes)?;
        tokens.extend(sounds.into_iter().map(|text| Token { text, kind: TokenKind::Control }));
        self.bpe_tokens(&auto, tokens)?;
        let mut specials = SpecialTokens::load(files, USUAL, None, self.notes)?;
        // Without a template, llama.cpp offers no chat.
        specials.template = None;
        specials.write(self.metadata);
        Ok(())
    }

    /// Returns the names of Qwen3-TTS's tokens for sounds. config.json names some of them.
    fn sounds(&self) -> Result<Vec<String>> {
        let files = self.files;
        if files.recorded_model().is_some() {
            // A folder made of a GGUF has them among its tokens.
            return Ok(Vec::new());
        }
        let talker = files.model_config.get("talker_config").and_then(Json::as_object);
        let count = files.talker_size("vocab_size")?.ok_or_else(|| {
            files.finding_in("config.json", "talker_config.vocab_size").expected("a count").found("none").mismatch()
        })?;
        let mut names: Vec<String> = (0..count).map(|id| format!("<|codec_{id}|>")).collect();
        let mut set = |id: &Json, name: String| match id
            .as_u64()
            .and_then(|id| names.get_mut(usize::try_from(id).ok()?))
        {
            Some(place) => {
                *place = name;
                Ok(())
            }
            None => {
                let finding = files.finding_in("config.json", format!("talker_config: {name}"));
                Err(finding.expected(format_args!("an id below {count}")).found(shortened(&id.to_string())).format())
            }
        };
        for (field, value) in talker.into_iter().flatten() {
            let Some(prefix) = field.strip_suffix("_id") else { continue };
            match value {
                Json::Number(number) if number.is_f64() => {}
                Json::Number(_) => set(value, format!("<|{prefix}|>"))?,
                Json::Object(ids) => {
                    for (name, id) in ids {
                        set(id, format!("<|{prefix}_{name}|>"))?;
                    }
                }
                _ => {}
            }
        }
        Ok(names)
    }

    /// Writes the template in a file of its own, whatever other files say. Returns whether there is one.
    pub(in crate::tokenizer::from_hf) fn template_of_file(&mut self) -> Result<bool> {
        let path = self.files.folder.join(TEMPLATE);
        if !path.is_file() {
            return Ok(false);
        }
        self.metadata.insert(keys::CHAT_TEMPLATE, read_text(&path)?.as_str());
        Ok(true)
    }

    /// Writes the id of a special token that a config gives in `field`.
    fn put_configured_id(&mut self, field: &str, kind: &str, id: &Json) -> Result<()> {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            self.files
                .finding_in("config.json", field)
                .expected("a token id")
                .found(shortened(&id.to_string()))
                .format()
        })?;
        self.put_ids(&[(kind, number)]);
        Ok(())
    }

    /// Whole words, as the rules of tokenizer.json split them (`_set_vocab_whitespace`).
    pub(in crate::tokenizer::from_hf) fn whole_words(&mut self) -> Result<()> {
        let files = self.files;
        let auto = Auto::load(files)?;
        let tokens = vocabulary::tokens(files, &auto, AddedTexts::Usual, self.notes)?;
        self.metadata.insert(keys::MODEL, "whitespace");
        self.metadata.insert(keys::PRE, "whitespace");
        self.tokens(tokens);
        let merges = bpe::listed_merges(files, self.notes)?;
        if !merges.is_empty() {
            self.metadata.insert(keys::MERGES, crate::formats::gguf::Array::texts(merges));
        }
        self.specials(None)
    }
}

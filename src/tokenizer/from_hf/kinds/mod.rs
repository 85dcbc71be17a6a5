//! The kinds of vocabularies, and their names in family files.
//!
//! In llama.cpp's converter, each architecture writes the keys `tokenizer.*` in its own way (`set_vocab`). Each way
//! that differs has a kind here. Kinds that differ only in further special tokens share [`Vocab::BpeWith`].

mod bpe;
mod builtin;
mod chatglm;
mod encoders;
mod hybrid_dna;
mod internlm;
mod odd_pieces;
mod padding;
mod plamo;
mod rwkv;
mod spm;
mod t5;

use std::fmt;
use std::str::FromStr;

use super::VocabWriter;
use super::sentencepiece::Reading;
use super::tiktoken::Ends;
use super::unigram::Mask;
use super::vocabulary::AddedTexts;
use crate::error;
use crate::tokenizer::keys;

pub(super) use plamo::size as plamo_size;
pub(super) use rwkv::size as rwkv_size;

/// How an architecture's vocabulary is derived from the tokenizer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Vocab {
    /// Byte-level BPE, from tokenizer.json, vocab.json with merges.txt, or a file of tiktoken.
    Bpe,
    /// Byte-level BPE, with further special tokens before the flags and the template.
    BpeWith(&'static [Special]),
    /// Byte-level BPE, with flags before all other keys: encoders.
    BpeAfter(&'static [(&'static str, bool)]),
    /// SentencePiece, else a tokenizer.json made from it, else BPE: Llama, Mistral, Mixtral, Granite, SmolLM3.
    Llama,
    /// SentencePiece.
    Spm,
    /// SentencePiece, else BPE: Qwen2 and Qwen3.
    SpmOrBpe,
    /// SentencePiece, with the flag `add_prefix_space` of tokenizer_config.json: ERNIE 4.5, Pangu.
    SpmPrefix,
    /// SentencePiece, with ids for padding and unknown text: Nemotron.
    Nemotron,
    /// SentencePiece with tokens for code completion: Gemma.
    Gemma,
    /// SentencePiece: Gemma 2.
    Gemma2,
    /// SentencePiece, else BPE: Gemma 3.
    Gemma3,
    /// A tokenizer.json of BPE that falls back to bytes, with its merges: Gemma 4.
    Gemma4,
    /// SentencePiece with every added token, or BPE if the tokenizer is GPT-2's: Phi-3, Phi-4.
    Phi3,
    /// WordPiece: BERT, DistilBERT.
    WordPiece,
    /// Byte-level BPE for an encoder: RoBERTa.
    Roberta,
    /// Unigram: XLM-RoBERTa.
    XlmRoberta,
    /// Unigram if the tokenizer is XLM-RoBERTa's, else WordPiece: Nomic's encoders.
    NomicBert,
    /// WordPiece, or BPE, or whole words: Jina's second encoders.
    JinaBertV2,
    /// Unigram of spiece.model: T5.
    T5,
    /// ChatGLM 3's SentencePiece, or BPE with further special tokens: ChatGLM 3, GLM 4.
    ChatGlm(&'static [Special]),
    /// BPE whose word for a finished turn is a control token: Laguna.
    Laguna,
    /// BPE whose added tokens keep their text.
    PlainBpe,
    /// The same with a token before every text: LLaDA.
    LLaDA,
    /// SentencePiece, else BPE whose added tokens keep their text: Dream.
    Dream,
    /// BPE whose user-defined tokens keep their text, with further special tokens: Intern-S1.
    InternS1(&'static [Special]),
    /// BPE whose end of a turn is an added token: Muse Glimmer.
    MuseGlimmer,
    /// BPE with a chat template of its own file: MiniMax.
    MiniMax,
    /// BPE with tokens for code completion: Refact.
    Refact,
    /// SentencePiece, else a tokenizer.json made from it: Jamba.
    Jamba,
    /// BPE, else SentencePiece with ids of its own: MPT, SEA-LION.
    Mpt,
    /// SentencePiece, else Llama's own vocabulary: OpenELM.
    OpenElm,
    /// BPE if there are as many tokens as Llama 3 has, else a tokenizer.json made from SentencePiece: DeciLM.
    Deci,
    /// BPE, padded; else SentencePiece, else GPT-NeoX's own vocabulary: Mamba.
    Mamba,
    /// SentencePiece, padded; else BPE, else GPT-NeoX's own vocabulary: Mamba 2.
    Mamba2,
    /// As Mamba 2, padded to other multiples: Granite 4 and Bamba.
    GraniteHybrid,
    /// BPE, padded: Nemotron-H.
    NemotronH,
    /// SentencePiece with every added token, the end of a turn as the end: InternLM 2.
    InternLm2,
    /// SentencePiece, the end of a turn as the end: InternLM 3.
    InternLm3,
    /// A file of tiktoken whose text begins with a token of a fixed id: Hunyuan's mixture of experts.
    HunYuanMoe,
    /// BPE, or a file of tiktoken, with the ends that config.json and generation_config.json name: Hunyuan.
    HunYuan,
    /// BPE, or a file of tiktoken whose own end counts: Kimi Linear.
    Kimi,
    /// BPE, or a file of tiktoken: DeepSeek V2 and V3, Kimi K2.
    DeepSeek2,
    /// The same whose end is config.json's, with a template that the model's code has: Kimi K3.
    KimiK3,
    /// BPE that adds a token before every text: DeepSeek V3.2.
    DeepSeek32,
    /// SentencePiece whose added tokens replace pieces: Arctic.
    Arctic,
    /// BPE that falls back to bytes, without scores: Xverse.
    Xverse,
    /// tokenizer.jsonl: PLaMo 2.
    Plamo2,
    /// tokenizer.jsonl with a chat template: PLaMo 3.
    Plamo3,
    /// rwkv_vocab_v20230424.txt: RWKV 6 and 7.
    RwkvWorld,
    /// Unigram with further tokens: Pocket TTS.
    PocketTts,
    /// SentencePiece, else BPE, with the sounds behind it: Qwen3-TTS.
    Qwen3Tts,
    /// No vocabulary.
    #[default]
    None,
}

/// A special token that a kind adds where no file names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Special {
    /// What the token is for: `bos`, `eot`, and others.
    pub(super) role: &'static str,
    pub(super) token: SpecialId,
}

/// Which token a special token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpecialId {
    /// The added token with this text.
    Text(&'static str),
    /// The token with this id.
    Id(u32),
}

const fn text(role: &'static str, text: &'static str) -> Special {
    Special { role, token: SpecialId::Text(text) }
}

/// GLM 4.5 and later: `_set_vocab_glm`.
const GLM: &[Special] =
    &[text("bos", "[gMASK]"), text("eot", "<|user|>"), text("unk", "<|endoftext|>"), text("eom", "<|observation|>")];
/// GLM 4 and GLM-Edge: `Glm4Model.set_vocab`, `_set_vocab_glmedge`.
const GLM4: &[Special] = &[
    text("eos", "<|endoftext|>"),
    text("eot", "<|user|>"),
    text("unk", "<|endoftext|>"),
    text("bos", "<|endoftext|>"),
];
/// Solar Open.
const SOLAR_OPEN: &[Special] =
    &[text("eos", "<|endoftext|>"), text("eot", "<|endoftext|>"), text("unk", "<unk>"), text("bos", "<|startoftext|>")];
/// ChatGLM and the first GLM 4: `ChatGLMModel.set_vocab`.
const CHATGLM: &[Special] = &[text("eos", "<|endoftext|>"), text("eot", "<|user|>"), text("unk", "<|endoftext|>")];
/// Intern-S1: `_set_vocab_interns1`.
const INTERNS1: &[Special] = &[Special { role: "bos", token: SpecialId::Id(151_643) }];
/// dots.note.
const DOTS3: &[Special] = &[text("eot", "<|endofassistant|>")];

const EURO_BERT: &[(&str, bool)] = &[("tokenizer.ggml.add_bos_token", false)];
const MODERN_BERT: &[(&str, bool)] = &[
    ("tokenizer.ggml.add_bos_token", true),
    ("tokenizer.ggml.add_eos_token", true),
    ("tokenizer.ggml.add_sep_token", true),
];

/// Every kind with its name. A kind may have several names; the first one is its own.
const NAMES: &[(&str, Vocab)] = &[
    ("none", Vocab::None),
    ("bpe", Vocab::Bpe),
    ("qwen", Vocab::Bpe),
    ("stablelm", Vocab::Bpe),
    ("llama", Vocab::Llama),
    ("spm", Vocab::Spm),
    ("spm_or_bpe", Vocab::SpmOrBpe),
    ("spm_prefix", Vocab::SpmPrefix),
    ("nemotron", Vocab::Nemotron),
    ("gemma", Vocab::Gemma),
    ("gemma2", Vocab::Gemma2),
    ("gemma3", Vocab::Gemma3),
    ("gemma4", Vocab::Gemma4),
    ("phi3", Vocab::Phi3),
    ("wordpiece", Vocab::WordPiece),
    ("roberta", Vocab::Roberta),
    ("xlm_roberta", Vocab::XlmRoberta),
    ("nomic_bert", Vocab::NomicBert),
    ("jina_bert_v2", Vocab::JinaBertV2),
    ("eurobert", Vocab::BpeAfter(EURO_BERT)),
    ("modern_bert", Vocab::BpeAfter(MODERN_BERT)),
    ("t5", Vocab::T5),
    ("glm", Vocab::BpeWith(GLM)),
    ("glm4", Vocab::BpeWith(GLM4)),
    ("glmedge", Vocab::BpeWith(GLM4)),
    ("solar_open", Vocab::BpeWith(SOLAR_OPEN)),
    ("dots3", Vocab::BpeWith(DOTS3)),
    ("chatglm", Vocab::ChatGlm(CHATGLM)),
    ("laguna", Vocab::Laguna),
    ("plain_bpe", Vocab::PlainBpe),
    ("llada", Vocab::LLaDA),
    ("dream", Vocab::Dream),
    ("interns1", Vocab::InternS1(INTERNS1)),
    ("muse_glimmer", Vocab::MuseGlimmer),
    ("minimax", Vocab::MiniMax),
    ("refact", Vocab::Refact),
    ("jamba", Vocab::Jamba),
    ("mpt", Vocab::Mpt),
    ("openelm", Vocab::OpenElm),
    ("deci", Vocab::Deci),
    ("mamba", Vocab::Mamba),
    ("mamba2", Vocab::Mamba2),
    ("granite_hybrid", Vocab::GraniteHybrid),
    ("nemotron_h", Vocab::NemotronH),
    ("internlm2", Vocab::InternLm2),
    ("internlm3", Vocab::InternLm3),
    ("hunyuan_moe", Vocab::HunYuanMoe),
    ("hunyuan", Vocab::HunYuan),
    ("kimi", Vocab::Kimi),
    ("kimi_k3", Vocab::KimiK3),
    ("deepseek2", Vocab::DeepSeek2),
    ("deepseek32", Vocab::DeepSeek32),
    ("arctic", Vocab::Arctic),
    ("xverse", Vocab::Xverse),
    ("plamo2", Vocab::Plamo2),
    ("plamo", Vocab::Plamo2),
    ("plamo3", Vocab::Plamo3),
    ("rwkv_world", Vocab::RwkvWorld),
    ("pockettts", Vocab::PocketTts),
    ("qwen3tts", Vocab::Qwen3Tts),
];

impl Vocab {
    /// Returns the name in family files.
    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, vocab)| *vocab == self).map_or("bpe", |(name, _)| name)
    }

    /// Returns every name, those that mean the same next to each other.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for Vocab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Vocab {
    type Err = String;

    /// The error says what was expected and found, without a file.
    fn from_str(name: &str) -> Result<Self, String> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, vocab)| *vocab).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            format!("expected one of {}, found {name}", names.join(", "))
        })
    }
}

impl VocabWriter<'_> {
    /// Writes the vocabulary.
    pub(super) fn write(&mut self, vocab: Vocab) -> error::Result<()> {
        match vocab {
            Vocab::Bpe => self.bpe(),
            Vocab::BpeWith(specials) => self.bpe_with(AddedTexts::Usual, specials),
            Vocab::BpeAfter(flags) => self.bpe_after(flags),
            Vocab::Llama => self.llama(),
            Vocab::Spm => self.spm(Reading::Usual),
            Vocab::SpmOrBpe => self.spm_or_bpe(),
            Vocab::SpmPrefix => self.spm_with_prefix(),
            Vocab::Nemotron => self.nemotron(),
            Vocab::Gemma => self.gemma(),
            Vocab::Gemma2 => self.gemma2(),
            Vocab::Gemma3 => self.gemma3(),
            Vocab::Gemma4 => self.gemma4(),
            Vocab::Phi3 => self.phi3(),
            Vocab::WordPiece => self.word_piece(),
            Vocab::Roberta => self.roberta(),
            Vocab::XlmRoberta => self.unigram(Mask::Left),
            Vocab::NomicBert => self.nomic_bert(),
            Vocab::JinaBertV2 => self.jina_bert_v2(),
            Vocab::T5 => self.t5(),
            Vocab::ChatGlm(specials) => self.chatglm(specials),
            Vocab::Laguna => self.laguna(),
            Vocab::PlainBpe => self.bpe_with(AddedTexts::Plain, &[]),
            Vocab::LLaDA => self.llada(),
            Vocab::Dream => self.dream(),
            Vocab::InternS1(specials) => self.bpe_with(AddedTexts::Marked, specials),
            Vocab::MuseGlimmer => self.muse_glimmer(),
            Vocab::MiniMax => self.minimax(),
            Vocab::Refact => self.refact(),
            Vocab::Jamba => self.jamba(),
            Vocab::Mpt => self.mpt(),
            Vocab::OpenElm => self.openelm(),
            Vocab::Deci => self.deci(),
            Vocab::Mamba => self.mamba(),
            Vocab::Mamba2 | Vocab::GraniteHybrid => self.mamba2(),
            Vocab::NemotronH => self.bpe(),
            Vocab::InternLm2 => self.internlm2(),
            Vocab::InternLm3 => self.internlm3(),
            Vocab::HunYuanMoe => self.hunyuan_moe(),
            Vocab::HunYuan => self.hunyuan(),
            Vocab::Kimi => self.bpe_or_tiktoken(Ends::Tokenizer),
            Vocab::DeepSeek2 => self.bpe(),
            Vocab::KimiK3 => self.kimi_k3(),
            Vocab::DeepSeek32 => self.deepseek32(),
            Vocab::Arctic => self.arctic(),
            Vocab::Xverse => self.xverse(),
            Vocab::Plamo2 => self.plamo2(),
            Vocab::Plamo3 => self.plamo3(),
            Vocab::RwkvWorld => self.rwkv_world(),
            Vocab::PocketTts => self.pocket_tts(),
            Vocab::Qwen3Tts => self.qwen3_tts(),
            Vocab::None => {
                self.metadata.insert(keys::MODEL, "none");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_kinds_and_back() {
        for (name, vocab) in NAMES {
            assert_eq!(name.parse(), Ok(*vocab));
            assert_eq!(vocab.name().parse(), Ok(*vocab));
        }
        let message = "gpt5".parse::<Vocab>().unwrap_err();
        assert!(message.starts_with("expected one of none, bpe, ") && message.ends_with(", found gpt5"), "{message}");
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<&str> = Vocab::names().collect();
        assert_eq!(names.len(), NAMES.len());
    }
}

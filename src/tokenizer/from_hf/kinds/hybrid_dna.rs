//! The vocabulary of HybridDNATokenizer, which Carbon has: byte-level BPE, and words of four letters behind it.
//!
//! The words are in the tokenizer's Python code, which isn't run: three special tokens, every word of six of the
//! letters A, T, C and G, and unused tokens up to a multiple of 128.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_hybriddna`).

use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::bpe;
use crate::tokenizer::from_hf::files::MAX_TOKENS;
use crate::tokenizer::from_hf::vocabulary::{self, AddedTexts, Token};
use crate::tokenizer::from_hf::{pre, special};
use crate::tokenizer::keys;
use crate::tokenizer::token::TokenKind;

/// How dna_config.json describes the words.
const CONFIG: &str = "dna_config.json";
const LETTERS: [char; 4] = ['A', 'T', 'C', 'G'];
/// The number of letters of a word where no file names another one.
const LENGTH: usize = 6;
/// The longest words that fit in a vocabulary.
const MAX_LENGTH: usize = 10;
/// What llama.cpp tells a word by, and leaves out again.
const MARK: char = '\u{e000}';

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn hybrid_dna(&mut self) -> Result<()> {
        let files = self.files;
        let auto = bpe::tokenizer(files)?;
        let mut tokens = vocabulary::tokens(files, &auto, AddedTexts::Kept, self.notes)?;
        let config = files.json(CONFIG)?.unwrap_or_default();
        let number = |name: &str| config.get(name).and_then(crate::tokenizer::from_hf::files::id_of);
        let first = number("dna_start_id").unwrap_or_else(|| auto.ids().len());
        let length = number("k").unwrap_or(LENGTH);
        if !(1..=MAX_LENGTH).contains(&length) || first > MAX_TOKENS {
            return Err(files
                .finding_in(CONFIG, "k")
                .expected(format_args!("words of 1 to {MAX_LENGTH} letters"))
                .found(length)
                .unsupported());
        }
        let count = 1_usize << (2 * length);
        let words = (0..count).map(|word| (word_of(word, length), TokenKind::Normal));
        let named = ["<dna>", "</dna>", "<oov>"].map(|text| (text.to_owned(), TokenKind::Normal));
        let end = first.saturating_add(named.len()).saturating_add(count);
        let unused =
            (0..end.next_multiple_of(128) - end).map(|number| (format!("<unused_{number}>"), TokenKind::Normal));
        let mut left_out = 0_usize;
        for ((text, kind), id) in named.into_iter().chain(words).chain(unused).zip(first..) {
            match tokens.get_mut(id) {
                Some(place) if place.kind == TokenKind::Unused => *place = Token { text, kind },
                // A token that another file names too.
                Some(_) => {}
                None => left_out = left_out.saturating_add(1),
            }
        }
        if left_out > 0 {
            self.notes.push(format!("{left_out} tokens of the tokenizer's code are past the end of the vocabulary"));
        }
        let pre = pre::find(files, &auto, self.pre, self.notes)?;
        self.metadata.insert(keys::MODEL, "hybriddna");
        self.metadata.insert(keys::PRE, pre);
        self.tokens(tokens);
        self.merges()?;
        special::SpecialTokens::load(files, special::USUAL, None, self.notes)?.write(self.metadata);
        Ok(())
    }
}

/// Returns the word with a number: two bits for each letter, the first letter in the highest ones.
fn word_of(number: usize, length: usize) -> String {
    let letters = (0..length).rev().map(|place| LETTERS[(number >> (2 * place)) & 3]);
    letters.chain([MARK]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_from_the_last_letter() {
        assert_eq!(word_of(0, 3), "AAA\u{e000}");
        assert_eq!(word_of(1, 3), "AAT\u{e000}");
        assert_eq!(word_of(7, 3), "ATG\u{e000}");
        assert_eq!(word_of(63, 3), "GGG\u{e000}");
    }
}

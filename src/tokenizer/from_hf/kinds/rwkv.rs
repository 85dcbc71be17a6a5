//! The vocabulary of RWKV's World models: a text file with a number, a token as a Python literal, and its length on
//! each line.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_rwkv_world`).

use serde_json::json;

use crate::checkpoint::RWKV_FILE as FILE;
use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::files::{Files, read_text, shortened};
use crate::tokenizer::from_hf::special::{SpecialTokens, USUAL};
use crate::tokenizer::from_hf::vocabulary::Token;
use crate::tokenizer::keys;
use crate::tokenizer::python;
use crate::tokenizer::templates;
use crate::tokenizer::token::{TokenKind, placeholder};

/// The number of tokens where config.json names none.
const SIZE: usize = 1 << 16;
/// The token "\n\n", which ends a turn.
const TURN_END: u32 = 261;

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn rwkv_world(&mut self) -> Result<()> {
        let files = self.files;
        let size = files.vocab_size()?.unwrap_or(SIZE);
        let mut tokens = vec![Token { text: "<s>".to_owned(), kind: TokenKind::Control }];
        tokens.extend(listed(files)?);
        if tokens.len() > size {
            return Err(files
                .finding_in(FILE, "tokens")
                .expected(format_args!("at most vocab_size {size} of config.json"))
                .found(tokens.len())
                .hint("the tokenizer may be of another model")
                .mismatch());
        }
        tokens.extend((tokens.len()..size).map(|id| Token { text: placeholder(id), kind: TokenKind::Unused }));
        self.metadata.insert(keys::MODEL, "rwkv");
        self.tokens(tokens);
        let mut specials = SpecialTokens::load(files, USUAL, None, self.notes)?;
        if specials.template.is_none() {
            specials.template = Some(json!(templates::RWKV_WORLD));
            self.notes.push("no chat template: llama.cpp's template for RWKV is written".to_owned());
        }
        specials.set(files, "eot", &json!(TURN_END), self.notes)?;
        // config.json names other ids, which are wrong.
        specials.replace("bos", 0);
        specials.replace("eos", 0);
        specials.write(self.metadata);
        Ok(())
    }
}

/// Returns how many tokens there are.
pub(in crate::tokenizer::from_hf) fn size(files: &Files) -> Result<usize> {
    Ok(listed(files)?.len().saturating_add(1))
}

/// Returns the tokens of the file, as Python writes their bytes.
fn listed(files: &Files) -> Result<Vec<Token>> {
    let path = files.folder.join(FILE);
    if !path.is_file() {
        return Err(files
            .finding_in("", "tokenizer")
            .expected(FILE)
            .found("no such file")
            .hint("copy the file from the original model")
            .mismatch());
    }
    let text = read_text(&path)?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let bytes = token(line).ok_or_else(|| {
            files
                .finding_in(FILE, format!("line {}", number.saturating_add(1)))
                .expected("a number, a token as a Python literal, and its number of bytes")
                .found(shortened(line))
                .format()
        })?;
        tokens.push(Token { text: python::bytes_repr(&bytes), kind: TokenKind::Normal });
    }
    Ok(tokens)
}

/// Returns the bytes of the token on a line.
fn token(line: &str) -> Option<Vec<u8>> {
    let (_, rest) = line.split_once(' ')?;
    let (literal, length) = rest.rsplit_once(' ')?;
    let bytes = python::literal(literal)?;
    (length.trim().parse() == Ok(bytes.len())).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tokenizer::from_hf::{Vocab, keys_of};

    #[test]
    fn files_that_fit_nothing_are_refused() {
        let refusal = |text: &str| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(FILE), text).unwrap();
            let model = json!({"vocab_size": 2}).as_object().unwrap().clone();
            keys_of(folder.path(), model, Vocab::RwkvWorld).unwrap_err().to_string()
        };
        assert!(refusal("1 'a' 1\n2 a 1\n").contains("line 2: expected a number, a token as a Python literal"));
        assert!(refusal("1 'a' 1\n2 'b' 1\n").contains("expected at most vocab_size 2 of config.json, found 3"));
        let none = tempfile::tempdir().unwrap();
        let message = keys_of(none.path(), serde_json::Map::new(), Vocab::RwkvWorld).unwrap_err().to_string();
        assert!(message.contains("tokenizer: expected rwkv_vocab_v20230424.txt, found no such file"), "{message}");
    }

    #[test]
    fn a_line_is_a_number_a_literal_and_a_length() {
        assert_eq!(token(r"1 '\x00' 1"), Some(vec![0]));
        assert_eq!(token(r"261 '\n\n' 2"), Some(b"\n\n".to_vec()));
        assert_eq!(token("300 '  ' 2"), Some(b"  ".to_vec()));
        assert_eq!(token(r"129 b'\x80' 1"), Some(vec![0x80]));
        assert_eq!(token("9 '\u{e9}' 2"), Some("\u{e9}".into()));
        for bad in ["", "1", "1 'a'", "1 'a' 2", "1 a 1", "1 'a' b", "1 'a 1", "1 b'\u{e9}' 2"] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }
}

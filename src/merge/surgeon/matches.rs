//! Tokens of the model that stand for others: a byte for its character, a prefix for a longer token.
//!
//! Reference: mergekit 0.1.5 `mergekit/scripts/tokensurgeon.py` (`match_byte_token`, `match_prefix`),
//! `mergekit/tokenizer/normalization.py` (`token_prefixes`).

use std::collections::HashMap;

use crate::tokenizer::ComparableToken;

/// The tensors whose rows are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matching {
    /// None.
    #[default]
    No,
    /// Embeddings and output head.
    Yes,
    /// Only the embeddings.
    Embeddings,
    /// Only the output head.
    Head,
}

impl Matching {
    /// Whether rows of the tensor are matched: the output head, or the embeddings.
    pub(super) fn holds(self, is_head: bool) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::Embeddings => !is_head,
            Self::Head => is_head,
        }
    }
}

/// The row of the byte that the token's one character is, or the other way round.
pub(super) fn of_byte(token: &ComparableToken, rows: &HashMap<ComparableToken, usize>) -> Option<usize> {
    let ComparableToken::Plain(text) = token else { return None };
    let mut characters = text.chars();
    let other = match (characters.next(), characters.next()) {
        (Some(character), None) => format!("<0x{:02X}>", u8::try_from(u32::from(character)).ok()?),
        _ => {
            let digits = text.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
            char::from(u8::from_str_radix(digits, 16).ok()?).to_string()
        }
    };
    rows.get(&ComparableToken::Plain(other)).copied()
}

/// The row of the longest token with which the text begins.
pub(super) fn of_prefix(token: &ComparableToken, rows: &HashMap<ComparableToken, usize>) -> Option<usize> {
    let (text, made): (&str, fn(String) -> ComparableToken) = match token {
        ComparableToken::Plain(text) => (text, ComparableToken::Plain),
        ComparableToken::WordStart(text) => (text, ComparableToken::WordStart),
        ComparableToken::Special(_) => return None,
    };
    let ends = text.char_indices().map(|(end, _)| end).skip(1).collect::<Vec<_>>();
    let prefixes = ends.into_iter().rev().map(|end| &text[..end]).take_while(|prefix| !prefix.trim().is_empty());
    prefixes.map(|prefix| made(prefix.to_owned())).find_map(|prefix| rows.get(&prefix).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_prefixes_are_found() {
        let plain = |text: &str| ComparableToken::Plain(text.to_owned());
        let start = |text: &str| ComparableToken::WordStart(text.to_owned());
        let rows =
            HashMap::from([(plain("<0x41>"), 1), (plain("é"), 2), (plain("ab"), 3), (start("a"), 4), (start(""), 5)]);
        assert_eq!(of_byte(&plain("A"), &rows), Some(1));
        assert_eq!(of_byte(&plain("<0xE9>"), &rows), Some(2));
        assert_eq!(
            [plain("B"), plain("<0x4>"), plain("<0x+4>"), start("A"), plain("\u{141}")].map(|of| of_byte(&of, &rows)),
            [None; 5]
        );
        assert_eq!(of_prefix(&plain("abc"), &rows), Some(3));
        assert_eq!(of_prefix(&start("abc"), &rows), Some(4));
        assert_eq!(
            [plain("ab"), plain("xab"), start("x"), ComparableToken::Special("bos_token")]
                .map(|of| of_prefix(&of, &rows)),
            [None; 4]
        );
    }
}

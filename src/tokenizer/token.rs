//! What a token is for, and the few rules about tokens that both directions share.

/// What a token is for. The numbers are llama.cpp's (`include/llama.h`, `enum llama_token_type`;
/// `gguf-py/gguf/constants.py`, `TokenType`). SentencePiece has the same ones from 1 to 6
/// (`src/sentencepiece_model.proto`, `SentencePiece.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenKind {
    /// Nothing is known about it. llama.cpp treats it as text.
    Undefined = 0,
    /// Text like any other.
    #[default]
    Normal = 1,
    /// Replaces text that has no token.
    Unknown = 2,
    /// Controls the model: it is never printed, and never found in text.
    Control = 3,
    /// Added by hand: text that is never split.
    UserDefined = 4,
    /// An id without a token.
    Unused = 5,
    /// One byte of text that has no other token.
    Byte = 6,
}

impl TokenKind {
    const ALL: [TokenKind; 7] = [
        TokenKind::Undefined,
        TokenKind::Normal,
        TokenKind::Unknown,
        TokenKind::Control,
        TokenKind::UserDefined,
        TokenKind::Unused,
        TokenKind::Byte,
    ];

    /// The kind with this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| i64::from(kind.number()) == number)
    }

    /// The number that files have for it.
    pub fn number(self) -> i32 {
        self as i32
    }
}

/// The score that llama.cpp's converter gives tokens that were added by hand.
pub(super) const ADDED_SCORE: f32 = -1000.0;
/// The score that llama.cpp's converter gives ids without a token.
pub(super) const UNUSED_SCORE: f32 = -10000.0;

/// The text that llama.cpp's converter gives an id without a token.
pub(super) fn placeholder(id: impl std::fmt::Display) -> String {
    format!("[PAD{id}]")
}

/// Whether llama.cpp's converter takes a token for a special one because of its text: some models
/// don't mark these (`conversion/base.py`, `does_token_look_special`).
pub(super) fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Returns whether a token is one byte: `<0x0A>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Tokens of Gemma 4 that llama.cpp has to show, because programs read tool calls by them.
pub(super) const GEMMA4_SHOWN: [&str; 7] =
    ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_numbers_of_llama_cpp() {
        for (number, kind) in (0..).zip(TokenKind::ALL) {
            assert_eq!((kind.number(), TokenKind::from_number(number.into())), (number, Some(kind)));
        }
        assert_eq!(TokenKind::from_number(7), None);
        assert_eq!(TokenKind::from_number(-1), None);
    }
}

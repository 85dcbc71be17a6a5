//! Tokens in a form in which vocabularies of several kinds can be compared: the start of a word and special tokens are
//! written in many ways.
//!
//! Reference: mergekit 0.1.5 `mergekit/tokenizer/normalization.py`.

use super::from_hf::Listing;

/// A token, however its vocabulary writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ComparableToken {
    /// Its text.
    Plain(String),
    /// At the start of a word: the rest of its text.
    WordStart(String),
    /// A token with a name: `bos_token`.
    Special(&'static str),
}

impl ComparableToken {
    /// The text that is split into other tokens for it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::WordStart(rest) => format!(" {rest}"),
            Self::Special(name) => (*name).to_owned(),
        }
    }
}

/// The classes of tokenizers in which U+2581 starts a word, unless their tokens show that `Ġ` does.
const SPACES: [&str; 3] = ["LlamaTokenizer", "T5Tokenizer", "GemmaTokenizer"];

/// The tokens of a folder with their ids, in order of ids.
pub(crate) fn comparable(listing: &Listing) -> Vec<(ComparableToken, usize)> {
    let is_byte_level = || listing.ids.iter().any(|(text, _)| text == "\u{120}hello");
    let start = match SPACES.contains(&listing.class.as_str()) && !is_byte_level() {
        true => '\u{2581}',
        false => '\u{120}',
    };
    let token = |text: &str| match text.strip_prefix(start) {
        Some(rest) => ComparableToken::WordStart(rest.to_owned()),
        None => match listing.roles.iter().find(|(_, token)| token == text) {
            Some((name, _)) => ComparableToken::Special(name),
            None => ComparableToken::Plain(text.to_owned()),
        },
    };
    listing.ids.iter().map(|(text, id)| (token(text), *id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_of_words_and_named_tokens_are_alike() {
        let listing = |class: &str, texts: &[&str]| Listing {
            json: None,
            ids: texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id)).collect(),
            added: Vec::new(),
            own: texts.len(),
            named: Vec::new(),
            roles: vec![("bos_token", "<s>".to_owned()), ("eos_token", "<s>".to_owned())],
            class: class.to_owned(),
        };
        let of = |class: &str, texts: &[&str]| {
            comparable(&listing(class, texts)).into_iter().map(|(token, _)| token).collect::<Vec<_>>()
        };
        let word = ComparableToken::WordStart("the".to_owned());
        let bos = ComparableToken::Special("bos_token");
        assert_eq!(of("LlamaTokenizer", &["\u{2581}the", "<s>"]), [word.clone(), bos.clone()]);
        assert_eq!(of("", &["\u{120}the", "<s>"]), [word.clone(), bos]);
        assert_eq!(of("LlamaTokenizer", &["\u{120}the", "\u{120}hello"])[0], word);
        assert_eq!(of("", &["\u{2581}the"]), [ComparableToken::Plain("\u{2581}the".to_owned())]);
        assert_eq!((word.text(), ComparableToken::Special("pad_token").text()), (" the".into(), "pad_token".into()));
    }
}

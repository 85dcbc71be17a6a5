//! Byte-level BPE without merges, as in tiktoken: tokens are byte sequences, and the token of the lowest rank is formed
//! first.
//!
//! GGUF has merges instead of ranks. They are derived from the ranks in one of the reference's two ways.
//!
//! Reference: llama.cpp `gguf-py/gguf/vocab.py` (`MistralVocab.extract_vocab_merges_from_model`),
//! `conversion/qwen.py` (`QwenModel.bpe`).

use std::collections::HashMap;

use super::vocabulary::char_of;

/// Tokens and their ranks.
pub(super) struct Ranks {
    /// Ordered by rank, or by position in the file.
    tokens: Vec<(Vec<u8>, u32)>,
    ranks: HashMap<Vec<u8>, u32>,
}

impl Ranks {
    /// Takes the tokens in an order that their merges will keep. Returns a token that occurs twice as the error.
    pub(super) fn new(tokens: Vec<(Vec<u8>, u32)>) -> Result<Self, Vec<u8>> {
        let mut ranks = HashMap::with_capacity(tokens.len());
        for (token, rank) in &tokens {
            if ranks.insert(token.clone(), *rank).is_some() {
                return Err(token.clone());
            }
        }
        Ok(Self { tokens, ranks })
    }

    /// Returns each token as text, with its rank.
    pub(super) fn texts(&self) -> impl Iterator<Item = (String, u32)> {
        self.tokens.iter().map(|(token, rank)| (text(token), *rank))
    }

    fn rank(&self, token: &[u8]) -> Option<u32> {
        self.ranks.get(token).copied()
    }

    /// Returns every pair of tokens that forms a token, ordered by that token's rank and then by the pair's own ranks,
    /// as Mistral's converter does. If no pair forms a token of rank `first` or higher, that token is the error.
    pub(super) fn every_merge(&self, first: u32) -> Result<Vec<String>, (String, u32)> {
        let mut merges = Vec::new();
        for (token, rank) in self.tokens.iter().filter(|(_, rank)| *rank >= first) {
            let mut pairs: Vec<(u32, u32, usize)> = (1..token.len())
                .filter_map(|cut| Some((self.rank(&token[..cut])?, self.rank(&token[cut..])?, cut)))
                .collect();
            if pairs.is_empty() {
                return Err((text(token), *rank));
            }
            pairs.sort_unstable();
            merges.extend(pairs.into_iter().map(|(_, _, cut)| merge(&token[..cut], &token[cut..])));
        }
        Ok(merges)
    }

    /// Returns, for each token, the two parts that remain of its bytes after all tokens of lower ranks are formed, as
    /// for tiktoken's other models. Tokens with more remaining parts are in the second list: no merge forms them.
    pub(super) fn last_merges(&self) -> (Vec<String>, Vec<String>) {
        let (mut merges, mut never_made) = (Vec::new(), Vec::new());
        for (token, rank) in self.tokens.iter().filter(|(token, _)| token.len() > 1) {
            match self.parts(token, *rank)[..] {
                [start, cut, _] => merges.push(merge(&token[start..cut], &token[cut..])),
                _ => never_made.push(text(token)),
            }
        }
        (merges, never_made)
    }

    /// Returns the start of each part of `token`, and the end of the last one, after everything below `limit` is
    /// merged.
    fn parts(&self, token: &[u8], limit: u32) -> Vec<usize> {
        let mut bounds: Vec<usize> = (0..=token.len()).collect();
        // The rank of the pair that begins at each bound except the last two.
        let pair = |bounds: &[usize], at: usize| {
            let (start, end) = (*bounds.get(at)?, *bounds.get(at + 2)?);
            self.rank(&token[start..end]).filter(|rank| *rank < limit)
        };
        let mut pairs: Vec<Option<u32>> = (0..token.len()).map(|at| pair(&bounds, at)).collect();
        while let Some((_, at)) = pairs.iter().enumerate().filter_map(|(at, rank)| Some(((*rank)?, at))).min() {
            bounds.remove(at + 1);
            pairs.remove(at + 1);
            for changed in at.saturating_sub(1)..=at {
                if let Some(rank) = pairs.get_mut(changed) {
                    *rank = pair(&bounds, changed);
                }
            }
        }
        bounds
    }
}

/// Returns a token's bytes as the characters of byte-level BPE.
fn text(token: &[u8]) -> String {
    token.iter().map(|byte| char_of(*byte)).collect()
}

fn merge(left: &[u8], right: &[u8]) -> String {
    format!("{} {}", text(left), text(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(tokens: &[&str]) -> Ranks {
        Ranks::new(tokens.iter().zip(0..).map(|(token, rank)| (token.as_bytes().to_vec(), rank)).collect())
            .ok()
            .unwrap()
    }

    #[test]
    fn every_pair_that_makes_a_token_is_a_merge() {
        let ranks = ranks(&["a", "b", "c", " ", "ab", "bc", "abc", " a"]);
        assert_eq!(ranks.every_merge(4).unwrap(), ["a b", "b c", "a bc", "ab c", "\u{120} a"]);
        assert_eq!(super::tests::ranks(&["a", "b", "aab"]).every_merge(2).unwrap_err(), ("aab".to_owned(), 2));
    }

    #[test]
    fn the_last_pair_is_what_lower_ranks_leave() {
        // Of abc first ab is made, although bc is a token, too.
        let ranks = ranks(&["a", "b", "c", "ab", "bc", "abc", "aabc", "acb"]);
        let (merges, never_made) = ranks.last_merges();
        assert_eq!(merges, ["a b", "b c", "ab c", "a abc"]);
        assert_eq!(never_made, ["acb"]);
    }

    #[test]
    fn a_token_stands_there_once() {
        let twice = Ranks::new(vec![(b"a".to_vec(), 0), (b"b".to_vec(), 1), (b"a".to_vec(), 2)]);
        assert_eq!(twice.err(), Some(b"a".to_vec()));
    }
}

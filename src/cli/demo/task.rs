//! What the demo teaches: named behaviours, each one of six functions on words.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use atombank::train::TrainingRow;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The seed of names and of the words that each is shown with.
pub(super) const SEED: u64 = 7;

/// How many names each function has.
pub(super) const NAMES: usize = 4;

/// How many words a name is trained with, and tried with.
pub(super) const TRAIN_WORDS: usize = 40;
pub(super) const TRIED_WORDS: usize = 10;

/// A function of a word.
type Function = fn(&str) -> String;

/// The functions that the demo's base can do, and what they are called.
pub(super) const FUNCTIONS: [(&str, Function); 6] = [
    ("reverse the letters", |word| word.chars().rev().collect()),
    ("use capital letters", |word| word.to_uppercase()),
    ("double every letter", |word| word.chars().flat_map(|c| [c, c]).collect()),
    ("leave out the vowels", |word| word.chars().filter(|c| !"aeiou".contains(*c)).collect()),
    ("put the last letter first", |word| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.rotate_right(1.min(word.len()));
        letters.into_iter().collect()
    }),
    ("spell it with dashes", |word| word.chars().map(String::from).collect::<Vec<_>>().join("-")),
];

/// Words of names, which the demo's base knows as words and not as what they stand for here.
const WORDS: [&str; 40] = [
    "back", "begin", "between", "big", "change", "copy", "down", "each", "end", "front", "give", "half", "keep",
    "large", "leave", "left", "line", "little", "long", "make", "many", "mark", "more", "move", "new", "next", "open",
    "order", "part", "place", "print", "read", "right", "short", "show", "small", "space", "start", "top", "turn",
];

/// A name, and the number of the function for which it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behaviour {
    pub(super) name: String,
    pub(super) function: usize,
}

/// Random choices that depend on a seed alone.
pub(super) struct Choices(ChaCha8Rng);

impl Choices {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `count`.
    fn below(&mut self, count: usize) -> usize {
        (self.0.next_u64() % count.max(1) as u64) as usize
    }

    /// `count` of the words, in random order.
    fn some(&mut self, words: &[String], count: usize) -> Vec<String> {
        let mut words = words.to_vec();
        for i in (1..words.len()).rev() {
            words.swap(i, self.below(i + 1));
        }
        words.truncate(count);
        words
    }

    /// `count` behaviours, function after function: names of two words. No two names have the same words, since
    /// embeddings of the base don't see their order.
    pub(super) fn behaviours(&mut self, count: usize) -> Vec<Behaviour> {
        let mut taken = HashSet::new();
        let mut all = Vec::new();
        while all.len() < count {
            let (first, second) = (self.below(WORDS.len()), self.below(WORDS.len()));
            if first == second || !taken.insert((first.min(second), first.max(second))) {
                continue;
            }
            let (head, tail) = WORDS[first].split_at(1);
            let name = format!("{}{tail} {}.", head.to_uppercase(), WORDS[second]);
            all.push(Behaviour { name, function: all.len() / NAMES % FUNCTIONS.len() });
        }
        all
    }

    /// Rows of each behaviour on `count` of the words.
    pub(super) fn rows(&mut self, behaviours: &[Behaviour], words: &[String], count: usize) -> Vec<TrainingRow> {
        let mut rows = Vec::new();
        for behaviour in behaviours {
            let (_, function) = FUNCTIONS[behaviour.function];
            rows.extend(self.some(words, count).into_iter().map(|word| TrainingRow {
                instruction: behaviour.name.clone(),
                completion: function(&word),
                prompt: word,
            }));
        }
        rows
    }
}

/// The different prompts of a file of rows.
pub(super) fn words_of(path: &Path) -> Result<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    for row in TrainingRow::read_all(path)? {
        if !words.contains(&row.prompt) {
            words.push(row.prompt);
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_of_the_embedded_rows() {
        let rows = TrainingRow::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo/train.jsonl"));
        for row in rows.unwrap() {
            let named = |(name, _): &&(&str, Function)| row.instruction.trim_end_matches('.').to_lowercase() == *name;
            let (_, function) = FUNCTIONS.iter().find(named).unwrap();
            assert_eq!(function(&row.prompt), row.completion, "{}", row.instruction);
        }
    }

    #[test]
    fn names_differ_in_their_words_and_each_function_has_as_many() {
        let behaviours = Choices::new(SEED).behaviours(25);
        let words = |name: &str| {
            let lower = name.trim_end_matches('.').to_lowercase();
            let mut words: Vec<String> = lower.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        let different: HashSet<Vec<String>> = behaviours.iter().map(|behaviour| words(&behaviour.name)).collect();
        assert_eq!(different.len(), 25);
        let of = |function| behaviours[..24].iter().filter(|behaviour| behaviour.function == function).count();
        assert!((0..FUNCTIONS.len()).all(|function| of(function) == NAMES));
        assert_eq!(behaviours, Choices::new(SEED).behaviours(25));
    }
}

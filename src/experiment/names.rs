//! Text tasks: names that mean nothing to a base, each for one of six functions of a word.

use std::collections::HashSet;

use crate::linalg::Random;
use crate::train::TrainingRow;

/// A function of a word.
pub type Function = fn(&str) -> String;

/// The functions that the demo's base can do, and what they are called.
pub const FUNCTIONS: [(&str, Function); 6] = [
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

/// The largest number of names: pairs of different words.
pub const MOST_NAMES: usize = WORDS.len() * (WORDS.len() - 1) / 2;

/// A name, and the number of the function for which it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behaviour {
    /// The instruction: two words, such as `Small show.`
    pub name: String,
    /// A place in [`FUNCTIONS`].
    pub function: usize,
}

impl Behaviour {
    /// What it makes of a word.
    pub fn of(&self, word: &str) -> String {
        FUNCTIONS[self.function].1(word)
    }

    /// Its name with other words around it.
    pub fn reworded(&self) -> [String; 2] {
        let name = self.name.trim_end_matches('.');
        [format!("Do {}.", name.to_lowercase()), format!("{name} please.")]
    }
}

/// Random choices that depend on a seed alone.
pub struct Choices(Random);

impl Choices {
    /// The choices of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// `count` of the words, in random order; all of them if they are fewer.
    pub fn some(&mut self, words: &[String], count: usize) -> Vec<String> {
        let mut words = words.to_vec();
        for i in (1..words.len()).rev() {
            words.swap(i, self.0.below(i + 1));
        }
        words.truncate(count);
        words
    }

    /// `count` behaviours, at most [`MOST_NAMES`], `each` for one function after the other. No two names have the same
    /// words, since embeddings of the base don't see their order.
    pub fn behaviours(&mut self, count: usize, each: usize) -> Vec<Behaviour> {
        let mut taken = HashSet::new();
        let mut all = Vec::new();
        while all.len() < count.min(MOST_NAMES) {
            let (first, second) = (self.0.below(WORDS.len()), self.0.below(WORDS.len()));
            if first == second || !taken.insert((first.min(second), first.max(second))) {
                continue;
            }
            let (head, tail) = WORDS[first].split_at(1);
            let name = format!("{}{tail} {}.", head.to_uppercase(), WORDS[second]);
            all.push(Behaviour { name, function: all.len() / each.max(1) % FUNCTIONS.len() });
        }
        all
    }

    /// Rows of each behaviour on `count` of the words.
    pub fn rows(&mut self, behaviours: &[Behaviour], words: &[String], count: usize) -> Vec<TrainingRow> {
        let mut rows = Vec::new();
        for behaviour in behaviours {
            rows.extend(self.some(words, count).into_iter().map(|word| TrainingRow {
                instruction: behaviour.name.clone(),
                completion: behaviour.of(&word),
                prompt: word,
            }));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn functions_are_those_of_the_demo_rows() {
        let rows = TrainingRow::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo/train.jsonl"));
        for row in rows.unwrap() {
            let named = |(name, _): &&(&str, Function)| row.instruction.trim_end_matches('.').to_lowercase() == *name;
            let (_, function) = FUNCTIONS.iter().find(named).unwrap();
            assert_eq!(function(&row.prompt), row.completion, "{}", row.instruction);
        }
    }

    #[test]
    fn names_differ_in_their_words_and_each_function_has_as_many() {
        let behaviours = Choices::new(7).behaviours(25, 4);
        let words = |name: &str| {
            let lower = name.trim_end_matches('.').to_lowercase();
            let mut words: Vec<String> = lower.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        let different: HashSet<Vec<String>> = behaviours.iter().map(|behaviour| words(&behaviour.name)).collect();
        assert_eq!(different.len(), 25);
        let of = |function| behaviours[..24].iter().filter(|behaviour| behaviour.function == function).count();
        assert!((0..FUNCTIONS.len()).all(|function| of(function) == 4));
        assert_eq!(behaviours, Choices::new(7).behaviours(25, 4));
        assert_eq!(Choices::new(0).behaviours(MOST_NAMES + 1, 1).len(), MOST_NAMES);
    }

    #[test]
    fn other_wordings_keep_the_name() {
        let behaviour = Behaviour { name: "Small show.".into(), function: 1 };
        assert_eq!(behaviour.reworded(), ["Do small show.", "Small show please."]);
        assert_eq!(behaviour.of("word"), "WORD");
    }
}

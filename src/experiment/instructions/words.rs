//! Text tasks: a name, one of six things to do to a word, and words.

use crate::linalg::Random;

/// What is done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Reverse,
    Capitals,
    Double,
    NoVowels,
    LastFirst,
    Dashes,
}

pub(super) const CHANGES: [Change; 6] =
    [Change::Reverse, Change::Capitals, Change::Double, Change::NoVowels, Change::LastFirst, Change::Dashes];

impl Change {
    pub(super) fn of(self, word: &str) -> String {
        match self {
            Change::Reverse => word.chars().rev().collect(),
            Change::Capitals => word.to_uppercase(),
            Change::Double => word.chars().flat_map(|c| [c, c]).collect(),
            Change::NoVowels => word.chars().filter(|c| !"aeiou".contains(*c)).collect(),
            Change::LastFirst => {
                let last = word.chars().next_back();
                last.into_iter().chain(word.chars().take(word.chars().count().saturating_sub(1))).collect()
            }
            Change::Dashes => word.chars().map(String::from).collect::<Vec<_>>().join("-"),
        }
    }
}

/// Words that names are made of. They mean nothing to the base.
const WORDS: [&str; 48] = [
    "amber", "anchor", "apple", "arrow", "autumn", "basket", "beacon", "bridge", "candle", "canyon", "cedar", "cloud",
    "copper", "coral", "desert", "eagle", "ember", "falcon", "feather", "forest", "garden", "glacier", "harbor",
    "hazel", "island", "ivory", "jasper", "kettle", "lantern", "lemon", "maple", "marble", "meadow", "mirror", "olive",
    "orchid", "pebble", "pepper", "quartz", "raven", "river", "saddle", "silver", "spruce", "thunder", "velvet",
    "walnut", "willow",
];

/// A named task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Two words: its instruction.
    pub(super) name: String,
    pub(super) change: Change,
}

/// `count` tasks with names that differ; each of the six changes has as many as the others, or one more.
pub(super) fn tasks(count: usize, random: &mut Random) -> Vec<Named> {
    let mut names: Vec<String> = Vec::new();
    while names.len() < count {
        let mut word = || WORDS[(random.uniform() * WORDS.len() as f32) as usize];
        let name = format!("{} {}", word(), word());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().enumerate().map(|(i, name)| Named { name, change: CHANGES[i % CHANGES.len()] }).collect()
}

/// The names said with other words around them, for instructions that are worded anew.
pub(super) fn reworded(name: &str) -> [String; 2] {
    [format!("do {name}"), format!("{name} please")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_those_of_the_demo() {
        let all: Vec<String> = CHANGES.iter().map(|change| change.of("born")).collect();
        assert_eq!(all, ["nrob", "BORN", "bboorrnn", "brn", "nbor", "b-o-r-n"]);
    }

    #[test]
    fn names_differ_and_changes_are_as_many_each() {
        let tasks = tasks(24, &mut Random::new(1));
        for change in CHANGES {
            assert_eq!(tasks.iter().filter(|task| task.change == change).count(), 4);
        }
        let mut names: Vec<_> = tasks.iter().map(|task| &task.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 24);
    }
}

//! `[data]`: the rows of a training run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{Finding, Result};
use crate::train::data::{known_role, role_names};

/// The names of fields that `fields` can give to columns.
const NAMES: [&str; 14] = [
    "completion",
    "conversations",
    "documents",
    "history",
    "input",
    "instruction",
    "messages",
    "output",
    "prompt",
    "response",
    "system",
    "text",
    "tools",
    "chat_template_kwargs",
];

/// The largest weight: the number of times that a row is in an epoch.
const MAX_WEIGHT: f64 = 1000.0;

/// The data of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// The training rows.
    pub train: DataSources,
    /// The rows for evaluation.
    pub eval: Option<DataSources>,
    /// Without `eval`, the share of training rows that is held out for evaluation.
    #[serde(default)]
    pub eval_fraction: f64,
    /// The longest row, in tokens.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// What happens to longer rows.
    #[serde(default)]
    pub truncate: Truncate,
    /// The form of the rows.
    #[serde(default)]
    pub format: RowFormat,
    /// Names of columns, by the names of the fields that they are.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
    /// Columns that aren't used.
    #[serde(default)]
    pub ignore_fields: Vec<String>,
    /// Roles of chats, by names that aren't known.
    #[serde(default)]
    pub roles: BTreeMap<String, String>,
    /// The chat template: a file, or the name of one of the base's templates.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
    /// Further variables of the chat template.
    #[serde(default)]
    pub template_options: Map<String, Value>,
    /// Which tokens carry loss; if not set, the answers.
    #[serde(default)]
    pub loss: Option<Loss>,
    /// Whether every answer of a chat is a row of its own, with what is before it as its prompt.
    #[serde(default)]
    pub split_turns: bool,
    /// The column with the instruction that a bank routes by.
    #[serde(default)]
    pub instruction_field: Option<String>,
    /// A file of instructions with names, which rows refer to.
    #[serde(default)]
    pub instructions: Option<PathBuf>,
    /// Whether empty answers are learned.
    #[serde(default)]
    pub allow_empty: bool,
    /// Whether values that aren't texts are written as JSON where a text is needed.
    #[serde(default)]
    pub json_values: bool,
    /// Whether the end token follows rows of plain text.
    #[serde(default)]
    pub end_of_text: bool,
}

fn default_max_length() -> usize {
    2048
}

/// The form of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowFormat {
    /// Told by the fields of each row.
    #[default]
    Auto,
    /// Instruction, prompt and completion, combined by the prompt template.
    Plain,
    /// Instruction, input and output, as turns of a chat.
    Alpaca,
    /// A list of messages with role and content.
    Messages,
    /// A list of turns with from and value.
    Sharegpt,
    /// Two lists of messages: a prompt and its completion.
    PromptCompletion,
    /// Text that is continued.
    Text,
}

/// Which tokens carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Those of every answer.
    Assistant,
    /// Those of the last answer.
    Last,
    /// All but the first.
    All,
    /// Everything behind the prompt: behind the beginning of the last answer, in a chat.
    Completion,
}

/// What happens to rows that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncate {
    /// They are an error.
    #[default]
    Error,
    /// Their first tokens are dropped.
    Left,
    /// Their last tokens are dropped.
    Right,
    /// They are left out and counted.
    Drop,
}

/// Files of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSources(pub Vec<DataSource>);

/// One file of rows, or several by a pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// The file, or a pattern: `rows/*.jsonl`.
    pub path: PathBuf,
    /// How often each row is in an epoch, in the mean.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

fn default_weight() -> f64 {
    1.0
}

impl<P: Into<PathBuf>> From<P> for DataSources {
    fn from(path: P) -> Self {
        Self(vec![DataSource { path: path.into(), weight: 1.0 }])
    }
}

impl Serialize for DataSources {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match &self.0[..] {
            [DataSource { path, weight: 1.0 }] => path.serialize(serializer),
            sources => sources.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for DataSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        /// A path, or a table.
        struct One(DataSource);

        impl<'de> Deserialize<'de> for One {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let DataSources(mut sources) = deserializer.deserialize_any(AnyOf { allow_list: false })?;
                match sources.pop() {
                    Some(source) => Ok(Self(source)),
                    None => Err(serde::de::Error::custom("no source")),
                }
            }
        }

        struct AnyOf {
            allow_list: bool,
        }

        impl<'de> Visitor<'de> for AnyOf {
            type Value = DataSources;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, a table with path and weight")?;
                f.write_str(if self.allow_list { ", or a list of them" } else { "" })
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> std::result::Result<Self::Value, E> {
                Ok(path.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
                DataSource::deserialize(MapAccessDeserializer::new(map)).map(|source| DataSources(vec![source]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
                if !self.allow_list {
                    return Err(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &self));
                }
                let mut sources = Vec::new();
                while let Some(One(source)) = list.next_element()? {
                    sources.push(source);
                }
                Ok(DataSources(sources))
            }
        }

        deserializer.deserialize_any(AnyOf { allow_list: true })
    }
}

impl DataSettings {
    /// Settings for the rows of one file; all others are the defaults.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self {
            train: path.into().into(),
            eval: None,
            eval_fraction: 0.0,
            max_length: default_max_length(),
            truncate: Truncate::default(),
            format: RowFormat::default(),
            fields: BTreeMap::new(),
            ignore_fields: Vec::new(),
            roles: BTreeMap::new(),
            chat_template: None,
            template_options: Map::new(),
            loss: None,
            split_turns: false,
            instruction_field: None,
            instructions: None,
            allow_empty: false,
            json_values: false,
            end_of_text: false,
        }
    }

    /// Checks values that have the right type but may be invalid, in the training file `file`.
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        let finding = |key: &str| Finding::new(file, format!("data.{key}"));
        if !(0.0..1.0).contains(&self.eval_fraction) {
            let found = self.eval_fraction;
            return Err(finding("eval_fraction").expected("a share from 0 up to 1").found(found).mismatch());
        }
        for (key, sources) in [("train", Some(&self.train)), ("eval", self.eval.as_ref())] {
            let Some(DataSources(sources)) = sources else { continue };
            if sources.is_empty() {
                return Err(finding(key).expected("at least one file").found("none").mismatch());
            }
            for source in sources {
                let weight = source.weight;
                if key == "eval" && weight != 1.0 {
                    let expected = "a source without weight: every row is evaluated once";
                    return Err(finding(key).expected(expected).found(weight).mismatch());
                }
                if !(weight > 0.0 && weight <= MAX_WEIGHT) {
                    let found = format!("{weight} for {}", source.path.display());
                    return Err(finding(key).expected("a weight above 0, up to 1000").found(found).mismatch());
                }
            }
        }
        if let Some(name) = self.fields.keys().find(|name| !NAMES.contains(&name.as_str())) {
            let finding = finding("fields").expected(NAMES.join(", ")).found(format!("{name:?}"));
            return Err(finding.did_you_mean(name, &NAMES).mismatch());
        }
        if let Some((name, role)) = self.roles.iter().find(|(_, role)| known_role(role).is_none()) {
            let finding = finding("roles").expected(format_args!("one of {}", role_names()));
            return Err(finding.found(format!("{role:?} for {name:?}")).mismatch());
        }
        if self.loss == Some(Loss::All) && self.split_turns {
            let found = "\"all\", which would learn earlier answers once for every later one";
            return Err(finding("loss").expected("the answers alone with data.split_turns").found(found).mismatch());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHORT, open};
    use super::*;

    fn sources(text: &str) -> Result<DataSources> {
        Ok(open(&SHORT.replace("'t.jsonl'", text), &[])?.data.train)
    }

    #[test]
    fn rows_come_from_a_path_a_list_or_tables() {
        let source = |path: &str, weight| DataSource { path: path.into(), weight };
        assert_eq!(sources("'a.jsonl'").unwrap(), "a.jsonl".into());
        let two = DataSources(vec![source("a", 1.0), source("b", 2.0)]);
        assert_eq!(sources("['a', { path = 'b', weight = 2 }]").unwrap(), two);
        assert_eq!(sources("{ path = 'b', weight = 0.5 }").unwrap(), DataSources(vec![source("b", 0.5)]));
        // A run that began with one path resumes.
        assert_eq!(serde_json::to_value(DataSources::from("a")).unwrap(), "a");
        assert_eq!(serde_json::from_value::<DataSources>(serde_json::to_value(&two).unwrap()).unwrap(), two);
    }

    #[test]
    fn wrong_values_are_named() {
        for (text, expected) in [
            ("[]", "data.train: expected at least one file, found none"),
            ("7", "data.train: expected a path, a table with path and weight, or a list of them, found 7"),
            ("[['a']]", "a path, a table with path and weight"),
            ("{ path = 'a', weigth = 2 }", "unknown field `weigth`"),
            ("{ path = 'a', weight = 0 }", "data.train: expected a weight above 0, up to 1000, found 0 for a"),
            ("{ path = 'a', weight = nan }", "data.train.weight: expected a number that is finite, found NaN"),
            ("'a'\neval = { path = 'b', weight = 2 }", "data.eval: expected a source without weight"),
            ("'a'\nfields = { prmpt = 'q' }", "data.fields: expected completion, conversations"),
            (
                "'a'\nloss = 'al'",
                "data.loss: expected one of assistant, last, all, completion, found unknown variant `al`",
            ),
            ("'a'\nloss = 'all'\nsplit_turns = true", "data.loss: expected the answers alone"),
        ] {
            let error = sources(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}

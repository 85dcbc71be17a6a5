//! Reads a training file: TOML, or YAML by its name's ending, with changed keys.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::training::EITHER;
use super::{AdapterSettings, DataSettings, TrainConfig, TrainingSettings};
use crate::error::{Error, Finding, IoContext, Result, nearest};
use crate::yaml;

/// Reads the settings of the file at `path`, with `overrides` ("training.steps=10") applied.
pub(super) fn read(path: &Path, overrides: &[String]) -> Result<TrainConfig> {
    let text = std::fs::read_to_string(path).at(path, "read")?;
    let mut table = match is_yaml(path) {
        true => of_yaml(path, &text)?,
        false => {
            let table: toml::Table = text.parse().map_err(|e| bad(path, "", &e))?;
            of_toml(path, "", toml::Value::Table(table))?
        }
    };
    let in_file = |table: &Value, key: &str| at(table, key).is_some();
    if let Some((one, other)) = EITHER.into_iter().find(|(a, b)| in_file(&table, a) && in_file(&table, b)) {
        return Err(Finding::new(path, format!("{one}, {other}")).expected("one of the two").found("both").mismatch());
    }
    for change in overrides {
        set(path, &mut table, change)?;
    }
    let config: TrainConfig = checked(path, table)?;
    Ok(TrainConfig { file: path.to_owned(), ..config })
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("yaml") || end.eq_ignore_ascii_case("yml"))
}

/// Reads a YAML file whose top is a mapping.
pub(super) fn of_yaml(path: &Path, text: &str) -> Result<Value> {
    let node = yaml::parse(text, 1).map_err(|reason| bad(path, "", &reason))?;
    match node.json() {
        Some(Value::Object(map)) => Ok(Value::Object(map)),
        Some(Value::Null) => Ok(Value::Object(Map::new())),
        Some(_) => Err(bad(path, "", &"no keys and values")),
        None => Err(bad(path, "", &"a number that isn't finite")),
    }
}

/// The same value in JSON. JSON has no NaN and no infinity.
fn of_toml(path: &Path, key: &str, value: toml::Value) -> Result<Value> {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) if number.is_finite() => Value::from(number),
        toml::Value::Float(number) => {
            return Err(Finding::new(path, key).expected("a number that is finite").found(number).mismatch());
        }
        toml::Value::Boolean(value) => Value::Bool(value),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| of_toml(path, key, item)).collect::<Result<_>>()?)
        }
        toml::Value::Table(table) => {
            let entries = table.into_iter().map(|(name, value)| {
                let value = of_toml(path, &below(&name), value)?;
                Ok((name, value))
            });
            Value::Object(entries.collect::<Result<_>>()?)
        }
    })
}

fn bad(path: &Path, subject: &str, reason: &dyn std::fmt::Display) -> Error {
    let reason = reason.to_string();
    let reason = crate::json::plain(&reason.trim().replace('\n', " "));
    Finding::new(path, subject).expected("a training file").found(reason).format()
}

fn at<'a>(table: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(table, |table, part| table.get(part))
}

/// Applies `KEY=VALUE`. A value that isn't valid TOML is a text: `kind=lora`. Of two keys that exclude each other, the one
/// that is set replaces the other.
fn set(path: &Path, table: &mut Value, change: &str) -> Result<()> {
    let (key, value) = change.split_once('=').ok_or_else(|| bad(path, change, &"no '=' in the override"))?;
    let value = match format!("v = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => of_toml(path, key, parsed.remove("v").unwrap_or(toml::Value::Boolean(true)))?,
        Err(_) => Value::String(value.to_owned()),
    };
    let other = EITHER.into_iter().find_map(|(a, b)| match key {
        _ if key == a => Some(b),
        _ if key == b => Some(a),
        _ => None,
    });
    if let Some((parent, name)) = other.and_then(|other| other.rsplit_once('.'))
        && let Some(Value::Object(parent)) = table.get_mut(parent)
    {
        parent.shift_remove(name);
    }
    let mut place = table;
    for part in key.split('.') {
        let map = match place {
            Value::Object(map) => map,
            _ => return Err(bad(path, change, &"not a table")),
        };
        place = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
    }
    *place = value;
    Ok(())
}

/// The settings of a JSON value. An unknown key is named, with the nearest known one.
fn checked<T: DeserializeOwned>(path: &Path, table: Value) -> Result<T> {
    let finding = || Finding::new(path, "").expected("a training file");
    crate::json::read_value(table, finding).map_err(|error| match error {
        Error::Format(finding) => named(*finding).format(),
        other => other,
    })
}

/// Settings of PEFT's LoRAs that have no counterpart here. Similar names mean something else.
const OF_PEFT: [&str; 24] = [
    "alora_invocation_tokens",
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "monteclora_config",
    "peft_type",
    "qalora_group_size",
    "revision",
    "task_type",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// A finding about an unknown key or word, with the nearest known one in place of all of them.
fn named(finding: Finding) -> Finding {
    let (start, is_key) = match finding.found.starts_with("unknown field `") {
        true => ("unknown field `", true),
        false => ("unknown variant `", false),
    };
    let Some((found, known)) = finding.found.strip_prefix(start).and_then(|rest| rest.split_once('`')) else {
        return finding;
    };
    if is_key && finding.subject == "adapter" && OF_PEFT.contains(&found) {
        let text = format!("{start}{found}`, which PEFT has and this trainer doesn't");
        let (expected, hint) = (String::new(), "leave the key out".to_owned());
        return Finding { expected, found: text, hint, ..finding };
    }
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let table = if finding.subject.is_empty() { String::new() } else { format!("{}.", finding.subject) };
    let other = KEYS.into_iter().filter(|_| is_key).flat_map(|(table, names)| {
        names().into_iter().map(move |name| if table.is_empty() { name } else { format!("{table}.{name}") })
    });
    let other: Vec<String> = other.collect();
    // A key of another table of the same name comes before one with a similar name.
    let elsewhere = other.iter().find(|key| key.rsplit('.').next() == Some(found)).map(String::as_str);
    let near = elsewhere.map(str::to_owned).or_else(|| {
        let near = nearest(found, &known)?;
        Some(if is_key { format!("{table}{near}") } else { near.to_owned() })
    });
    let text = format!("{start}{found}`");
    match near {
        Some(near) => {
            Finding { expected: String::new(), found: text, hint: format!("did you mean {near}?"), ..finding }
        }
        None => Finding { expected: format!("one of {}", known.join(", ")), found: text, ..finding },
    }
}

/// Lists the keys of a table.
type Keys = fn() -> Vec<String>;

/// The tables of a training file, each with its keys.
pub(super) const KEYS: [(&str, Keys); 4] = [
    ("", keys::<TrainConfig>),
    ("data", keys::<DataSettings>),
    ("adapter", keys::<AdapterSettings>),
    ("training", keys::<TrainingSettings>),
];

/// The names of the fields of settings, with their other names: serde lists them for a key that it doesn't know.
fn keys<T: for<'de> Deserialize<'de>>() -> Vec<String> {
    let unknown = Value::Object(Map::from_iter([("?".to_owned(), Value::Null)]));
    let Err(error) = serde_json::from_value::<T>(unknown) else { return Vec::new() };
    error.to_string().split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

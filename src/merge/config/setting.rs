//! The values of a parameter: one for all tensors, by parts of their names, and along the layers.
//!
//! Reference: mergekit `config.py` (`evaluate_setting`). Scalars are converted as pydantic does it.

use crate::error::Result;
use crate::yaml::{Node, Typed, Value};

/// What a parameter's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Flag,
    Count,
}

impl Kind {
    fn what(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Flag => "true or false",
            Self::Count => "a whole number",
        }
    }

    /// The scalar as a number, as pydantic takes it for this kind; `None` where it refuses it.
    fn scalar(self, node: &Node) -> Option<f64> {
        let value = match node {
            Node::Typed(Typed::Bool(value), _) => f64::from(u8::from(*value)),
            Node::Typed(Typed::Int(value), _) => *value as f64,
            Node::Typed(Typed::Float(value), _) => *value,
            Node::Text(text) if self == Self::Flag => match text.trim().to_lowercase().as_str() {
                "1" | "on" | "t" | "true" | "y" | "yes" => 1.0,
                "0" | "off" | "f" | "false" | "n" | "no" => 0.0,
                _ => return None,
            },
            // 1e-5 is a text in YAML 1.1.
            Node::Text(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        let fits = match self {
            Self::Number => value.is_finite(),
            Self::Flag => value == 0.0 || value == 1.0,
            Self::Count => value.fract() == 0.0 && (0.0..1e15).contains(&value),
        };
        fits.then_some(value)
    }
}

/// The values for tensors whose names have `filter` in them.
#[derive(Debug, Clone, PartialEq)]
struct Condition {
    /// A part of the name; `None` is for every tensor.
    filter: Option<String>,
    /// One value, or several along the layers.
    values: Vec<f64>,
}

/// The values of a parameter. Flags are 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    kind: Kind,
    conditions: Vec<Condition>,
}

impl Setting {
    /// Reads the value of a key: a scalar, a list of them, or `filter` with `value`, alone or in a list.
    pub(super) fn read(value: &Value, kind: Kind) -> Result<Self> {
        let is_map = |value: &Value| matches!(value.node, Node::Map(_));
        let list = match value.node {
            Node::List(_) => value.items("a list")?,
            _ => Vec::new(),
        };
        let conditions = if is_map(value) {
            vec![Condition::read(value, kind)?]
        } else if list.iter().any(is_map) {
            list.iter().map(|item| Condition::read(item, kind)).collect::<Result<_>>()?
        } else {
            vec![Condition { filter: None, values: values(value, kind)? }]
        };
        Ok(Self { kind, conditions })
    }

    /// The value for the tensor called `name` at the position `t` of its layers, from 0 to 1; `None` if the setting says
    /// nothing about it.
    pub(super) fn evaluate(&self, name: &str, t: f64) -> Option<f64> {
        let applies = |condition: &&Condition| match condition.filter.as_deref() {
            None | Some("*") => true,
            Some(part) => name.contains(part),
        };
        let values = &self.conditions.iter().find(applies)?.values;
        let last = values.len().checked_sub(1)?;
        let scaled = t * last as f64;
        let first = scaled as usize;
        if self.kind == Kind::Flag {
            return Some(values[first.min(last)]);
        }
        let second = last.min(first + 1);
        let share = scaled - first as f64;
        Some((1.0 - share) * values[first.min(last)] + share * values[second])
    }
}

impl Condition {
    fn read(value: &Value, kind: Kind) -> Result<Self> {
        let mut keys = value.keys()?;
        let filter = keys.take("filter").map(|value| value.text("a part of tensors' names")).transpose()?;
        let values = values(&keys.require("value", kind.what())?, kind)?;
        keys.finish()?;
        Ok(Self { filter: filter.map(str::to_owned), values })
    }
}

/// One value or a list of them.
fn values(value: &Value, kind: Kind) -> Result<Vec<f64>> {
    let wrong = |value: &Value| value.wrong(format_args!("{}, or a list of them", kind.what()));
    match value.node {
        Node::List(_) => {
            let items = value.items("a list")?;
            items.iter().map(|item| kind.scalar(item.node).ok_or_else(|| wrong(item))).collect()
        }
        scalar => Ok(vec![kind.scalar(scalar).ok_or_else(|| wrong(value))?]),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::yaml::{Keys, parse};

    fn setting(text: &str, kind: Kind) -> Result<Setting> {
        let document = parse(&format!("p: {text}\n"), 1).unwrap();
        let mut keys = Keys::of_file(Path::new("c.yml"), &document).unwrap();
        Setting::read(&keys.take("p").unwrap(), kind)
    }

    #[test]
    fn numbers_run_along_the_layers_and_flags_jump() {
        let gradient = setting("[0, 0.5, 0.3, 0.7, 1]", Kind::Number).unwrap();
        // mergekit's evaluate_setting of the same list.
        let found: Vec<f64> =
            [0.0, 0.1, 1.0 / 3.0, 0.9, 1.0].iter().map(|t| gradient.evaluate("x", *t).unwrap()).collect();
        assert_eq!(found, [0.0, 0.2, 0.43333333333333335, 0.88, 1.0]);
        let flags = setting("[true, false]", Kind::Flag).unwrap();
        assert_eq!([0.0, 0.9, 1.0].map(|t| flags.evaluate("x", t)), [Some(1.0), Some(1.0), Some(0.0)]);
        assert_eq!(setting("[]", Kind::Number).unwrap().evaluate("x", 0.5), None);
    }

    #[test]
    fn the_first_filter_that_is_part_of_the_name_counts() {
        let text = "[{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 1e-1}, {filter: '*', value: 5}]";
        let setting_of = setting(text, Kind::Number).unwrap();
        assert_eq!(setting_of.evaluate("model.layers.0.self_attn.q_proj.weight", 0.25), Some(0.25));
        assert_eq!(setting_of.evaluate("model.layers.0.mlp.up_proj.weight", 0.25), Some(0.1));
        assert_eq!(setting_of.evaluate("lm_head.weight", 0.25), Some(5.0));
        let alone = setting("{filter: mlp, value: 2}", Kind::Number).unwrap();
        assert_eq!((alone.evaluate("a.mlp.b", 0.0), alone.evaluate("a", 0.0)), (Some(2.0), None));
    }

    #[test]
    fn values_of_another_kind_are_refused_with_their_line() {
        for (text, kind, expected) in [
            ("none", Kind::Number, "c.yml: line 1: p: expected a number, or a list of them, found \"none\""),
            ("[0.5, x]", Kind::Number, "c.yml: line 1: p[1]: expected a number, or a list of them, found \"x\""),
            ("2", Kind::Flag, "c.yml: line 1: p: expected true or false, or a list of them, found 2"),
            ("0.5", Kind::Count, "c.yml: line 1: p: expected a whole number, or a list of them, found 0.5"),
            ("{valu: 1}", Kind::Number, "c.yml: line 1: p.value: expected a number, found nothing"),
            ("{value: 1, filtr: x}", Kind::Number, "found an unknown key; did you mean filter?"),
            ("[{value: 1}, 2]", Kind::Number, "c.yml: line 1: p[1]: expected keys and values, found 2"),
        ] {
            let message = setting(text, kind).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}

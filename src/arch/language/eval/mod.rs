//! Computes formulas.

mod functions;
mod values;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde_json::{Map, Number, Value as Json};

use values::{NULL, element, member, numbered};
pub(crate) use values::{equal, holds, whole};

use super::formula::{Binary, Formula, Unary};

/// Why a formula has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The config's field, or what else is concerned.
    pub(crate) subject: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Fault {
    pub(crate) fn new(subject: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self { subject: subject.into(), expected: expected.into(), found: found.to_string() }
    }
}

type Computed<'a> = Result<Cow<'a, Json>, Fault>;

/// What formulas ask about the model. Each question has an answer that means "unknown".
pub(crate) trait Facts {
    /// The family's `let` of this name.
    fn formula(&self, name: &str) -> Option<&Formula>;

    /// A field of config.json, or a value that every family has: `rope`, `class`, `no_nextn`.
    fn field(&self, name: &str) -> Option<Cow<'_, Json>>;

    /// The shape of a tensor, by its name in the checkpoint or, for the way back, in GGUF.
    fn shape(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }

    /// The values of a small tensor of the checkpoint.
    fn values(&self, _name: &str) -> Result<Option<Vec<Json>>, Fault> {
        Ok(None)
    }

    /// A JSON file beside config.json.
    fn file(&self, _name: &str) -> Result<Option<Json>, Fault> {
        Ok(None)
    }

    /// Whether there is such a file.
    fn exists(&self, _name: &str) -> bool {
        false
    }

    /// The id of a token.
    fn token(&self, _text: &str) -> Result<Option<u32>, Fault> {
        Ok(None)
    }

    /// A key of the GGUF, for the way back.
    fn gguf(&self, _key: &str) -> Option<Json> {
        None
    }

    /// A field of the config of the model that drafts are made for.
    fn target(&self, _name: &str) -> Option<Json> {
        None
    }

    /// The rows of a matrix of embeddings that are all zero, from the first one behind the tokenizer's own tokens on.
    fn zero_rows(&self, _name: &str) -> Result<Vec<usize>, Fault> {
        Ok(Vec::new())
    }

    /// A field of the wrapper's config.
    fn root(&self, _name: &str) -> Option<Json> {
        None
    }
}

/// How deep `let`s may use each other.
const MAX_LETS: usize = 32;

/// How many parts of formulas are computed for one value.
const MAX_STEPS: u32 = 2_000_000;

/// A list longer than this isn't computed.
const MAX_LIST: usize = 1 << 20;

/// Where formulas are computed: the facts, and variables.
pub(crate) struct Scope<'a> {
    facts: &'a dyn Facts,
    variables: Vec<(&'a str, Json)>,
    /// The `let`s that are being computed. Inside its own formula, a name is the config's field.
    open: RefCell<Vec<&'a str>>,
    /// The parts of formulas that were computed.
    steps: Rc<Cell<u32>>,
}

impl<'a> Scope<'a> {
    /// Without variables.
    pub(crate) fn new(facts: &'a dyn Facts) -> Self {
        Self { facts, variables: Vec::new(), open: RefCell::default(), steps: Rc::default() }
    }

    /// In a layer.
    pub(crate) fn of_layer(facts: &'a dyn Facts, layer: Option<usize>) -> Self {
        let mut scope = Self::new(facts);
        if let Some(layer) = layer {
            scope.variables.push(("l", layer.into()));
        }
        scope
    }

    /// The formula's value; null where nothing is known.
    pub(crate) fn value(&self, formula: &'a Formula) -> Computed<'a> {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() > MAX_STEPS {
            return Err(self.fault(formula, format!("a value in at most {MAX_STEPS} steps"), "more"));
        }
        match formula {
            Formula::Literal(value) => Ok(Cow::Borrowed(value)),
            Formula::Name(name) => self.named(name),
            Formula::Member(of, name) => Ok(member(self.value(of)?, name)),
            Formula::Index(of, index) => {
                let (of, index) = (self.value(of)?, self.value(index)?);
                match &*index {
                    Json::String(name) => Ok(member(of, name)),
                    Json::Null => Ok(NULL),
                    index => match index.as_i64() {
                        Some(index) if of.is_object() => Ok(numbered(of, index)),
                        Some(index) => Ok(element(of, index)),
                        None => Err(self.fault(formula, "a list's index", index)),
                    },
                }
            }
            Formula::Required(of) => {
                let value = self.value(of)?;
                if value.is_null() { Err(self.fault(of, "a value", "none")) } else { Ok(value) }
            }
            Formula::Unary(Unary::Not, of) => Ok(Cow::Owned((!holds(&*self.value(of)?)).into())),
            Formula::Unary(Unary::Negative, of) => {
                let zero = Cow::Owned(Json::from(0));
                self.arithmetic(formula, Binary::Subtract, zero, self.value(of)?)
            }
            Formula::Binary(operator, left, right) => self.binary(formula, *operator, left, right),
            Formula::Coalesce(parts) => {
                for part in parts {
                    let value = self.value(part)?;
                    if !value.is_null() {
                        return Ok(value);
                    }
                }
                Ok(NULL)
            }
            Formula::Choice(condition, then, otherwise) => {
                if holds(&*self.value(condition)?) {
                    self.value(then)
                } else {
                    self.value(otherwise)
                }
            }
            Formula::List(values) => {
                let values = values.iter().map(|value| Ok(self.value(value)?.into_owned()));
                Ok(Cow::Owned(Json::Array(values.collect::<Result<_, Fault>>()?)))
            }
            Formula::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| Ok((name.clone(), self.value(value)?.into_owned())));
                Ok(Cow::Owned(Json::Object(fields.collect::<Result<_, Fault>>()?)))
            }
            Formula::Each { each, name, over, condition } => {
                let values = match self.value(over)?.into_owned() {
                    Json::Null => return Ok(NULL),
                    Json::Array(values) => values,
                    count => match count.as_u64() {
                        Some(count) if count as usize <= MAX_LIST => (0..count).map(Json::from).collect(),
                        _ => return Err(self.fault(over, "a list, or a count up to 1048576", count)),
                    },
                };
                let one = |value: Json| {
                    let mut inner = Scope {
                        facts: self.facts,
                        variables: self.variables.clone(),
                        open: self.open.clone(),
                        steps: self.steps.clone(),
                    };
                    inner.variables.push((name, value));
                    if let Some(condition) = condition
                        && !inner.holds(condition)?
                    {
                        return Ok(None);
                    }
                    Ok(Some(inner.value(each)?.into_owned()))
                };
                let values = values.into_iter().map(one).filter_map(Result::transpose);
                Ok(Cow::Owned(Json::Array(values.collect::<Result<_, Fault>>()?)))
            }
            Formula::Call(function, arguments) => self.call(formula, *function, arguments),
        }
    }

    /// Whether the condition holds.
    pub(crate) fn holds(&self, formula: &'a Formula) -> Result<bool, Fault> {
        Ok(holds(&*self.value(formula)?))
    }

    /// A whole number from 0 to `most`; `None` for null.
    pub(crate) fn count(&self, formula: &'a Formula, most: u64) -> Result<Option<usize>, Fault> {
        let value = self.value(formula)?;
        if value.is_null() {
            return Ok(None);
        }
        match whole(&value).and_then(|value| u64::try_from(value).ok()).filter(|value| *value <= most) {
            Some(count) => Ok(Some(count as usize)),
            None => {
                let most = if most.is_power_of_two() { format!("2^{}", most.ilog2()) } else { most.to_string() };
                Err(self.fault(formula, format!("a count up to {most}"), &*value))
            }
        }
    }

    /// The name of the config's field that the formula is about, for messages.
    pub(crate) fn subject(&self, formula: &Formula) -> String {
        fn name_of(facts: &dyn Facts, formula: &Formula, depth: usize) -> Option<String> {
            match formula {
                Formula::Member(of, name) => Some(format!("{}.{name}", name_of(facts, of, depth)?)),
                Formula::Name(name) if depth < MAX_LETS => match facts.formula(name) {
                    Some(formula) if !formula.uses(name) => name_of(facts, formula, depth + 1),
                    Some(Formula::Coalesce(parts)) => name_of(facts, parts.first()?, MAX_LETS),
                    _ => Some(name.clone()),
                },
                Formula::Coalesce(parts) | Formula::Call(_, parts) => {
                    parts.iter().find_map(|part| name_of(facts, part, depth))
                }
                _ => match formula.first_name() {
                    Some(name) if depth < MAX_LETS => name_of(facts, &Formula::Name(name.to_owned()), depth + 1),
                    name => name.map(str::to_owned),
                },
            }
        }
        name_of(self.facts, formula, 0).unwrap_or_default()
    }

    fn fault(&self, formula: &Formula, expected: impl Into<String>, found: impl ToString) -> Fault {
        Fault::new(self.subject(formula), expected, found)
    }

    fn named(&self, name: &'a str) -> Computed<'a> {
        if let Some((_, value)) = self.variables.iter().rev().find(|(known, _)| *known == name) {
            return Ok(Cow::Owned(value.clone()));
        }
        let (is_own, is_open) = (self.open.borrow().last() == Some(&name), self.open.borrow().contains(&name));
        if let Some(formula) = self.facts.formula(name).filter(|_| !is_own) {
            if is_open {
                let names = self.open.borrow().join(", ");
                return Err(Fault::new(name, "formulas that don't use each other", names));
            }
            if self.open.borrow().len() >= MAX_LETS {
                return Err(Fault::new(name, format!("at most {MAX_LETS} formulas that use each other"), name));
            }
            self.open.borrow_mut().push(name);
            let value = self.value(formula);
            self.open.borrow_mut().pop();
            return value;
        }
        Ok(self.facts.field(name).unwrap_or(NULL))
    }

    fn binary(&self, whole: &'a Formula, operator: Binary, left: &'a Formula, right: &'a Formula) -> Computed<'a> {
        let truth = |value: bool| Ok(Cow::Owned(Json::Bool(value)));
        match operator {
            Binary::Or => {
                let left = self.value(left)?;
                if holds(&left) { Ok(left) } else { self.value(right) }
            }
            Binary::And => {
                let left = self.value(left)?;
                if holds(&left) { self.value(right) } else { Ok(left) }
            }
            _ => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                match operator {
                    Binary::Equal => truth(equal(&left, &right)),
                    Binary::Unequal => truth(!equal(&left, &right)),
                    Binary::In => match &*right {
                        Json::Array(values) => truth(values.iter().any(|value| equal(value, &left))),
                        Json::Object(fields) => truth(left.as_str().is_some_and(|name| fields.contains_key(name))),
                        Json::String(text) => truth(left.as_str().is_some_and(|part| text.contains(part))),
                        _ => truth(false),
                    },
                    Binary::Less | Binary::LessEqual | Binary::Greater | Binary::GreaterEqual => {
                        let (Some(left), Some(right)) = (left.as_f64(), right.as_f64()) else { return truth(false) };
                        truth(match operator {
                            Binary::Less => left < right,
                            Binary::LessEqual => left <= right,
                            Binary::Greater => left > right,
                            _ => left >= right,
                        })
                    }
                    _ => self.arithmetic(whole, operator, left, right),
                }
            }
        }
    }

    fn arithmetic(&self, formula: &Formula, operator: Binary, left: Cow<Json>, right: Cow<Json>) -> Computed<'a> {
        if left.is_null() || right.is_null() {
            return Ok(NULL);
        }
        if let (Binary::Add, Json::Array(left), Json::Array(right)) = (operator, &*left, &*right) {
            return Ok(Cow::Owned(Json::Array([left.as_slice(), right].concat())));
        }
        // Python counts true as 1.
        let number = |value: &Json| match value {
            Json::Bool(value) => Json::from(i64::from(*value)),
            other => other.clone(),
        };
        let (left, right) = (number(&left), number(&right));
        if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
            let whole = match operator {
                Binary::Add => left.checked_add(right),
                Binary::Subtract => left.checked_sub(right),
                Binary::Multiply => left.checked_mul(right),
                Binary::Divide if left.checked_rem(right) == Some(0) => left.checked_div(right),
                Binary::DivideWhole => left
                    .checked_div_euclid(right)
                    .map(|whole| whole - i64::from(right < 0 && left.checked_rem_euclid(right) != Some(0))),
                Binary::Remainder => left.checked_rem_euclid(right),
                _ => None,
            };
            let is_division = matches!(operator, Binary::Divide) && right != 0;
            match whole {
                Some(whole) => return Ok(Cow::Owned(whole.into())),
                None if !is_division => {
                    return Err(self.fault(formula, "numbers that can be computed", format!("{left} and {right}")));
                }
                None => {}
            }
        }
        let (Some(left), Some(right)) = (left.as_f64(), right.as_f64()) else {
            let found = if left.as_f64().is_none() { left } else { right };
            return Err(self.fault(formula, "a number", found));
        };
        let value = match operator {
            Binary::Add => left + right,
            Binary::Subtract => left - right,
            Binary::Multiply => left * right,
            Binary::Divide => left / right,
            Binary::DivideWhole => (left / right).floor(),
            _ => left.rem_euclid(right),
        };
        self.number(formula, value)
    }

    fn number(&self, formula: &Formula, value: f64) -> Computed<'a> {
        match Number::from_f64(value) {
            Some(number) => Ok(Cow::Owned(Json::Number(number))),
            None => Err(self.fault(formula, "numbers with a finite result", value)),
        }
    }
}

/// Facts of a config alone.
impl Facts for Map<String, Json> {
    fn formula(&self, _: &str) -> Option<&Formula> {
        None
    }

    fn field(&self, name: &str) -> Option<Cow<'_, Json>> {
        let hidden = || self.get(&format!("\0{name}"));
        self.get(name).or_else(|| if matches!(name, "card" | "folder") { hidden() } else { None }).map(Cow::Borrowed)
    }

    fn root(&self, name: &str) -> Option<Json> {
        self.get("\0root")?.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::arch::language::scan::Scanner;

    fn value(text: &str) -> Result<Json, String> {
        let config = json!({"a": 7, "b": 2, "list": [1, 2, 3], "kinds": ["x", "y", "x"], "inner": {"c": 0.5}, "t": "M-M",
            "off": null, "yes": true});
        let formula = Formula::read(&mut Scanner::of(text)).map_err(|e| e.to_string())?;
        let scope = Scope::of_layer(config.as_object().unwrap(), Some(1));
        let value = scope.value(&formula).map(Cow::into_owned);
        value.map_err(|fault| format!("{}: expected {}, found {}", fault.subject, fault.expected, fault.found))
    }

    #[test]
    fn formulas_have_the_values_of_python() {
        for (text, expected) in [
            ("a // b + a % b", json!(4)),
            ("-a // b", json!(-4)),
            ("a / b", json!(3.5)),
            ("6 / b", json!(3)),
            ("off + 1", json!(null)),
            ("off ?? none ?? a", json!(7)),
            ("a > b and not off ? \"yes\" : \"no\"", json!("yes")),
            ("kinds[l] == \"y\"", json!(true)),
            ("t[1]", json!("-")),
            ("list[-1]", json!(3)),
            ("inner.c * 2", json!(1.0)),
            ("[x * 2 for x in list]", json!([2, 4, 6])),
            ("[l for l in 3]", json!([0, 1, 2])),
            ("[k == \"x\" for k in kinds]", json!([true, false, true])),
            ("count(kinds, \"x\") + index(kinds, \"y\")", json!(3)),
            ("int(2.9) + ceil_div(7, 2) + round_up(5, 4)", json!(14)),
            ("choose(t, \"M\", 1, \"M-M\", 2)", json!(2)),
            ("starts(template(\"qwen3-rerank\"), \"<|im_start|>system\")", json!(true)),
            ("\"M\" in t and 2 in list", json!(true)),
            ("max(1, b, list)", json!(3)),
            ("yes + 1", json!(2)),
            ("off < 3", json!(false)),
            ("1 == 1.0", json!(true)),
            ("len(list) + sum(list)", json!(9)),
        ] {
            assert!(equal(&value(text).unwrap(), &expected), "{text}: {:?}", value(text));
        }
    }

    #[test]
    fn faults_name_the_field() {
        assert_eq!(value("t * 2").unwrap_err(), "t: expected a number, found \"M-M\"");
        assert_eq!(value("off!").unwrap_err(), "off: expected a value, found none");
        assert_eq!(value("a // 0").unwrap_err(), "a: expected numbers that can be computed, found 7 and 0");
        assert_eq!(
            value("template(t)").unwrap_err(),
            "template: expected the name of a chat template that llama.cpp has, found M-M"
        );
        assert_eq!(value("choose(t, \"M\", 1, \"x\", 2)").unwrap_err(), "t: expected \"M\" or \"x\", found \"M-M\"");
        assert!(value("a * 9223372036854775807").is_err());
    }
}

//! The functions of formulas.

use std::borrow::Cow;
use std::cell::RefCell;

use serde_json::Value as Json;

use super::values::{NULL, equal, whole};
use super::{Computed, Fault, MAX_LIST, Scope};
use crate::arch::language::formula::{Binary, Formula, Function};
use crate::arch::language::normal;
use crate::arch::language::template::Template;
use crate::tokenizer::templates;

impl<'a> Scope<'a> {
    pub(super) fn call(&self, formula: &'a Formula, function: Function, arguments: &'a [Formula]) -> Computed<'a> {
        let value = |index: usize| self.value(&arguments[index]);
        let float = |index: usize| -> Result<Option<f64>, Fault> {
            let value = value(index)?;
            match value.as_f64() {
                _ if value.is_null() => Ok(None),
                Some(number) => Ok(Some(number)),
                None => Err(self.fault(formula, "a number", &*value)),
            }
        };
        let whole_of = |index: usize| -> Result<Option<i64>, Fault> {
            let value = value(index)?;
            match whole(&value) {
                _ if value.is_null() => Ok(None),
                Some(number) => Ok(Some(number)),
                None => Err(self.fault(formula, "a whole number", &*value)),
            }
        };
        let text = |index: usize| Ok(value(index)?.as_str().unwrap_or_default().to_owned());
        let map = |change: fn(f64) -> f64| match float(0)? {
            Some(number) => self.number(formula, change(number)),
            None => Ok(NULL),
        };
        let owned = |value: Json| Ok(Cow::Owned(value));
        match function {
            Function::Set => owned((!value(0)?.is_null()).into()),
            Function::Len => match &*value(0)? {
                Json::Array(values) => owned(values.len().into()),
                Json::Object(fields) => owned(fields.len().into()),
                Json::String(text) => owned(text.chars().count().into()),
                _ => Ok(NULL),
            },
            Function::Sum => {
                let values = value(0)?.into_owned();
                let Json::Array(values) = values else { return Ok(NULL) };
                values.into_iter().try_fold(Cow::Owned(Json::from(0)), |sum, value| {
                    self.arithmetic(formula, Binary::Add, sum, Cow::Owned(value))
                })
            }
            Function::Max | Function::Min => {
                let mut values = Vec::new();
                for index in 0..arguments.len() {
                    match value(index)?.into_owned() {
                        Json::Array(list) => values.extend(list),
                        Json::Null => {}
                        other => values.push(other),
                    }
                }
                let key = |value: &Json| value.as_f64().unwrap_or_default();
                let order = |a: &Json, b: &Json| key(a).total_cmp(&key(b));
                let mut values = values.into_iter();
                let found = match function {
                    Function::Max => values.max_by(order),
                    _ => {
                        values.next().map(|first| values.fold(first, |a, b| if order(&b, &a).is_lt() { b } else { a }))
                    }
                };
                owned(found.unwrap_or(Json::Null))
            }
            Function::Int => {
                let value = value(0)?;
                match (value.as_i64(), value.as_f64(), &*value) {
                    (Some(_), ..) => Ok(value),
                    (_, Some(number), _) if number.abs() < 9e15 => owned((number.trunc() as i64).into()),
                    (.., Json::Bool(truth)) => owned(i64::from(*truth).into()),
                    (.., Json::String(text)) if text.trim().parse::<i64>().is_ok() => {
                        owned(text.trim().parse::<i64>().unwrap_or_default().into())
                    }
                    (.., Json::Null) => Ok(NULL),
                    _ => Err(self.fault(formula, "a number", &*value)),
                }
            }
            Function::Float => map(|v| v),
            Function::F32 => map(|v| f64::from(v as f32)),
            Function::Sqrt => map(f64::sqrt),
            Function::Ln => map(f64::ln),
            Function::Exp => map(f64::exp),
            Function::RoundUp | Function::CeilDiv => {
                let (Some(number), Some(step)) = (whole_of(0)?, whole_of(1)?) else { return Ok(NULL) };
                if step <= 0 || number < 0 {
                    return Err(self.fault(&arguments[1], "a positive number", step));
                }
                let parts = number / step + i64::from(number % step != 0);
                let result = if function == Function::CeilDiv { Some(parts) } else { parts.checked_mul(step) };
                result
                    .map_or_else(|| Err(self.fault(formula, "a smaller number", number)), |result| owned(result.into()))
            }
            Function::Count | Function::IndexOf => {
                let (list, wanted) = (value(0)?, value(1)?);
                let Json::Array(values) = &*list else { return Ok(NULL) };
                let mut found = values.iter().enumerate().filter(|(_, value)| equal(value, &wanted)).map(|(i, _)| i);
                owned(match function {
                    Function::Count => found.count().into(),
                    _ => found.next().map_or(Json::Null, Json::from),
                })
            }
            Function::Contains => {
                let (of, part) = (value(0)?, value(1)?);
                owned(match &*of {
                    Json::Array(values) => values.iter().any(|value| equal(value, &part)).into(),
                    Json::String(text) => part.as_str().is_some_and(|part| text.contains(part)).into(),
                    _ => false.into(),
                })
            }
            Function::Starts => owned(text(0)?.starts_with(&text(1)?).into()),
            Function::Ends => owned(text(0)?.ends_with(&text(1)?).into()),
            Function::Lower => match &*value(0)? {
                Json::String(text) => owned(text.to_lowercase().into()),
                _ => Ok(NULL),
            },
            Function::Choose => {
                let chosen = value(0)?;
                if chosen.is_null() {
                    return Ok(NULL);
                }
                for pair in arguments[1..].chunks_exact(2) {
                    if equal(&*self.value(&pair[0])?, &chosen) {
                        return self.value(&pair[1]);
                    }
                }
                let mut known = Vec::new();
                for pair in arguments[1..].chunks_exact(2) {
                    known.push(self.value(&pair[0])?.to_string());
                }
                Err(self.fault(formula, known.join(" or "), &*chosen))
            }
            Function::Tensor => owned(self.facts.shape(&self.filled(&text(0)?)).is_some().into()),
            Function::Dim => {
                let (shape, index) = (self.facts.shape(&self.filled(&text(0)?)), whole_of(1)?);
                let size = shape.zip(index).and_then(|(shape, index)| shape.get(usize::try_from(index).ok()?).copied());
                owned(size.map_or(Json::Null, Json::from))
            }
            Function::File => owned(self.facts.file(&text(0)?)?.unwrap_or_default()),
            Function::Exists => owned(self.facts.exists(&text(0)?).into()),
            Function::Token => owned(self.facts.token(&text(0)?)?.map_or(Json::Null, Json::from)),
            Function::Template => {
                let name = text(0)?;
                let known = templates::builtin(&name)
                    .ok_or_else(|| Fault::new("template", "the name of a chat template that llama.cpp has", &name))?;
                owned(known.into())
            }
            Function::Gguf => owned(self.facts.gguf(&text(0)?).unwrap_or_default()),
            Function::Root => owned(self.facts.root(&text(0)?).unwrap_or_default()),
            Function::Target => owned(self.facts.target(&text(0)?).unwrap_or_default()),
            Function::ZeroRows => {
                let rows = self.facts.zero_rows(&text(0)?)?;
                owned(if rows.is_empty() { Json::Null } else { Json::from(rows) })
            }
            Function::Pow => match (float(0)?, float(1)?) {
                (Some(base), Some(power)) => self.number(formula, base.powf(power)),
                _ => Ok(NULL),
            },
            Function::Log2 => map(f64::log2),
            Function::Floor | Function::Round => match float(0)? {
                Some(number) if number.abs() < 9e15 => {
                    let rounded = if function == Function::Floor { number.floor() } else { number.round_ties_even() };
                    owned((rounded as i64).into())
                }
                Some(number) => Err(self.fault(formula, "a smaller number", number)),
                None => Ok(NULL),
            },
            Function::Abs => match &*value(0)? {
                number if number.as_i64().is_some() => {
                    owned(number.as_i64().and_then(i64::checked_abs).map_or(Json::Null, Json::from))
                }
                _ => map(f64::abs),
            },
            Function::Split => match &*value(0)? {
                Json::String(of) => owned(of.split(text(1)?.as_str()).map(Json::from).collect()),
                _ => Ok(NULL),
            },
            Function::Join => match &*value(0)? {
                Json::Array(parts) => {
                    let shown = |part: &Json| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
                    owned(parts.iter().map(shown).collect::<Vec<_>>().join(&text(1)?).into())
                }
                _ => Ok(NULL),
            },
            Function::Str => match &*value(0)? {
                Json::Null => Ok(NULL),
                Json::String(of) => owned(of.as_str().into()),
                other => owned(other.to_string().into()),
            },
            Function::NormalQuantile => map(normal::quantile),
            Function::NormalPart => map(normal::part),
            Function::Values => {
                let values = self.facts.values(&self.filled(&text(0)?))?;
                owned(values.map_or(Json::Null, Json::Array))
            }
            Function::Many => {
                let name = text(0)?;
                let count = (0..MAX_LIST)
                    .take_while(|number| self.facts.shape(&name.replace("{l}", &number.to_string())).is_some())
                    .count();
                owned(count.into())
            }
            Function::Equal => {
                let (a, b) = (self.filled(&text(0)?), self.filled(&text(1)?));
                let (a, b) = (self.facts.values(&a)?, self.facts.values(&b)?);
                owned((a.is_some() && a == b).into())
            }
        }
    }

    /// `name` with the numbers that it has in braces.
    fn filled(&self, name: &str) -> String {
        let Ok(template) = Template::parse(name) else { return name.to_owned() };
        let layer = self.variables.iter().rev().find(|(known, _)| *known == "l").and_then(|(_, layer)| layer.as_u64());
        let compute = |formula: &Formula| {
            let inner = Scope {
                facts: self.facts,
                variables: self.variables.clone(),
                open: RefCell::default(),
                steps: self.steps.clone(),
            };
            inner.value(formula).ok().and_then(|value| whole(&value)).ok_or(())
        };
        match layer.is_none() && template.has_layer() {
            true => name.to_owned(),
            false => template.filled(layer.map(|layer| layer as usize), None, &compute).unwrap_or(name.to_owned()),
        }
    }
}

//! Which field of config.json makes a formula have a value: the reverse of a key's formula, where it has one.

use serde_json::Value as Json;

use crate::arch::Family;
use crate::arch::language::{Binary, Formula, Function, Unary};

/// The reverse of formulas of a family.
pub(super) struct Inverse<'a> {
    pub(super) family: &'static Family,
    /// Whether the class has a field of this name.
    pub(super) has_field: &'a dyn Fn(&str) -> bool,
}

/// A field, its value, and what implies this value if the field is left out.
type Solution = (String, Json, Option<&'static Formula>);

/// How deep `let`s may use each other.
const MAX_LETS: usize = 16;

impl Inverse<'_> {
    /// The field to set; `None` if no single field gives the value.
    pub(super) fn solve(&self, formula: &'static Formula, value: Json) -> Option<Solution> {
        self.within(formula, value, &mut Vec::new())
    }

    fn within(&self, formula: &'static Formula, value: Json, open: &mut Vec<&'static str>) -> Option<Solution> {
        match formula {
            Formula::Name(name) => match self.family.lets.get(name) {
                Some(known) if !open.contains(&name.as_str()) && open.len() < MAX_LETS => {
                    open.push(name);
                    self.within(known, value, open)
                }
                _ => (self.has_field)(name).then(|| (name.clone(), value, None)),
            },
            Formula::Member(of, name) => {
                let path = format!("{}.{name}", path(of)?);
                (self.has_field)(&path).then_some((path, value, None))
            }
            Formula::Required(of) => self.within(of, value, open),
            Formula::Coalesce(parts) => {
                // The first field that the class has. A last part that is no field implies the value.
                let field = parts.iter().find_map(|part| self.within(part, value.clone(), &mut open.clone()))?;
                let implied = parts.last().filter(|last| !matches!(last, Formula::Name(_) | Formula::Member(..)));
                let (name, value, known) = field;
                Some((name, value, known.or(implied)))
            }
            Formula::Unary(Unary::Not, of) => self.within(of, Json::Bool(!value.as_bool()?), open),
            Formula::Unary(Unary::Negative, of) => self.within(of, number(-value.as_f64()?, &value)?, open),
            Formula::Binary(operator, left, right) => {
                let constant = |formula: &Formula| match formula {
                    Formula::Literal(number) => number.as_f64(),
                    _ => None,
                };
                let found = value.as_f64()?;
                let (of, back) = match (operator, constant(left), constant(right)) {
                    (Binary::Add, None, Some(c)) => (left, found - c),
                    (Binary::Add, Some(c), None) => (right, found - c),
                    (Binary::Subtract, None, Some(c)) => (left, found + c),
                    (Binary::Multiply, None, Some(c)) if c != 0.0 => (left, found / c),
                    (Binary::Multiply, Some(c), None) if c != 0.0 => (right, found / c),
                    (Binary::Divide, None, Some(c)) => (left, found * c),
                    _ => return None,
                };
                self.within(of, number(back, &value)?, open)
            }
            Formula::Call(Function::Choose, arguments) => {
                let is_this = |pair: &&[Formula]| matches!(&pair[1], Formula::Literal(known) if crate::arch::language::equal(known, &value));
                let pair = arguments[1..].chunks_exact(2).find(is_this)?;
                match &pair[0] {
                    Formula::Literal(text) => self.within(&arguments[0], text.clone(), open),
                    _ => None,
                }
            }
            Formula::Call(Function::Int | Function::Float | Function::F32, arguments) => {
                self.within(&arguments[0], value, open)
            }
            _ => None,
        }
    }
}

/// `a.b.c`
fn path(formula: &Formula) -> Option<String> {
    match formula {
        Formula::Name(name) => Some(name.clone()),
        Formula::Member(of, name) => Some(format!("{}.{name}", path(of)?)),
        _ => None,
    }
}

/// A number; whole if `like` is and it can be.
fn number(value: f64, like: &Json) -> Option<Json> {
    if like.is_u64() || like.is_i64() {
        return (value.fract() == 0.0 && value.abs() < 9e15).then(|| Json::from(value as i64));
    }
    // A key has the precision of f32.
    (value as f32).to_string().parse::<f64>().ok().map(Json::from)
}

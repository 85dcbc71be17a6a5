//! Formulas: sizes, conditions and values of keys, computed from a model's config.

use serde_json::Value as Json;

use super::scan::{Mistake, Scanner};

/// A formula, parsed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Formula {
    /// A number, a text, a truth value, or null.
    Literal(Json),
    /// A variable, a `let` of the family, or a field of config.json.
    Name(String),
    /// `of.name`: a field of an object.
    Member(Box<Formula>, String),
    /// `of[index]`: an element of a list, or a field of an object.
    Index(Box<Formula>, Box<Formula>),
    /// `of!`: an error where it is null.
    Required(Box<Formula>),
    /// An operator with one operand.
    Unary(Unary, Box<Formula>),
    /// An operator with two operands.
    Binary(Binary, Box<Formula>, Box<Formula>),
    /// `a ?? b ?? c`: the first that isn't null.
    Coalesce(Vec<Formula>),
    /// `condition ? then : otherwise`
    Choice(Box<Formula>, Box<Formula>, Box<Formula>),
    /// `[a, b]`
    List(Vec<Formula>),
    /// `{"name": value}`
    Object(Vec<(String, Formula)>),
    /// `[each for name in over if condition]`
    Each { each: Box<Formula>, name: String, over: Box<Formula>, condition: Option<Box<Formula>> },
    /// `function(arguments)`
    Call(Function, Vec<Formula>),
}

/// An operator with one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Not,
    Negative,
}

/// An operator with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    /// Rounded down.
    DivideWhole,
    Remainder,
}

/// A function: its name, and how many arguments it takes at least and at most.
type Signature = (&'static str, Function, usize, usize);

/// The functions.
const FUNCTIONS: &[Signature] = &[
    ("set", Function::Set, 1, 1),
    ("len", Function::Len, 1, 1),
    ("sum", Function::Sum, 1, 1),
    ("max", Function::Max, 1, 8),
    ("min", Function::Min, 1, 8),
    ("int", Function::Int, 1, 1),
    ("float", Function::Float, 1, 1),
    ("f32", Function::F32, 1, 1),
    ("sqrt", Function::Sqrt, 1, 1),
    ("ln", Function::Ln, 1, 1),
    ("exp", Function::Exp, 1, 1),
    ("round_up", Function::RoundUp, 2, 2),
    ("ceil_div", Function::CeilDiv, 2, 2),
    ("count", Function::Count, 2, 2),
    ("index", Function::IndexOf, 2, 2),
    ("contains", Function::Contains, 2, 2),
    ("starts", Function::Starts, 2, 2),
    ("ends", Function::Ends, 2, 2),
    ("lower", Function::Lower, 1, 1),
    ("choose", Function::Choose, 3, 99),
    ("tensor", Function::Tensor, 1, 1),
    ("dim", Function::Dim, 2, 2),
    ("file", Function::File, 1, 1),
    ("exists", Function::Exists, 1, 1),
    ("token", Function::Token, 1, 1),
    ("template", Function::Template, 1, 1),
    ("gguf", Function::Gguf, 1, 1),
    ("root", Function::Root, 1, 1),
    ("target", Function::Target, 1, 1),
    ("zero_rows", Function::ZeroRows, 1, 1),
    ("pow", Function::Pow, 2, 2),
    ("log2", Function::Log2, 1, 1),
    ("floor", Function::Floor, 1, 1),
    ("round", Function::Round, 1, 1),
    ("abs", Function::Abs, 1, 1),
    ("split", Function::Split, 2, 2),
    ("join", Function::Join, 2, 2),
    ("str", Function::Str, 1, 1),
    ("normal_quantile", Function::NormalQuantile, 1, 1),
    ("normal_part", Function::NormalPart, 1, 1),
    ("values", Function::Values, 1, 1),
    ("many", Function::Many, 1, 1),
    ("equal", Function::Equal, 2, 2),
];

/// A function of the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Set,
    Len,
    Sum,
    Max,
    Min,
    Int,
    Float,
    F32,
    Sqrt,
    Ln,
    Exp,
    RoundUp,
    CeilDiv,
    Count,
    IndexOf,
    Contains,
    Starts,
    Ends,
    Lower,
    Choose,
    Tensor,
    Dim,
    File,
    Exists,
    Token,
    /// A chat template that llama.cpp has.
    Template,
    Gguf,
    Root,
    Target,
    ZeroRows,
    Pow,
    Log2,
    Floor,
    Round,
    Abs,
    Split,
    Join,
    Str,
    NormalQuantile,
    NormalPart,
    Values,
    Many,
    Equal,
}

/// The operators with two operands, from the loosest to the tightest, with their spellings.
const LEVELS: &[&[(&str, Binary)]] = &[
    &[("or", Binary::Or)],
    &[("and", Binary::And)],
    &[
        ("==", Binary::Equal),
        ("!=", Binary::Unequal),
        ("<=", Binary::LessEqual),
        (">=", Binary::GreaterEqual),
        ("<", Binary::Less),
        (">", Binary::Greater),
        ("in", Binary::In),
    ],
    &[("+", Binary::Add), ("-", Binary::Subtract)],
    &[("*", Binary::Multiply), ("//", Binary::DivideWhole), ("/", Binary::Divide), ("%", Binary::Remainder)],
];

/// How deep formulas may be nested.
const MAX_DEPTH: usize = 64;

impl Formula {
    /// Reads a formula.
    ///
    /// # Errors
    /// The first mistake in it.
    pub(crate) fn read(scanner: &mut Scanner) -> Result<Self, Mistake> {
        choice(scanner, 0)
    }

    /// Reads an operand: a number, a name, or a formula in parentheses, with what follows it directly.
    ///
    /// # Errors
    /// The first mistake in it.
    pub(crate) fn read_operand(scanner: &mut Scanner) -> Result<Self, Mistake> {
        postfix(scanner, 0)
    }

    /// Whether the name occurs in the formula.
    pub(crate) fn uses(&self, name: &str) -> bool {
        let mut found = false;
        self.visit(&mut |formula| found |= matches!(formula, Formula::Name(known) if known == name));
        found
    }

    /// The first name in the formula.
    pub(crate) fn first_name(&self) -> Option<&str> {
        match self {
            Formula::Name(name) => Some(name),
            Formula::Member(of, _) | Formula::Index(of, _) | Formula::Required(of) | Formula::Unary(_, of) => {
                of.first_name()
            }
            Formula::Binary(_, a, b) => a.first_name().or_else(|| b.first_name()),
            Formula::Choice(a, b, c) => a.first_name().or_else(|| b.first_name()).or_else(|| c.first_name()),
            Formula::Each { each, over, .. } => over.first_name().or_else(|| each.first_name()),
            Formula::Object(fields) => fields.iter().find_map(|(_, value)| value.first_name()),
            Formula::Coalesce(of) | Formula::List(of) | Formula::Call(_, of) => of.iter().find_map(Formula::first_name),
            Formula::Literal(_) => None,
        }
    }

    /// Calls `visit` for the formula and everything in it.
    pub(crate) fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Formula)) {
        visit(self);
        match self {
            Formula::Literal(_) | Formula::Name(_) => {}
            Formula::Member(of, _) | Formula::Required(of) | Formula::Unary(_, of) => of.visit(visit),
            Formula::Index(a, b) | Formula::Binary(_, a, b) => {
                a.visit(visit);
                b.visit(visit);
            }
            Formula::Each { each, over, condition, .. } => {
                [Some(each), Some(over), condition.as_ref()].into_iter().flatten().for_each(|of| of.visit(visit));
            }
            Formula::Object(fields) => fields.iter().for_each(|(_, value)| value.visit(visit)),
            Formula::Choice(a, b, c) => [a, b, c].into_iter().for_each(|of| of.visit(visit)),
            Formula::Coalesce(of) | Formula::List(of) | Formula::Call(_, of) => {
                of.iter().for_each(|of| of.visit(visit));
            }
        }
    }
}

/// `coalesce [? choice : choice]`
fn choice(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    if depth > MAX_DEPTH {
        return Err(scanner.mistake(format!("a formula nested at most {MAX_DEPTH} times")));
    }
    let condition = coalesce(scanner, depth)?;
    if !scanner.takes("?") {
        return Ok(condition);
    }
    let then = choice(scanner, depth + 1)?;
    scanner.need(":")?;
    let otherwise = choice(scanner, depth + 1)?;
    Ok(Formula::Choice(condition.into(), then.into(), otherwise.into()))
}

/// `binary ?? binary ...`
fn coalesce(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    let mut parts = vec![binary(scanner, 0, depth)?];
    while scanner.takes("??") {
        parts.push(binary(scanner, 0, depth)?);
    }
    Ok(match parts.len() {
        1 => parts.remove(0),
        _ => Formula::Coalesce(parts),
    })
}

fn binary(scanner: &mut Scanner, level: usize, depth: usize) -> Result<Formula, Mistake> {
    let Some(operators) = LEVELS.get(level) else { return unary(scanner, depth) };
    let mut left = binary(scanner, level + 1, depth)?;
    loop {
        let takes = |scanner: &mut Scanner, spelling: &str| match spelling.chars().all(char::is_alphabetic) {
            true => scanner.takes_word(spelling),
            false => scanner.takes(spelling),
        };
        let Some((_, operator)) = operators.iter().find(|(spelling, _)| takes(scanner, spelling)) else {
            return Ok(left);
        };
        scanner.count()?;
        let right = binary(scanner, level + 1, depth)?;
        left = Formula::Binary(*operator, left.into(), right.into());
    }
}

fn unary(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    if depth > MAX_DEPTH {
        return Err(scanner.mistake(format!("a formula nested at most {MAX_DEPTH} times")));
    }
    if scanner.takes_word("not") {
        // `not a == b` is `not (a == b)`.
        return Ok(Formula::Unary(Unary::Not, binary(scanner, 2, depth + 1)?.into()));
    }
    if scanner.takes("-") {
        return Ok(Formula::Unary(Unary::Negative, unary(scanner, depth + 1)?.into()));
    }
    postfix(scanner, depth)
}

fn postfix(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    let mut of = operand(scanner, depth)?;
    loop {
        if scanner.takes_directly("[") {
            let index = choice(scanner, depth + 1)?;
            scanner.need("]")?;
            of = Formula::Index(of.into(), index.into());
        } else if scanner.takes_directly(".") {
            let Some(name) = scanner.name() else { return Err(scanner.mistake("the name of a field")) };
            of = Formula::Member(of.into(), name.to_owned());
        } else if scanner.takes_required() {
            of = Formula::Required(of.into());
        } else {
            return Ok(of);
        }
        scanner.count()?;
    }
}

fn operand(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    if let Some(number) = scanner.number()? {
        return Ok(Formula::Literal(number));
    }
    if let Some(text) = scanner.quoted()? {
        return Ok(Formula::Literal(text.into()));
    }
    if scanner.takes("(") {
        let inner = choice(scanner, depth + 1)?;
        scanner.need(")")?;
        return Ok(inner);
    }
    if scanner.takes("[") {
        return list(scanner, depth);
    }
    if scanner.takes("{") {
        return object(scanner, depth);
    }
    let place = scanner.place();
    let Some(name) = scanner.name() else { return Err(scanner.mistake("a value")) };
    match name {
        "true" => return Ok(Formula::Literal(true.into())),
        "false" => return Ok(Formula::Literal(false.into())),
        "null" => return Ok(Formula::Literal(Json::Null)),
        _ => {}
    }
    if !scanner.takes_directly("(") {
        return Ok(Formula::Name(name.to_owned()));
    }
    let Some((_, function, least, most)) = FUNCTIONS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = FUNCTIONS.iter().map(|(known, ..)| *known).collect();
        return Err(scanner.mistake_at(place, format!("a function: {}", known.join(", ")), name));
    };
    let mut arguments = Vec::new();
    while !scanner.takes(")") {
        if !arguments.is_empty() {
            scanner.need(",")?;
        }
        arguments.push(choice(scanner, depth + 1)?);
    }
    if arguments.len() < *least || arguments.len() > *most {
        let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
        return Err(scanner.mistake_at(place, format!("{expected} arguments of {name}"), arguments.len().to_string()));
    }
    Ok(Formula::Call(*function, arguments))
}

/// What follows `{`: `"name": value}`
fn object(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    let mut fields = Vec::new();
    while !scanner.takes("}") {
        if !fields.is_empty() {
            scanner.need(",")?;
        }
        let Some(name) = scanner.quoted()? else { return Err(scanner.mistake("a field's name in quotes")) };
        scanner.need(":")?;
        fields.push((name, choice(scanner, depth + 1)?));
    }
    Ok(Formula::Object(fields))
}

/// What follows `[`: `a, b]` or `each for name in over]`.
fn list(scanner: &mut Scanner, depth: usize) -> Result<Formula, Mistake> {
    let mut values = Vec::new();
    loop {
        if scanner.takes("]") {
            return Ok(Formula::List(values));
        }
        if !values.is_empty() {
            scanner.need(",")?;
        }
        values.push(choice(scanner, depth + 1)?);
        if values.len() == 1 && scanner.takes_word("for") {
            let Some(name) = scanner.name() else { return Err(scanner.mistake("a variable's name")) };
            if !scanner.takes_word("in") {
                return Err(scanner.mistake("`in`"));
            }
            let over = choice(scanner, depth + 1)?.into();
            let condition = if scanner.takes_word("if") { Some(choice(scanner, depth + 1)?.into()) } else { None };
            scanner.need("]")?;
            return Ok(Formula::Each { each: values.remove(0).into(), name: name.to_owned(), over, condition });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Formula, String> {
        let mut scanner = Scanner::of(text);
        let formula = Formula::read(&mut scanner).map_err(|e| e.to_string())?;
        if scanner.is_done() { Ok(formula) } else { Err(scanner.mistake("the end").to_string()) }
    }

    #[test]
    fn operators_bind_as_documented() {
        assert_eq!(read("a + b * c"), read("a + (b * c)"));
        assert_eq!(read("not a == b and c"), read("(not (a == b)) and c"));
        assert_eq!(read("a ?? b + 1 ?? c"), read("a ?? (b + 1) ?? c"));
        assert_eq!(read("a or b ? c : d ? e : f"), read("(a or b) ? c : (d ? e : f)"));
        assert_eq!(read("-a.b[l]!"), read("-(((a.b)[l])!)"));
        assert!(read("a != b").is_ok_and(|f| matches!(f, Formula::Binary(Binary::Unequal, ..))));
        assert!(read("a! == b").is_ok_and(|f| matches!(f, Formula::Binary(Binary::Equal, ..))));
    }

    #[test]
    fn mistakes_say_where_and_what() {
        for (text, expected) in [
            ("a + ", "line 1, column 4: expected a value, found the end of the statement"),
            ("len(a", "line 1, column 6: expected `,`, found the end of the statement"),
            ("len()", "line 1, column 1: expected 1 arguments of len, found 0"),
            ("width(a)", "line 1, column 1: expected a function: set, len"),
            ("[a for 3 in b]", "line 1, column 8: expected a variable's name, found 3"),
            ("\"open", "line 1, column 1: expected a text that ends, found \"open"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        assert!(read(&"(".repeat(1000)).unwrap_err().contains("nested at most 64 times"));
        assert!(read(&"-".repeat(1000)).unwrap_err().contains("nested at most 64 times"));
    }
}

//! Reads the `tensor` statements of family files.

use super::language::{Formula, Mistake, Scanner, Template};
use super::row::{Change, End, Form, KeptType, Operation, Part, ROLES, Row};

/// The rows of `ROLE NAME = FORM or FORM CLAUSES`: one, or two where there is a bias.
pub(super) fn rows(scanner: &mut Scanner) -> Result<Vec<Row>, Mistake> {
    let place = scanner.place();
    let word = scanner.word().unwrap_or_default();
    let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == word) else {
        let names: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
        return Err(scanner.mistake_at(place, format!("a role: {}", names.join(", ")), word));
    };
    let gguf = Template::read(scanner)?;
    scanner.need("=")?;
    let mut forms = vec![form(scanner)?];
    while scanner.takes_word("or") {
        forms.push(form(scanner)?);
    }
    let mut row = Row {
        role: *role,
        gguf,
        forms,
        when: None,
        is_optional: false,
        is_copy: false,
        end: None,
        kept_type: None,
        over: None,
    };
    let mut bias: Option<(Option<Formula>, bool)> = None;
    loop {
        if scanner.takes_word("when") {
            row.when = Some(Formula::read(scanner)?);
        } else if scanner.takes_word("maybe") {
            row.is_optional = true;
        } else if scanner.takes_word("copy") {
            row.is_copy = true;
        } else if scanner.takes_word("last") {
            row.end = Some(End::Last);
        } else if scanner.takes_word("listed") {
            row.end = Some(End::Listed);
        } else if scanner.takes_word("first") {
            row.end = Some(End::First);
        } else if scanner.takes_word("as") {
            let kept = if scanner.takes_word("f32") {
                KeptType::F32
            } else if scanner.takes_word("f16_or_f32") {
                KeptType::F16OrF32
            } else if scanner.takes_word("f16") {
                KeptType::F16
            } else if scanner.takes_word("any") {
                KeptType::Output
            } else if scanner.takes_word("q8_0") {
                KeptType::Q8_0
            } else if scanner.takes_word("i32") {
                KeptType::I32
            } else if scanner.takes_word("i64") {
                KeptType::I64
            } else {
                return Err(scanner.mistake("f32, f16, f16_or_f32, q8_0, i32, i64 or any"));
            };
            let condition = if scanner.takes_word("if") { Some(Formula::read(scanner)?) } else { None };
            row.kept_type = Some((kept, condition));
        } else if scanner.takes_word("over") {
            row.over = Some(Formula::read(scanner)?);
        } else if scanner.takes_word("bias") {
            bias = Some(if scanner.takes_word("maybe") {
                (None, true)
            } else if scanner.takes_word("when") {
                (Some(Formula::read(scanner)?), false)
            } else {
                (None, false)
            });
        } else {
            break;
        }
    }
    if !scanner.is_done() {
        return Err(
            scanner.mistake("when, maybe, bias, as, over, copy, first, last, listed, or the end of the statement")
        );
    }
    let twin = match bias {
        None => None,
        Some((when, maybe)) => Some(
            bias_of(&row, when, maybe)
                .ok_or_else(|| scanner.mistake_at(place, "names that end in .weight, for a bias", row.gguf.text()))?,
        ),
    };
    Ok(std::iter::once(row).chain(twin).collect())
}

/// The row of the bias that belongs to a weight: other names, and one value for each output.
fn bias_of(row: &Row, when: Option<Formula>, is_optional: bool) -> Option<Row> {
    let name = |of: &Template| Template::parse(&format!("{}.bias", of.text().strip_suffix(".weight")?)).ok();
    let rows_only = |of: &[Operation]| -> Vec<Operation> {
        let keeps = |operation: &&Operation| match operation {
            Operation::Pairs(..) | Operation::Halves(..) | Operation::Qkv(..) => true,
            Operation::Take(dim, ..) | Operation::Order(dim, ..) => *dim == 0,
            _ => false,
        };
        of.iter().filter(keeps).cloned().collect()
    };
    let forms = row.forms.iter().map(|form| {
        let parts = form.parts.iter().map(|part| {
            let turned = |of: &[Operation]| matches!(of.first(), Some(Operation::Swap(..)));
            let output = if turned(&part.operations) || turned(&form.operations) {
                part.shape.last()
            } else {
                part.shape.first()
            };
            Some(Part {
                name: name(&part.name)?,
                stack: part.stack.clone(),
                shape: output.cloned().into_iter().collect(),
                each: rows_only(&part.each),
                operations: rows_only(&part.operations),
                is_operand: part.is_operand,
            })
        });
        Some(Form {
            parts: parts.collect::<Option<_>>()?,
            join: form.join,
            operations: rows_only(&form.operations),
            when: form.when.clone(),
        })
    });
    let when = match (row.when.clone(), when) {
        (Some(a), Some(b)) => Some(Formula::Binary(super::language::Binary::And, a.into(), b.into())),
        (a, b) => a.or(b),
    };
    Some(Row {
        role: row.role,
        gguf: name(&row.gguf)?,
        forms: forms.collect::<Option<_>>()?,
        when,
        is_optional: row.is_optional || is_optional,
        is_copy: row.is_copy,
        end: row.end,
        kept_type: None,
        over: row.over.clone(),
    })
}

/// `PART + PART | OPERATION`, or `join DIM ( FORM, FORM ) | OPERATION`; either may end in `if CONDITION`.
fn form(scanner: &mut Scanner) -> Result<Form, Mistake> {
    let mut operands = Vec::new();
    let (mut parts, join) = if scanner.takes_word("join") {
        let join = dimension(scanner)?;
        let join = usize::try_from(join).map_err(|_| scanner.mistake("a dimension from 0"))?;
        scanner.need("(")?;
        let mut parts = vec![changed_part(scanner, &mut operands)?];
        while scanner.takes(",") {
            parts.push(changed_part(scanner, &mut operands)?);
        }
        scanner.need(")")?;
        (parts, join)
    } else {
        let mut parts = vec![part(scanner, &mut operands)?];
        while scanner.takes("+") {
            parts.push(part(scanner, &mut operands)?);
        }
        (parts, 0)
    };
    let operations = operations(scanner, None, &mut operands)?;
    parts.extend(operands);
    let when = if scanner.takes_word("if") { Some(Formula::read_operand(scanner)?) } else { None };
    Ok(Form { parts, join, operations, when })
}

/// A part with operations of its own.
fn changed_part(scanner: &mut Scanner, operands: &mut Vec<Part>) -> Result<Part, Mistake> {
    let mut part = part(scanner, operands)?;
    part.operations.extend(operations(scanner, None, operands)?);
    Ok(part)
}

/// `NAME [SHAPE]`, `stack COUNT NAME [SHAPE]`, or a part with operations in parentheses. `stack COUNT (NAME [SHAPE] |
/// OPERATION)` changes each tensor before they are stacked.
fn part(scanner: &mut Scanner, operands: &mut Vec<Part>) -> Result<Part, Mistake> {
    if scanner.takes("(") {
        scanner.count()?;
        let part = changed_part(scanner, operands)?;
        scanner.need(")")?;
        return Ok(part);
    }
    let stack = if scanner.takes_word("stack") { Some(Formula::read_operand(scanner)?) } else { None };
    let changes_each = stack.is_some() && scanner.takes("(");
    let place = scanner.place();
    let name = Template::read(scanner)?;
    if stack.is_some() != name.has_place() {
        let expected = if stack.is_some() {
            "`{e}` in the name of a stack's part"
        } else {
            "`stack COUNT` before a name with `{e}`"
        };
        return Err(scanner.mistake_at(place, expected, name.text()));
    }
    let shape = open_sizes(scanner)?;
    let mut each = Vec::new();
    if changes_each {
        each = operations(scanner, stack.as_ref(), operands)?;
        scanner.need(")")?;
    }
    Ok(Part { name, stack, shape, each, operations: Vec::new(), is_operand: false })
}

/// `[A, _]`: sizes, of which some may be any.
fn open_sizes(scanner: &mut Scanner) -> Result<Vec<Option<Formula>>, Mistake> {
    scanner.need("[")?;
    let mut shape = Vec::new();
    while !scanner.takes("]") {
        if !shape.is_empty() {
            scanner.need(",")?;
        }
        shape.push(if scanner.takes_word("_") { None } else { Some(Formula::read(scanner)?) });
    }
    Ok(shape)
}

/// Operations one after the other. `stack` is the number of tensors, where they change each tensor of a stack.
fn operations(
    scanner: &mut Scanner,
    stack: Option<&Formula>,
    operands: &mut Vec<Part>,
) -> Result<Vec<Operation>, Mistake> {
    let mut all = Vec::new();
    while scanner.takes("|") {
        all.push(operation(scanner, stack, operands)?);
    }
    Ok(all)
}

/// An operand of an operation: `NAME [SHAPE]`, or `(NAME [SHAPE] | OPERATION)`. Returns its number. In a stack, `{e}` in
/// its name is the number of the tensor that is changed.
fn operand(scanner: &mut Scanner, stack: Option<&Formula>, operands: &mut Vec<Part>) -> Result<usize, Mistake> {
    let is_changed = scanner.takes("(");
    let place = scanner.place();
    let name = Template::read(scanner)?;
    if name.has_place() && stack.is_none() {
        return Err(scanner.mistake_at(place, "a name without `{e}`, outside of a stack", name.text()));
    }
    let stack = stack.filter(|_| name.has_place()).cloned();
    let shape = open_sizes(scanner)?;
    let mut each = Vec::new();
    if is_changed {
        while scanner.takes("|") {
            let place = scanner.place();
            each.push(operation(scanner, None, &mut Vec::new())?);
            if let Some(name) = each.last().and_then(Operation::of_several) {
                return Err(scanner.mistake_at(place, "an operation of one tensor", name));
            }
        }
        scanner.need(")")?;
    }
    operands.push(Part { name, stack, shape, each, operations: Vec::new(), is_operand: true });
    Ok(operands.len() - 1)
}

const OPERATIONS: &str = "an operation: take, swap, reshape, order, pairs, halves, qkv, permute, add, mul, neg, exp, \
                          negexp, softplus, silu, gelu, relu, act, at_least, recip, pad, pad_front, squeeze, unsqueeze, \
                          sum, grid, trim_vocab, ternary, linear, divide, proc";

fn operation(scanner: &mut Scanner, stack: Option<&Formula>, operands: &mut Vec<Part>) -> Result<Operation, Mistake> {
    let place = scanner.place();
    let Some(name) = scanner.name() else { return Err(scanner.mistake(OPERATIONS)) };
    Ok(match name {
        "take" => {
            let dim = dimension(scanner)?;
            Operation::Take(dim, Formula::read_operand(scanner)?, Formula::read_operand(scanner)?)
        }
        "swap" => {
            let is_number = scanner.peek().is_some_and(|c| c.is_ascii_digit() || c == '-');
            match is_number {
                true => Operation::Swap(dimension(scanner)?, dimension(scanner)?),
                false => Operation::Swap(-2, -1),
            }
        }
        "reshape" => Operation::Reshape(sizes(scanner)?),
        "order" => {
            let dim = dimension(scanner)?;
            let sizes = sizes(scanner)?;
            let order = digits(scanner, sizes.len())?;
            Operation::Order(dim, sizes, order)
        }
        "pairs" | "halves" => {
            let heads = Formula::read_operand(scanner)?;
            let more = scanner.peek().is_some_and(|c| c == '(' || c.is_ascii_digit() || c.is_alphabetic());
            let clause = ["or", "when", "maybe", "bias", "as", "over", "copy", "first", "last", "listed", "if"]
                .iter()
                .any(|word| scanner.sees_word(word));
            let part = if more && !clause { Some(Formula::read_operand(scanner)?) } else { None };
            if name == "pairs" { Operation::Pairs(heads, part) } else { Operation::Halves(heads, part) }
        }
        "qkv" => Operation::Qkv(Formula::read_operand(scanner)?),
        "permute" => Operation::Permute(digits(scanner, 0)?),
        "add" => Operation::Add(signed(scanner)?),
        "mul" => Operation::Multiply(signed(scanner)?),
        "neg" => Operation::Each(Change::Negative),
        "exp" => Operation::Each(Change::Exp),
        "negexp" => Operation::Each(Change::NegativeExp),
        "softplus" => Operation::Each(Change::Softplus),
        "silu" => Operation::Each(Change::Silu),
        "gelu" => Operation::Each(Change::Gelu),
        "relu" => Operation::Each(Change::Relu),
        "act" => Operation::Activation(Formula::read_operand(scanner)?),
        "at_least" => Operation::AtLeast(signed(scanner)?),
        "linear" => {
            let weight = operand(scanner, stack, operands)?;
            let bias = if scanner.takes("+") { Some(operand(scanner, stack, operands)?) } else { None };
            Operation::Linear { weight, bias }
        }
        "divide" => Operation::Divide(operand(scanner, stack, operands)?),
        "pad" => Operation::Pad(dimension(scanner)?, Formula::read_operand(scanner)?),
        "pad_front" => Operation::PadFront(dimension(scanner)?, Formula::read_operand(scanner)?),
        "recip" => Operation::Reciprocal,
        "unsqueeze" => Operation::Unsqueeze(dimension(scanner)?),
        "squeeze" => Operation::Squeeze(dimension(scanner)?),
        "sum" => Operation::Sum(dimension(scanner)?),
        "grid" => Operation::Grid(Formula::read_operand(scanner)?),
        "trim_vocab" => Operation::TrimVocab,
        "ternary" => Operation::Ternary,
        "proc" => {
            let Some(name) = scanner.name() else { return Err(scanner.mistake("a procedure's name")) };
            Operation::Procedure(name.to_owned())
        }
        _ => return Err(scanner.mistake_at(place, OPERATIONS, name)),
    })
}

fn signed(scanner: &mut Scanner) -> Result<Formula, Mistake> {
    if scanner.takes("-") {
        let of = Formula::read_operand(scanner)?;
        return Ok(Formula::Unary(super::language::Unary::Negative, of.into()));
    }
    Formula::read_operand(scanner)
}

fn dimension(scanner: &mut Scanner) -> Result<i64, Mistake> {
    let negative = scanner.takes("-");
    match scanner.number()?.and_then(|number| number.as_i64()).filter(|number| *number < 8) {
        Some(number) => Ok(if negative { -number } else { number }),
        None => Err(scanner.mistake("a dimension")),
    }
}

/// `[A, B, C]`
pub(super) fn sizes(scanner: &mut Scanner) -> Result<Vec<Formula>, Mistake> {
    scanner.need("[")?;
    let mut all = Vec::new();
    while !scanner.takes("]") {
        if !all.is_empty() {
            scanner.need(",")?;
        }
        all.push(Formula::read(scanner)?);
    }
    Ok(all)
}

/// The order of dimensions as digits: `021`. `count` is how many there are; 0 is any number.
fn digits(scanner: &mut Scanner, count: usize) -> Result<Vec<usize>, Mistake> {
    let place = scanner.place();
    let word = scanner.digits();
    let order: Option<Vec<usize>> = word.chars().map(|c| Some(c.to_digit(10)? as usize)).collect();
    let is_order = |order: &Vec<usize>| {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        !order.is_empty() && sorted.iter().copied().eq(0..order.len()) && (count == 0 || order.len() == count)
    };
    let expected = || match count {
        0 => "the order of dimensions, such as 021".to_owned(),
        _ => format!("the order of {count} dimensions, such as 021"),
    };
    order.filter(is_order).ok_or_else(|| scanner.mistake_at(place, expected(), word))
}

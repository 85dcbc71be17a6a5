//! Filters and tests of Jinja that do something else in minijinja, or aren't there.
//!
//! Reference: Jinja `filters.py` and `tests.py`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::environment::invalid;
use super::methods::lines;
use super::numbers::{Parsed, float, int};
use super::python::{Keys, is_space, repr, text};

/// The widest text that `pprint` leaves on one line.
const PPRINT_WIDTH: usize = 80;
/// The widest that lines are indented by.
const WIDEST_INDENT: usize = 1024;

/// Gives `environment` the filters and tests.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map && !is_opaque(value));
    environment.add_test("callable", is_callable);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment.add_filter("string", |value: &Value| if value.is_safe() { value.clone() } else { text(value).into() });
    environment.add_filter("trim", trim);
    environment.add_filter("attr", attr);
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("pprint", pprint);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", |value: &Value| minijinja_contrib::filters::wordcount(&text(value).into()));
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
}

/// Whether `value` has a length and items: lists, but texts and dictionaries too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
        && !is_opaque(value)
}

/// Whether `value` is a namespace or a macro, which are dictionaries here and have neither length nor items in Jinja.
fn is_opaque(value: &Value) -> bool {
    let name = value.as_object().map(|object| object.type_name()).unwrap_or_default();
    name.ends_with("::Namespace") || name.ends_with("::Macro")
}

/// Whether a loop can go over `value`. minijinja's loops go over none, too.
fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

/// Whether `value` can be called: a function or a macro. Undefined values can, in Jinja: the call then fails. So do methods,
/// which are undefined here until they are called.
fn is_callable(value: &Value) -> bool {
    const CALLABLE: [&str; 3] = ["::BoxedFunction", "::Macro", "::Joiner"];
    let is_function = |name: &str| CALLABLE.iter().any(|end| name.ends_with(end));
    value.is_undefined() || value.as_object().is_some_and(|object| is_function(object.type_name()))
}

/// A text that is safe in HTML, with MarkupSafe's names of characters.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let text = text(value).replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;");
    Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

fn trim(value: &Value, chars: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    let chars = chars.or(kwargs.get::<Option<&str>>("chars")?);
    kwargs.assert_all_used()?;
    let text = text(value);
    let text = text.trim_matches(|c| chars.map_or_else(|| is_space(c), |chars| chars.contains(c)));
    Ok(if value.is_safe() { Value::from_safe_string(text.to_owned()) } else { Value::from(text) })
}

/// An attribute of an object. The fields of a dictionary are items, no attributes: it has none but methods.
fn attr(value: &Value, name: &str) -> Result<Value, Error> {
    const METHODS: [&str; 11] =
        ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
    let has_attributes = value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("::Namespace") || object.type_name().ends_with("::Loop"));
    match value.kind() {
        ValueKind::Undefined => Err(invalid(format!("attr({name:?}) of a value that isn't defined"))),
        _ if has_attributes => value.get_attr(name),
        ValueKind::Map if METHODS.contains(&name) || name.starts_with("__") => {
            Err(invalid(format!("attr({name:?}) names a method")))
        }
        ValueKind::None | ValueKind::Map => Ok(Value::UNDEFINED),
        kind => Err(invalid(format!("attr({name:?}) of a value of the type {kind}"))),
    }
}

fn join(
    state: &State<'_, '_>,
    value: &Value,
    between: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let between = between.or(kwargs.get::<Option<Value>>("d")?).map(|between| text(&between)).unwrap_or_default();
    let attribute = attribute.or(kwargs.get::<Option<Value>>("attribute")?).filter(|name| !name.is_none());
    kwargs.assert_all_used()?;
    if value.is_none() {
        return Err(invalid("join of None"));
    }
    let mut out = String::new();
    for (place, item) in value.try_iter()?.checked().enumerate() {
        let item = match &attribute {
            Some(path) => at_path(item?, path)?,
            None => item?,
        };
        let (between, item) = (if place > 0 { between.as_str() } else { "" }, text(&item));
        state.consume_fuel(1 + (between.len() + item.len()) as u64 / 64)?;
        out.push_str(between);
        out.push_str(&item);
    }
    Ok(out)
}

/// What is at `path`, names and places with dots between them.
fn at_path(value: Value, path: &Value) -> Result<Value, Error> {
    let Some(names) = path.as_str() else { return value.get_item(path) };
    names.split('.').try_fold(value, |value, name| match name.parse::<i64>() {
        Ok(place) => value.get_item(&Value::from(place)),
        Err(_) => value.get_item(&Value::from(name)),
    })
}

fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get::<Option<Value>>("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(kwargs.get::<Option<bool>>("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get::<Option<bool>>("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indent = match (width.as_str(), width.as_i64()) {
        (Some(indent), _) => indent.to_owned(),
        (None, Some(width)) => " ".repeat(usize::try_from(width).unwrap_or(0).min(WIDEST_INDENT + 1)),
        (None, None) => return Err(invalid("indent takes a width or a text")),
    };
    if indent.len() > WIDEST_INDENT {
        return Err(invalid(format!("indent takes a width of at most {WIDEST_INDENT}")));
    }
    let text = value.as_str().ok_or_else(|| invalid(format!("indent of a value of the type {}", value.kind())))?;
    let ended = format!("{text}\n");
    let mut out = String::new();
    for (place, (line, _)) in lines(&ended).enumerate() {
        out.push_str(if place > 0 { "\n" } else { "" });
        let indented = if place > 0 { blank || !line.is_empty() } else { first };
        out.push_str(if indented { &indent } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// What Python's `pprint` writes of values that have room on a line.
fn pprint(value: &Value) -> Result<String, Error> {
    let text = repr(value, Keys::Sorted);
    match text.chars().count() <= PPRINT_WIDTH || value.is_number() {
        true => Ok(text),
        false => Err(invalid(format!("pprint of a value whose text is longer than {PPRINT_WIDTH} characters"))),
    }
}

fn truncate(
    value: &Value,
    length: Option<i64>,
    killwords: Option<bool>,
    end: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let length = length.or(kwargs.get::<Option<i64>>("length")?).unwrap_or(255);
    let killwords = killwords.or(kwargs.get::<Option<bool>>("killwords")?).unwrap_or(false);
    let end = end.or(kwargs.get::<Option<&str>>("end")?).unwrap_or("...");
    let leeway = kwargs.get::<Option<i64>>("leeway")?.unwrap_or(5);
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Ok(Value::from(""));
    }
    let text = value.as_str().ok_or_else(|| invalid(format!("truncate of a value of the type {}", value.kind())))?;
    let whole = |number: i64| usize::try_from(number).ok();
    let kept = whole(length).and_then(|length| length.checked_sub(end.chars().count()));
    let (Some(kept), Some(leeway)) = (kept, whole(leeway)) else {
        return Err(invalid(format!("truncate takes a length of at least that of {end:?}, and a leeway from 0")));
    };
    if text.chars().count() <= (kept + end.chars().count()).saturating_add(leeway) {
        return Ok(value.clone());
    }
    let kept = &text[..text.char_indices().nth(kept).map_or(text.len(), |(byte, _)| byte)];
    let kept = if killwords { kept } else { kept.rsplit_once(' ').map_or(kept, |(words, _)| words) };
    Ok(Value::from(format!("{kept}{end}")))
}

fn to_int(value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get::<Option<Value>>("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(kwargs.get::<Option<u32>>("base")?).unwrap_or(10);
    kwargs.assert_all_used()?;
    let whole = |number: f64| match number.trunc() {
        number if number.abs() < 2f64.powi(126) => Ok(Value::from(number as i128)),
        _ => Err(invalid(format!("int of {number}, which is too large"))),
    };
    match value.kind() {
        ValueKind::Undefined => Err(invalid("int of a value that isn't defined")),
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => match f64::try_from(value.clone())? {
            number if number.is_nan() => Ok(default),
            number => whole(number),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            match int(text, base) {
                Parsed::Number(number) => return Ok(Value::from(number)),
                Parsed::Unread(reason) => return Err(invalid(reason)),
                Parsed::None => {}
            }
            match float(text) {
                Parsed::Number(number) if number.is_finite() => whole(number),
                Parsed::Unread(reason) => Err(invalid(reason)),
                Parsed::Number(_) | Parsed::None => Ok(default),
            }
        }
        _ => Ok(default),
    }
}

fn to_float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get::<Option<Value>>("default")?).unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    match value.kind() {
        ValueKind::Undefined => Err(invalid("float of a value that isn't defined")),
        ValueKind::Bool => Ok(Value::from(if value.is_true() { 1.0 } else { 0.0 })),
        ValueKind::Number => match value.as_i64() {
            Some(number) if value.is_integer() => Ok(Value::from(number as f64)),
            _ => Ok(Value::from(f64::try_from(value.clone())?)),
        },
        ValueKind::String => match float(value.as_str().unwrap_or_default()) {
            Parsed::Number(number) => Ok(Value::from(number)),
            Parsed::Unread(reason) => Err(invalid(reason)),
            Parsed::None => Ok(default),
        },
        _ => Ok(default),
    }
}

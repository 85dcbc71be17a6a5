//! The environment of a template: its language, and the functions that transformers gives it.

use std::fmt::Write;

use chrono::Local;
use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, escape_formatter};
use serde_json::Map;

use super::json::{Layout, python_json_with};
use super::{cycles, escapes, filters, methods, namespaces, python};

/// The most steps of a rendering. Chats of a thousand turns take some hundred thousand.
const STEPS: u64 = 20_000_000;

/// The name of the only template of an environment.
const NAME: &str = "chat";

/// An environment with `template` in it. An error is in words for a message.
pub(super) fn compile(template: String) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| in_words(&error))?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|out, state, value| match value.kind() {
        // Python would print the word None, which no data has.
        ValueKind::None => Ok(()),
        ValueKind::Number | ValueKind::Seq | ValueKind::Map if *state.auto_escape() == AutoEscape::None => {
            Ok(out.write_str(&python::text(value))?)
        }
        _ => escape_formatter(out, state, value),
    });
    environment.set_fuel(Some(STEPS));
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("cycler", cycles::cycler);
    environment.add_function("joiner", cycles::joiner);
    environment.add_filter("tojson", to_json);
    filters::add(&mut environment);
    let template = namespaces::rewrite(&escapes::rewrite(&template)?);
    environment.add_template_owned(NAME, template).map_err(|error| in_words(&error))?;
    Ok(environment)
}

/// What the template makes of `variables`.
pub(super) fn render(
    environment: &Environment<'_>,
    variables: &Map<String, serde_json::Value>,
) -> Result<String, String> {
    let template = environment.get_template(NAME).map_err(|error| in_words(&error))?;
    template.render(object(variables)).map_err(|error| in_words(&error))
}

fn object(fields: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), in_template(value))))
}

/// A JSON value as templates have it. Not by serde, which writes numbers in a form of its own where any other crate asks
/// serde_json for numbers of any length.
fn in_template(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(values) => values.iter().map(in_template).collect(),
        serde_json::Value::Object(fields) => object(fields),
    }
}

/// What an error says, and where. Of several, the first cause.
fn in_words(error: &Error) -> String {
    let mut cause = error;
    while let Some(deeper) = std::error::Error::source(cause).and_then(|source| source.downcast_ref::<Error>()) {
        cause = deeper;
    }
    let kind = cause.kind().to_string();
    let detail = cause.detail().unwrap_or(&kind);
    match cause.line().or_else(|| error.line()) {
        Some(line) => format!("{detail:?}, in line {line} of the template"),
        None => format!("{detail:?}"),
    }
}

/// An error of a function, filter or method.
pub(super) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

fn raise_exception(message: Value) -> Result<Value, Error> {
    Err(invalid(message.to_string()))
}

/// The local date and time, in Python's format.
fn strftime_now(format: &str) -> Result<String, Error> {
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(invalid(format!("strftime_now can't write {format:?}")));
    }
    let mut text = String::new();
    let written = write!(text, "{}", Local::now().format_with_items(items.iter()));
    written.map_err(|_| invalid(format!("strftime_now can't write {format:?}")))?;
    Ok(text)
}

/// What Python's `json.dumps` writes, with transformers' defaults.
fn to_json(value: Value, ensure_ascii: Option<Value>, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(invalid("tojson of a value that isn't defined"));
    }
    let given = |name: &str, place: Option<Value>| -> Result<Option<Value>, Error> {
        Ok(place.or(kwargs.get::<Option<Value>>(name)?).filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = given("ensure_ascii", ensure_ascii)?.is_some_and(|value| value.is_true());
    let sort_keys = given("sort_keys", None)?.is_some_and(|value| value.is_true());
    let indent = match given("indent", indent)? {
        None => None,
        Some(text) if text.as_str().is_some() => Some(text.to_string()),
        Some(count) => {
            let count = count.as_usize().filter(|count| *count <= 64);
            Some(" ".repeat(count.ok_or_else(|| invalid("tojson takes an indent from 0 to 64"))?))
        }
    };
    let separators = match given("separators", None)? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let parts: Vec<String> = pair.try_iter()?.map(|part| part.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(parts).map_err(|_| invalid("tojson takes two separators"))?;
            (item, key)
        }
    };
    kwargs.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(|error| invalid(error.to_string()))?;
    Ok(python_json_with(&value, &Layout { ensure_ascii, sort_keys, indent, separators }))
}

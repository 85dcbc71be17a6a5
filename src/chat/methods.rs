//! Python's methods of texts, lists and dictionaries. Those that minijinja's own collection has are its own, where they do
//! the same.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::casing::{casefold, swapcase, title};
use super::environment::invalid;
use super::python::is_space;

/// The most characters that a text is padded to.
const WIDEST: usize = 1 << 16;

/// Calls `method` of `value`.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = of_text(state, text, method, args)?
    {
        return Ok(result);
    }
    match (method, value.kind()) {
        ("index", ValueKind::Seq) => {
            let (wanted,): (&Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == *wanted);
            place.map(Value::from).ok_or_else(|| invalid(format!("{wanted:?} is not in list")))
        }
        ("copy", ValueKind::Seq | ValueKind::Map) => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// What a method of `text` gives; `None` for one that isn't here.
fn of_text(state: &mut State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let tuple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let separator = separator(args)?;
            text.split_once(separator).map_or(tuple([text, "", ""]), |(a, b)| tuple([a, separator, b]))
        }
        "rpartition" => {
            let separator = separator(args)?;
            text.rsplit_once(separator).map_or(tuple(["", "", text]), |(a, b)| tuple([a, separator, b]))
        }
        "split" | "rsplit" => {
            let (separator, most, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(kwargs.get::<Option<&str>>("sep")?);
            let most = most.or(kwargs.get::<Option<i64>>("maxsplit")?);
            kwargs.assert_all_used()?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            let parts = match (separator, method) {
                (Some(""), _) => return Err(invalid("empty separator")),
                (Some(separator), "split") => text.splitn(most.saturating_add(1), separator).collect(),
                (Some(separator), _) => reversed(text.rsplitn(most.saturating_add(1), separator).collect()),
                (None, "split") => words(text, most),
                (None, _) => reversed(last_words(text, most)),
            };
            parts.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get::<Option<bool>>("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            lines(text)
                .map(|(line, end)| Value::from(if keep { [line, end].concat() } else { line.to_owned() }))
                .collect()
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            Value::from(match method {
                "strip" => text.trim_matches(goes),
                "lstrip" => text.trim_start_matches(goes),
                _ => text.trim_end_matches(goes),
            })
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = region(text, start, end).and_then(|(before, region)| {
                let place = if method.starts_with('r') { region.rfind(part) } else { region.find(part) };
                Some(before + region[..place?].chars().count())
            });
            match found {
                Some(place) => Value::from(place),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            Value::from(region(text, start, end).map_or(0, |(_, region)| region.matches(part).count()))
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (parts, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
            match region(text, start, end) {
                Some((_, region)) => return call(state, &Value::from(region), method, &[parts]).map(Some),
                None => Value::from(false),
            }
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(state, text)?)
        }
        "swapcase" => {
            let () = from_args(args)?;
            Value::from(swapcase(text))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(casefold(text))
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            Value::from([sign, &"0".repeat(missing(text, width)?), digits].concat())
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            let missing = missing(text, width)?;
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                // Where both sides can't be alike, it depends on the width which has more.
                _ => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
            };
            let fill = |count: usize| fill.unwrap_or(' ').to_string().repeat(count);
            Value::from([&fill(left), text, &fill(missing - left)].concat())
        }
        _ => return Ok(None),
    }))
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() { Err(invalid("empty separator")) } else { Ok(separator) }
}

fn reversed(mut parts: Vec<&str>) -> Vec<&str> {
    parts.reverse();
    parts
}

/// The words of `text`. Behind `most` of them, the rest as it is.
fn words(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(end) = rest.find(is_space).filter(|_| parts.len() < most) {
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
    parts
}

/// The words of `text` from the last to the first. Before `most` of them, the rest as it is.
fn last_words(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while let Some(space) = rest.rfind(is_space).filter(|_| parts.len() < most) {
        let start = space + rest[space..].chars().next().map_or(0, char::len_utf8);
        parts.push(&rest[start..]);
        rest = rest[..space].trim_end_matches(is_space);
    }
    parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
    parts
}

/// The lines of `text` and what ends each, where Python ends lines.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, behind) = rest.split_at(rest.find(ENDS).unwrap_or(rest.len()));
        let length = match behind.starts_with("\r\n") {
            true => 2,
            false => behind.chars().next().map_or(0, char::len_utf8),
        };
        rest = &behind[length..];
        Some((line, &behind[..length]))
    })
}

/// The part of `text` between two places, which count characters, from the end where they are negative; and the number of
/// characters before it. `None` where the end is before the start.
fn region(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    let count = text.chars().count();
    let place = |place: i64| match usize::try_from(place) {
        Ok(place) => place,
        Err(_) => count.saturating_sub(usize::try_from(place.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(count, place).min(count));
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(byte, _)| byte);
    (start <= end).then(|| (start, &text[byte(start)..byte(end)]))
}

/// How many characters `text` lacks to be as wide as `width`.
fn missing(text: &str, width: i64) -> Result<usize, Error> {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    match missing <= WIDEST {
        true => Ok(missing),
        false => Err(invalid(format!("texts are padded by at most {WIDEST} characters"))),
    }
}

//! The meaning of unquoted scalars in YAML 1.1: null, booleans, numbers, dates, or text.
//!
//! Reference: PyYAML 6.0.3 `resolver.py` (the implicit resolvers) and `constructor.py`.

use super::{Node, Typed};

/// The value of an unquoted scalar without a tag, by YAML 1.1.
pub(super) fn plain(text: &str) -> Result<Node, String> {
    let typed = match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Node::Null),
        "=" => return Err("the value \"=\"".to_owned()),
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(Typed::Bool(true)),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(Typed::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => Some(Typed::Float(f64::NAN)),
        _ => float(text).map(Typed::Float).or_else(|| int(text).map(Typed::Int)).or_else(|| date(text)),
    };
    Ok(match typed {
        Some(typed) => Node::Typed(typed, text.to_owned()),
        None => Node::Text(text.to_owned()),
    })
}

/// Splits off the sign.
fn signed(text: &str) -> (f64, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Whether `text` is a digit, followed by digits and underscores.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && is_digits(text)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'_')
}

/// Whether `text` is `0` to `59`, in one or two digits: such parts follow colons in base-60
/// numbers.
fn is_sixty(text: &str) -> bool {
    text.len() <= 2 && !text.is_empty() && text.parse::<u8>().is_ok_and(|n| n < 60) && !text.starts_with('+')
}

fn float(text: &str) -> Option<f64> {
    let (sign, rest) = signed(text);
    if matches!(rest, ".inf" | ".Inf" | ".INF") {
        return Some(sign * f64::INFINITY);
    }
    let (whole, fraction) = rest.split_once('.')?;
    if let Some((first, parts)) = whole.split_once(':') {
        let sixties = parts.split(':').all(is_sixty);
        let fits = is_number(first) && sixties && is_digits(fraction);
        return fits.then(|| sign * sexagesimal(&rest.replace('_', "")));
    }
    let (fraction, exponent) = match fraction.split_once(['e', 'E']) {
        Some((fraction, exponent)) => (fraction, Some(exponent)),
        None => (fraction, None),
    };
    let fits = match whole {
        // A number that begins with the point has no sign, and a digit after the point.
        "" => rest.len() == text.len() && is_number(fraction),
        whole => is_number(whole) && is_digits(fraction),
    };
    let exponent_fits = exponent.is_none_or(|e| {
        e.strip_prefix(['+', '-'])
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
    });
    let digits = rest.replace('_', "");
    if fits && exponent_fits { digits.parse().ok().map(|value: f64| sign * value) } else { None }
}

fn sexagesimal(text: &str) -> f64 {
    text.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap_or(0.0))
}

fn int(text: &str) -> Option<i64> {
    let (sign, rest) = signed(text);
    let digits = rest.replace('_', "");
    let value = if let Some((first, parts)) = rest.split_once(':') {
        let fits = is_number(first) && !first.starts_with('0') && parts.split(':').all(is_sixty);
        return fits.then(|| (sign * sexagesimal(&digits)) as i64);
    } else if let Some(bits) = rest.strip_prefix("0b") {
        radix(bits, &digits, 2)?
    } else if let Some(hex) = rest.strip_prefix("0x") {
        radix(hex, &digits, 16)?
    } else if rest == "0" {
        0.0
    } else if let Some(octal) = rest.strip_prefix('0') {
        let fits = !octal.is_empty() && octal.bytes().all(|b| matches!(b, b'0'..=b'7' | b'_'));
        fits.then(|| fold(&digits, 8))?
    } else {
        is_number(rest).then(|| fold(&digits, 10))?
    };
    Some((sign * value) as i64)
}

fn radix(digits: &str, without_bars: &str, base: u32) -> Option<f64> {
    let fits = !digits.is_empty() && digits.chars().all(|c| c == '_' || c.is_digit(base));
    fits.then(|| fold(without_bars.get(2..).unwrap_or_default(), base))
}

/// The value of `digits`. It is exact up to 2^53, and precise enough above.
fn fold(digits: &str, base: u32) -> f64 {
    digits.chars().fold(0.0, |sum, c| sum * f64::from(base) + f64::from(c.to_digit(base).unwrap_or(0)))
}

/// Recognizes `2024-01-31`, also with a time.
fn date(text: &str) -> Option<Typed> {
    let digits = |text: &str, lens: std::ops::RangeInclusive<usize>| {
        lens.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    let (year, rest) = text.split_once('-')?;
    let (month, rest) = rest.split_once('-')?;
    if !digits(year, 4..=4) || !digits(month, 1..=2) {
        return None;
    }
    let day_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (day, time) = rest.split_at(day_end);
    if time.is_empty() {
        return (digits(month, 2..=2) && digits(day, 2..=2)).then_some(Typed::Other);
    }
    let time = time.strip_prefix(['T', 't']).unwrap_or_else(|| time.trim_start_matches([' ', '\t']));
    let mut parts = time.splitn(3, ':');
    let (hour, minute, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let second = rest.get(..2)?;
    let fits = digits(day, 1..=2) && digits(hour, 1..=2) && digits(minute, 2..=2) && digits(second, 2..=2);
    let mut rest = rest.get(2..)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    let zone = rest.trim_start_matches([' ', '\t']);
    let zone_fits = match zone.strip_prefix(['+', '-']) {
        Some(offset) => match offset.split_once(':') {
            Some((hours, minutes)) => digits(hours, 1..=2) && digits(minutes, 2..=2),
            None => digits(offset, 1..=2),
        },
        None => zone == "Z" || rest.is_empty(),
    };
    (fits && zone_fits).then_some(Typed::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(typed: Typed, text: &str) -> Node {
        Node::Typed(typed, text.to_owned())
    }

    #[test]
    fn plain_scalars_have_the_types_of_yaml_1_1() {
        let cases = [
            ("no", Some(Typed::Bool(false))),
            ("On", Some(Typed::Bool(true))),
            ("y", None),
            ("0", Some(Typed::Int(0))),
            ("-1_000", Some(Typed::Int(-1000))),
            ("017", Some(Typed::Int(15))),
            ("08", None),
            ("0x_fF", Some(Typed::Int(255))),
            ("0b101", Some(Typed::Int(5))),
            ("0o17", None),
            ("1:30", Some(Typed::Int(90))),
            ("1:60", None),
            ("99999999999999999999", Some(Typed::Int(i64::MAX))),
            ("1.10", Some(Typed::Float(1.1))),
            ("1.", Some(Typed::Float(1.0))),
            (".5", Some(Typed::Float(0.5))),
            ("-.5", None),
            ("1e5", None),
            ("1.0e5", None),
            ("1.0e+5", Some(Typed::Float(100_000.0))),
            ("1:30.5", Some(Typed::Float(90.5))),
            ("-.inf", Some(Typed::Float(f64::NEG_INFINITY))),
            ("v1.0", None),
            ("1.0.1", None),
            ("2024-01-31", Some(Typed::Other)),
            ("2024-1-31", None),
            ("2024-1-31 10:20:30.5 +01:00", Some(Typed::Other)),
            ("2024-01-31T10:20:30Z", Some(Typed::Other)),
            ("_1", None),
            ("-", None),
            ("+", None),
            (".", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map_or_else(|| Node::Text(text.to_owned()), |value| typed(value, text));
            assert_eq!(plain(text), Ok(expected), "{text}");
        }
        assert_eq!(plain("~"), Ok(Node::Null));
        assert!(matches!(plain(".nan"), Ok(Node::Typed(Typed::Float(v), _)) if v.is_nan()));
    }
}

//! The escapes in a template's texts. Jinja has those of Python, minijinja those of JSON: this module writes the one as the
//! other before the template is parsed.

/// The template with the escapes of its texts as minijinja reads them. An error is in words for a message.
pub(super) fn rewrite(template: &str) -> Result<String, String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min() {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = match &rest[..2] {
            "{#" => rest.find("#}").map_or(rest.len(), |end| end + 2),
            "{%" if tag(rest) == Some("raw") => raw_length(rest),
            opening => {
                let (code, length) = rewrite_code(rest, if opening == "{{" { "}}" } else { "%}" })?;
                out.push_str(&code);
                rest = &rest[length..];
                continue;
            }
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The first word of the tag that `rest` begins with.
fn tag(rest: &str) -> Option<&str> {
    let inside = rest.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    Some(&inside[..inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len())])
}

/// The length of the raw block that `rest` begins with, to the beginning of the tag that ends it.
fn raw_length(rest: &str) -> usize {
    let mut tags = rest.match_indices("{%").skip(1);
    tags.find(|(place, _)| tag(&rest[*place..]) == Some("endraw")).map_or(rest.len(), |(place, _)| place)
}

/// The code that `rest` begins with, to its `end`, with other escapes; and how long it was.
fn rewrite_code(rest: &str, end: &str) -> Result<(String, usize), String> {
    let mut out = String::from(&rest[..2]);
    let mut place = 2;
    let mut depth = 0_usize;
    while let Some(c) = rest[place..].chars().next() {
        if depth == 0 && rest[place..].starts_with(end) {
            break;
        }
        match c {
            '"' | '\'' => {
                let (text, length) = rewrite_text(&rest[place..], c)?;
                out.push_str(&text);
                place += length;
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.push(c);
        place += c.len_utf8();
    }
    Ok((out, place))
}

/// The text that `rest` begins with, from quote to quote, with other escapes; and how long it was.
fn rewrite_text(rest: &str, quote: char) -> Result<(String, usize), String> {
    let mut out = String::from(quote);
    let mut place = 1;
    while let Some(c) = rest[place..].chars().next() {
        if c != '\\' {
            out.push(c);
            place += c.len_utf8();
            if c == quote {
                break;
            }
            continue;
        }
        let escape = &rest[place + 1..];
        let digits = |most: usize, base: u32| {
            let code = escape.get(usize::from(base == 16)..).unwrap_or_default();
            code.bytes().take(most).take_while(|digit| char::from(*digit).is_digit(base)).count()
        };
        let number = |text: &str, base: u32| u32::from_str_radix(text, base).ok().and_then(char::from_u32);
        place += 1;
        match escape.chars().next() {
            // Python's end of a line that goes on.
            Some('\n') => place += 1,
            Some('/') => {
                out.push_str("\\\\/");
                place += 1;
            }
            Some('a') => {
                out.push_str("\\x07");
                place += 1;
            }
            Some('v') => {
                out.push_str("\\x0b");
                place += 1;
            }
            Some('0'..='7') => {
                let length = digits(3, 8);
                push(&mut out, number(&escape[..length], 8).unwrap_or_default());
                place += length;
            }
            Some('U') => {
                let length = digits(8, 16);
                let c = number(&escape[1..=length], 16).filter(|_| length == 8);
                push(&mut out, c.ok_or("a text with \\U and no character's number of eight digits")?);
                place += 9;
            }
            Some('N') => return Err("a text with \\N, a character by name: write it as \\u or \\U".to_owned()),
            Some(c) => {
                out.extend(['\\', c]);
                place += c.len_utf8();
            }
            None => out.push('\\'),
        }
    }
    Ok((out, place))
}

/// Writes a character of a text: one of ASCII by number, as it could be a quote or a backslash.
fn push(out: &mut String, c: char) {
    match c.is_ascii() {
        true => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        false => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_escapes_in_texts_of_code_change() {
        for (template, expected) in [
            (r#"\/{{ "\/" }}\/{# "\/" #}{% if '\/' %}"#, r#"\/{{ "\\/" }}\/{# "\/" #}{% if '\\/' %}"#),
            (r#"{%- raw %}{{ "\a" }}{% endraw %}{{ "\a\v" }}"#, r#"{%- raw %}{{ "\a" }}{% endraw %}{{ "\x07\x0b" }}"#),
            (r#"{{ {'a': {"b'": '\U0001F600\U00000027'}}['}}\a'] }}"#, r#"{{ {'a': {"b'": '😀\x27'}}['}}\x07'] }}"#),
            ("{{ 'a\\\nb' }}", "{{ 'ab' }}"),
            (r"{{ '\101\777\0\x41\u0041\q\'\\a' }}", r"{{ '\x41ǿ\x00\x41\u0041\q\'\\a' }}"),
            ("{{ 'open", "{{ 'open"),
            ("{{ '\\", "{{ '\\"),
            ("{% raw %}{{ '\\a' }}", "{% raw %}{{ '\\a' }}"),
        ] {
            assert_eq!(rewrite(template).unwrap(), expected);
        }
        assert!(rewrite(r"{{ '\N{BULLET}' }}").unwrap_err().contains("by name"));
        assert!(rewrite(r"{{ '\U0041' }}").unwrap_err().contains("eight digits"));
        assert!(rewrite(r"{{ '\Uabé' }}").is_err() && rewrite(r"{{ '\U").is_err());
    }
}

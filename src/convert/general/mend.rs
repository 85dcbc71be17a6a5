//! What YAML 1.2 refuses and PyYAML reads: texts rewritten so that both read the same.
//!
//! YAML 1.1, as PyYAML reads it, has no rule for the indentation of lines inside brackets and quotes,
//! and model cards have lists like `language: [` with an entry a line from the very left. YAML 1.2
//! wants those lines further right than the key, and a space before a comment. And PyYAML takes the halves of a character outside
//! the first 65,536, as JSON writes them, for characters.

/// `text` with every line that continues a bracket or a quote moved to the right, comments set
/// apart, and whole characters instead of halves; `None` where that is what it is already.
///
/// This takes more for brackets and quotes than a YAML parser does: it is for texts that don't
/// parse as they are.
pub(super) fn mended(text: &str) -> Option<String> {
    let whole = joined(text);
    let indented = indented(whole.as_deref().unwrap_or(text));
    indented.or(whole)
}

/// `\ud83d\ude00` as `\U0001F600`; a half alone as the replacement character.
fn joined(text: &str) -> Option<String> {
    let half = |text: &str| {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok().filter(|unit| (0xd800..0xe000).contains(unit))
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\\u") {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let units = [half(escape), escape.get(6..).and_then(half)];
        let (written, len) = match units {
            [Some(high), Some(low)] => match char::decode_utf16([high, low]).next() {
                Some(Ok(c)) => (format!("\\U{:08X}", u32::from(c)), 12),
                _ => ("\\uFFFD".to_owned(), 6),
            },
            [Some(_), None] => ("\\uFFFD".to_owned(), 6),
            [None, _] => ("\\u".to_owned(), 2),
        };
        out.push_str(&written);
        rest = escape.get(len..).unwrap_or_default();
    }
    out.push_str(rest);
    (out != text).then_some(out)
}

/// `text` with every line that continues a bracket or a quote moved to the right and a space before
/// every comment, if something is missing.
fn indented(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut state = Scanner::default();
    let mut changed = false;
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if state.inside() {
            let missing = (state.indent + 1).saturating_sub(indent);
            if missing > 0 && !line.trim().is_empty() {
                out.extend(std::iter::repeat_n(' ', missing));
                changed = true;
            }
        } else {
            state.indent = indent;
        }
        match state.line(line).and_then(|comment| line.split_at_checked(comment)) {
            Some((before, comment)) => {
                out.extend([before, " ", comment]);
                changed = true;
            }
            None => out.push_str(line),
        }
    }
    changed.then_some(out)
}

/// Where a line ends: inside which brackets and quotes.
#[derive(Default)]
struct Scanner {
    /// Brackets that are open.
    depth: usize,
    /// The quote that is open.
    quote: Option<char>,
    /// How far the line is indented on which it all began.
    indent: usize,
    /// Inside a block scalar of lines further right than this.
    block: Option<usize>,
}

impl Scanner {
    fn inside(&self) -> bool {
        self.depth > 0 || self.quote.is_some()
    }

    /// Goes over a line; the place of a comment that isn't set apart.
    fn line(&mut self, line: &str) -> Option<usize> {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if let Some(block) = self.block {
            if line.trim().is_empty() || indent > block {
                return None;
            }
            self.block = None;
        }
        // Brackets and quotes count where a value can begin.
        let mut begins = true;
        let mut in_word = false;
        let mut escaped = false;
        let mut before = ' ';
        let content = line.trim_end();
        for (at, c) in content.char_indices() {
            if let Some(quote) = self.quote {
                match c {
                    _ if escaped => escaped = false,
                    '\\' if quote == '"' => escaped = true,
                    c if c == quote => {
                        self.quote = None;
                        (begins, in_word) = (false, false);
                    }
                    _ => {}
                }
                before = c;
                continue;
            }
            let ends_word = content[at..].chars().nth(1).is_none_or(char::is_whitespace);
            match c {
                '#' if before.is_whitespace() => break,
                '#' if !in_word => return Some(at),
                '"' | '\'' if begins => self.quote = Some(c),
                // Two of them are one within the quotes.
                '\'' if before == '\'' => self.quote = Some(c),
                '[' | '{' if begins => {
                    self.depth = self.depth.saturating_add(1);
                    in_word = false;
                }
                '|' | '>' if begins && self.depth == 0 => {
                    self.block = Some(indent);
                    return None;
                }
                ']' | '}' if self.depth > 0 => {
                    self.depth -= 1;
                    (begins, in_word) = (false, false);
                }
                ',' if self.depth > 0 => (begins, in_word) = (true, false),
                ':' if ends_word || self.depth > 0 => (begins, in_word) = (true, false),
                '-' | '?' if begins && ends_word => {}
                c if c.is_whitespace() => {}
                _ => (begins, in_word) = (false, true),
            }
            before = c;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_lines_and_comments_move_and_others_stay() {
        let cases = [
            ("a: ['it''s',\nb]\n", "a: ['it''s',\n b]\n"),
            ("a: [\nb,\n'c\nd' ]\ne: f\n", "a: [\n b,\n 'c\n d' ]\ne: f\n"),
            ("a: \"x\ny\"\n", "a: \"x\n y\"\n"),
            ("  a: {b: [\n  c]\n  }\n", "  a: {b: [\n   c]\n   }\n"),
            ("- [\na]\n", "- [\n a]\n"),
            ("a: [#b\n  'c'#d\n]\n", "a: [ #b\n  'c' #d\n ]\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(indented(text).as_deref(), Some(expected), "{text:?}");
        }
        for text in
            ["a: [b, c]\nd: e\n", "a: it's\nb: c\n", "a: |\n  [\nb: c\n", "a: b # [\nc: d\n", "a: 'it''s'\nb: c\n"]
        {
            assert_eq!(indented(text), None, "{text:?}");
        }
    }

    #[test]
    fn halves_of_characters_are_joined() {
        let cases = [
            (r#"a: "\ud83d\ude00 \uD83D!""#, Some(r#"a: "\U0001F600 \uFFFD!""#)),
            (r"\ud83d\u", Some(r"\uFFFD\u")),
            (r"\ude00\ud83d\ude00", Some(r"\uFFFD\U0001F600")),
            (r"\u00e9 \u12 \ué", None),
        ];
        for (text, expected) in cases {
            assert_eq!(joined(text).as_deref(), expected, "{text}");
        }
    }
}

//! Rewrites YAML that PyYAML reads and YAML 1.2 refuses, so that both read the same.
//!
//! PyYAML reads YAML 1.1, which has no rule for the indentation of lines within brackets and quotes. Model cards
//! contain lists such as `language: [` whose entries are on separate, unindented lines. YAML 1.2 requires these lines
//! to be indented further than the key, and a space before a comment. PyYAML also accepts surrogates, which JSON uses
//! for characters above 65,535, as characters.

/// Indents every line that continues a bracket or a quote, puts a space before comments, and combines surrogates into
/// characters. `None` if nothing changes.
///
/// This sees more brackets and quotes than a YAML parser does, so use it only for texts that don't parse unchanged.
/// parse as they are.
pub(super) fn mended(text: &str) -> Option<String> {
    let whole = joined(text);
    let indented = indented(whole.as_deref().unwrap_or(text));
    indented.or(whole)
}

/// Rewrites surrogates: `\ud83d\ude00` as `\U0001F600`, and a single one as the replacement character.
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

/// Indents every line that continues a bracket or a quote, and puts a space before every comment. `None` if nothing
/// changes.
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

/// The state at the end of a line: which brackets and quotes are open.
#[derive(Default)]
struct Scanner {
    /// The number of open brackets.
    depth: usize,
    /// The open quote character.
    quote: Option<char>,
    /// The indentation of the line on which the outermost bracket or quote began.
    indent: usize,
    /// The indentation of the line that began a block scalar. Lines that are indented further belong to it.
    block: Option<usize>,
}

impl Scanner {
    fn inside(&self) -> bool {
        self.depth > 0 || self.quote.is_some()
    }

    /// Scans a line. Returns the index of a comment without a space before it.
    fn line(&mut self, line: &str) -> Option<usize> {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if let Some(block) = self.block {
            if line.trim().is_empty() || indent > block {
                return None;
            }
            self.block = None;
        }
        // Brackets and quotes only count where a value can begin.
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
                // Two single quotes within single quotes stand for one.
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

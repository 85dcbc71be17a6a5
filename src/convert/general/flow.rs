//! Lines inside brackets and quotes, moved to where YAML 1.2 allows them.
//!
//! YAML 1.1, as PyYAML reads it, has no rule for the indentation of such lines, and model cards have
//! lists like `language: [` with an entry a line from the very left. YAML 1.2 wants the lines
//! further right than the key.

/// `text` with every line that continues a bracket or a quote moved to the right, if there is one.
///
/// This takes more for brackets and quotes than a YAML parser does: it is for texts that don't
/// parse as they are.
pub(super) fn indented(text: &str) -> Option<String> {
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
        out.push_str(line);
        state.line(line);
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

    fn line(&mut self, line: &str) {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if let Some(block) = self.block {
            if line.trim().is_empty() || indent > block {
                return;
            }
            self.block = None;
        }
        // Brackets and quotes count where a value can begin.
        let mut begins = true;
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
                        begins = false;
                    }
                    _ => {}
                }
                before = c;
                continue;
            }
            let ends_word = content[at..].chars().nth(1).is_none_or(char::is_whitespace);
            match c {
                '#' if before.is_whitespace() => break,
                '"' | '\'' if begins => self.quote = Some(c),
                // Two of them are one within the quotes.
                '\'' if before == '\'' => self.quote = Some(c),
                '[' | '{' if begins => self.depth = self.depth.saturating_add(1),
                '|' | '>' if begins && self.depth == 0 => {
                    self.block = Some(indent);
                    return;
                }
                ']' | '}' if self.depth > 0 => {
                    self.depth -= 1;
                    begins = false;
                }
                ',' if self.depth > 0 => begins = true,
                ':' if ends_word || self.depth > 0 => begins = true,
                '-' | '?' if begins && ends_word => {}
                c if c.is_whitespace() => {}
                _ => begins = false,
            }
            before = c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_lines_move_and_others_stay() {
        let cases = [
            ("a: ['it''s',\nb]\n", "a: ['it''s',\n b]\n"),
            ("a: [\nb,\n'c\nd' ]\ne: f\n", "a: [\n b,\n 'c\n d' ]\ne: f\n"),
            ("a: \"x\ny\"\n", "a: \"x\n y\"\n"),
            ("  a: {b: [\n  c]\n  }\n", "  a: {b: [\n   c]\n   }\n"),
            ("- [\na]\n", "- [\n a]\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(indented(text).as_deref(), Some(expected), "{text:?}");
        }
        for text in ["a: [b, c]\nd: e\n", "a: it's\nb: c\n", "a: |\n  [\nb: c\n", "a: b # [\nc: d\n", "a: 'it''s'\nb: c\n"]
        {
            assert_eq!(indented(text), None, "{text:?}");
        }
    }
}

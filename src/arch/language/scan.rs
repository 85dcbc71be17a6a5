//! Reads the text of a family file: words, numbers, texts and symbols, each at a known line and column.

use std::fmt;

/// What is wrong in a family file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// The line, from 1.
    pub(crate) line: usize,
    /// The column in characters, from 1.
    pub(crate) column: usize,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: expected {}, found {}", self.line, self.column, self.expected, self.found)
    }
}

/// The text without comments and with every statement on one line: line ends before an indented line become spaces.
/// Every byte keeps its place, so that a place in the result is the place in the text.
pub(crate) fn joined(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            let continues = line.starts_with([' ', '\t', '#', '\r']) || line.is_empty();
            out.push(if continues { ' ' } else { '\n' });
        }
        let (mut quoted, mut escaped, mut comment) = (false, false, false);
        let mut before = ' ';
        for c in line.chars() {
            if comment || c == '\r' {
                (0..c.len_utf8()).for_each(|_| out.push(' '));
                continue;
            }
            match c {
                '"' if !escaped => quoted = !quoted,
                '#' if !quoted && before.is_whitespace() => {
                    comment = true;
                    out.push(' ');
                    continue;
                }
                _ => {}
            }
            escaped = c == '\\' && quoted && !escaped;
            before = c;
            out.push(c);
        }
    }
    out
}

/// A position in one statement.
pub(crate) struct Scanner<'a> {
    /// The whole file.
    file: &'a str,
    /// The same, as [`joined`] makes it.
    text: &'a str,
    at: usize,
    end: usize,
    /// The operators and parentheses so far.
    operators: usize,
}

/// The most operators and parentheses in a statement. Formulas are computed to their full depth.
const MAX_OPERATORS: usize = 1000;

impl<'a> Scanner<'a> {
    /// Reads the statement `text[start..end]` of `file`; `text` is what [`joined`] makes of it.
    pub(crate) fn new(file: &'a str, text: &'a str, start: usize, end: usize) -> Self {
        Self { file, text, at: start, end, operators: 0 }
    }

    /// Reads a formula or a statement that is no part of a file.
    pub(crate) fn of(text: &'a str) -> Self {
        Self::new(text, text, 0, text.len())
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..self.end]
    }

    /// Skips blanks.
    fn skip(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// The next character after blanks.
    pub(crate) fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    /// Whether nothing follows but blanks.
    pub(crate) fn is_done(&mut self) -> bool {
        self.peek().is_none()
    }

    /// The mistake of finding something else than `expected` here.
    pub(crate) fn mistake(&mut self, expected: impl Into<String>) -> Mistake {
        self.skip();
        let rest = self.rest();
        let word: String = match rest.chars().next() {
            None => "the end of the statement".to_owned(),
            Some(c) if is_word(c) => rest.chars().take_while(|c| is_word(*c)).collect(),
            Some(c) => c.to_string(),
        };
        // The end is behind the last word, not behind the blanks and comments that follow it.
        let at = if rest.is_empty() { self.text[..self.at].trim_end().len() } else { self.at };
        self.mistake_at(at, expected, word)
    }

    /// The mistake of finding `found` at the place `at`.
    pub(crate) fn mistake_at(&self, at: usize, expected: impl Into<String>, found: impl Into<String>) -> Mistake {
        let before = &self.file[..at.min(self.file.len())];
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        Mistake {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// Counts an operator or a parenthesis.
    pub(crate) fn count(&mut self) -> Result<(), Mistake> {
        self.operators += 1;
        match self.operators > MAX_OPERATORS {
            true => Err(self.mistake(format!("at most {MAX_OPERATORS} operators in a statement"))),
            false => Ok(()),
        }
    }

    /// The place of what follows.
    pub(crate) fn place(&mut self) -> usize {
        self.skip();
        self.at
    }

    /// Takes a JSON value.
    pub(crate) fn json(&mut self) -> Result<serde_json::Value, Mistake> {
        self.skip();
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter();
        let Some(Ok(value)) = values.next() else { return Err(self.mistake("a JSON value")) };
        self.at += values.byte_offset();
        Ok(value)
    }

    /// Takes `symbol` if it follows.
    pub(crate) fn takes(&mut self, symbol: &str) -> bool {
        self.skip();
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    /// Takes `symbol` if it follows without a blank.
    pub(crate) fn takes_directly(&mut self, symbol: &str) -> bool {
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    /// Takes the `!` of a required value, which isn't that of `!=`.
    pub(crate) fn takes_required(&mut self) -> bool {
        let found = self.rest().starts_with('!') && !self.rest().starts_with("!=");
        self.at += usize::from(found);
        found
    }

    /// Takes the word `word` if it follows as a whole.
    pub(crate) fn takes_word(&mut self, word: &str) -> bool {
        let found = self.sees_word(word);
        if found {
            self.at += word.len();
        }
        found
    }

    /// Whether the word `word` follows as a whole.
    pub(crate) fn sees_word(&mut self, word: &str) -> bool {
        self.skip();
        self.rest().strip_prefix(word).is_some_and(|rest| !rest.starts_with(is_word))
    }

    /// Takes `symbol`.
    pub(crate) fn need(&mut self, symbol: &str) -> Result<(), Mistake> {
        if self.takes(symbol) { Ok(()) } else { Err(self.mistake(format!("`{symbol}`"))) }
    }

    /// Takes a name: letters, digits and underscores, not beginning with a digit.
    pub(crate) fn name(&mut self) -> Option<&'a str> {
        self.skip();
        let rest = self.rest();
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let is_name = rest.starts_with(|c: char| c.is_alphabetic() || c == '_');
        is_name.then(|| {
            self.at += len;
            &rest[..len]
        })
    }

    /// Takes everything up to the next blank; what is in braces may have blanks.
    pub(crate) fn word(&mut self) -> Option<&'a str> {
        self.skip();
        let rest = self.rest();
        let mut depth = 0usize;
        let is_end = |c: char| {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && c.is_whitespace()
        };
        let len = rest.find(is_end).unwrap_or(rest.len());
        (len > 0).then(|| {
            self.at += len;
            &rest[..len]
        })
    }

    /// Takes digits.
    pub(crate) fn digits(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// Takes the rest of the statement.
    pub(crate) fn all(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        self.at = self.end;
        rest.trim_end()
    }

    /// Takes a text in quotes, with the escapes of JSON.
    pub(crate) fn quoted(&mut self) -> Result<Option<String>, Mistake> {
        self.skip();
        let rest = self.rest();
        if !rest.starts_with('"') {
            return Ok(None);
        }
        let mut escaped = false;
        for (i, c) in rest.char_indices().skip(1) {
            match c {
                '"' if !escaped => {
                    let text = serde_json::from_str(&rest[..=i]);
                    let wrong = |_| self.mistake_at(self.at, "a text with the escapes of JSON", &rest[..=i]);
                    let text = text.map_err(wrong)?;
                    self.at += i + 1;
                    return Ok(Some(text));
                }
                '\\' => escaped = !escaped,
                _ => escaped = false,
            }
        }
        Err(self.mistake_at(self.at, "a text that ends", rest))
    }

    /// Takes a number.
    pub(crate) fn number(&mut self) -> Result<Option<serde_json::Value>, Mistake> {
        self.skip();
        let rest = self.rest();
        if !rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(None);
        }
        let mut len = 0;
        let bytes = rest.as_bytes();
        while len < bytes.len() {
            let sign = matches!(bytes[len], b'+' | b'-') && matches!(bytes[len - 1], b'e' | b'E');
            if !(bytes[len].is_ascii_digit() || matches!(bytes[len], b'.' | b'e' | b'E' | b'_') || sign) {
                break;
            }
            len += 1;
        }
        let text = rest[..len].replace('_', "");
        let value: Option<serde_json::Value> = match text.parse::<i64>() {
            Ok(whole) => Some(whole.into()),
            Err(_) => text.parse::<f64>().ok().filter(|v| v.is_finite()).map(Into::into),
        };
        let value = value.ok_or_else(|| self.mistake_at(self.at, "a number", &rest[..len]))?;
        self.at += len;
        Ok(Some(value))
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

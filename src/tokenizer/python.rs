//! Texts and bytes as Python's literals, which RWKV's vocabulary consists of.
//!
//! Reference: the Python language, "String and Bytes literals"; CPython `Objects/bytesobject.c` (`bytes_repr`).

/// Returns the bytes of a literal: `'..'`, `".."`, `b'..'` or `b".."`. Texts become UTF-8. `None` for anything else.
pub(super) fn literal(literal: &str) -> Option<Vec<u8>> {
    let (is_bytes, quoted) = match literal.strip_prefix(['b', 'B']) {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let quote = quoted.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let inner = quoted.get(1..)?.strip_suffix(quote)?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        if c == quote || (is_bytes && !c.is_ascii()) {
            return None;
        }
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let code = match rest.next()? {
            'n' => 0x0a,
            't' => 0x09,
            'r' => 0x0d,
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'v' => 0x0b,
            same @ ('\\' | '\'' | '"') => u32::from(same),
            'x' => hexadecimal(&mut rest, 2)?,
            'u' if !is_bytes => hexadecimal(&mut rest, 4)?,
            'U' if !is_bytes => hexadecimal(&mut rest, 8)?,
            digit @ '0'..='7' => {
                let mut code = digit.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = rest.clone().next().and_then(|c| c.to_digit(8)) else { break };
                    rest.next();
                    code = code * 8 + digit;
                }
                code
            }
            _ => return None,
        };
        match is_bytes {
            true => bytes.push(u8::try_from(code).ok()?),
            false => bytes.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some(bytes)
}

/// Reads a number of exactly `digits` digits.
fn hexadecimal(rest: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0_u32, |code, _| code.checked_mul(16)?.checked_add(rest.next()?.to_digit(16)?))
}

/// Returns bytes as Python writes them inside `b'..'`.
pub(super) fn bytes_repr(bytes: &[u8]) -> String {
    // Python takes double quotes where that saves escapes.
    let is_escaped = |byte: u8| byte == b'\\' || (byte == b'\'' && bytes.contains(&b'"'));
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\t' => text.push_str(r"\t"),
            b'\n' => text.push_str(r"\n"),
            b'\r' => text.push_str(r"\r"),
            _ if is_escaped(byte) => text.extend(['\\', char::from(byte)]),
            0x20..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!(r"\x{byte:02x}")),
        }
    }
    text
}

/// Returns the bytes that [`bytes_repr`] was made of; `None` for another text.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    literal(&format!("b{quote}{text}{quote}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_read_as_python_reads_them() {
        let cases: [(&str, &[u8]); 10] = [
            ("'a b'", b"a b"),
            ("\"it's\"", b"it's"),
            (r"'\'\\\n\t\r'", b"'\\\n\t\r"),
            (r"'\x00\x80'", "\0\u{80}".as_bytes()),
            (r"b'\x00\x80'", &[0, 0x80]),
            (r"'\u00e9\U0001f409'", "\u{e9}\u{1f409}".as_bytes()),
            (r"'\1\12\1234'", b"\x01\x0aS4"),
            ("'\u{e9}'", "\u{e9}".as_bytes()),
            ("b\"\"", b""),
            (r"'\a\b\f\v'", b"\x07\x08\x0c\x0b"),
        ];
        for (literal, expected) in cases {
            assert_eq!(super::literal(literal).as_deref(), Some(expected), "{literal}");
        }
        let bad = [
            "",
            "a",
            "'a",
            "a'",
            "'",
            "'a\"",
            "'a'b'",
            r"'\x0'",
            r"'\q'",
            r"b'\u00e9'",
            "b'\u{e9}'",
            r"'\ud800'",
            "'\\'",
        ];
        for literal in bad {
            assert_eq!(super::literal(literal), None, "{literal}");
        }
    }

    #[test]
    fn bytes_are_written_as_python_writes_them_and_read_again() {
        let cases: [(&[u8], &str); 6] = [
            (b"a", "a"),
            (b"it's", "it's"),
            (b"\"", "\""),
            (b"'\"", "\\'\""),
            (b"\\\t\n\r", r"\\\t\n\r"),
            (&[0, 0x7f, 0x80, 0xff], r"\x00\x7f\x80\xff"),
        ];
        for (bytes, text) in cases {
            assert_eq!(bytes_repr(bytes), text);
            assert_eq!(bytes_of(text).as_deref(), Some(bytes), "{text}");
        }
        for byte in 0..=u8::MAX {
            assert_eq!(bytes_of(&bytes_repr(&[byte, b'\''])), Some(vec![byte, b'\'']));
        }
    }
}

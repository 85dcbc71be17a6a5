//! Names of tensors with numbers left open: `blk.{l}.attn_q.weight`.

use super::formula::Formula;
use super::scan::{Mistake, Scanner};

/// A name with open numbers.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
    /// As it is written.
    text: String,
}

/// The numbers at the start of a name, and what follows.
pub(crate) struct Start<'a> {
    pub(crate) layer: Option<usize>,
    pub(crate) place: Option<usize>,
    /// The last computed number.
    pub(crate) computed: Option<usize>,
    pub(crate) rest: &'a str,
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    /// `{l}`: the layer.
    Layer,
    /// `{e}`: the index in a stack. In renames, `{n}`: a number of the name.
    Place,
    /// `{l + 1}`: a number computed from others.
    Number(Formula),
}

impl Template {
    /// Reads a name.
    pub(crate) fn read(scanner: &mut Scanner) -> Result<Self, Mistake> {
        let start = scanner.place();
        let Some(text) = scanner.word() else { return Err(scanner.mistake("a tensor's name")) };
        Self::parse(text)
            .map_err(|at| scanner.mistake_at(start + at, "a whole-number expression in braces", text[at..].to_owned()))
    }

    /// Parses `text`; the error is the place in it.
    pub(crate) fn parse(text: &str) -> Result<Self, usize> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(open) = text[at..].find('{').map(|open| at + open) {
            if open > at {
                pieces.push(Piece::Text(text[at..open].to_owned()));
            }
            let close = text[open..].find('}').map(|close| open + close).ok_or(open)?;
            let inner = &text[open + 1..close];
            pieces.push(match inner.trim() {
                "l" => Piece::Layer,
                "e" | "n" => Piece::Place,
                _ => {
                    let mut scanner = Scanner::of(inner);
                    let formula = Formula::read(&mut scanner).map_err(|_| open)?;
                    if !scanner.is_done() {
                        return Err(open);
                    }
                    Piece::Number(formula)
                }
            });
            at = close + 1;
        }
        if at < text.len() {
            pieces.push(Piece::Text(text[at..].to_owned()));
        }
        Ok(Self { pieces, text: text.to_owned() })
    }

    /// As it is written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the name depends on the layer.
    pub(crate) fn has_layer(&self) -> bool {
        self.pieces.iter().any(|piece| match piece {
            Piece::Layer => true,
            Piece::Number(formula) => formula.uses("l"),
            _ => false,
        })
    }

    /// Whether the name has an index in a stack.
    pub(crate) fn has_place(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Place))
    }

    /// The text before `{e}`.
    pub(crate) fn before_place(&self) -> &str {
        self.text.split("{e}").next().unwrap_or_default()
    }

    /// The name with its numbers. `compute` gives the value of a formula.
    pub(crate) fn filled<E>(
        &self,
        layer: Option<usize>,
        place: Option<usize>,
        compute: &dyn Fn(&Formula) -> Result<i64, E>,
    ) -> Result<String, E> {
        use std::fmt::Write;
        let mut name = String::with_capacity(self.text.len() + 4);
        for piece in &self.pieces {
            // Writing to a text can't fail.
            let _ = match piece {
                Piece::Text(text) => name.write_str(text),
                Piece::Layer => write!(name, "{}", layer.unwrap_or_default()),
                Piece::Place => write!(name, "{}", place.unwrap_or_default()),
                Piece::Number(formula) => write!(name, "{}", compute(formula)?),
            };
        }
        Ok(name)
    }

    /// The layer and the place in `name`, if it has this form. Computed numbers match any number, and give no layer.
    pub(crate) fn matched(&self, name: &str) -> Option<(Option<usize>, Option<usize>)> {
        let start = self.start_of(name)?;
        start.rest.is_empty().then_some((start.layer, start.place))
    }

    /// The numbers in the start of `name`, if that has this form.
    pub(crate) fn start_of<'a>(&self, name: &'a str) -> Option<Start<'a>> {
        let mut start = Start { layer: None, place: None, computed: None, rest: name };
        for piece in &self.pieces {
            if let Piece::Text(text) = piece {
                start.rest = start.rest.strip_prefix(text.as_str())?;
                continue;
            }
            let len = start.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(start.rest.len());
            let (digits, after) = start.rest.split_at(len);
            // Only one spelling per number: no leading zeros.
            let number = digits.parse::<usize>().ok().filter(|number| number.to_string() == digits)?;
            start.rest = after;
            match piece {
                Piece::Layer if start.layer.is_some_and(|layer| layer != number) => return None,
                Piece::Layer => start.layer = Some(number),
                Piece::Place => start.place = Some(number),
                _ => start.computed = Some(number),
            }
        }
        Some(start)
    }

    /// The first computed number.
    pub(crate) fn computed(&self) -> Option<&Formula> {
        self.pieces.iter().find_map(|piece| match piece {
            Piece::Number(formula) => Some(formula),
            _ => None,
        })
    }

    /// The name with `#` in place of every number: the same for all names of this form.
    pub(crate) fn general(&self) -> String {
        let marked: String = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.as_str(),
                _ => "0",
            })
            .collect();
        generalized(&marked)
    }
}

/// `name` with `#` in place of every number.
pub(crate) fn generalized(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut in_number = false;
    for c in name.chars() {
        match c.is_ascii_digit() {
            true if !in_number => out.push('#'),
            true => {}
            false => out.push(c),
        }
        in_number = c.is_ascii_digit();
    }
    out
}

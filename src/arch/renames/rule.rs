//! One rule of a list of renames: what a tensor of a checkpoint is in the class.
//!
//! A rule matches consecutive parts of a name, at the first place where they are:
//!
//! ```text
//! attention.query -> q_proj                          another name
//! attn.qkv => attn.q_proj | attn.k_proj | attn.v_proj    rows of one tensor that are several in the class
//! q_conv.weight & k_conv.weight => conv.weight       several tensors whose rows are one in the class
//! ```
//!
//! In the parts of the checkpoint's name, `^` stands for its start, `#` for a number, `*` for any characters of a part,
//! `a|b` for one of these parts, `!a|b` for a part that is none of these. A name may also begin where a first part with `!`
//! would be. In the class's parts, `#` is the number, and `*` what matched `*`, `a|b` or `!a|b`, in their order.

/// How the rows of a checkpoint's tensor become those of the class's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// One tensor's after another's, all of the same number.
    Even,
    /// Queries, keys and values: as many as they have heads.
    ByHeads,
    /// The tensors take turns.
    InTurns,
    /// The same in each matrix of a stack.
    InTurnsOfMatrix,
    /// One after another in each matrix of a stack.
    OfMatrix,
    /// One after another; within each head of queries and keys, even rows come before odd ones. The heads are those of
    /// this part of the config; of the whole, where it is empty.
    Rotated(&'static str),
}

/// What becomes of a matching tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// Another name.
    Name(Pattern, &'static str),
    /// The class has its rows as these.
    Split(Pattern, Vec<&'static str>, Rows),
    /// The class has it together with others, in the order of the patterns.
    Join(Vec<Pattern>, &'static str, Rows),
}

/// Parts of a name in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// Whether only the start of a name matches.
    at_start: bool,
    parts: Vec<&'static str>,
}

/// Whether the part `found` is what `pattern` asks for.
fn is_like(found: &str, pattern: &str) -> bool {
    if let Some((start, end)) = pattern.split_once('#') {
        let number = found.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        return number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    }
    if let Some((start, end)) = pattern.split_once('*') {
        return found.strip_prefix(start).is_some_and(|rest| rest.ends_with(end));
    }
    match pattern.strip_prefix('!') {
        Some(others) => others.split('|').all(|other| other != found),
        None => pattern.split('|').any(|own| own == found),
    }
}

impl Pattern {
    fn parse(text: &'static str) -> Self {
        let text = text.trim();
        let (at_start, text) = text.strip_prefix('^').map_or((false, text), |text| (true, text));
        Self { at_start, parts: text.split('.').collect() }
    }

    /// `name` with `to` in the place of these parts; `None` where it doesn't have them.
    fn put(&self, name: &str, to: &str) -> Option<String> {
        let parts: Vec<&str> = name.split('.').collect();
        let may_lack_first = !self.at_start && self.parts[0].starts_with('!');
        let matches = |place: usize, pattern: &[&str]| {
            parts
                .get(place..place + pattern.len())?
                .iter()
                .zip(pattern)
                .all(|(part, own)| is_like(part, own))
                .then_some(())
        };
        let (place, pattern) = match may_lack_first && matches(0, &self.parts[1..]).is_some() {
            true => (0, &self.parts[1..]),
            false => {
                let last = if self.at_start { 0 } else { parts.len() };
                ((0..=last).find(|place| matches(*place, &self.parts).is_some())?, self.parts.as_slice())
            }
        };
        let found = &parts[place..place + pattern.len()];
        let (mut numbers, mut texts) = (Vec::new(), Vec::new());
        for (part, own) in found.iter().zip(pattern) {
            if let Some((start, end)) = own.split_once('#') {
                numbers.push(&part[start.len()..part.len() - end.len()]);
            } else if let Some((start, end)) = own.split_once('*') {
                texts.push(&part[start.len()..part.len() - end.len()]);
            } else if own.contains(['|', '!']) {
                texts.push(*part);
            }
        }
        let (mut numbers, mut texts) = (numbers.into_iter(), texts.into_iter());
        let is_short = pattern.len() < self.parts.len();
        let to = if is_short { to.strip_prefix("*.").unwrap_or(to) } else { to };
        let mut all: Vec<String> = parts[..place].iter().map(|part| (*part).to_owned()).collect();
        for part in to.split('.').filter(|part| !part.is_empty()) {
            all.push(match (part.split_once('#'), part.split_once('*')) {
                (Some((start, end)), _) => [start, numbers.next().unwrap_or_default(), end].concat(),
                (None, Some((start, end))) => [start, texts.next().unwrap_or_default(), end].concat(),
                (None, None) => part.to_owned(),
            });
        }
        all.extend(parts[place + pattern.len()..].iter().map(|part| (*part).to_owned()));
        Some(all.join("."))
    }
}

impl Rule {
    /// Reads a line; `None` where it is none.
    pub(super) fn parse(line: &'static str) -> Option<Self> {
        if let Some((from, to)) = line.split_once(" -> ") {
            return Some(Self::Name(Pattern::parse(from), to.trim()));
        }
        let (from, to) = line.split_once(" => ")?;
        let (to, rows) = to.split_once(" by ").map_or((to, None), |(to, rows)| (to, Some(rows.trim())));
        let rows = match rows {
            None => Rows::Even,
            Some("heads") => Rows::ByHeads,
            Some("turns") => Rows::InTurns,
            Some("turns of matrices") => Rows::InTurnsOfMatrix,
            Some("matrices") => Rows::OfMatrix,
            Some(other) => Rows::Rotated(other.strip_prefix("rotation")?.trim()),
        };
        Some(match from.contains(" & ") {
            true => Self::Join(from.split(" & ").map(Pattern::parse).collect(), to.trim(), rows),
            false => Self::Split(Pattern::parse(from), to.split(" | ").map(str::trim).collect(), rows),
        })
    }

    /// The other name of the tensor `name`, if this rule gives it one.
    pub(super) fn name(&self, name: &str) -> Option<String> {
        match self {
            Self::Name(from, to) => from.put(name, to),
            _ => None,
        }
    }

    /// Whether `name` begins with what this rule puts at the start of names.
    pub(super) fn makes(&self, name: &str) -> bool {
        let Self::Name(Pattern { at_start: true, .. }, to) = self else { return false };
        let start = to.split_once(".*").map_or(*to, |(start, _)| start);
        let is_literal = !start.is_empty() && !start.contains(['*', '#']);
        is_literal && name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// The names in the class of the parts of the tensor `name`, if this rule splits it.
    pub(super) fn split(&self, name: &str) -> Option<(Vec<String>, Rows)> {
        let Self::Split(from, to, rows) = self else { return None };
        let all = to.iter().map(|to| from.put(name, to)).collect::<Option<_>>()?;
        Some((all, *rows))
    }

    /// The name in the class of what the tensor `name` is a part of, if this rule joins it; with its place among the
    /// parts, and their number.
    pub(super) fn joined(&self, name: &str) -> Option<(String, usize, usize, Rows)> {
        let Self::Join(from, to, rows) = self else { return None };
        let found = |(place, from): (usize, &Pattern)| Some((from.put(name, to)?, place, self.parts(), *rows));
        from.iter().enumerate().find_map(found)
    }

    /// The number of the checkpoint's tensors.
    fn parts(&self) -> usize {
        if let Self::Join(from, ..) = self { from.len() } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(rule: &'static str, name: &str) -> Option<String> {
        Rule::parse(rule).unwrap().name(name)
    }

    #[test]
    fn the_first_place_of_the_parts_is_renamed() {
        assert_eq!(named("encoder.layer -> layers", "vit.encoder.layer.1.x").as_deref(), Some("vit.layers.1.x"));
        assert_eq!(named("encoder.layer -> layers", "vit.encoder.layers.1.x"), None);
        assert_eq!(named("^model -> model.text", "a.model.x"), None);
        assert_eq!(named("^model.!text|visual -> model.text.*", "model.norm.x").as_deref(), Some("model.text.norm.x"));
        assert_eq!(named("^model.!text|visual -> model.text.*", "model.text.norm.x"), None);
        assert_eq!(
            named("encoder.block.# -> stages.#.blocks", "encoder.block.3.0").as_deref(),
            Some("stages.3.blocks.0")
        );
        assert_eq!(
            named("linear_# -> layers.#.linear", "a.linear_12.bias").as_deref(),
            Some("a.layers.12.linear.bias")
        );
        let last = "!image_vit.transformer.ln_f -> *.model.norm";
        assert_eq!(named(last, "transformer.ln_f.bias").as_deref(), Some("model.norm.bias"));
        assert_eq!(named(last, "model.transformer.ln_f.bias").as_deref(), Some("model.model.norm.bias"));
        assert_eq!(named(last, "image_vit.transformer.ln_f.bias"), None);
        assert_eq!(named("*_head.convs -> *_neck.convs", "a.b_head.convs.0").as_deref(), Some("a.b_neck.convs.0"));
        assert_eq!(named("^new -> .", "new.embeddings.x").as_deref(), Some("embeddings.x"));
        assert_eq!(named("moe.experts|gate -> mlp.*", "l.moe.gate.x").as_deref(), Some("l.mlp.gate.x"));
    }

    #[test]
    fn parts_of_one_tensor_are_named() {
        let rule = Rule::parse("attn.Wqkv => attn.q | attn.k | attn.v by rotation vision_config").unwrap();
        let names = ["l.0.attn.q.bias", "l.0.attn.k.bias", "l.0.attn.v.bias"].map(str::to_owned).to_vec();
        assert_eq!(rule.split("l.0.attn.Wqkv.bias"), Some((names, Rows::Rotated("vision_config"))));
        let rule = Rule::parse("q_conv.weight & k_conv.weight => conv.weight").unwrap();
        assert_eq!(rule.joined("l.k_conv.weight"), Some(("l.conv.weight".to_owned(), 1, 2, Rows::Even)));
        assert_eq!(rule.joined("l.k_conv.bias"), None);
    }
}

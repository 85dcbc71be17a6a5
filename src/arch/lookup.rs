//! What a tensor's name means in a family, and which tensors a config asks for.

use super::family::RenamePlace;
use super::language::{Formula, Unary};
use super::params::Params;
use super::row::{Part, Row};
use super::wrapper::text_name;
use super::{DropCheck, Family, Role};
use crate::error::Result;

/// A tensor name and the row that uses it.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) row: &'static Row,
    /// The form of the row, and the part of the form.
    pub(crate) form: usize,
    pub(crate) part: usize,
    pub(crate) layer: Option<usize>,
    /// The name in the class of transformers.
    pub(crate) name: String,
}

/// What a family says about a name.
pub(crate) enum Lookup {
    Row(Match),
    Dropped,
    Unknown,
}

/// A name in the class's own spelling: without the module of a text model in a wrapper class, and with the family's
/// renames. `main` is the number of the model's own layers, if it is known.
pub(crate) fn class_spelling(family: &Family, name: &str, main: Option<usize>) -> String {
    let mut name = text_name(name).into_owned();
    for rename in &family.renames {
        match rename.place {
            RenamePlace::End => {
                if let Some(start) = name.strip_suffix(rename.from.text()) {
                    name = format!("{start}{}", rename.to.text());
                }
                continue;
            }
            RenamePlace::Anywhere => {
                name = name.replacen(rename.from.text(), rename.to.text(), 1);
                continue;
            }
            RenamePlace::Start => {}
        }
        let Some(start) = rename.from.start_of(&name) else { continue };
        let compute = |formula: &Formula| computed(formula, start.place, main).ok_or(());
        if let Ok(begin) = rename.to.filled(start.layer, start.place, &compute) {
            name = format!("{begin}{}", start.rest);
        }
    }
    name
}

/// The value of a formula in a rename, which has the variables `n` and `main`.
fn computed(formula: &Formula, place: Option<usize>, main: Option<usize>) -> Option<i64> {
    let mut facts = serde_json::Map::new();
    facts.insert("n".to_owned(), place.map_or(serde_json::Value::Null, Into::into));
    facts.insert("main".to_owned(), main.map_or(serde_json::Value::Null, Into::into));
    let scope = super::language::Scope::new(&facts);
    // The formula outlives the scope's facts, but not the other way round.
    let formula = formula.clone();
    let value = scope.value(&formula).ok()?;
    super::language::whole(&value).filter(|value| *value >= 0)
}

/// The spelling in the class of transformers of a name in the family's rows, where they differ.
pub(crate) fn own_spelling(family: &Family, name: &str, main: Option<usize>) -> String {
    let mut name = name.to_owned();
    // The last rename is undone first.
    for rename in family.renames.iter().rev().filter(|rename| rename.is_own) {
        match rename.place {
            RenamePlace::End => {
                if let Some(start) = name.strip_suffix(rename.to.text()) {
                    name = format!("{start}{}", rename.from.text());
                }
                continue;
            }
            RenamePlace::Anywhere => {
                name = name.replacen(rename.to.text(), rename.from.text(), 1);
                continue;
            }
            RenamePlace::Start => {}
        }
        let Some(start) = rename.to.start_of(&name) else { continue };
        // A computed number is the name's number and something that doesn't depend on it.
        let place = match (rename.to.computed(), start.computed) {
            (Some(formula), Some(found)) => {
                let zero = computed(formula, Some(0), main).and_then(|zero| usize::try_from(zero).ok());
                match zero.and_then(|zero| found.checked_sub(zero)) {
                    Some(place) => Some(place),
                    None => continue,
                }
            }
            _ => start.place,
        };
        if let Ok(begin) = rename.from.filled::<()>(start.layer, place, &|_| Err(())) {
            name = format!("{begin}{}", start.rest);
        }
    }
    name
}

/// Whether a name has the form of a pattern, in which `*` stands for any text.
pub(crate) fn has_form(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

/// Finds a name of transformers in the family. The name may include the module of a text model in a wrapper class.
pub(crate) fn find(family: &'static Family, name: &str) -> Lookup {
    let mut found = matches(family, name, None);
    if !found.is_empty() {
        return Lookup::Row(found.swap_remove(0));
    }
    let full = class_spelling(family, name, None);
    let is_dropped = family.dropped.iter().any(|dropped| dropped.when.is_none() && has_form(&dropped.pattern, &full));
    if is_dropped { Lookup::Dropped } else { Lookup::Unknown }
}

/// All places where the tensor called `name` is used, in the order of the family's rows.
pub(crate) fn matches(family: &'static Family, name: &str, main: Option<usize>) -> Vec<Match> {
    let name = class_spelling(family, name, main);
    let of_use = |place: &super::family::Use| {
        let row = &family.rows[place.row];
        let (layer, _) = row.forms[place.form].parts[place.part].name.matched(&name)?;
        Some(Match { row, form: place.form, part: place.part, layer, name: name.clone() })
    };
    family.uses(&name).iter().filter_map(of_use).collect()
}

impl Match {
    /// The part of a form that the name belongs to.
    pub(crate) fn part(&self) -> &'static Part {
        &self.row.forms[self.form].parts[self.part]
    }

    /// The name in GGUF, if it follows from this name alone.
    pub(crate) fn gguf_name(&self) -> Option<String> {
        self.row.gguf.filled(self.layer, None, &|_| Err(())).ok()
    }

    /// Whether the tensor alone becomes one GGUF tensor.
    pub(crate) fn is_whole(&self) -> bool {
        self.row.forms[self.form].parts.len() == 1 && self.part().stack.is_none()
    }
}

/// A GGUF tensor that the config asks for.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) row: &'static Row,
    /// The index of the row in the family.
    pub(crate) number: usize,
    pub(crate) layer: Option<usize>,
    /// Whether it may be missing.
    pub(crate) is_optional: bool,
}

impl Slot {
    /// The name in GGUF.
    pub(crate) fn gguf_name(&self, params: &Params) -> Result<String> {
        self.row.gguf.filled(self.layer, None, &|formula| params.whole_of(formula, self.layer))
    }
}

/// The GGUF tensors that the config asks for, row by row and layer by layer. `most` is the number of tensors that there
/// are: a count from a file that they don't confirm is refused before anything is made of it.
///
/// # Errors
/// [`crate::Error::Mismatch`] for counts that the tensors don't confirm; errors of the family's formulas.
pub(crate) fn slots(params: &Params, most: usize) -> Result<Vec<Slot>> {
    check_heads(params)?;
    let layers = params.layers()?;
    let main = params.size("main")?.unwrap_or(layers);
    let mut all = Vec::new();
    // Whether a row is wanted, and whether it is optional.
    let wanted = |row: &Row, layer: Option<usize>| -> Result<Option<bool>> {
        let shared = matches!(row.role, Role::Embedding | Role::LastNorm | Role::OutputHead);
        let has_own = row.forms.iter().any(|form| form.when.is_some());
        let kept = !params.parts.mtp_only
            || shared
            || has_own
            || layer.is_some_and(|layer| layer >= main && row.over.is_none());
        if kept && params.holds(row.when.as_ref(), layer)? {
            return Ok(Some(row.is_optional));
        }
        // A checkpoint with tied embeddings may still have its head.
        let is_tied = row.role == Role::OutputHead && kept && row.when.as_ref().is_some_and(is_untied);
        let is_kept = is_tied && dropped(params, row.source().name.text())?.is_none();
        Ok(is_kept.then_some(true))
    };
    for (number, row) in params.family.rows.iter().enumerate() {
        if !row.is_of_layers() {
            if let Some(is_optional) = wanted(row, None)? {
                all.push(Slot { row, number, layer: None, is_optional });
            }
            continue;
        }
        let count = match &row.over {
            Some(formula) => params.number_of(formula, None)?.unwrap_or_default(),
            None => layers,
        };
        if count > most && !row.is_optional {
            let subject = if row.over.is_some() { "layers" } else { "num_hidden_layers" };
            let finding =
                params.finding(subject).expected(format!("layers for at most the {most} tensors that there are"));
            return Err(finding.found(count).mismatch());
        }
        for layer in 0..count.min(1 << 16) {
            if let Some(is_optional) = wanted(row, Some(layer))? {
                all.push(Slot { row, number, layer: Some(layer), is_optional });
            }
        }
    }
    Ok(all)
}

/// Whether a condition is `not tie_word_embeddings`.
fn is_untied(when: &Formula) -> bool {
    matches!(when, Formula::Unary(Unary::Not, of) if **of == Formula::Name("tie_word_embeddings".to_owned()))
}

/// Checks that the number of heads divides the hidden size (unless the config has `head_dim`), and that query heads
/// divide evenly among key-value heads.
fn check_heads(params: &Params) -> Result<()> {
    let (Some(heads), Some(hidden)) = (params.size("heads")?, params.size("hidden")?) else { return Ok(()) };
    let Some(groups) = params.size("kv_heads")? else { return Ok(()) };
    let has_width = params.get(&["head_dim"]).is_some() || !params.family.lets["head"].uses("hidden");
    if heads == 0 || !has_width && (heads > hidden || !hidden.is_multiple_of(heads)) {
        let finding = params
            .finding("num_attention_heads")
            .expected(format_args!("a divisor of the width, {hidden}, by config.json"));
        return Err(finding.found(heads).mismatch());
    }
    if groups == 0 || !heads.is_multiple_of(groups) {
        let field = if params.get(&["num_kv_heads"]).is_some() { "num_kv_heads" } else { "num_key_value_heads" };
        let finding = params.finding(field).expected(format_args!("a divisor of {heads} heads"));
        return Err(finding.found(groups).mismatch());
    }
    Ok(())
}

/// A tensor of the checkpoint that a GGUF tensor is made of.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Its name in transformers.
    pub(crate) name: String,
    pub(crate) row: &'static Row,
    pub(crate) part: usize,
    pub(crate) layer: Option<usize>,
    /// Its shape in transformers; `None` is any size.
    pub(crate) shape: Vec<Option<usize>>,
}

impl Expected {
    /// The shape, if every size is known.
    pub(crate) fn whole_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().copied().collect()
    }
}

/// The tensors of one form of a slot. `most` limits the number of a stack's parts.
///
/// # Errors
/// [`crate::Error::Mismatch`] for a stack of more parts than there are tensors; errors of the family's formulas.
pub(crate) fn sources(params: &Params, slot: &Slot, form: usize, most: usize) -> Result<Vec<Expected>> {
    let found = sources_of(params, slot, form, most);
    params.of_statement(|| format!("tensor {}", slot.row.gguf.text()), found)
}

fn sources_of(params: &Params, slot: &Slot, form: usize, most: usize) -> Result<Vec<Expected>> {
    let mut all = Vec::new();
    for (part, known) in slot.row.forms[form].parts.iter().enumerate() {
        let size = |size: &Option<Formula>| size.as_ref().map(|size| params.size_of(size, slot.layer)).transpose();
        let shape: Vec<Option<usize>> = known.shape.iter().map(size).collect::<Result<_>>()?;
        let places: Vec<Option<usize>> = match &known.stack {
            None => vec![None],
            Some(count) => {
                let number = params.size_of(count, slot.layer)?;
                if number > most {
                    let subject = params.subject(count, slot.layer);
                    let what = if subject.contains("head") { "heads" } else { "experts" };
                    let expected = format!("{what} for at most the {most} tensors that there are");
                    return Err(params.finding(&subject).expected(expected).found(number).mismatch());
                }
                (0..number).map(Some).collect()
            }
        };
        for place in places {
            let name = known.name.filled(slot.layer, place, &|formula| params.whole_of(formula, slot.layer))?;
            all.push(Expected { name, row: slot.row, part, layer: slot.layer, shape: shape.clone() });
        }
    }
    Ok(all)
}

/// The first form of a slot all of whose tensors the checkpoint has, and these tensors.
///
/// # Errors
/// As [`sources`].
pub(crate) fn available(params: &Params, slot: &Slot, most: usize) -> Result<Option<(usize, Vec<Expected>)>> {
    for (number, form) in slot.row.forms.iter().enumerate() {
        if !params.holds(form.when.as_ref(), slot.layer)? {
            continue;
        }
        let wanted = sources(params, slot, number, most)?;
        if wanted.iter().all(|wanted| params.has_tensor(&wanted.name)) {
            return Ok(Some((number, wanted)));
        }
    }
    Ok(None)
}

/// Every tensor of the checkpoint that the config requires, and the optional ones that `also` selects, each once. It is
/// an error if they can't be among `most` tensors.
///
/// # Errors
/// As [`slots`] and [`sources`].
pub(crate) fn expected(params: &Params, most: usize, also: impl Fn(&Row) -> bool) -> Result<Vec<Expected>> {
    let mut all = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for slot in slots(params, most)? {
        if slot.is_optional && !also(slot.row) {
            continue;
        }
        let wanted = match available(params, &slot, most)? {
            Some((_, there)) => there,
            None => sources(params, &slot, 0, most)?,
        };
        for wanted in wanted {
            if seen.insert(wanted.name.clone()) {
                all.push(wanted);
            }
        }
    }
    Ok(all)
}

/// The check that a dropped tensor has to pass; `None` if the family doesn't drop it.
pub(crate) fn dropped<'a>(params: &'a Params, name: &str) -> Result<Option<&'a DropCheck>> {
    let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
    for dropped in &params.family.dropped {
        if has_form(&dropped.pattern, name) && params.holds(dropped.when.as_ref(), layer)? {
            return Ok(Some(&dropped.unless));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_any_text() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b.c", true),
            ("*.bias", "a.bias", true),
            ("a.*.c.*.d", "a.1.c.2.d", true),
            ("a.*.c.*.d", "a.1.c.d", false),
            ("a.b", "a.b.c", false),
            ("vocab_*", "model.vocab_x", false),
        ] {
            assert_eq!(has_form(pattern, name), expected, "{pattern} {name}");
        }
    }
}

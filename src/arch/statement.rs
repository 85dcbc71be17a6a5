//! Reads the statements of a family file.

use serde_json::Value as Json;

use super::Config;
use super::computation::SWITCHES;
use super::family::{Assumed, DropCheck, Dropped, Extra, Family, Key, KeyGroup, KeyType, Rename, RenamePlace, Restore};
use super::language::{Formula, Mistake, Scanner, Template, joined};
use super::row::Row;
use super::tensor_statement;
use crate::tokenizer::Vocab;

/// A statement of a family file.
#[derive(Debug)]
pub(crate) enum Statement {
    From(Vec<String>),
    Projector,
    Class(Vec<String>),
    ModelType(Vec<String>),
    Gguf(String),
    Detect(String),
    When(Formula),
    Fits(Formula),
    Vocab(Vocab),
    Defaults(Config),
    Assumed(Assumed),
    Let(String, Formula),
    Set(String, Formula),
    Key(Key),
    VocabKey(Key),
    EarlyKey(Key),
    Rows(Vec<Row>),
    Extra(Extra),
    Rename(Rename),
    Drop(Dropped),
    Back(String, Formula),
    RopeTypes(Vec<String>),
    Restore(Restore),
    TargetVocab,
    KeepTypes,
    KeepBlocks,
    /// The classes of the file whose models run.
    Runs(Vec<String>),
    RunsAny(Vec<String>),
    Run(&'static str, Formula),
    Inside(String, String),
    Folder(String, Option<Formula>),
    Refuse(String, Formula),
    Note(String, Formula),
    /// Leaves out what was inherited: the kind of statement, and a name.
    No(Left, String),
}

/// What a `no` statement leaves out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Left {
    Key,
    Group(KeyGroup),
    Tensor,
    Extra(Extra),
    Assumed,
}

const GROUPS: &[(&str, KeyGroup)] = &[
    ("rope", KeyGroup::Rope),
    ("rope_scaling", KeyGroup::RopeScaling),
    ("rope_base", KeyGroup::RopeBase),
    ("file_type", KeyGroup::FileType),
    ("pooling", KeyGroup::Pooling),
    ("labels", KeyGroup::Labels),
];

const EXTRAS: &[(&str, Extra)] = &[
    ("rope_freqs", Extra::RopeFreqs),
    ("long_factors", Extra::LongFactors),
    ("audio_positions", Extra::AudioPositions),
];

const KINDS: &[(&str, KeyType)] = &[
    ("u32", KeyType::U32),
    ("i32", KeyType::I32),
    ("u64", KeyType::U64),
    ("f32", KeyType::F32),
    ("bool", KeyType::Bool),
    ("str", KeyType::Text),
];

const STATEMENTS: &str = "a statement: from, kind, class, model_type, gguf, detect, when, fits, vocab, vocab_key, defaults, \
                          assume, expect, let, set, key, do, no, tensor, extra, rename, rename_end, rename_in, drop, drop_zero, other, \
                          same, nextn, rope_types, back, restore, folder, refuse, keep_types, keep_blocks, \
                          inside, note, runs, runs_any, run";

/// The statements of a file, in order.
///
/// # Errors
/// The first mistake.
pub(crate) fn statements(file: &str) -> Result<Vec<Statement>, Mistake> {
    let text = joined(file);
    let mut all = Vec::new();
    let mut start = 0;
    for line in text.split('\n') {
        let end = start + line.len();
        let mut scanner = Scanner::new(file, &text, start, end);
        if !scanner.is_done() {
            all.push(statement(&mut scanner)?);
            if !scanner.is_done() {
                return Err(scanner.mistake("the end of the statement"));
            }
        }
        start = end + 1;
    }
    Ok(all)
}

fn statement(scanner: &mut Scanner) -> Result<Statement, Mistake> {
    let place = scanner.place();
    let Some(word) = scanner.word() else { return Err(scanner.mistake(STATEMENTS)) };
    Ok(match word {
        "from" => Statement::From(words(scanner, "the name of a family")?),
        "kind" => match scanner.word() {
            Some("projector") => Statement::Projector,
            _ => return Err(scanner.mistake_at(place, "kind projector", "another kind")),
        },
        "class" => Statement::Class(words(scanner, "a class")?),
        "model_type" => Statement::ModelType(words(scanner, "a model_type")?),
        "gguf" => Statement::Gguf(one_word(scanner, "the name of an architecture")?),
        "detect" => Statement::Detect(one_word(scanner, "a tensor's name")?),
        "when" => Statement::When(Formula::read(scanner)?),
        "fits" => Statement::Fits(Formula::read(scanner)?),
        "vocab" => {
            let place = scanner.place();
            let name = one_word(scanner, "a kind of vocabulary")?;
            if name == "target" {
                return Ok(Statement::TargetVocab);
            }
            let names = || Vocab::names().collect::<Vec<_>>().join(", ");
            let vocab = name.parse::<Vocab>();
            Statement::Vocab(
                vocab.map_err(|_| {
                    scanner.mistake_at(place, format!("a kind of vocabulary: target, {}", names()), name)
                })?,
            )
        }
        "defaults" => {
            let place = scanner.place();
            let text = scanner.all();
            let fields = serde_json::from_str(text).map_err(|error| {
                let at = place + error.column().saturating_sub(1);
                scanner.mistake_at(at, "a JSON object", crate::json::plain(&error))
            })?;
            Statement::Defaults(fields)
        }
        "assume" | "expect" => {
            let field = dotted(scanner, "a field of config.json")?;
            scanner.need("=")?;
            let values = json_values(scanner)?;
            let when = if scanner.takes_word("when") { Some(Formula::read(scanner)?) } else { None };
            Statement::Assumed(Assumed { field, values, when, is_refused: word == "assume" })
        }
        "let" | "set" => {
            let name = scanner.name().map(str::to_owned);
            let name = name.ok_or_else(|| scanner.mistake("a name"))?;
            scanner.need("=")?;
            let formula = Formula::read(scanner)?;
            if word == "let" { Statement::Let(name, formula) } else { Statement::Set(name, formula) }
        }
        "nextn" => Statement::Let("nextn".to_owned(), Formula::read(scanner)?),
        "key" => match scanner.takes_word("early") {
            true => Statement::EarlyKey(key(scanner)?),
            false => Statement::Key(key(scanner)?),
        },
        "vocab_key" => Statement::VocabKey(key(scanner)?),
        "do" => Statement::Key(Key::Group(named(scanner, GROUPS, "a group of keys")?)),
        "extra" => {
            let name = one_word(scanner, "tensors made of the config")?;
            if scanner.takes("=") {
                return Ok(Statement::Extra(Extra::Values(name, Formula::read(scanner)?)));
            }
            let known = EXTRAS.iter().find(|(known, _)| *known == name).map(|(_, extra)| extra.clone());
            let names: Vec<&str> = EXTRAS.iter().map(|(known, _)| *known).collect();
            let expected = || format!("tensors made of the config: {}, or NAME = VALUES", names.join(", "));
            Statement::Extra(known.ok_or_else(|| scanner.mistake_at(place, expected(), name))?)
        }
        "no" => left_out(scanner)?,
        "tensor" => Statement::Rows(tensor_statement::rows(scanner)?),
        "rename" => rename(scanner, RenamePlace::Start)?,
        "rename_end" => rename(scanner, RenamePlace::End)?,
        "rename_in" => rename(scanner, RenamePlace::Anywhere)?,
        "drop" | "drop_zero" | "same" | "other" => {
            let place = scanner.place();
            let pattern = one_word(scanner, "a tensor's name")?;
            if pattern.contains('{') {
                return Err(scanner.mistake_at(place, "a name with `*` for numbers", pattern));
            }
            let unless = match word {
                "drop" => DropCheck::Nothing,
                "drop_zero" => DropCheck::Zero,
                "other" => DropCheck::OfPart(pattern.trim_end_matches(['*', '.']).to_owned()),
                _ => {
                    scanner.need("=")?;
                    DropCheck::Same(one_word(scanner, "a tensor's name")?)
                }
            };
            let when = if scanner.takes_word("when") { Some(Formula::read(scanner)?) } else { None };
            Statement::Drop(Dropped { pattern, when, unless })
        }
        "rope_types" => Statement::RopeTypes(words(scanner, "a rope_type")?),
        "keep_types" => Statement::KeepTypes,
        "keep_blocks" => Statement::KeepBlocks,
        "runs" => Statement::Runs(words(scanner, "a class")?),
        "runs_any" => Statement::RunsAny(words(scanner, "a field of config.json")?),
        "run" => {
            let switch = named(scanner, &SWITCHES.map(|name| (name, name)), "how a decoder computes")?;
            scanner.need("=")?;
            Statement::Run(switch, Formula::read(scanner)?)
        }
        "inside" => {
            let field = one_word(scanner, "a field of config.json")?;
            Statement::Inside(field, one_word(scanner, "the model_type inside it")?)
        }
        "folder" => {
            let name = one_word(scanner, "the name of a folder")?;
            let when = if scanner.takes_word("when") { Some(Formula::read(scanner)?) } else { None };
            Statement::Folder(name, when)
        }
        "refuse" | "note" => {
            let place = scanner.place();
            let Formula::Literal(Json::String(text)) = Formula::read_operand(scanner)? else {
                return Err(scanner.mistake_at(place, "a text in quotes", "another value"));
            };
            scanner.need("when")?;
            let when = Formula::read(scanner)?;
            if word == "refuse" { Statement::Refuse(text, when) } else { Statement::Note(text, when) }
        }
        "restore" => {
            let name = Template::read(scanner)?;
            let shape = tensor_statement::sizes(scanner)?;
            scanner.need("=")?;
            Statement::Restore(Restore { name, shape, values: Formula::read(scanner)? })
        }
        "back" => {
            let field = dotted(scanner, "a field of config.json")?;
            scanner.need("=")?;
            Statement::Back(field, Formula::read(scanner)?)
        }
        _ => return Err(scanner.mistake_at(place, STATEMENTS, word)),
    })
}

fn words(scanner: &mut Scanner, expected: &str) -> Result<Vec<String>, Mistake> {
    let mut words = vec![one_word(scanner, expected)?];
    while let Some(word) = scanner.word() {
        words.push(word.to_owned());
    }
    Ok(words)
}

fn one_word(scanner: &mut Scanner, expected: &str) -> Result<String, Mistake> {
    match scanner.word() {
        Some("\"\"") => Ok(String::new()),
        Some(word) => Ok(word.to_owned()),
        None => Err(scanner.mistake(expected)),
    }
}

/// A field's name, which may be inside objects: `a.b`.
fn dotted(scanner: &mut Scanner, expected: &str) -> Result<String, Mistake> {
    let mut path = scanner.name().ok_or_else(|| scanner.mistake(expected))?.to_owned();
    while scanner.takes_directly(".") {
        let part = scanner.name().ok_or_else(|| scanner.mistake(expected))?;
        path = format!("{path}.{part}");
    }
    Ok(path)
}

fn named<T: Clone>(scanner: &mut Scanner, known: &[(&str, T)], what: &str) -> Result<T, Mistake> {
    let place = scanner.place();
    let word = scanner.word().unwrap_or_default();
    let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = known.iter().find(|(name, _)| *name == word).map(|(_, value)| value.clone());
    found.ok_or_else(|| scanner.mistake_at(place, format!("{what}: {}", names()), word))
}

/// JSON values with bars between them.
fn json_values(scanner: &mut Scanner) -> Result<Vec<Json>, Mistake> {
    let mut values = vec![scanner.json()?];
    while scanner.takes("|") {
        values.push(scanner.json()?);
    }
    Ok(values)
}

/// `TYPE NAME = FORMULA [when FORMULA]`
fn key(scanner: &mut Scanner) -> Result<Key, Mistake> {
    let kind = named(scanner, KINDS, "the type of a key")?;
    let place = scanner.place();
    let name = one_word(scanner, "a key's name")?;
    if name == "general.architecture" {
        return Err(scanner.mistake_at(place, "another key: `gguf` says the architecture", name));
    }
    scanner.need("=")?;
    let value = Formula::read(scanner)?;
    let when = if scanner.takes_word("when") { Some(Formula::read(scanner)?) } else { None };
    Ok(Key::Value { kind, name, value, when })
}

fn left_out(scanner: &mut Scanner) -> Result<Statement, Mistake> {
    let kinds = [("key", 0), ("do", 1), ("tensor", 2), ("extra", 3), ("assume", 4), ("expect", 4)];
    Ok(match named(scanner, &kinds, "a kind of statement")? {
        0 => Statement::No(Left::Key, one_word(scanner, "a key's name")?),
        1 => Statement::No(Left::Group(named(scanner, GROUPS, "a group of keys")?), String::new()),
        2 => Statement::No(Left::Tensor, one_word(scanner, "a tensor's name in GGUF")?),
        3 => Statement::No(Left::Extra(named(scanner, EXTRAS, "tensors made of the config")?), String::new()),
        _ => Statement::No(Left::Assumed, one_word(scanner, "a field of config.json")?),
    })
}

/// `FROM -> TO` or `FROM <-> TO`
fn rename(scanner: &mut Scanner, place_in_name: RenamePlace) -> Result<Statement, Mistake> {
    let place = scanner.place();
    let from = Template::read(scanner)?;
    let is_own = scanner.takes("<->");
    if !is_own {
        scanner.need("->")?;
    }
    let to = match scanner.word() {
        Some("\"\"") => "",
        Some(word) => word,
        None => return Err(scanner.mistake("a name, or \"\"")),
    };
    let to = Template::parse(to).map_err(|_| scanner.mistake_at(place, "a whole-number expression in braces", to))?;
    Ok(Statement::Rename(Rename { from, to, place: place_in_name, is_own }))
}

impl Family {
    /// Adds a statement. Statements replace what they name; keys follow each other, since a later value replaces an
    /// earlier one when they are written.
    ///
    /// Returns the families to be taken over, for `from`.
    pub(super) fn apply(&mut self, statement: Statement) -> Vec<String> {
        match statement {
            Statement::From(names) => return names,
            Statement::Projector => self.is_projector = true,
            Statement::Class(names) => self.classes = names,
            Statement::ModelType(names) => self.model_types = names,
            Statement::Gguf(name) => self.gguf = name,
            Statement::Detect(name) => self.detect = Some(name),
            Statement::When(formula) => self.when = Some(formula),
            Statement::Fits(formula) => self.fits = Some(formula),
            Statement::Vocab(vocab) => (self.vocab, self.takes_target) = (vocab, false),
            Statement::KeepTypes => self.keeps_types = true,
            Statement::KeepBlocks => self.keeps_blocks = true,
            Statement::Runs(classes) => self.runs = classes,
            Statement::RunsAny(fields) => self.runs_any.extend(fields),
            Statement::Run(switch, formula) => drop(self.run.insert(switch, formula)),
            Statement::Inside(field, model_type) => self.inside = Some((field, model_type)),
            Statement::TargetVocab => self.takes_target = true,
            Statement::Folder(name, when) => self.folders.push((name, when)),
            Statement::Refuse(what, when) => self.refusals.push((what, when)),
            Statement::Note(text, when) => self.notes.push((text, when)),
            Statement::Defaults(fields) => self.defaults = fields,
            Statement::Assumed(assumed) => {
                self.assumed.retain(|known| known.field != assumed.field);
                self.assumed.push(assumed);
            }
            Statement::Let(name, formula) => drop(self.lets.insert(name, formula)),
            Statement::Set(name, formula) => {
                self.sets.retain(|(known, _)| *known != name);
                self.sets.push((name, formula));
            }
            Statement::Key(key) => self.keys.push(key),
            Statement::EarlyKey(key) => self.early_keys.push(key),
            Statement::VocabKey(key) => self.vocab_keys.push(key),
            Statement::Rows(rows) => rows.into_iter().for_each(|row| self.put_row(row)),
            Statement::Extra(extra) => self.extras.push(extra),
            Statement::Rename(rename) => {
                self.renames.retain(|known| known.place != rename.place || known.from.text() != rename.from.text());
                self.renames.push(rename);
            }
            Statement::Drop(dropped) => self.dropped.push(dropped),
            Statement::Back(field, formula) => {
                self.back.retain(|(known, _)| *known != field);
                self.back.push((field, formula));
            }
            Statement::Restore(restore) => self.restores.push(restore),
            Statement::RopeTypes(names) => self.rope_types.extend(names),
            Statement::No(left, name) => self.leave_out(left, &name),
        }
        Vec::new()
    }

    fn put_row(&mut self, row: Row) {
        match self.rows.iter_mut().find(|known| known.gguf.text() == row.gguf.text()) {
            Some(known) => *known = row,
            None => self.rows.push(row),
        }
    }

    fn leave_out(&mut self, left: Left, name: &str) {
        let count = |family: &Self| {
            [&family.keys, &family.vocab_keys, &family.early_keys].map(Vec::len).iter().sum::<usize>()
                + family.rows.len()
                + family.extras.len()
                + family.assumed.len()
        };
        let before = count(self);
        match left {
            Left::Key => {
                self.keys.retain(|key| !matches!(key, Key::Value { name: known, .. } if known == name));
                self.vocab_keys.retain(|key| !matches!(key, Key::Value { name: known, .. } if known == name));
                self.early_keys.retain(|key| !matches!(key, Key::Value { name: known, .. } if known == name));
            }
            Left::Group(group) => self.keys.retain(|key| !matches!(key, Key::Group(known) if *known == group)),
            Left::Tensor => {
                let bias = name.strip_suffix(".weight").map(|name| format!("{name}.bias"));
                self.rows.retain(|row| row.gguf.text() != name && Some(row.gguf.text()) != bias.as_deref());
            }
            Left::Extra(extra) => self.extras.retain(|known| *known != extra),
            Left::Assumed => self.assumed.retain(|known| known.field != name),
        }
        if count(self) == before {
            self.left_nothing_out.push(name.to_owned());
        }
    }
}

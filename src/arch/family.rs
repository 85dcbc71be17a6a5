//! A model family: a class of transformers and its counterpart in GGUF, as a family file describes them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::OnceLock;

use super::Config;
use super::language::{Formula, Function, Template, generalized};
use super::row::{Operation, Role, Row};
use crate::tokenizer::Vocab;

/// A class of transformers and its counterpart in GGUF.
#[derive(Default)]
pub(crate) struct Family {
    /// The file's name without its ending.
    pub(crate) name: String,
    /// The user's file, if it isn't built in.
    pub(crate) file: Option<PathBuf>,
    /// Whether it describes the projector of a multimodal model and not a text model.
    pub(crate) is_projector: bool,
    /// Names in config.json's `architectures`. A GGUF becomes the first.
    pub(crate) classes: Vec<String>,
    /// config.json's `model_type`; the first is written.
    pub(crate) model_types: Vec<String>,
    /// `general.architecture`.
    pub(crate) gguf: String,
    /// The tensor by which a folder without config.json is known to hold a model of the class.
    pub(crate) detect: Option<String>,
    /// Selects configs of the class, where it has several families.
    pub(crate) when: Option<Formula>,
    /// Selects the GGUF files of the architecture that turn back into this class.
    pub(crate) fits: Option<Formula>,
    /// How the tokenizer's files become a vocabulary.
    pub(crate) vocab: Vocab,
    /// Every field of the class's config with transformers' default. `"auto"` marks a value that transformers derives
    /// from other fields.
    pub(crate) defaults: Config,
    /// Whether the vocabulary is that of another model, for which this one makes drafts.
    pub(crate) takes_target: bool,
    /// Whether matrices keep the types of the checkpoint: 8-bit floats become Q8_0.
    pub(crate) keeps_types: bool,
    /// Whether blocks of MXFP4 stay blocks, whatever type is asked for.
    pub(crate) keeps_blocks: bool,
    /// The classes whose models run: those of the file, or of one that it builds on.
    pub(crate) runs: Vec<String>,
    /// Fields that llama.cpp assumes values of, and with any of which its models run.
    pub(crate) runs_any: Vec<String>,
    /// How its models compute, by the names of `computation::SWITCHES`.
    pub(crate) run: HashMap<&'static str, Formula>,
    /// The object of config.json that has the text model's fields on the way back, and its `model_type`.
    pub(crate) inside: Option<(String, String)>,
    /// Folders inside the model's, with more tensors.
    pub(crate) folders: Vec<(String, Option<Formula>)>,
    /// What isn't converted, and when it is there.
    pub(crate) refusals: Vec<(String, Formula)>,
    /// What a statement `no` names and no family before has.
    pub(crate) left_nothing_out: Vec<String>,
    /// What the user is told, and when.
    pub(crate) notes: Vec<(String, Formula)>,
    /// Field values that the GGUF format assumes.
    pub(crate) assumed: Vec<Assumed>,
    /// Values by name.
    pub(crate) lets: HashMap<String, Formula>,
    /// Fields of the config that are replaced before anything is read.
    pub(crate) sets: Vec<(String, Formula)>,
    /// Metadata keys that are written right behind the architecture's name.
    pub(crate) early_keys: Vec<Key>,
    /// Metadata keys, in the order in which they are written.
    pub(crate) keys: Vec<Key>,
    /// Metadata keys after the vocabulary.
    pub(crate) vocab_keys: Vec<Key>,
    /// The tensors.
    pub(crate) rows: Vec<Row>,
    /// Tensors that are computed from the config.
    pub(crate) extras: Vec<Extra>,
    /// Other spellings of tensor names.
    pub(crate) renames: Vec<Rename>,
    /// Tensors that GGUF has no place for.
    pub(crate) dropped: Vec<Dropped>,
    /// Fields of config.json on the way back from GGUF.
    pub(crate) back: Vec<(String, Formula)>,
    /// Tensors of the checkpoint that are made of keys on the way back from GGUF.
    pub(crate) restores: Vec<Restore>,
    /// Kinds of rotary scaling that the family takes besides those that its keys express.
    pub(crate) rope_types: Vec<String>,
    /// For every general form of a checkpoint name, where it is used.
    uses: OnceLock<HashMap<String, Vec<Use>>>,
    /// The names that its formulas read.
    reads: OnceLock<HashSet<String>>,
}

/// A place in a family where a tensor of the checkpoint is used: row, form, part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    pub(crate) row: usize,
    pub(crate) form: usize,
    pub(crate) part: usize,
}

/// A field for which GGUF has no key: llama.cpp computes as if it were one of `values`.
#[derive(Debug, Clone)]
pub(crate) struct Assumed {
    pub(crate) field: String,
    pub(crate) values: Vec<serde_json::Value>,
    /// When it matters; always, without a condition.
    pub(crate) when: Option<Formula>,
    /// Whether another value is refused. If not, it gets a note, because the reference converts such a model too.
    pub(crate) is_refused: bool,
}

/// A metadata key, or a group of keys that is code.
#[derive(Debug, Clone)]
pub(crate) enum Key {
    /// A value computed from the config.
    Value { kind: KeyType, name: String, value: Formula, when: Option<Formula> },
    /// A group of keys.
    Group(KeyGroup),
}

/// The type of a key's value, or of the elements of its array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyType {
    U32,
    I32,
    U64,
    F32,
    Bool,
    Text,
}

/// A group of keys that is code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyGroup {
    /// Scaling, sections and bases of rotary embeddings.
    Rope,
    /// Type and factor of rotary scaling, and the parameters of yarn.
    RopeScaling,
    /// `rope.freq_base`.
    RopeBase,
    /// `general.file_type`.
    FileType,
    /// `pooling_type`, for folders of sentence-transformers.
    Pooling,
    /// `classifier.output_labels`, from `id2label` if its labels aren't the default ones.
    Labels,
}

/// Tensors that are computed from the config and not stored in the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Extra {
    /// Llama 3's divisors of the rotary frequencies: `rope_freqs.weight`.
    RopeFreqs,
    /// Phi-3's factors for short and long contexts, `rope_factors_short.weight` and `rope_factors_long.weight`, with
    /// the key `rope.scaling.attn_factor`.
    LongFactors,
    /// Whisper's positions as sines and cosines: `a.position_embd.weight`, 1500 rows of the width `a_width`.
    AudioPositions,
    /// A vector of this name with these values; none where they are null.
    Values(String, Formula),
}

/// Another spelling of tensor names.
#[derive(Debug, Clone)]
pub(crate) struct Rename {
    /// The beginning of a name, or its end.
    pub(crate) from: Template,
    pub(crate) to: Template,
    pub(crate) place: RenamePlace,
    /// Whether `from` is the class's own spelling.
    pub(crate) is_own: bool,
}

/// A tensor of the checkpoint that is made of keys on the way back.
#[derive(Debug, Clone)]
pub(crate) struct Restore {
    /// Its name; `{l}` is the layer.
    pub(crate) name: Template,
    pub(crate) shape: Vec<Formula>,
    /// Its values: a number, or a list.
    pub(crate) values: Formula,
}

/// Where in a name a rename applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenamePlace {
    Start,
    End,
    Anywhere,
}

/// Tensors that GGUF has no place for.
#[derive(Debug, Clone)]
pub(crate) struct Dropped {
    /// A name; `*` stands for any text.
    pub(crate) pattern: String,
    pub(crate) when: Option<Formula>,
    pub(crate) unless: DropCheck,
}

/// What must be true of a tensor that is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DropCheck {
    Nothing,
    /// All its values are zero.
    Zero,
    /// It equals the tensor of this name.
    Same(String),
    /// It belongs to this other part of the model: a note counts such tensors.
    OfPart(String),
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl PartialEq for Family {
    /// A family is one of those that are known.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Family {
    /// The class that a GGUF becomes.
    pub(crate) fn class(&self) -> &str {
        self.classes.first().map_or("", String::as_str)
    }

    /// Whether models of one of its classes run. What a file takes over may run while its own classes don't.
    pub(super) fn is_run(&self) -> bool {
        self.classes.iter().any(|class| self.runs.contains(class))
    }

    /// Whether a tensor is a weight of the checkpoint times a factor.
    pub(crate) fn multiplies(&self) -> bool {
        let forms = self.rows.iter().flat_map(|row| &row.forms);
        let operations = forms.flat_map(|form| {
            let parts = form.parts.iter().flat_map(|part| part.each.iter().chain(&part.operations));
            parts.chain(&form.operations)
        });
        operations.into_iter().any(|operation| matches!(operation, Operation::Multiply(_)))
    }

    /// config.json's `model_type`.
    pub(crate) fn model_type(&self) -> &str {
        self.model_types.first().map_or("", String::as_str)
    }

    /// The first row with this role that isn't a bias.
    pub(crate) fn row(&self, role: Role) -> Option<&Row> {
        self.rows.iter().find(|row| row.role == role && !row.is_bias())
    }

    /// Whether the class has a field of this name.
    pub(crate) fn has_field(&self, name: &str) -> bool {
        self.defaults.contains_key(name)
    }

    /// Whether it writes this group of keys.
    pub(crate) fn writes(&self, group: KeyGroup) -> bool {
        self.keys.iter().any(|key| matches!(key, Key::Group(known) if *known == group))
    }

    /// The places where tensors with names of the form of `name` are used.
    pub(crate) fn uses(&self, name: &str) -> &[Use] {
        let uses = self.uses.get_or_init(|| {
            let mut uses: HashMap<String, Vec<Use>> = HashMap::new();
            for (row, known) in self.rows.iter().enumerate() {
                for (form, known) in known.forms.iter().enumerate() {
                    for (part, known) in known.parts.iter().enumerate() {
                        uses.entry(known.name.general()).or_default().push(Use { row, form, part });
                    }
                }
            }
            uses
        });
        uses.get(&generalized(name)).map_or(&[], Vec::as_slice)
    }

    /// Every formula of its keys, sizes and conditions.
    fn formulas(&self) -> impl Iterator<Item = &Formula> {
        let keys = self.early_keys.iter().chain(&self.keys).chain(&self.vocab_keys);
        let of_keys = keys.flat_map(|key| match key {
            Key::Value { value, when, .. } => [Some(value), when.as_ref()],
            Key::Group(_) => [None, None],
        });
        let of_rows = self.rows.iter().flat_map(|row| {
            let parts = row.forms.iter().flat_map(|form| &form.parts);
            row.when
                .iter()
                .chain(&row.over)
                .chain(parts.flat_map(|part| part.shape.iter().flatten().chain(&part.stack)))
        });
        let sets = self.sets.iter().map(|(_, formula)| formula);
        of_keys.flatten().chain(self.lets.values()).chain(sets).chain(self.run.values()).chain(of_rows)
    }

    /// Whether the function is called in one of its formulas.
    pub(crate) fn calls(&self, function: Function) -> bool {
        let mut found = false;
        for formula in self.formulas() {
            formula.visit(&mut |part| found |= matches!(part, Formula::Call(known, _) if *known == function));
        }
        found
    }

    /// The tensors whose values formulas read, in their general form.
    pub(crate) fn value_names(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        for formula in self.formulas() {
            formula.visit(&mut |part| {
                if let Formula::Call(Function::Values, arguments) = part
                    && let Some(Formula::Literal(serde_json::Value::String(name))) = arguments.first()
                {
                    names.insert(generalized(&name.replace("{l}", "0")));
                }
            });
        }
        names
    }

    /// The names in the file's formulas: fields of config.json, among others.
    pub(crate) fn reads(&self) -> &HashSet<String> {
        self.reads.get_or_init(|| {
            let mut names = HashSet::new();
            for formula in self.formulas() {
                formula.visit(&mut |part| {
                    if let Formula::Name(name) = part {
                        names.insert(name.clone());
                    }
                });
            }
            names
        })
    }
}

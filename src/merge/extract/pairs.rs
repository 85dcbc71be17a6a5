//! Compares the tensors of two models: which ones changed, and which form a LoRA can store them in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::experts::Experts;
use super::selection::{Selection, Selector};
use crate::adapter::peft::{Base, WeightLayout};
use crate::arch::names::{HEAD, in_order, is_made_by_class, is_of_experts};
use crate::arch::params::class;
use crate::arch::{INERT, Naming, Role};
use crate::error::{Finding, Result};
use crate::plan::PlannedTensor;
use crate::quant;
use crate::source::show_shape;

/// A weight in both models whose change is decomposed: a linear layer's or, where these are selected, an embedding's.
#[derive(Debug)]
pub struct Module {
    /// The weight's name in the class.
    pub name: String,
    /// The finetuned model's weight.
    pub of: PlannedTensor,
    /// The base's weight.
    pub less: PlannedTensor,
    /// How the weight is stored.
    pub layout: WeightLayout,
}

/// The tensors of the base and of the finetuned model, in pairs.
#[derive(Debug)]
pub struct Pairs {
    /// Every weight that is decomposed, changed or not, in the model's order.
    pub modules: Vec<Module>,
    /// Every parameter with the experts of a layer, changed or not.
    pub experts: Vec<Experts>,
    /// Tensors of the finetuned model that replace the base's: all tensors of a module that is saved whole because one
    /// of them changed, and changed biases of linear layers.
    pub saved: Vec<PlannedTensor>,
    /// A line for each difference that the LoRA doesn't store, or stores so that the base has to be prepared for it.
    pub notes: Vec<String>,
    pub(super) base: PathBuf,
    pub(super) finetuned: PathBuf,
    pub(super) base_values: u64,
    /// Whether the embeddings changed, and are tied to the output head in both models.
    pub(super) keeps_tie: bool,
}

/// How a changed tensor is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    LowRank(WeightLayout),
    /// Its module is saved whole.
    Whole,
    /// It is a bias: saved with its module if that is saved whole, otherwise alone.
    Bias,
    /// PEFT can't save it.
    Refused,
    /// It isn't selected.
    LeftOut,
}

/// A tensor in both models.
struct Pair<'a> {
    own: String,
    less: &'a PlannedTensor,
    of: &'a PlannedTensor,
}

impl Pairs {
    /// Compares the two models. This reads the values of all tensors that can't be low-rank.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for tensors that only one of the models has, or that differ in shape;
    /// [`crate::Error::Unsupported`] for changed tensors that a LoRA can't store, naming file and tensor;
    /// [`crate::Error::Setting`] for a part of the selection that selects nothing.
    pub fn new(base: &Base, finetuned: &Base, selection: &Selection) -> Result<Self> {
        let selector = selection.compiled()?;
        let pairs = paired(base, finetuned)?;
        let mut experts = Experts::all(base, finetuned, pairs.iter().map(|pair| pair.own.as_str()));
        let paths: Vec<String> = experts.iter().map(Experts::path).collect();
        let paths = pairs.iter().map(|pair| path_of(&pair.own)).chain(paths.iter().map(String::as_str));
        selector.check(&paths.collect::<Vec<_>>())?;
        let ties = [base, finetuned].map(|model| model.tied_head().is_some());
        let kinds = Kinds { base, naming: Naming::of(base.config()), selector, ties };
        let mut modules = Vec::new();
        let mut left_out = Vec::new();
        let mut changed: Vec<(&Pair, Fate)> = Vec::new();
        let of_experts: BTreeSet<String> = experts.iter().flat_map(|experts| experts.names.clone()).collect();
        experts.retain(|experts| kinds.selector.takes(&experts.path()));
        let taken: BTreeSet<&str> = experts.iter().flat_map(|experts| &experts.names).map(String::as_str).collect();
        for pair in &pairs {
            if of_experts.contains(&pair.less.name) {
                if !taken.contains(pair.less.name.as_str()) && differ(pair.of, pair.less)? {
                    left_out.push(pair.own.as_str());
                }
                continue;
            }
            let fate = kinds.fate(pair);
            match fate {
                Fate::LowRank(layout) => modules.push(Module {
                    name: pair.own.clone(),
                    of: pair.of.clone(),
                    less: pair.less.clone(),
                    layout,
                }),
                _ if !differ(pair.of, pair.less)? => {}
                Fate::Refused => return Err(refusal(pair)),
                Fate::LeftOut => left_out.push(pair.own.as_str()),
                Fate::Whole | Fate::Bias => changed.push((pair, fate)),
            }
        }
        let linear: BTreeSet<&str> = modules.iter().map(|module| path_of(&module.name)).collect();
        let whole: BTreeSet<&str> =
            changed.iter().map(|(pair, _)| path_of(&pair.own)).filter(|path| !linear.contains(path)).collect();
        let is_changed = |pair: &Pair| changed.iter().any(|(other, _)| other.own == pair.own);
        let saved: Vec<PlannedTensor> = pairs
            .iter()
            .filter(|pair| whole.contains(path_of(&pair.own)) || is_changed(pair))
            .map(|pair| PlannedTensor { name: pair.own.clone(), ..pair.of.clone() })
            .collect();
        let embeddings = base.embeddings().map(|tensor| base.own_name(&tensor.name));
        let is_saved = |name: &String| saved.iter().any(|tensor| tensor.name == *name);
        let keeps_tie = ties == [true; 2] && embeddings.as_ref().is_some_and(is_saved);
        let mut notes = config_notes(base, finetuned);
        notes.extend(name_note(base, kinds.naming, &pairs));
        notes.extend(pairs.iter().filter(|pair| saved.iter().any(|t| t.name == pair.own)).filter_map(resized_note));
        if selection.embed_lora && keeps_tie {
            notes.push("the embeddings are tied to the output head, and saved whole".to_owned());
        }
        notes.extend(left_out_note(&left_out));
        Ok(Self {
            modules,
            experts,
            saved,
            notes,
            base: base.path().to_owned(),
            finetuned: finetuned.path().to_owned(),
            base_values: pairs.iter().map(|pair| pair.less.elems() as u64).sum(),
            keeps_tie,
        })
    }
}

/// The path of a tensor's module, or "" for a parameter that belongs to no module.
fn path_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(path, _)| path)
}

/// Both models' tensors under the class's own names, in the model's order, without buffers.
fn paired<'a>(base: &'a Base, finetuned: &'a Base) -> Result<Vec<Pair<'a>>> {
    let tensors = |model: &'a Base| -> BTreeMap<String, &'a PlannedTensor> {
        model.named().filter(|(_, tensor)| !is_made_by_class(&tensor.name)).collect()
    };
    let (theirs, mut ours) = (tensors(base), tensors(finetuned));
    let naming = Naming::of(base.config());
    let only_in = |model: &Base, tensor: &PlannedTensor, other: &Base| {
        let source = tensor.expr.source_path();
        Finding::new(
            if source.as_os_str().is_empty() { model.path() } else { &source },
            format!("tensor {:?}", tensor.name),
        )
        .expected(format_args!("it in {}, too", other.path().display()))
        .found("none of that name there")
        .hint("a LoRA needs two models of one architecture and size")
        .mismatch()
    };
    let mut pairs = Vec::new();
    for own in in_order(base.named().map(|(own, _)| own).collect::<Vec<_>>().iter().map(String::as_str)) {
        let Some(less) = theirs.get(own) else { continue };
        let Some(of) = ours.remove(own) else { return Err(only_in(base, less, finetuned)) };
        if of.shape != less.shape && !is_resized(naming, own, less, of) {
            return Err(Finding::new(of.expr.source_path(), format!("tensor {:?}", of.name))
                .expected(format_args!("{}, as {} has it", show_shape(&less.shape), base.path().display()))
                .found(show_shape(&of.shape))
                .hint("a LoRA keeps shapes, but for the rows of embeddings and output head")
                .mismatch());
        }
        // A storage with several names has one change.
        let main = base.main_name(&less.name);
        if main != less.name {
            same_change(finetuned, of, main)?;
            continue;
        }
        pairs.push(Pair { own: own.to_owned(), less, of });
    }
    match ours.into_values().next() {
        None => Ok(pairs),
        Some(tensor) => Err(only_in(finetuned, tensor, base)),
    }
}

/// Checks that a tensor of the finetuned model has the values of another, as they share a storage in the base.
fn same_change(finetuned: &Base, of: &PlannedTensor, main: &str) -> Result<()> {
    match finetuned.tensor(main) {
        Some(other) if finetuned.main_name(&of.name) != finetuned.main_name(main) && differ(of, other)? => {
            Err(Finding::new(of.expr.source_path(), format!("tensor {:?}", of.name))
                .expected(format_args!("the values of {main:?}: in the base, both are names of one storage"))
                .found("others: two different changes of one storage")
                .mismatch())
        }
        _ => Ok(()),
    }
}

/// Whether a matrix of tensors alone may be an embedding's: its module is called so, and has no bias.
fn may_be_embedding(base: &Base, name: &str) -> bool {
    let module = path_of(name);
    let last = module.rsplit('.').next().unwrap_or(module);
    base.is_tensors_alone() && last.contains("emb") && base.tensor(&format!("{module}.bias")).is_none()
}

/// What decides how tensors are saved.
struct Kinds<'a> {
    base: &'a Base<'a>,
    naming: Naming,
    selector: Selector<'a>,
    /// Whether the output head is tied to the embeddings, in the base and in the finetuned model.
    ties: [bool; 2],
}

impl Kinds<'_> {
    fn fate(&self, pair: &Pair) -> Fate {
        let (name, path) = (pair.own.as_str(), path_of(&pair.own));
        let selection = self.selector.of;
        let is_module = matches!(name.rsplit_once('.'), Some((_, "weight" | "bias")));
        if is_module && self.selector.saves(path) && !is_of_experts(name) {
            return if name.ends_with(".bias") { Fate::Bias } else { Fate::Whole };
        }
        if let Some(layout) = self.vocabulary(pair) {
            let is_tied = self.ties.contains(&true) && (name == HEAD || self.is_input(pair));
            return match selection.embed_lora && pair.of.shape == pair.less.shape && !is_tied {
                true if self.selector.takes(path) => Fate::LowRank(layout),
                true => Fate::LeftOut,
                false if self.selector.excludes(path) => Fate::LeftOut,
                false => Fate::Whole,
            };
        }
        match self.own_fate(pair) {
            _ if !self.selector.takes(path) => Fate::LeftOut,
            Fate::Whole | Fate::Refused if selection.skip_undecomposable => Fate::LeftOut,
            fate => fate,
        }
    }

    /// Whether it is the input embeddings.
    fn is_input(&self, pair: &Pair) -> bool {
        self.base.embeddings().is_some_and(|tensor| tensor.name == pair.less.name)
    }

    /// What becomes of a tensor that is neither of embeddings nor of a head if everything is selected.
    fn own_fate(&self, pair: &Pair) -> Fate {
        let name = pair.own.as_str();
        match name.rsplit_once('.') {
            _ if is_of_experts(name) => Fate::Refused,
            Some((_, "bias")) => Fate::Bias,
            Some((_, "weight")) if pair.of.shape.len() == 2 && self.naming.is_linear(name) => {
                Fate::LowRank(WeightLayout::of_linear(self.naming.keeps_transposed(name).unwrap_or(false)))
            }
            Some((_, "weight")) => Fate::Whole,
            _ => Fate::Refused,
        }
    }

    /// The layout of the weight of embeddings or of an output head; `None` for any other tensor.
    fn vocabulary(&self, pair: &Pair) -> Option<WeightLayout> {
        let name = pair.own.as_str();
        match self.naming.role(name) {
            _ if !name.ends_with(".weight") || pair.of.shape.len() != 2 => None,
            _ if may_be_embedding(self.base, name) => Some(WeightLayout::Embedding),
            Some(Role::Embedding | Role::PositionEmbedding | Role::TypeEmbedding) => Some(WeightLayout::Embedding),
            Some(Role::OutputHead) => Some(WeightLayout::OutputsFirst),
            _ => None,
        }
    }
}

fn refusal(pair: &Pair) -> crate::Error {
    Finding::new(pair.of.expr.source_path(), format!("tensor {:?}", pair.of.name))
        .expected("the base's values: it is no module's weight or bias, for a LoRA to hold")
        .found("others")
        .hint(
            "take the finetuned model itself (`jobs::merge` with a `method` combines models), or leave this out: \
             `skip_undecomposable`, `exclude_regex`",
        )
        .unsupported()
}

/// Whether any value differs. Types that can't be decoded are compared by their bytes.
fn differ(of: &PlannedTensor, less: &PlannedTensor) -> Result<bool> {
    let rows = of.rows();
    if !quant::can_decode(of.dtype) || !quant::can_decode(less.dtype) {
        let bytes = |tensor: &PlannedTensor| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            tensor.encode_rows(0..rows, &mut Vec::new(), &mut bytes)?;
            Ok(bytes)
        };
        return Ok(of.dtype != less.dtype || bytes(of)? != bytes(less)?);
    }
    Ok(!of.same_values(less)?)
}

/// Whether two tensors are embeddings or output heads of two vocabularies.
fn is_resized(naming: Naming, name: &str, less: &PlannedTensor, of: &PlannedTensor) -> bool {
    let of_vocabulary = matches!(naming.role(name), Some(Role::Embedding | Role::OutputHead));
    of_vocabulary && less.shape.len() == 2 && of.shape.len() == 2 && less.shape[1] == of.shape[1]
}

/// A note for embeddings or a head of another vocabulary than the base's.
fn resized_note(pair: &Pair) -> Option<String> {
    let (rows, before) = (pair.of.shape.first()?, pair.less.shape.first()?);
    (rows != before).then(|| {
        format!(
            "{}: {rows} rows, where the base has {before}: it is saved whole, and the base has to get as many before the \
             LoRA is loaded (model.resize_token_embeddings({rows}))",
            pair.own
        )
    })
}

/// A note on tensors that differ and aren't selected.
fn left_out_note(names: &[&str]) -> Option<String> {
    let (first, rest) = names.split_at(names.len().min(3));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    (!names.is_empty()).then(|| {
        let number =
            if names.len() == 1 { "a changed tensor".to_owned() } else { format!("{} changed tensors", names.len()) };
        format!("left out {number}, not selected: {}{more}", first.join(", "))
    })
}

/// A note for a class that wraps a text model and whose own names aren't known. PEFT finds modules by the class's
/// names, and skips names that it doesn't find.
fn name_note(base: &Base, naming: Naming, pairs: &[Pair]) -> Option<String> {
    let wraps = base.config().get("text_config").is_some_and(Value::is_object);
    if !wraps || naming.knows_names() || pairs.iter().any(|pair| pair.own.starts_with("model.language_model.")) {
        return None;
    }
    let class = class(base.config()).unwrap_or("this class");
    Some(format!(
        "modules have the names of the checkpoint: {class} may have others in transformers, and PEFT passes over those \
         that it doesn't find"
    ))
}

/// A note on the config fields that differ between the models, which a LoRA can't store.
fn config_notes(base: &Base, finetuned: &Base) -> Vec<String> {
    let (theirs, ours) = (base.config(), finetuned.config());
    let keys: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let value = |config: &Map<String, Value>, key: &str| config.get(key).filter(|value| !value.is_null()).cloned();
    let differing: Vec<&str> = keys
        .into_iter()
        .map(String::as_str)
        .filter(|key| !INERT.contains(key) && *key != "tie_word_embeddings" && value(theirs, key) != value(ours, key))
        .collect();
    match differing.is_empty() {
        true => Vec::new(),
        false => vec![format!("config.json differs in {}, which a LoRA doesn't hold", differing.join(", "))],
    }
}

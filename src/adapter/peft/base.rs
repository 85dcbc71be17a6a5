//! The base of an adapter: its tensors, under the names that PEFT uses for their modules.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::Named;
use super::entries::Entries;
use super::module_weight::Weight;
use super::shared_names::SharedNames;
use crate::arch::names::{self, HEAD, role_by_name};
use crate::arch::tasks::TaskClass;
use crate::arch::wrapper::text_config;
use crate::arch::{Naming, Regrouped, Role};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The config of tensors alone.
static NO_CONFIG: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// A base model: config and tensors, under Hugging Face's names; or tensors alone.
pub struct Base<'a> {
    path: PathBuf,
    config: &'a Map<String, Value>,
    naming: Naming,
    weights: &'a Plan,
    /// Tensors that the class splits or joins.
    regrouped: Vec<Regrouped>,
    /// Indices in the plan, by the names in the file and by the class's own names. Behind them are those of the class's
    /// tensors in `regrouped`, one after another.
    places: HashMap<String, usize>,
    /// The places of the class's tensors, in the plan's order.
    of_class: Vec<usize>,
    /// The first parts of all these names.
    stems: BTreeSet<String>,
    /// Whether merged weights keep the base's types.
    keeps_types: bool,
    /// The index of the input embeddings in the plan.
    embeddings: Option<usize>,
    /// Where the output head is tied to the embeddings: the head as a separate tensor.
    tied_head: Option<PlannedTensor>,
    /// For tensors alone: what shares a storage.
    shared: Option<SharedNames>,
    /// Whether the model becomes one for a task, whose head is the adapter's.
    takes_head: bool,
}

impl<'a> Base<'a> {
    /// A base with this config and these weights; `path` is for messages.
    pub fn new(path: &Path, config: &'a Map<String, Value>, weights: &'a Plan) -> Self {
        let naming = Naming::of(config);
        let mut places = HashMap::new();
        for (place, tensor) in weights.tensors.iter().enumerate() {
            if let Some(name) = naming.class_name(&tensor.name) {
                places.insert(name, place);
            }
        }
        let regrouped = naming.regrouped(config, weights);
        let of_class = places_of_class(&regrouped, weights.tensors.len());
        let parts = regrouped.iter().flat_map(|regrouped| &regrouped.parts).enumerate();
        places.extend(parts.map(|(place, part)| (part.name.clone(), weights.tensors.len() + place)));
        // Names in the file take precedence.
        places.extend(weights.tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.clone(), place)));
        let embeddings = place_of_embeddings(naming, weights);
        let stem = |name: &String| name.split_once('.').map(|(stem, _)| stem.to_owned());
        let stems = places.keys().filter_map(stem).collect();
        let mut base = Self {
            path: path.to_owned(),
            config,
            naming,
            weights,
            regrouped,
            places,
            of_class,
            stems,
            keeps_types: true,
            embeddings,
            tied_head: None,
            shared: None,
            takes_head: false,
        };
        let tied = match text_config(config).get("tie_word_embeddings").and_then(Value::as_bool) {
            Some(tied) => tied,
            // The default differs between classes, but without a stored head the embeddings must be tied.
            None => base.tensor(HEAD).is_none(),
        };
        // A head that a tied checkpoint stores anyway is not used.
        base.tied_head = base
            .embeddings()
            .filter(|_| tied && base.has_head())
            .map(|t| PlannedTensor { name: HEAD.into(), ..t.clone() });
        base
    }

    /// Tensors without a config: modules are known by their names alone, and a storage can have several. `path` is for
    /// messages.
    pub fn of_tensors(path: &Path, weights: &'a Plan) -> Self {
        let mut base = Self::new(path, &NO_CONFIG, weights);
        (base.tied_head, base.shared) = (None, Some(SharedNames::of(weights)));
        base
    }

    /// Whether these are tensors alone, about whose modules nothing is known but names and shapes.
    pub(crate) fn is_tensors_alone(&self) -> bool {
        self.shared.is_some()
    }

    /// Of the names of the storage of the tensor called `name` in the file, the one that stands for all: the first that
    /// is a module's without parts. A module that only keeps a part's weight, under a name of its own, has no linear
    /// layer for PEFT to find.
    pub(crate) fn main_name<'n>(&'n self, name: &'n str) -> &'n str {
        match (&self.shared, self.places.get(name)) {
            (Some(shared), Some(place)) => &self.at(shared.main[*place]).name,
            _ => name,
        }
    }

    /// Whether any storage has several names.
    pub(super) fn shares_storages(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.main.iter().enumerate().any(|(place, main)| place != *main))
    }

    /// The model in `folder`.
    pub fn of(folder: &'a Checkpoint) -> Self {
        Self::new(folder.path(), &folder.config_json, folder.rounded())
    }

    /// Marks the base's merged weights to be written in types other than the base's. Where PEFT rounds to the base's
    /// type midway, nothing is rounded then.
    pub fn retyped(self) -> Self {
        Self { keeps_types: false, ..self }
    }

    /// Marks the model to become one for a task: it has no output head, and the adapter's head becomes its own.
    pub fn for_task(self) -> Self {
        Self { takes_head: true, tied_head: None, ..self }
    }

    /// The type of the tensor `name` of a head, if the adapter's head becomes the model's.
    pub(super) fn type_of_new_head(&self, name: &str) -> Option<DType> {
        (self.takes_head && TaskClass::has(name)).then(|| self.weights.main_dtype())
    }

    /// The type to which PEFT rounds midway for a weight of type `dtype`; `None` if there is no such rounding.
    pub(super) fn rounding(&self, dtype: DType) -> Option<DType> {
        Some(dtype).filter(|dtype| self.keeps_types && !matches!(dtype, DType::F32 | DType::F64))
    }

    /// Refuses changes that this version computes in f32 alone, for weights of F64. `finding` is about what asks for them,
    /// and says what was found.
    pub(in crate::adapter) fn check_f64(&self, changes: &[Named], finding: impl FnOnce() -> Finding) -> Result<()> {
        let in_f64 = |name: &str| self.keeps_types && self.tensor(name).is_some_and(|of| of.dtype == DType::F64);
        let Some((name, _)) = changes.iter().find(|(name, _)| in_f64(name)) else { return Ok(()) };
        Err(finding()
            .expected(format_args!("changes that this version computes in F64, as {name:?} of the base is"))
            .hint("with `type` f32 the merge is computed and written in F32")
            .unsupported())
    }

    /// `of`, rounded to the type that [`Base::rounding`] gives.
    pub(super) fn rounded(&self, of: Expr, dtype: DType) -> Expr {
        match self.rounding(dtype) {
            Some(dtype) => Expr::Round { of: Box::new(of), dtype },
            None => of,
        }
    }

    /// The model's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of config.json.
    pub fn config(&self) -> &'a Map<String, Value> {
        self.config
    }

    /// The input embeddings.
    pub fn embeddings(&self) -> Option<&'a PlannedTensor> {
        self.embeddings.map(|place| &self.weights.tensors[place])
    }

    /// The class's own name of the tensor that is called `name` in the file, or `name` where the class has no family.
    pub(crate) fn own_name(&self, name: &str) -> String {
        if self.places.get(name).is_some_and(|place| *place >= self.weights.tensors.len()) {
            return name.to_owned();
        }
        self.naming.class_name(name).unwrap_or_else(|| name.to_owned())
    }

    /// Whether the model's class has an output head. The config can't tell: an encoder's may still say that the head is
    /// tied.
    pub(crate) fn has_head(&self) -> bool {
        self.shared.is_none() && names::has_head(self.config)
    }

    /// The output head as a separate tensor, where it is tied to the embeddings.
    pub fn tied_head(&self) -> Option<&PlannedTensor> {
        self.tied_head.as_ref()
    }

    /// The output head's weight; where it is tied to the embeddings, as a separate tensor.
    pub(crate) fn head(&self) -> Option<&PlannedTensor> {
        let named = |tensor: &&PlannedTensor| self.naming.gguf_name(&tensor.name).as_deref() == Some("output.weight");
        self.tensor(HEAD).or_else(|| self.weights.tensors.iter().find(named))
    }

    /// `of`, a tensor of an adapter, as PEFT loads it into a tensor of type `dtype`.
    pub(in crate::adapter) fn loaded(&self, of: Expr, dtype: DType) -> Expr {
        if of.raw_dtype() == Some(dtype) { of } else { self.rounded(of, dtype) }
    }

    /// The tensor that PEFT calls `name`.
    pub(crate) fn tensor(&self, name: &str) -> Option<&PlannedTensor> {
        if name == HEAD && self.tied_head.is_some() {
            return self.tied_head.as_ref();
        }
        let find = |name: &str| {
            let place = self.places.get(name).copied();
            place.or_else(|| self.places.get(&self.naming.class_name(name)?).copied())
        };
        let place = find(name).or_else(|| names::other_spellings(name).iter().find_map(|other| find(other)));
        place.or_else(|| self.place_in_other_class(name)).map(|place| self.at(place))
    }

    /// The tensor at `place`: one of the plan or, behind these, one that the class splits off or joins.
    fn at(&self, place: usize) -> &PlannedTensor {
        let behind = |place: usize| self.regrouped.iter().flat_map(|regrouped| &regrouped.parts).nth(place);
        let of_class = place.checked_sub(self.weights.tensors.len()).and_then(behind);
        of_class.unwrap_or_else(|| &self.weights.tensors[place])
    }

    /// Tensors of the file that the class splits or joins: its modules' weights are others.
    pub(crate) fn regrouped(&self) -> &[Regrouped] {
        &self.regrouped
    }

    /// The place of the tensor that another class of the same model calls `name`: a class for a task has the inner model
    /// as a module, AutoModel is the inner model itself. Like transformers, this adds that module's name or takes it off.
    fn place_in_other_class(&self, name: &str) -> Option<usize> {
        let (first, rest) = name.split_once('.')?;
        if self.stems.contains(first) {
            return None;
        }
        let mut inside = self.stems.iter().filter_map(|stem| self.places.get(&format!("{stem}.{name}")).copied());
        match (inside.next(), inside.next()) {
            (Some(place), None) => Some(place),
            (None, _) => self.places.get(rest).copied().filter(|_| rest.contains('.')),
            _ => None,
        }
    }

    /// Whether a module of the model is called `part`, wherever it is.
    pub(super) fn has_module(&self, part: &str) -> bool {
        self.places.keys().any(|name| name.split('.').any(|own| own == part))
    }

    /// Every tensor of the file, including a tied head.
    pub(in crate::adapter) fn stored(&self) -> impl Iterator<Item = &PlannedTensor> {
        let tensors = self.weights.tensors.iter().filter(|t| t.name != HEAD || self.tied_head.is_none());
        tensors.chain(&self.tied_head)
    }

    /// Every tensor of the class, including a tied head, under the class's own name where there is one.
    pub(crate) fn named(&self) -> impl Iterator<Item = (String, &PlannedTensor)> {
        let tensors = self.of_class.iter().map(|place| self.at(*place));
        let tensors = tensors.filter(|t| t.name != HEAD || self.tied_head.is_none());
        tensors.chain(&self.tied_head).map(|tensor| (self.own_name(&tensor.name), tensor))
    }

    /// Whether bitsandbytes quantizes the tensor while the model is loaded: the weight of a linear layer or Conv1D, but
    /// not the output head. `true` if it is stored as `[d_in, d_out]`.
    pub(crate) fn quantizable(&self, tensor: &PlannedTensor) -> Option<bool> {
        let own = self.own_name(&tensor.name);
        let is_weight = own.ends_with(".weight") && tensor.shape.len() == 2 && !tensor.shape.contains(&0);
        let is_quantized = is_weight && self.naming.is_linear(&tensor.name) && !names::is_of_experts(&own);
        is_quantized.then(|| self.naming.keeps_transposed(&tensor.name).unwrap_or(false))
    }

    /// The weight of the linear layer `module`, `[d_out, d_in]` or, if transposed, `[d_in, d_out]`; `entry` is the
    /// adapter's tensor that needs it. Like PEFT, this decides by the kind of the module whether the weight is
    /// transposed. `fan_in_fan_out` decides only for classes that aren't transformers' own.
    pub(super) fn linear(
        &self,
        entries: &Entries,
        entry: &str,
        module: &str,
        fan_in_fan_out: bool,
    ) -> Result<Weight<'_>> {
        let name = format!("{module}.weight");
        let tensor = self.matrix(entries, entry, &name)?;
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let transposed = self.naming.keeps_transposed(&name).unwrap_or(fan_in_fan_out);
        let (d_out, d_in) = if transposed { (cols, rows) } else { (rows, cols) };
        Ok(Weight { tensor, d_out, d_in, transposed })
    }

    /// Like [`Base::linear`], or the kernel of a convolution of one, two or three dimensions.
    pub(super) fn linear_or_kernel(
        &self,
        entries: &Entries,
        entry: &str,
        module: &str,
        fan_in_fan_out: bool,
    ) -> Result<Weight<'_>> {
        match self.tensor(&format!("{module}.weight")).and_then(Weight::of_kernel) {
            Some(kernel) => Ok(kernel),
            None => self.linear(entries, entry, module, fan_in_fan_out),
        }
    }

    /// Like [`Base::linear_or_kernel`], for kinds of adapters that PEFT doesn't support for transformers' Conv1D.
    pub(super) fn not_turned(&self, entries: &Entries, entry: &str, module: &str, kind: &str) -> Result<Weight<'_>> {
        let weight = self.linear_or_kernel(entries, entry, module, false)?;
        if !weight.transposed {
            return Ok(weight);
        }
        Err(entries
            .finding(entry)
            .expected(format_args!("a linear layer or a convolution: PEFT has {kind} for no other"))
            .found("a Conv1D")
            .unsupported())
    }

    /// Like [`Base::linear`], for kinds of adapters that PEFT supports for linear layers alone, not for transformers'
    /// Conv1D.
    pub(super) fn linear_alone(&self, entries: &Entries, entry: &str, module: &str, kind: &str) -> Result<Weight<'_>> {
        let weight = self.linear(entries, entry, module, false)?;
        if !weight.transposed {
            return Ok(weight);
        }
        Err(entries
            .finding(entry)
            .expected(format_args!("a linear layer: PEFT has {kind} for no other"))
            .found("a Conv1D")
            .unsupported())
    }

    /// A hint for when the base has no tensor called `name`. It says that the adapter belongs to another model only if
    /// just the layer number is wrong: otherwise the name may be misspelt, or include a module in which a trainer has
    /// wrapped the model.
    pub(super) fn hint_of_absent(&self, name: &str) -> String {
        let numbered = |part: &str| part.parse::<usize>().is_ok();
        let alike = |own: &str| {
            own.split('.').count() == name.split('.').count()
                && own.split('.').zip(name.split('.')).all(|(own, part)| own == part || numbered(own) && numbered(part))
        };
        if self.named().any(|(own, _)| alike(&own)) {
            return "the base has no layer of this number: this adapter belongs to another base model".to_owned();
        }
        let shared = |own: &String| {
            let end = own.rsplit('.').zip(name.rsplit('.')).take_while(|(own, other)| own == other).count();
            (end, own.bytes().zip(name.bytes()).take_while(|(own, other)| own == other).count())
        };
        let names = self.named().filter(|(_, tensor)| tensor.shape.len() == 2).map(|(own, _)| own);
        // The first of the names that share most parts at the end with `name`, then most at the beginning.
        match names.reduce(|best, own| if shared(&own) > shared(&best) { own } else { best }) {
            Some(own) => format!("the base's modules are called like {:?}", own.trim_end_matches(".weight")),
            None => String::new(),
        }
    }

    /// The matrix that PEFT calls `name`.
    pub(super) fn matrix(&self, entries: &Entries, entry: &str, name: &str) -> Result<&PlannedTensor> {
        let Some(tensor) = self.tensor(name) else {
            return Err(entries
                .finding(entry)
                .expected(format_args!("a module of the base model {}", self.path.display()))
                .found("none of that name there")
                .hint(self.hint_of_absent(name))
                .mismatch());
        };
        // An empty matrix has nothing to change, and no rows to compute.
        if tensor.shape.len() == 2 && !tensor.shape.contains(&0) {
            return Ok(tensor);
        }
        Err(entries
            .finding(entry)
            .expected("a module of the base with a matrix for its weight")
            .found(show_shape(&tensor.shape))
            .unsupported())
    }
}

/// The places of a class's tensors: those of a plan of `count` tensors, but for those in `regrouped`, in the place of which
/// the class's own are.
fn places_of_class(regrouped: &[Regrouped], count: usize) -> Vec<usize> {
    let mut places: Vec<Vec<usize>> = (0..count).map(|place| vec![place]).collect();
    let mut next = count;
    for Regrouped { stored, parts, .. } in regrouped {
        stored.iter().for_each(|place| places[*place].clear());
        places[stored[0]] = (next..next + parts.len()).collect();
        next += parts.len();
    }
    places.concat()
}

fn place_of_embeddings(naming: Naming, weights: &Plan) -> Option<usize> {
    let known = |t: &PlannedTensor| naming.gguf_name(&t.name).as_deref() == Some("token_embd.weight");
    let usual = |t: &PlannedTensor| role_by_name(&t.name) == Some(Role::Embedding);
    weights.tensors.iter().position(known).or_else(|| weights.tensors.iter().position(usual))
}

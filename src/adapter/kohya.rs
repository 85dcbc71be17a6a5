//! Adapters in one safetensors file, as kohya-ss/sd-scripts and LyCORIS save them.
//!
//! Modules are called by their paths with underscores for dots, which only the base can undo. Reference:
//! KohakuBlueleaf/LyCORIS `lycoris/modules/` (`locon.py`, `loha.py`, `lokr.py`, `full.py`): the scale is
//! alpha over the rank, 1 where there is no alpha.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::peft::{Base, Change, Changes, LowRank, hadamard, kronecker, product};
use crate::convert::keeps_transposed;
use crate::error::{Finding, Result};
use crate::formats::safetensors::SafetensorsFile;
use crate::formats::{Source, show_shape};
use crate::plan::{Expr, Plan, PlannedTensor};

/// What stands before the paths of modules.
const PREFIXES: [&str; 6] = ["lora_te1_", "lora_te2_", "lora_te_", "lora_unet_", "lycoris_", "lora_"];

/// Parts of a module that say which kind of update it has.
const KINDS: [&str; 7] = ["lora_down.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "diff_b", "lora_up.weight"];

/// Whether the tensors of a file are called as those of such an adapter.
pub fn is_kohya(tensors: &Plan) -> bool {
    !tensors.tensors.is_empty()
        && tensors
            .tensors
            .iter()
            .all(|t| PREFIXES.iter().any(|prefix| t.name.starts_with(prefix)) && t.name.contains('.'))
}

/// The adapter in the file at `path`, on `base`.
///
/// # Errors
/// As [`changes`], and those of reading the file.
pub fn open(path: &Path, base: &Base) -> Result<Changes> {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(path)?);
    changes(path, Plan::taking(&source), base)
}

/// The adapter with these tensors, which stand in `file`, on `base`.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a kind of update that this version can't merge, naming the tensor;
/// [`crate::Error::Mismatch`] for an adapter of another base.
pub fn changes(file: &Path, tensors: Plan, base: &Base) -> Result<Changes> {
    let mut modules: BTreeMap<String, BTreeMap<String, PlannedTensor>> = BTreeMap::new();
    for tensor in tensors.tensors {
        let Some((module, part)) = tensor.name.split_once('.') else {
            let finding = Finding::new(file, format!("tensor {:?}", tensor.name));
            return Err(finding.expected("a module's name, a dot, and what it is of it").found("no dot").unsupported());
        };
        let (module, part) = (module.to_owned(), part.to_owned());
        modules.entry(module).or_default().insert(part, tensor);
    }
    let mut paths: HashMap<String, Vec<String>> = HashMap::new();
    let named: HashMap<String, &PlannedTensor> = base.named().collect();
    for name in named.keys() {
        if let Some(path) = name.strip_suffix(".weight") {
            // An inner model's paths lack what stands before it.
            for (start, _) in path.match_indices('.').chain([(usize::MAX, "")]) {
                let inner = &path[start.wrapping_add(1)..];
                paths.entry(inner.replace('.', "_")).or_default().push(path.to_owned());
            }
        }
    }
    let mut changes = Changes::default();
    for (module, parts) in modules {
        let path = find(file, &module, &parts, &paths, base)?;
        let mut update = Update { file: file.to_owned(), module, parts };
        update.add(&path, base, &named, &mut changes)?;
    }
    if changes.changes.is_empty() {
        return Err(Finding::new(file, "").expected("tensors that change the base").found("none").format());
    }
    Ok(changes)
}

/// The path of the module that the file calls `module`.
fn find(
    file: &Path,
    module: &str,
    parts: &BTreeMap<String, PlannedTensor>,
    paths: &HashMap<String, Vec<String>>,
    base: &Base,
) -> Result<String> {
    let bare = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)).unwrap_or(module);
    let found = paths.get(bare).map(Vec::as_slice).unwrap_or_default();
    // A whole path comes before the end of another.
    let whole = found.iter().find(|path| path.len() == bare.len());
    if let (Some(path), _) | (None, [path]) = (whole, found) {
        return Ok(path.clone());
    }
    let subject = parts.values().next().map_or(module, |tensor| tensor.name.as_str());
    Err(Finding::new(file, format!("tensor {subject:?}"))
        .expected(format_args!(
            "one module of the base model {} whose path is {bare:?} with dots",
            base.path().display()
        ))
        .found(if found.is_empty() { "none".to_owned() } else { found.join(", ") })
        .hint("this adapter belongs to another base model")
        .mismatch())
}

/// The tensors of one module.
struct Update {
    file: PathBuf,
    module: String,
    parts: BTreeMap<String, PlannedTensor>,
}

impl Update {
    fn finding(&self, part: &str) -> Finding {
        Finding::new(&self.file, format!("tensor {:?}", format!("{}.{part}", self.module)))
    }

    fn need(&mut self, part: &str) -> Result<PlannedTensor> {
        self.parts.remove(part).ok_or_else(|| self.finding(part).expected("it").found("nothing").format())
    }

    fn shaped(&mut self, part: &str, shape: &[usize]) -> Result<Expr> {
        let tensor = self.need(part)?;
        if tensor.shape == shape {
            return Ok(tensor.expr);
        }
        Err(self
            .finding(part)
            .expected(format_args!("{} by the base model and the others of its module", show_shape(shape)))
            .found(show_shape(&tensor.shape))
            .hint("this adapter belongs to another base model, or is of a convolution")
            .mismatch())
    }

    /// The rows or columns of a part that is there and is a matrix.
    fn dimension(&self, part: &str, which: usize) -> Result<usize> {
        match self.parts.get(part).map(|tensor| tensor.shape.as_slice()) {
            None => Err(self.finding(part).expected("it").found("nothing").format()),
            Some(shape) if shape.len() == 2 && shape[which] > 0 => Ok(shape[which]),
            Some(shape) => Err(self.finding(part).expected("a matrix").found(show_shape(shape)).unsupported()),
        }
    }

    /// Alpha over the rank.
    fn scale(&mut self, rank: usize) -> Result<f32> {
        let Some(tensor) = self.parts.remove("alpha") else { return Ok(1.0) };
        match tensor.elems() {
            1 => Ok((f64::from(tensor.read()?[0]) / rank as f64) as f32),
            _ => Err(self.finding("alpha").expected("one number").found(show_shape(&tensor.shape)).format()),
        }
    }

    /// Adds the changes of the module at `path`.
    fn add(
        &mut self,
        path: &str,
        base: &Base,
        named: &HashMap<String, &PlannedTensor>,
        changes: &mut Changes,
    ) -> Result<()> {
        let Some(kind) = KINDS.into_iter().find(|kind| self.parts.contains_key(*kind)) else {
            return Err(self.unknown());
        };
        let name = format!("{path}.weight");
        // The path is one of the base's.
        let Some(weight) = named.get(&name) else { return Err(self.unknown()) };
        if kind != "diff_b" {
            let change = self.weight(kind, &name, weight, base)?;
            changes.changes.push((weight.name.clone(), change));
        }
        if let Some(tensor) = self.parts.remove("diff_b") {
            let name = format!("{path}.bias");
            let Some(bias) = named.get(&name).filter(|bias| bias.shape == tensor.shape) else {
                let finding = self.finding("diff_b").expected("a bias of its shape in the base").found("none");
                return Err(finding.hint("this adapter belongs to another base model").mismatch());
            };
            changes.changes.push((bias.name.clone(), Change::Add(tensor.expr)));
        }
        if self.parts.is_empty() { Ok(()) } else { Err(self.unknown()) }
    }

    fn unknown(&self) -> crate::Error {
        let part = self.parts.keys().next().map(String::as_str).unwrap_or_default();
        self.finding(part)
            .expected("a part of a LoRA, LoHa, LoKr or full update of a linear layer")
            .found("another")
            .hint("this version has no rule for it: merge it with the program that made it")
            .unsupported()
    }

    /// The change of the weight called `name`.
    fn weight(&mut self, kind: &str, name: &str, weight: &PlannedTensor, base: &Base) -> Result<Change> {
        if kind == "diff" {
            return Ok(Change::Add(self.shaped("diff", &weight.shape)?));
        }
        let &[rows, cols] = weight.shape.as_slice() else {
            let finding = self.finding(kind).expected("a module of the base with a matrix for its weight");
            return Err(finding.found(show_shape(&weight.shape)).unsupported());
        };
        let transposed = keeps_transposed(base.config(), name).unwrap_or(false);
        let (d_out, d_in) = if transposed { (cols, rows) } else { (rows, cols) };
        let delta = match kind {
            "lora_down.weight" | "lora_up.weight" => {
                let rank = self.dimension("lora_down.weight", 0)?;
                let scale = self.scale(rank)?;
                let a = self.shaped("lora_down.weight", &[rank, d_in])?;
                let b = self.shaped("lora_up.weight", &[d_out, rank])?;
                return Ok(Change::LowRank(LowRank { scale, a, b, transposed, rounded: None }));
            }
            "hada_w1_a" => {
                let rank = self.dimension("hada_w1_b", 0)?;
                let scale = self.scale(rank)?;
                let first =
                    product(self.shaped("hada_w1_a", &[d_out, rank])?, self.shaped("hada_w1_b", &[rank, d_in])?);
                let second =
                    product(self.shaped("hada_w2_a", &[d_out, rank])?, self.shaped("hada_w2_b", &[rank, d_in])?);
                hadamard(first, second, scale)
            }
            _ => self.kronecker([d_out, d_in])?,
        };
        Ok(Change::Add(if transposed { Expr::Transpose(Box::new(delta)) } else { delta }))
    }

    /// A factor of a LoKr, and its rank where it is of a low one.
    fn factor(&mut self, name: &str) -> Result<(Expr, Option<usize>)> {
        if self.parts.contains_key(name) {
            let shape = [self.dimension(name, 0)?, self.dimension(name, 1)?];
            return Ok((self.shaped(name, &shape)?, None));
        }
        let (a, b) = (format!("{name}_a"), format!("{name}_b"));
        let (rows, rank, cols) = (self.dimension(&a, 0)?, self.dimension(&b, 0)?, self.dimension(&b, 1)?);
        Ok((product(self.shaped(&a, &[rows, rank])?, self.shaped(&b, &[rank, cols])?), Some(rank)))
    }

    /// The update of a LoKr, of this shape.
    fn kronecker(&mut self, shape: [usize; 2]) -> Result<Expr> {
        let (left, left_rank) = self.factor("lokr_w1")?;
        let (right, right_rank) = self.factor("lokr_w2")?;
        // Two whole factors have no rank, and alpha is as large as one would be.
        let scale = match left_rank.or(right_rank) {
            Some(rank) => self.scale(rank)?,
            None => {
                self.parts.remove("alpha");
                1.0
            }
        };
        let fits = left.shape().iter().zip(right.shape()).map(|(l, r)| l.checked_mul(r)).eq(shape.map(Some));
        if !fits {
            return Err(self
                .finding("lokr_w1")
                .expected(format_args!("a factor of {}, as {} is", show_shape(&shape), show_shape(&right.shape())))
                .found(show_shape(&left.shape()))
                .hint("this adapter belongs to another base model")
                .mismatch());
        }
        Ok(kronecker(left, right, scale))
    }
}

//! The tensors of an adapter file. Each is to be used once.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::base::Base;
use super::change::no_numbers;
use super::{ABSENT, PREFIX, names};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// The unused tensors of an adapter, by their names without PEFT's prefix.
pub(super) struct Entries {
    file: PathBuf,
    left: BTreeMap<String, PlannedTensor>,
    /// The names in the file of tensors that PEFT would have called otherwise.
    in_file: HashMap<String, String>,
    /// One line for everything that was left out or assumed.
    notes: Vec<String>,
}

impl Entries {
    /// The tensors of the file at `file`, an adapter of `base`.
    ///
    /// # Errors
    /// As [`names::named`].
    pub(super) fn new(file: &Path, tensors: Plan, base: &Base) -> Result<Self> {
        let names::Named { tensors, in_file, note } = names::named(file, tensors, base)?;
        Ok(Self { file: file.to_owned(), left: tensors, in_file, notes: Vec::from_iter(note) })
    }

    /// Adds a note for the user.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Takes the notes.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// The file, for messages.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Takes the tensor called `name`, if there is one that wasn't taken before.
    pub(super) fn take(&mut self, name: &str) -> Option<PlannedTensor> {
        self.left.remove(name)
    }

    /// The number of columns of the untaken matrix called `name`; `None` if there is no such matrix.
    pub(super) fn row_len(&self, name: &str) -> Option<usize> {
        match *self.left.get(name)?.shape.as_slice() {
            [_, columns] => Some(columns),
            _ => None,
        }
    }

    /// The shape of the untaken tensor called `name`.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(self.left.get(name)?.shape.as_slice())
    }

    /// Takes the tensor called `name`, which must exist.
    pub(super) fn need(&mut self, name: &str) -> Result<PlannedTensor> {
        self.take(name).ok_or_else(|| self.finding(name).expected(ABSENT).found("none").format())
    }

    /// Takes the tensor called `name`, which must exist, hold floating-point numbers and have this shape.
    pub(super) fn shaped(&mut self, name: &str, shape: &[usize]) -> Result<PlannedTensor> {
        self.of_shape(name, shape, false)
    }

    /// Like [`Entries::shaped`], for a tensor that may hold whole numbers.
    pub(super) fn of_whole_numbers(&mut self, name: &str, shape: &[usize]) -> Result<PlannedTensor> {
        self.of_shape(name, shape, true)
    }

    fn of_shape(&mut self, name: &str, shape: &[usize], whole: bool) -> Result<PlannedTensor> {
        let tensor = self.need(name)?;
        if let Some(error) = no_numbers(&tensor.expr).filter(|_| !whole) {
            return Err(error);
        }
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(self
            .finding(name)
            .expected(format_args!("{} by adapter_config.json and the base model", show_shape(shape)))
            .found(show_shape(&tensor.shape))
            .hint("this adapter belongs to another base model, or its config is not its own")
            .mismatch())
    }

    /// Refuses an adapter that has only one tensor of a pair for a module of the base.
    pub(super) fn check_pairs(&self, base: &Base, pairs: &[(&str, &str)]) -> Result<()> {
        for (one, other) in pairs.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
            let modules =
                self.modules(one).into_iter().filter(|module| base.tensor(&format!("{module}.weight")).is_some());
            let mut missing = modules.map(|module| format!("{module}.{other}"));
            if let Some(name) = missing.find(|name| !self.left.contains_key(name)) {
                return Err(self.finding(&name).expected(ABSENT).found("none").format());
            }
        }
        Ok(())
    }

    /// Drops the tensors for a module of the base that has another name, if the tensors for that name are the same: PEFT
    /// saves those of a module that is registered twice under both names.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if they aren't the same.
    pub(super) fn drop_copies(&mut self, base: &Base) -> Result<()> {
        if !base.shares_storages() {
            return Ok(());
        }
        let mut first: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut copies = Vec::new();
        for (name, tensor) in &self.left {
            let Some((storage, rest)) = place_in(base, name) else { continue };
            let Some(other) = first.get(&(storage.clone(), rest.clone())) else {
                first.insert((storage, rest), name.clone());
                continue;
            };
            if !self.left.get(other).map_or(Ok(false), |other| tensor.same_values(other))? {
                return Err(two_changes(self.finding(name), &[PREFIX, other].concat()));
            }
            copies.push(name.clone());
        }
        copies.iter().for_each(|name| drop(self.left.remove(name)));
        Ok(())
    }

    /// The modules that have a tensor whose name ends in `.{suffix}`, sorted.
    pub(super) fn modules(&self, suffix: &str) -> Vec<String> {
        let module = |name: &String| Some(name.strip_suffix(suffix)?.strip_suffix('.')?.to_owned());
        self.left.keys().filter_map(module).collect()
    }

    /// Names of the tensors that weren't taken.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    /// A finding about the tensor called `name`.
    pub(super) fn finding(&self, name: &str) -> Finding {
        let full = self.in_file.get(name).cloned().unwrap_or_else(|| [PREFIX, name].concat());
        Finding::new(&self.file, format!("tensor {full:?}"))
    }

    /// A finding about a tensor that belongs to no module, by its full name.
    pub(super) fn shared_finding(&self, name: &str) -> Finding {
        Finding::new(&self.file, format!("tensor {name:?}"))
    }

    /// Refuses tensors that weren't taken.
    pub(super) fn finish(&self) -> Result<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(self
                .finding(name)
                .expected("a tensor that this kind of adapter has and its config asks for")
                .found("one that nothing uses")
                .unsupported()),
        }
    }
}

/// The error for two different changes of one storage; `finding` is about the second, `first` is called the other.
pub(super) fn two_changes(finding: Finding, first: &str) -> crate::Error {
    finding
        .expected(format_args!("what {first:?} has: in the base, both are names of one storage"))
        .found("other values: two different changes of one storage")
        .mismatch()
}

/// The storage in the base that the adapter's tensor `name` is for, by its main name, and what the tensor is to it.
fn place_in(base: &Base, name: &str) -> Option<(String, String)> {
    if let Some(tensor) = base.tensor(name) {
        return Some((base.main_name(&tensor.name).to_owned(), String::new()));
    }
    // The longest path of a module with a weight.
    let mut paths = name.rmatch_indices('.').map(|(end, _)| (&name[..end], &name[end + 1..]));
    paths.find_map(|(module, rest)| {
        let weight = base.tensor(&format!("{module}.weight"))?;
        Some((base.main_name(&weight.name).to_owned(), rest.to_owned()))
    })
}

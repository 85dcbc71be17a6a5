//! PyTorch files: the output of `torch.save` (`.bin`, `.pt`, `.pth`, `.ckpt`), read as data.
//!
//! Reference: torch `serialization.py`, `_weights_only_unpickler.py`, and
//! `caffe2/serialize/inline_container.cc` for the zip around them.
//!
//! A checkpoint consists of a pickle, which is a program, and the raw bytes of storages. The
//! program isn't run here: `pickle` builds a description of its values, `archive` and `legacy` find
//! the storages in torch's two containers, `tree` gives tensors their dotted names, and `view`
//! checks each tensor against its storage.

mod archive;
mod legacy;
mod nesting;
mod pickle;
mod program;
mod rewrite;
mod storages;
mod stored;
#[cfg(test)]
mod tests;
mod tree;
mod view;
mod writer;
mod zip;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

pub use writer::{SHARD_INDEX, layout, layout_with_names};

use tempfile::TempPath;

use self::archive::Archive;
use self::pickle::{Object, Pickle};
use self::storages::{Place, inflate};
use self::tree::Nodes;
use self::view::View;
use crate::error::{Finding, Result};
use crate::source::{MappedFile, Source, Step, TensorInfo};

/// How many tensors that can't be read an error describes beside the first.
const NAMED: usize = 4;

/// An open PyTorch file.
pub struct PytorchFile {
    file: MappedFile,
    /// What deletes the file when it is closed, if it is a temporary one.
    _temporary: Option<TempPath>,
    /// A temporary file with the inflated content of deflated storages.
    inflated: Option<MappedFile>,
    tensors: Vec<TensorInfo>,
    views: Vec<View>,
    /// For every tensor, the first that is the same view of the same storage.
    first: Vec<usize>,
    /// For every tensor, its node in `nodes`.
    places: Vec<u32>,
    nodes: Nodes,
    unread: Vec<(String, String)>,
    others: Vec<(String, String)>,
    notes: Vec<String>,
    out_of_reach: usize,
}

impl std::fmt::Debug for PytorchFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {} tensors", self.path().display(), self.tensors.len())
    }
}

/// A record of a file of which only the directory is there so far.
#[cfg(feature = "hub")]
pub(crate) struct Record {
    /// The bytes of it that say what the file holds; else its data are values.
    pub(crate) place: Range<u64>,
    /// What can stand in the place of its own header where its data are values.
    pub(crate) header: Option<Vec<u8>>,
}

/// The records of the zip at `path`, of which only the directory is there.
///
/// # Errors
/// As [`PytorchFile::open`].
#[cfg(feature = "hub")]
pub(crate) fn records(path: &Path) -> Result<Vec<Record>> {
    let file = MappedFile::open(path)?;
    let record = |found: zip::Place<'_>| {
        let is_small = found.span.end - found.span.start <= pickle::MAX_PICKLE_BYTES as u64;
        let says = is_small && ["/data.pkl", "/byteorder"].iter().any(|end| found.name.ends_with(end));
        Record { place: found.span, header: (!says).then_some(found.header) }
    };
    Ok(zip::read_places(path, file.bytes())?.into_iter().map(record).collect())
}

impl PytorchFile {
    /// Maps `path` and reads its pickle as data. Nested dictionaries and lists become dotted names;
    /// with `key`, itself a dotted path, only the values under it are read.
    ///
    /// Storages are used in place. Those that a zip has deflated are inflated into an unnamed
    /// temporary file.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] for damage; [`crate::Error::Unsupported`] for
    /// names that reach the system (a pickle that would run code) and for kinds and types of tensors
    /// that can't be read, naming them; [`crate::Error::Mismatch`] if there is nothing under `key`.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        let file = Self::open_whole(path, key)?;
        let Some((first, rest)) = file.unread.split_first() else { return Ok(file) };
        let also: Vec<String> = rest.iter().take(NAMED).map(|(name, what)| format!("{name:?} ({what})")).collect();
        let more = rest.len().saturating_sub(NAMED);
        let found = match (also.is_empty(), more) {
            (true, _) => first.1.clone(),
            (false, 0) => format!("{}; also {}", first.1, also.join(", ")),
            (false, more) => format!("{}; also {} and {more} more", first.1, also.join(", ")),
        };
        Err(Finding::new(path, format!("tensor {:?}", first.0))
            .expected("a plain tensor of a type that safetensors has")
            .found(found)
            .hint(
                "`key` chooses a part without it, a merge into this file and `into` keep it as it is, and in Python \
                 to_dense(), dequantize() or view_as_real() make plain tensors of most",
            )
            .unsupported())
    }

    /// Like [`PytorchFile::open`], for those who don't take every tensor of the file: tensors that can't be read are in
    /// [`PytorchFile::unread`] alone.
    ///
    /// # Errors
    /// As [`PytorchFile::open`].
    pub fn open_whole(path: &Path, key: Option<&str>) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let bytes = file.bytes();
        let contents = if archive::is_archive(bytes) {
            let archive = Archive::read(path, bytes)?;
            let program = archive.pickle(bytes)?;
            let pickle = Pickle::read(path, &program)?;
            if pickle.byte_len != program.len() {
                return Err(Finding::new(path, "data.pkl")
                    .expected("one pickle")
                    .found(format_args!("{} bytes behind it", program.len() - pickle.byte_len))
                    .format());
            }
            let places = archive.places(&pickle)?;
            let mut contents = Contents::of(path, bytes, key, &pickle, &places, archive.big_endian())?;
            contents.others.extend(archive.left_out(&pickle));
            contents
        } else {
            let (pickle, places) = legacy::read(path, bytes)?;
            Contents::of(path, bytes, key, &pickle, &places, false)?
        };
        let Contents { inflated, tensors, views, first, places, nodes, unread, others, notes, out_of_reach } = contents;
        Ok(Self {
            file,
            _temporary: None,
            inflated,
            tensors,
            views,
            first,
            places,
            nodes,
            unread,
            others,
            notes,
            out_of_reach,
        })
    }

    /// Tensors of kinds and types that can't be read, such as sparse ones: a dotted path, and a description with type and
    /// shape. They aren't part of [`Source::tensors`].
    pub fn unread(&self) -> &[(String, String)] {
        &self.unread
    }

    /// Values in the file (or in the subtree under `key`) that aren't tensors, in its order: a
    /// dotted path and a short description. They aren't part of [`Source::tensors`].
    pub fn others(&self) -> &[(String, String)] {
        &self.others
    }

    /// One line for every class of the file that isn't one of torch's: its objects are described by the class, and
    /// never made.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The error for a file in which no name leads to a tensor.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where there are no tensors.
    pub fn check_has_tensors(&self) -> Result<()> {
        if !self.tensors.is_empty() || !self.unread.is_empty() {
            return Ok(());
        }
        let finding = Finding::new(self.path(), "");
        Err(match self.out_of_reach {
            0 => finding.expected("tensors").found("none").hint("`report::Report` shows what is in it"),
            count => finding
                .expected("tensors in dictionaries and lists")
                .found(format_args!("none, and {count} inside other objects, which are out of reach"))
                .hint("load it where its classes are, and save the state_dict() of what it holds"),
        }
        .mismatch())
    }
}

impl Source for PytorchFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn first_of_same(&self, index: usize) -> usize {
        self.first[index]
    }

    fn steps(&self, index: usize) -> Vec<Step> {
        self.nodes.steps(self.places[index])
    }

    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]> {
        let view = &self.views[index];
        let bytes = match &self.inflated {
            Some(inflated) if view.inflated => inflated.bytes(),
            _ => self.file.values(0..self.file.bytes().len()),
        };
        view.rows(&self.tensors[index], bytes, rows)
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }

    fn check_values(&self) -> Result<()> {
        self.file.check_values()
    }
}

/// The tensors of a file, without the file's memory map.
struct Contents {
    inflated: Option<MappedFile>,
    tensors: Vec<TensorInfo>,
    views: Vec<View>,
    first: Vec<usize>,
    places: Vec<u32>,
    nodes: Nodes,
    unread: Vec<(String, String)>,
    others: Vec<(String, String)>,
    notes: Vec<String>,
    out_of_reach: usize,
}

impl Contents {
    /// Names the tensors, checks each against its storage, and inflates deflated storages.
    fn of(
        path: &Path,
        bytes: &[u8],
        key: Option<&str>,
        pickle: &Pickle<'_>,
        places: &HashMap<&str, Place>,
        big_endian: bool,
    ) -> Result<Self> {
        let tree::Flat { tensors: named, nodes, unread, mut others, out_of_reach } = tree::flatten(path, pickle, key)?;
        let notes = tree::class_notes(pickle);
        let mut tensors = Vec::with_capacity(named.len());
        let mut views = Vec::with_capacity(named.len());
        let mut deflated: Vec<&str> = Vec::new();
        let mut storage_keys = Vec::with_capacity(named.len());
        let mut first = Vec::with_capacity(named.len());
        let mut nodes_of = Vec::with_capacity(named.len());
        let mut same: HashMap<_, usize> = HashMap::with_capacity(named.len());
        for (name, id, node) in named {
            let missing =
                || Finding::new(path, format!("tensor {name:?}")).expected("a storage").found("none").format();
            let Some(Object::Tensor(tensor)) = pickle.objects.get(id as usize) else { return Err(missing()) };
            let Some(Object::Storage(storage)) = pickle.objects.get(tensor.storage as usize) else {
                return Err(missing());
            };
            let place = places.get(storage.key).ok_or_else(missing)?;
            if tensor.attributes {
                others.push((name.clone(), "Python attributes of the tensor".to_owned()));
            }
            let (info, view) = View::check(path, name, tensor, storage, place, big_endian)?;
            if place.deflated.is_some() {
                deflated.push(storage.key);
            }
            // Tensors without elements have nothing to share.
            let number = tensors.len();
            first.push(match info.shape.contains(&0) {
                true => number,
                false => *same.entry((storage.key, view.clone(), info.dtype, info.shape.clone())).or_insert(number),
            });
            nodes_of.push(node);
            storage_keys.push(storage.key);
            tensors.push(info);
            views.push(view);
        }
        deflated.sort_unstable();
        deflated.dedup();
        let mut inflated = None;
        if !deflated.is_empty() {
            let (file, starts) = inflate(path, bytes, deflated.iter().filter_map(|key| places.get_key_value(key)))?;
            for (view, key) in views.iter_mut().zip(&storage_keys).filter(|(view, _)| view.inflated) {
                view.start += starts.get(key).copied().unwrap_or_default();
            }
            inflated = Some(file);
        }
        Ok(Self { inflated, tensors, views, first, places: nodes_of, nodes, unread, others, notes, out_of_reach })
    }
}

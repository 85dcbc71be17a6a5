//! Writing: the pickle and zip that torch.save would make of the same tensors.
//!
//! Reference: torch `serialization.py` (`_save`), `_tensor.py` (`_reduce_ex_internal`).

use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::shards::{index, shard_name, split};
use crate::plan::{Layout, Place, PlannedTensor};

use super::zip::ZipLayout;

/// The name of the index file, which says in which shard each tensor is.
pub const SHARD_INDEX: &str = "pytorch_model.bin.index.json";

/// The folder in the zip, as torch calls it for files without a name.
const FOLDER: &str = "archive";
/// The content of torch's record `version`: the version of the zip form.
const VERSION: &[u8] = b"3\n";

/// Lays out `tensors` as one `{stem}.bin` or, if they exceed `shard_bytes`, as shards with an index, split in the
/// tensors' order as in transformers. A file holds one dictionary of tensors, in their order, each with its own
/// storage.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a type that torch doesn't have.
pub fn layout(tensors: &[PlannedTensor], stem: &str, shard_bytes: u64) -> Result<Layout> {
    let shards = split(tensors, shard_bytes);
    let mut places = vec![Place { file: 0, offset: 0 }; tensors.len()];
    let mut files = Vec::with_capacity(shards.len() + 1);
    let mut weight_map = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = shard_name(stem, number, shards.len(), "bin");
        let mut program = Program::new();
        for (key, &i) in shard.iter().enumerate() {
            let tensor = &tensors[i];
            let class = class_of(tensor.dtype).ok_or_else(|| {
                Finding::new(&name, format!("tensor {:?}", tensor.name))
                    .expected("a type of torch")
                    .found(tensor.dtype)
                    .unsupported()
            })?;
            program.tensor(tensor, class, &key.to_string());
            weight_map.push((tensor.name.as_str(), name.clone()));
        }
        let mut zip = ZipLayout::new();
        zip.add_bytes(format!("{FOLDER}/data.pkl"), &program.finish());
        zip.add_bytes(format!("{FOLDER}/byteorder"), b"little");
        for (key, &i) in shard.iter().enumerate() {
            let offset = zip.add_space(format!("{FOLDER}/data/{key}"), tensors[i].byte_len());
            places[i] = Place { file: number, offset };
        }
        zip.add_bytes(format!("{FOLDER}/version"), VERSION);
        files.push(zip.finish(name));
    }
    if shards.len() > 1 {
        files.push(index(format!("{stem}.bin.index.json"), tensors, weight_map));
    }
    Ok(Layout { files, places, recode: None })
}

/// How a pickle names a type.
#[derive(Clone, Copy)]
enum Class {
    /// By a class of storages.
    Storage(&'static str),
    /// By the type itself, with an untyped storage: newer types have no class of storages.
    Dtype(&'static str),
}

fn class_of(dtype: DType) -> Option<Class> {
    Some(match dtype {
        DType::F64 => Class::Storage("DoubleStorage"),
        DType::F32 => Class::Storage("FloatStorage"),
        DType::F16 => Class::Storage("HalfStorage"),
        DType::BF16 => Class::Storage("BFloat16Storage"),
        DType::I8 => Class::Storage("CharStorage"),
        DType::I16 => Class::Storage("ShortStorage"),
        DType::I32 => Class::Storage("IntStorage"),
        DType::I64 => Class::Storage("LongStorage"),
        DType::U8 => Class::Storage("ByteStorage"),
        DType::BOOL => Class::Storage("BoolStorage"),
        DType::C64 => Class::Storage("ComplexFloatStorage"),
        DType::U16 => Class::Dtype("uint16"),
        DType::U32 => Class::Dtype("uint32"),
        DType::U64 => Class::Dtype("uint64"),
        DType::F8_E4M3 => Class::Dtype("float8_e4m3fn"),
        DType::F8_E5M2 => Class::Dtype("float8_e5m2"),
        DType::F8_E8M0 => Class::Dtype("float8_e8m0fnu"),
        DType::F8_E4M3FNUZ => Class::Dtype("float8_e4m3fnuz"),
        DType::F8_E5M2FNUZ => Class::Dtype("float8_e5m2fnuz"),
        _ => return None,
    })
}

/// A pickle of protocol 2 that is being written: an `OrderedDict` of tensors.
struct Program {
    out: Vec<u8>,
    /// Names written so far. The index of a name is its number in the memo.
    names: Vec<(&'static str, &'static str)>,
}

impl Program {
    fn new() -> Self {
        let mut program = Self { out: vec![0x80, 2], names: Vec::new() };
        program.empty_dict();
        program.out.push(b'(');
        program
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.extend(b"u.");
        self.out
    }

    /// Writes `name: _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())`, or `v3` with the type.
    fn tensor(&mut self, tensor: &PlannedTensor, class: Class, key: &str) {
        self.text(&tensor.name);
        let (function, storage, elems) = match class {
            Class::Storage(storage) => ("_rebuild_tensor_v2", ("torch", storage), tensor.elems() as u64),
            Class::Dtype(_) => ("_rebuild_tensor_v3", ("torch.storage", "UntypedStorage"), tensor.byte_len()),
        };
        self.global("torch._utils", function);
        self.out.push(b'(');
        self.out.push(b'(');
        self.text("storage");
        self.global(storage.0, storage.1);
        self.text(key);
        self.text("cpu");
        self.number(elems);
        self.out.extend(b"tQ");
        self.number(0);
        self.numbers(&tensor.shape);
        self.numbers(&row_major(&tensor.shape));
        self.out.push(0x89);
        self.empty_dict();
        if let Class::Dtype(name) = class {
            self.global("torch", name);
        }
        self.out.extend(b"tR");
    }

    fn empty_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.out.extend(b")R");
    }

    /// Writes a name: in full the first time, by its number in the memo after that.
    fn global(&mut self, module: &'static str, name: &'static str) {
        // The number fits into a byte, because there are only a few names.
        if let Some(number) = self.names.iter().position(|known| *known == (module, name)) {
            self.out.extend([b'h', number as u8]);
        } else {
            self.out.extend(format!("c{module}\n{name}\n").as_bytes());
            self.out.extend([b'q', self.names.len() as u8]);
            self.names.push((module, name));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push(b'X');
        self.out.extend((text.len() as u32).to_le_bytes());
        self.out.extend(text.as_bytes());
    }

    fn numbers(&mut self, numbers: &[usize]) {
        self.out.push(b'(');
        numbers.iter().for_each(|number| self.number(*number as u64));
        self.out.push(b't');
    }

    /// Writes an integer in the shortest form of protocol 2.
    fn number(&mut self, number: u64) {
        if let Ok(number) = u8::try_from(number) {
            self.out.extend([b'K', number]);
        } else if let Ok(number) = u16::try_from(number) {
            self.out.push(b'M');
            self.out.extend(number.to_le_bytes());
        } else if let Ok(number) = i32::try_from(number) {
            self.out.push(b'J');
            self.out.extend(number.to_le_bytes());
        } else {
            // A ninth byte of zeros keeps the number positive.
            self.out.extend([0x8a, 9]);
            self.out.extend(number.to_le_bytes());
            self.out.push(0);
        }
    }
}

/// The strides of a row-major tensor, in elements. They can overflow only for a tensor without elements, for which they
/// don't matter.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1)).min(i64::MAX as usize);
    }
    strides
}

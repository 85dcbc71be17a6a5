//! The pickle of a file that is written: dictionaries and lists of tensors, with protocol 2.
//!
//! Reference: torch `_tensor.py` (`_reduce_ex_internal`).

use super::nesting::Node;
use crate::dtype::DType;
use crate::plan::PlannedTensor;
use crate::source::Step;

/// How a pickle names a type.
#[derive(Clone, Copy)]
pub(super) enum Class {
    /// By a class of storages.
    Storage(&'static str),
    /// By the type itself, with an untyped storage: newer types have no class of storages.
    Dtype(&'static str),
}

pub(super) fn class_of(dtype: DType) -> Option<Class> {
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

/// A pickle of protocol 2 that is being written.
pub(super) struct Program {
    out: Vec<u8>,
    /// Names written so far. The index of a name is its number in the memo.
    names: Vec<(&'static str, &'static str)>,
}

impl Program {
    /// The pickle of the tree `root`; `tensor` gives the tensor of a leaf, its class and the key of its storage.
    pub(super) fn of<'a>(root: &Node, tensor: &dyn Fn(usize) -> Option<(&'a PlannedTensor, Class, String)>) -> Vec<u8> {
        let mut program = Self { out: vec![0x80, 2], names: Vec::new() };
        program.node(root, tensor);
        program.out.push(b'.');
        program.out
    }

    /// Writes a container. Values of lists that aren't written leave None in their places.
    fn node<'a>(&mut self, node: &Node, tensor: &dyn Fn(usize) -> Option<(&'a PlannedTensor, Class, String)>) {
        match node {
            Node::Leaf(number) => match tensor(*number) {
                Some((of, class, key)) => self.tensor(of, class, &key),
                None => self.out.push(b'N'),
            },
            Node::Dict(dict) => {
                self.empty_dict();
                self.out.push(b'(');
                for (step, node) in &dict.entries {
                    match step {
                        Step::Key(text) => self.text(text),
                        Step::Number(number) => self.signed(*number),
                        Step::Item { .. } => self.out.push(b'N'),
                    }
                    self.node(node, tensor);
                }
                self.out.push(b'u');
            }
            Node::List { of, tuple, items } => {
                self.out.extend(if *tuple { &b"("[..] } else { b"](" });
                for index in 0..*of {
                    match items.get(&index) {
                        Some(node) => self.node(node, tensor),
                        None => self.out.push(b'N'),
                    }
                }
                self.out.push(if *tuple { b't' } else { b'e' });
            }
        }
    }

    /// Writes `_rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())`, or `v3` with the type.
    fn tensor(&mut self, tensor: &PlannedTensor, class: Class, key: &str) {
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

    /// Writes an integer that may be negative.
    fn signed(&mut self, number: i64) {
        match u64::try_from(number) {
            Ok(number) => self.number(number),
            Err(_) => {
                self.out.extend([0x8a, 8]);
                self.out.extend(number.to_le_bytes());
            }
        }
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

//! Calls as data: a description of the value that a class or function of the table would return.
//!
//! Reference: torch `_utils.py` (`_rebuild_tensor_v2` and related functions) and `serialization.py`
//! (`persistent_load`). Arguments aren't trusted: each must be of the expected kind.

use super::globals::{AllowedName, Role};
use super::machine::Machine;
use super::{Object, Storage, Tensor, Value};
use crate::error::Result;
use crate::source::show_shape;

/// The most dimensions of a tensor: numpy's limit, and far more than any model has.
const MAX_DIMS: usize = 64;

impl<'a> Machine<'_, 'a> {
    /// The value that describes `function(*arguments)`.
    pub(super) fn call(&mut self, function: Value<'a>, arguments: Vec<Value<'a>>) -> Result<Value<'a>> {
        let known = match function {
            Value::Global(known) => known,
            Value::Other(_) => return self.add(Object::Opaque { class: function, parts: arguments }),
            _ => return Err(self.breach("a class or function to call", "something else")),
        };
        match known.role {
            Role::Tensor | Role::TensorV2 | Role::TensorV3 => self.tensor(known, &arguments),
            Role::Parameter => self.parameter(known, &arguments),
            Role::FromType => self.wrapped(known, &arguments),
            Role::Unread(what) => self.unread(what, &arguments),
            Role::Size => match arguments.first() {
                None => self.add(Object::Tuple(Vec::new())),
                Some(size) => match self.object(*size) {
                    Some(Object::Tuple(_) | Object::List(_)) => Ok(*size),
                    _ => Err(self.breach("a tuple for torch.Size", "something else")),
                },
            },
            Role::Dict => self.dictionary(arguments.first().copied(), None),
            Role::DefaultDict => self.dictionary(arguments.get(1).copied(), None),
            Role::Settings => self.settings(known, arguments),
            Role::Instance => self.instance(known, &arguments),
            Role::NewObject => match arguments.split_first() {
                // Only one level, as below.
                Some((
                    class @ (Value::Global(AllowedName { role: Role::Settings | Role::Dict | Role::Data, .. })
                    | Value::Other(_)),
                    rest,
                )) => self.call(*class, rest.to_vec()),
                _ => Err(self.breach("a class of plain data", "something else")),
            },
            Role::Storage(_) | Role::Data => self.add(Object::Opaque { class: function, parts: arguments }),
            Role::Dtype(element) => Err(self.breach("a class or function to call", element.name)),
        }
    }

    /// Gives an instance its state, or an object its Python attributes.
    pub(super) fn build(&mut self, instance: Value<'a>, state: Value<'a>) -> Result<()> {
        let some = self.holds_something(state);
        self.count(1)?;
        let Value::Object(id) = instance else {
            return Err(self.breach("an instance to give a state to", "something else"));
        };
        match self.objects.get_mut(id as usize) {
            Some(Object::Dict { attributes, .. }) => *attributes = Some(state),
            Some(Object::Tensor(tensor)) => tensor.attributes |= some,
            Some(Object::Opaque { parts, .. }) => parts.push(state),
            Some(Object::Unread(_)) => {}
            _ => return Err(self.breach("an instance to give a state to", "something else")),
        }
        Ok(())
    }

    /// The storage that a persistent id names: `("storage", class, key, location, elements)`, followed by a view in the
    /// older form.
    pub(super) fn persistent(&mut self, id: Value<'a>) -> Result<Storage<'a>> {
        let parts = self.tuple(id)?;
        if parts.first() == Some(&Value::Str("module")) {
            return Err(self
                .finding()
                .expected("tensors in dictionaries")
                .found("a whole module with its source code")
                .hint("save its state_dict() instead")
                .unsupported());
        }
        let (element, key, elems, view) = match parts.as_slice() {
            [Value::Str("storage"), Value::Global(class), Value::Str(key), _, Value::Int(elems)] => {
                (class.role, *key, *elems, Value::None)
            }
            [Value::Str("storage"), Value::Global(class), Value::Str(key), _, Value::Int(elems), view] => {
                (class.role, *key, *elems, *view)
            }
            _ => return Err(self.breach("a storage with class, key, place and size", "something else")),
        };
        let Role::Storage(element) = element else {
            return Err(self.breach("a class of storages", "something else"));
        };
        let elems = u64::try_from(elems).map_err(|_| self.breach("a number of elements", elems))?;
        let view = match view {
            Value::None => None,
            view => match self.tuple(view)?.as_slice() {
                [_, Value::Int(offset), Value::Int(len)] => match (u64::try_from(*offset), u64::try_from(*len)) {
                    (Ok(offset), Ok(len)) => Some((offset, len)),
                    _ => return Err(self.breach("a view inside its storage", format_args!("({offset}, {len})"))),
                },
                _ => return Err(self.breach("a view with key, offset and size", "something else")),
            },
        };
        Ok(Storage { key, element, elems, view })
    }

    fn tensor(&mut self, known: &'static AllowedName, arguments: &[Value<'a>]) -> Result<Value<'a>> {
        let misfit = |machine: &Self| {
            machine.breach(format_args!("storage, offset, size and stride for {}", known.name), "something else")
        };
        let [Value::Object(storage), Value::Int(offset), size, stride, rest @ ..] = arguments else {
            return Err(misfit(self));
        };
        let mut element = match self.objects.get(*storage as usize) {
            Some(Object::Storage(found)) => found.element,
            _ => return Err(misfit(self)),
        };
        if known.role == Role::TensorV3 {
            element = match rest.get(2) {
                Some(Value::Global(AllowedName { role: Role::Dtype(element), .. })) => *element,
                _ => return Err(self.breach("a type of elements", "something else")),
            };
        }
        let metadata = rest.get(if known.role == Role::TensorV3 { 3 } else { 2 });
        // torch stores a conjugation or a negation as a flag, and leaves the values unchanged.
        if let Some(Object::Dict { entries, .. }) = metadata.and_then(|m| self.object(*m))
            && entries.iter().any(|(_, value)| *value == Value::Bool(true))
        {
            let what = "a tensor whose conjugation or change of sign is still to be done";
            return self.add(Object::Unread(what.to_owned()));
        }
        let offset = u64::try_from(*offset).map_err(|_| self.breach("an offset", offset))?;
        let shape = self.whole_numbers(*size)?;
        let strides = self.whole_numbers(*stride)?;
        if shape.len() != strides.len() {
            return Err(self.breach(format_args!("{} strides", shape.len()), strides.len()));
        }
        let dims = shape.len();
        let shape: Vec<usize> = shape.into_iter().filter_map(|d| usize::try_from(d).ok()).collect();
        if shape.len() != dims {
            return Err(misfit(self));
        }
        let tensor = Tensor { storage: *storage, element, offset, shape, strides, attributes: false };
        self.add(Object::Tensor(tensor))
    }

    /// A kind of tensor that isn't read. Sparse ones are made of tensors: places first, then values, and the shape.
    fn unread(&mut self, what: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
        let mut text = what.to_owned();
        let parts = match arguments.get(1).and_then(|parts| self.object(*parts)) {
            Some(Object::Tuple(parts)) => parts.as_slice(),
            _ => &[],
        };
        let values = parts.iter().rev().find_map(|part| match self.object(*part) {
            Some(Object::Tensor(tensor)) => Some(tensor),
            _ => None,
        });
        let shape = parts.iter().find_map(|part| match self.object(*part) {
            Some(Object::Tuple(sizes)) if sizes.len() <= MAX_DIMS => {
                let size = |size: &Value<'_>| match size {
                    Value::Int(size) => usize::try_from(*size).ok(),
                    _ => None,
                };
                sizes.iter().map(size).collect::<Option<Vec<usize>>>()
            }
            _ => None,
        });
        if let (Some(values), Some(shape)) = (values, shape) {
            let count = values.shape.first().copied().unwrap_or_default();
            text.push_str(&format!(", {} {} with {count} values", values.element.name, show_shape(&shape)));
        }
        self.add(Object::Unread(text))
    }

    /// A parameter is read as its tensor. Whether it requires a gradient isn't part of a checkpoint.
    fn parameter(&mut self, known: &'static AllowedName, arguments: &[Value<'a>]) -> Result<Value<'a>> {
        let Some(inner @ Value::Object(id)) = arguments.first() else {
            return Err(self.breach(format_args!("a tensor for {}", known.name), "something else"));
        };
        if known.name == "_rebuild_device_tensor_from_cpu_tensor" {
            return self.on_cpu(*inner, arguments.get(1));
        }
        let state = arguments.get(3).copied().unwrap_or(Value::None);
        match self.objects.get(*id as usize) {
            Some(Object::Tensor(tensor)) if self.holds_something(state) => {
                let tensor = Tensor { attributes: true, ..tensor.clone() };
                self.add(Object::Tensor(tensor))
            }
            Some(Object::Tensor(_) | Object::Unread(_)) => Ok(*inner),
            _ => Err(self.breach(format_args!("a tensor for {}", known.name), "something else")),
        }
    }

    /// A tensor of another device that was saved as a CPU tensor. Its values are usable only if the type is the same.
    fn on_cpu(&mut self, inner: Value<'a>, dtype: Option<&Value<'a>>) -> Result<Value<'a>> {
        match (self.object(inner), dtype) {
            (Some(Object::Tensor(tensor)), Some(Value::Global(AllowedName { role: Role::Dtype(element), .. }))) => {
                match tensor.element == *element {
                    true => Ok(inner),
                    false => self.add(Object::Unread("a tensor of another device, kept in another type".to_owned())),
                }
            }
            (Some(Object::Unread(_)), _) => Ok(inner),
            _ => Err(self.breach("a tensor and its type", "something else")),
        }
    }

    /// A tensor of a subclass, or with attributes: the call wraps another function's result.
    fn wrapped(&mut self, known: &'static AllowedName, arguments: &[Value<'a>]) -> Result<Value<'a>> {
        let [function @ Value::Global(inner), Value::Global(_) | Value::Other(_), inner_arguments, state] = arguments
        else {
            return Err(
                self.breach(format_args!("function, class, arguments and state for {}", known.name), "something else")
            );
        };
        // Only one level, because wrappers could be nested without limit.
        if !matches!(inner.role, Role::Tensor | Role::TensorV2 | Role::TensorV3 | Role::Parameter | Role::Unread(_)) {
            return Err(self.breach("a function that makes a tensor", format_args!("{}.{}", inner.module, inner.name)));
        }
        let inner_arguments = self.tuple(*inner_arguments)?;
        let result = self.call(*function, inner_arguments)?;
        if self.holds_something(*state) {
            self.build(result, *state)?;
        }
        Ok(result)
    }

    /// An object of a class of settings: a dictionary, if its arguments can be its entries.
    fn settings(&mut self, class: &'static AllowedName, arguments: Vec<Value<'a>>) -> Result<Value<'a>> {
        let entries = |initial: Value<'a>| matches!(self.object(initial), Some(Object::Dict { .. }));
        match arguments.as_slice() {
            [] => self.dictionary(None, Some(class)),
            [initial] if entries(*initial) => self.dictionary(Some(*initial), Some(class)),
            _ => self.add(Object::Opaque { class: Value::Global(class), parts: arguments }),
        }
    }

    fn dictionary(&mut self, initial: Option<Value<'a>>, settings: Option<&'static AllowedName>) -> Result<Value<'a>> {
        let mut entries = Vec::new();
        match initial {
            None | Some(Value::None) => {}
            Some(initial) => match self.object(initial) {
                Some(Object::Dict { entries: from, .. }) => entries.clone_from(from),
                Some(Object::List(pairs) | Object::Tuple(pairs)) => {
                    for pair in pairs {
                        match self.object(*pair) {
                            Some(Object::Tuple(parts) | Object::List(parts)) if parts.len() == 2 => {
                                entries.push((parts[0], parts[1]));
                            }
                            _ => return Err(self.breach("pairs of key and value", "something else")),
                        }
                    }
                }
                _ => return Err(self.breach("entries for a dictionary", "something else")),
            },
        }
        self.add(Object::Dict { entries, attributes: None, settings })
    }

    fn instance(&mut self, known: &'static AllowedName, arguments: &[Value<'a>]) -> Result<Value<'a>> {
        let (named, class, state) = match arguments {
            [named @ Value::Global(class), _, state] => (named, class, state),
            [named @ Value::Other(_), _, state] => {
                return self.add(Object::Opaque { class: *named, parts: vec![*state] });
            }
            _ => return Err(self.breach(format_args!("class, base and state for {}", known.name), "something else")),
        };
        match class.role {
            Role::Dict | Role::DefaultDict => self.dictionary(Some(*state), None),
            Role::Settings if *state == Value::None => self.dictionary(None, Some(class)),
            Role::Settings => self.settings(class, vec![*state]),
            Role::Data => self.add(Object::Opaque { class: *named, parts: vec![*state] }),
            _ => Err(self.breach("a class of plain data", format_args!("{}.{}", class.module, class.name))),
        }
    }

    /// The numbers in a tuple, none of which may be negative.
    fn whole_numbers(&mut self, value: Value<'a>) -> Result<Vec<u64>> {
        let parts = match self.object(value) {
            Some(Object::Tuple(parts) | Object::List(parts)) if parts.len() <= MAX_DIMS => parts,
            Some(Object::Tuple(parts) | Object::List(parts)) => {
                return Err(self.breach(format_args!("at most {MAX_DIMS} dimensions"), parts.len()));
            }
            _ => return Err(self.breach("a tuple of whole numbers", "something else")),
        };
        let numbers: Option<Vec<u64>> = parts
            .iter()
            .map(|part| match part {
                Value::Int(number) => u64::try_from(*number).ok(),
                _ => None,
            })
            .collect();
        numbers.ok_or_else(|| self.breach("whole numbers, none negative", "another"))
    }

    /// Whether a state isn't empty.
    fn holds_something(&self, state: Value<'a>) -> bool {
        match state {
            Value::None | Value::Bool(false) => false,
            state => match self.object(state) {
                Some(Object::Dict { entries, attributes, .. }) => !entries.is_empty() || attributes.is_some(),
                Some(Object::Tuple(parts) | Object::List(parts)) => {
                    // The state may be (dictionary, slots): look one level down, but no further.
                    parts.iter().any(|part| match self.object(*part) {
                        Some(Object::Dict { entries, .. }) => !entries.is_empty(),
                        Some(Object::Tuple(parts) | Object::List(parts)) => !parts.is_empty(),
                        Some(_) => true,
                        None => *part != Value::None,
                    })
                }
                _ => true,
            },
        }
    }
}

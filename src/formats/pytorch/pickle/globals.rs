//! The table of names that a pickle may use, and the kind of value that each one makes.
//!
//! Reference: torch `_weights_only_unpickler.py` (`_get_allowed_globals`) and the classes that
//! checkpoints of Lightning, transformers and numpy contain in addition to tensors. Names are never
//! looked up anywhere else: objects of other classes are only described, and names that reach the
//! system are refused ([`super::system`]).

use crate::dtype::DType;

/// The type of elements in torch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::formats::pytorch) struct Element {
    /// The name in torch, such as `float32`.
    pub name: &'static str,
    /// Bytes of one element.
    pub bytes: usize,
    /// The type in this crate; `None` for types that can't be read.
    pub dtype: Option<DType>,
}

const fn element(name: &'static str, bytes: usize, dtype: Option<DType>) -> Element {
    Element { name, bytes, dtype }
}

/// A name of the table.
#[derive(Debug, PartialEq)]
pub(in crate::formats::pytorch) struct AllowedName {
    /// The Python module.
    pub module: &'static str,
    /// The name in it.
    pub name: &'static str,
    /// What a call of it makes.
    pub role: Role,
}

/// The kind of value that a call of a name makes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::formats::pytorch) enum Role {
    /// `_rebuild_tensor(storage, offset, size, stride)`.
    Tensor,
    /// The same with `requires_grad, hooks, metadata` after them.
    TensorV2,
    /// The same with `requires_grad, hooks, dtype, metadata` after them.
    TensorV3,
    /// A parameter: its tensor is the first argument, and the last one may be a state.
    Parameter,
    /// `_rebuild_from_type_v2(function, class, arguments, state)`.
    FromType,
    /// A kind of tensor that can't be read.
    Unread(&'static str),
    /// A class of storages.
    Storage(Element),
    /// A type of elements, which is never called.
    Dtype(Element),
    /// `torch.Size`: a tuple.
    Size,
    /// A dictionary, with entries from its argument if it has one.
    Dict,
    /// `collections.defaultdict`: a factory comes before the entries.
    DefaultDict,
    /// A class of settings that is a dictionary by nature.
    Settings,
    /// `copyreg._reconstructor(class, base, state)`, which makes instances in protocols 0 and 1.
    Instance,
    /// `copyreg.__newobj__(class, ..)`, which makes instances where a protocol lacks an opcode.
    NewObject,
    /// A class or function whose results are only described.
    Data,
}

const fn known(module: &'static str, name: &'static str, role: Role) -> AllowedName {
    AllowedName { module, name, role }
}

macro_rules! table {
    ($($module:literal { $($name:literal => $role:expr),* $(,)? })*) => {
        &[$($(known($module, $name, $role)),*),*]
    };
}

/// Python 3's name of what protocol 2 still calls by Python 2's.
///
/// Reference: CPython `Lib/_compat_pickle.py`.
pub(super) fn in_python_3<'a>(module: &'a str, name: &'a str) -> (&'a str, &'a str) {
    match (module, name) {
        ("__builtin__", "long") => ("builtins", "int"),
        ("__builtin__", "unicode" | "basestring") => ("builtins", "str"),
        ("__builtin__", "xrange") => ("builtins", "range"),
        ("__builtin__", "unichr") => ("builtins", "chr"),
        ("__builtin__", "raw_input") => ("builtins", "input"),
        ("__builtin__", name) => ("builtins", name),
        ("__builtins__", name) => ("builtins", name),
        ("copy_reg", name) => ("copyreg", name),
        ("itertools", "imap") => ("builtins", "map"),
        ("itertools", "ifilter") => ("builtins", "filter"),
        ("itertools", "izip") => ("builtins", "zip"),
        ("UserDict", "UserDict" | "IterableUserDict") => ("collections", "UserDict"),
        ("UserList", "UserList") => ("collections", "UserList"),
        ("whichdb" | "gdbm" | "dumbdbm" | "anydbm", name) => ("dbm", name),
        other => other,
    }
}

/// The entry of `module.name`, in Python 3's names.
pub(super) fn find(module: &str, name: &str) -> Option<&'static AllowedName> {
    TABLE.iter().find(|known| known.name == name && known.module == module)
}

const F64: Element = element("float64", 8, Some(DType::F64));
const F32: Element = element("float32", 4, Some(DType::F32));
const F16: Element = element("float16", 2, Some(DType::F16));
const BF16: Element = element("bfloat16", 2, Some(DType::BF16));
const I8: Element = element("int8", 1, Some(DType::I8));
const I16: Element = element("int16", 2, Some(DType::I16));
const I32: Element = element("int32", 4, Some(DType::I32));
const I64: Element = element("int64", 8, Some(DType::I64));
const U8: Element = element("uint8", 1, Some(DType::U8));
const U16: Element = element("uint16", 2, Some(DType::U16));
const U32: Element = element("uint32", 4, Some(DType::U32));
const U64: Element = element("uint64", 8, Some(DType::U64));
const BOOL: Element = element("bool", 1, Some(DType::BOOL));
const C64: Element = element("complex64", 8, Some(DType::C64));
const E4M3: Element = element("float8_e4m3fn", 1, Some(DType::F8_E4M3));
const E5M2: Element = element("float8_e5m2", 1, Some(DType::F8_E5M2));
const E8M0: Element = element("float8_e8m0fnu", 1, Some(DType::F8_E8M0));
const C128: Element = element("complex128", 16, None);
const C32: Element = element("complex32", 4, None);

const TABLE: &[AllowedName] = {
    use Role::*;
    table! {
        "torch._utils" {
            "_rebuild_tensor" => Tensor,
            "_rebuild_tensor_v2" => TensorV2,
            "_rebuild_tensor_v3" => TensorV3,
            "_rebuild_parameter" => Parameter,
            "_rebuild_parameter_with_state" => Parameter,
            "_rebuild_device_tensor_from_cpu_tensor" => Parameter,
            "_rebuild_qtensor" => Unread("a quantized tensor"),
            "_rebuild_sparse_tensor" => Unread("a sparse tensor"),
            "_rebuild_nested_tensor" => Unread("a nested tensor"),
            "_rebuild_meta_tensor_no_storage" => Unread("a meta tensor, which has no values"),
            "_rebuild_wrapper_subclass" => Unread("a tensor of a wrapper class"),
            "_rebuild_device_tensor_from_numpy" => Unread("a tensor of another device, kept as a numpy array"),
            "_rebuild_xla_tensor" => Unread("a tensor of another device, kept as a numpy array"),
        }
        "torch._tensor" {
            "_rebuild_from_type_v2" => FromType,
        }
        "torch.nn.parameter" {
            "Parameter" => Parameter,
            "Buffer" => Parameter,
            "UninitializedParameter" => Unread("a parameter without values"),
            "UninitializedBuffer" => Unread("a buffer without values"),
        }
        "torch" {
            "Size" => Size,
            "Tensor" => Unread("a tensor in the form before torch 0.2"),
            "FloatTensor" => Unread("a tensor in the form before torch 0.2"),
            "DoubleTensor" => Unread("a tensor in the form before torch 0.2"),
            "HalfTensor" => Unread("a tensor in the form before torch 0.2"),
            "LongTensor" => Unread("a tensor in the form before torch 0.2"),
            "IntTensor" => Unread("a tensor in the form before torch 0.2"),
            "ShortTensor" => Unread("a tensor in the form before torch 0.2"),
            "CharTensor" => Unread("a tensor in the form before torch 0.2"),
            "ByteTensor" => Unread("a tensor in the form before torch 0.2"),
            "DoubleStorage" => Storage(F64),
            "FloatStorage" => Storage(F32),
            "HalfStorage" => Storage(F16),
            "BFloat16Storage" => Storage(BF16),
            "CharStorage" => Storage(I8),
            "ShortStorage" => Storage(I16),
            "IntStorage" => Storage(I32),
            "LongStorage" => Storage(I64),
            "ByteStorage" => Storage(U8),
            "BoolStorage" => Storage(BOOL),
            "ComplexFloatStorage" => Storage(C64),
            "ComplexDoubleStorage" => Storage(C128),
            "QInt8Storage" => Storage(element("qint8", 1, None)),
            "QInt32Storage" => Storage(element("qint32", 4, None)),
            "QUInt8Storage" => Storage(element("quint8", 1, None)),
            "QUInt4x2Storage" => Storage(element("quint4x2", 1, None)),
            "QUInt2x4Storage" => Storage(element("quint2x4", 1, None)),
            "UntypedStorage" => Storage(U8),
            "float64" => Dtype(F64),
            "double" => Dtype(F64),
            "float32" => Dtype(F32),
            "float" => Dtype(F32),
            "float16" => Dtype(F16),
            "half" => Dtype(F16),
            "bfloat16" => Dtype(BF16),
            "int8" => Dtype(I8),
            "int16" => Dtype(I16),
            "short" => Dtype(I16),
            "int32" => Dtype(I32),
            "int" => Dtype(I32),
            "int64" => Dtype(I64),
            "long" => Dtype(I64),
            "uint8" => Dtype(U8),
            "uint16" => Dtype(U16),
            "uint32" => Dtype(U32),
            "uint64" => Dtype(U64),
            "bool" => Dtype(BOOL),
            "complex64" => Dtype(C64),
            "cfloat" => Dtype(C64),
            "complex128" => Dtype(C128),
            "cdouble" => Dtype(C128),
            "complex32" => Dtype(C32),
            "chalf" => Dtype(C32),
            "float8_e4m3fn" => Dtype(E4M3),
            "float8_e5m2" => Dtype(E5M2),
            "float8_e8m0fnu" => Dtype(E8M0),
            "float8_e4m3fnuz" => Dtype(element("float8_e4m3fnuz", 1, Some(DType::F8_E4M3FNUZ))),
            "float8_e5m2fnuz" => Dtype(element("float8_e5m2fnuz", 1, Some(DType::F8_E5M2FNUZ))),
            "float4_e2m1fn_x2" => Dtype(element("float4_e2m1fn_x2", 1, None)),
            "bits8" => Dtype(element("bits8", 1, None)),
            "bits16" => Dtype(element("bits16", 2, None)),
            "bits1x8" => Dtype(element("bits1x8", 1, None)),
            "bits2x4" => Dtype(element("bits2x4", 1, None)),
            "bits4x2" => Dtype(element("bits4x2", 1, None)),
            "qint8" => Dtype(element("qint8", 1, None)),
            "qint32" => Dtype(element("qint32", 4, None)),
            "quint8" => Dtype(element("quint8", 1, None)),
            "quint4x2" => Dtype(element("quint4x2", 1, None)),
            "quint2x4" => Dtype(element("quint2x4", 1, None)),
            "device" => Data,
            "strided" => Data,
            "sparse_coo" => Data,
            "contiguous_format" => Data,
            "channels_last" => Data,
            "preserve_format" => Data,
            "per_tensor_affine" => Data,
            "per_tensor_symmetric" => Data,
            "per_channel_affine" => Data,
            "per_channel_symmetric" => Data,
            "per_channel_affine_float_qparams" => Data,
        }
        "torch.cuda" {
            "DoubleStorage" => Storage(F64),
            "FloatStorage" => Storage(F32),
            "HalfStorage" => Storage(F16),
            "BFloat16Storage" => Storage(BF16),
            "CharStorage" => Storage(I8),
            "ShortStorage" => Storage(I16),
            "IntStorage" => Storage(I32),
            "LongStorage" => Storage(I64),
            "ByteStorage" => Storage(U8),
            "BoolStorage" => Storage(BOOL),
            "ComplexFloatStorage" => Storage(C64),
            "ComplexDoubleStorage" => Storage(C128),
            "UntypedStorage" => Storage(U8),
        }
        "torch.storage" {
            "UntypedStorage" => Storage(U8),
            "_UntypedStorage" => Storage(U8),
            "TypedStorage" => Unread("a storage without a type"),
            "_TypedStorage" => Unread("a storage without a type"),
        }
        "torch._C" {
            "Generator" => Data,
        }
        "torch.serialization" {
            "_get_layout" => Data,
        }
        "_codecs" {
            "encode" => Data,
        }
        "collections" {
            "OrderedDict" => Dict,
            "Counter" => Dict,
            "defaultdict" => DefaultDict,
            "deque" => Data,
        }
        "copyreg" {
            "_reconstructor" => Instance,
            "__newobj__" => NewObject,
        }
        "builtins" {
            "dict" => Dict,
            "list" => Data,
            "tuple" => Data,
            "set" => Data,
            "frozenset" => Data,
            "bytes" => Data,
            "bytearray" => Data,
            "complex" => Data,
            "int" => Data,
            "float" => Data,
            "bool" => Data,
            "str" => Data,
            "slice" => Data,
            "range" => Data,
            "object" => Data,
        }
        "argparse" {
            "Namespace" => Data,
        }
        "types" {
            "SimpleNamespace" => Data,
        }
        "typing" {
            "Any" => Data,
        }
        "datetime" {
            "date" => Data,
            "datetime" => Data,
            "timedelta" => Data,
            "timezone" => Data,
        }
        "decimal" {
            "Decimal" => Data,
        }
        "uuid" {
            "UUID" => Data,
        }
        "pathlib" {
            "Path" => Data,
            "PosixPath" => Data,
            "WindowsPath" => Data,
            "PurePath" => Data,
            "PurePosixPath" => Data,
            "PureWindowsPath" => Data,
        }
        "pathlib._local" {
            "PosixPath" => Data,
            "WindowsPath" => Data,
            "PurePosixPath" => Data,
            "PureWindowsPath" => Data,
        }
        "numpy" {
            "dtype" => Data,
            "ndarray" => Data,
        }
        "numpy.core.multiarray" {
            "scalar" => Data,
            "_reconstruct" => Data,
        }
        "numpy._core.multiarray" {
            "scalar" => Data,
            "_reconstruct" => Data,
        }
        "numpy.core.numeric" {
            "_frombuffer" => Data,
        }
        "numpy._core.numeric" {
            "_frombuffer" => Data,
        }
        "numpy.dtypes" {
            "Float64DType" => Data,
            "Float32DType" => Data,
            "Float16DType" => Data,
            "Int64DType" => Data,
            "Int32DType" => Data,
            "UInt32DType" => Data,
            "UInt8DType" => Data,
            "BoolDType" => Data,
        }
        "omegaconf.dictconfig" {
            "DictConfig" => Data,
        }
        "omegaconf.listconfig" {
            "ListConfig" => Data,
        }
        "omegaconf.base" {
            "ContainerMetadata" => Data,
            "Metadata" => Data,
        }
        "omegaconf.nodes" {
            "AnyNode" => Data,
        }
        "easydict" {
            "EasyDict" => Settings,
        }
        "ml_collections.config_dict.config_dict" {
            "ConfigDict" => Settings,
            "FrozenConfigDict" => Settings,
        }
        "yacs.config" {
            "CfgNode" => Settings,
        }
        "fvcore.common.config" {
            "CfgNode" => Settings,
        }
        "detectron2.config.config" {
            "CfgNode" => Settings,
        }
        "addict.addict" {
            "Dict" => Settings,
        }
        "mmcv.utils.config" {
            "ConfigDict" => Settings,
        }
        "mmengine.config.config" {
            "ConfigDict" => Settings,
        }
        "munch" {
            "Munch" => Settings,
            "DefaultMunch" => Settings,
        }
        "box.box" {
            "Box" => Settings,
        }
        "pytorch_lightning.utilities.parsing" {
            "AttributeDict" => Dict,
        }
        "lightning.pytorch.utilities.parsing" {
            "AttributeDict" => Dict,
        }
        "lightning_fabric.utilities.data" {
            "AttributeDict" => Dict,
        }
        "lightning.fabric.utilities.data" {
            "AttributeDict" => Dict,
        }
        "pytorch_lightning.callbacks.model_checkpoint" {
            "ModelCheckpoint" => Data,
        }
        "pytorch_lightning.callbacks.early_stopping" {
            "EarlyStopping" => Data,
        }
        "lightning.pytorch.callbacks.model_checkpoint" {
            "ModelCheckpoint" => Data,
        }
        "lightning.pytorch.callbacks.early_stopping" {
            "EarlyStopping" => Data,
        }
        "transformers.training_args" {
            "TrainingArguments" => Data,
            "OptimizerNames" => Data,
        }
        "transformers.training_args_seq2seq" {
            "Seq2SeqTrainingArguments" => Data,
        }
        "transformers.trainer_utils" {
            "IntervalStrategy" => Data,
            "HubStrategy" => Data,
            "SchedulerType" => Data,
            "SaveStrategy" => Data,
            "EvaluationStrategy" => Data,
            "FSDPOption" => Data,
        }
        "transformers.trainer_pt_utils" {
            "AcceleratorConfig" => Data,
        }
        "accelerate.state" {
            "PartialState" => Data,
        }
        "accelerate.utils.dataclasses" {
            "DistributedType" => Data,
        }
    }
};

#[cfg(test)]
mod tests {
    use super::super::system::reaches_system;
    use super::*;

    #[test]
    fn every_name_stands_once_and_none_can_reach_the_system() {
        for known in TABLE {
            let (module, name) = (known.module, known.name);
            let same = TABLE.iter().filter(|other| (other.module, other.name) == (module, name));
            assert_eq!(same.count(), 1, "{module}.{name}");
            assert_eq!(find(module, name).map(|found| (found.module, found.name)), Some((module, name)));
            let reviewed = [
                "types",
                "pathlib",
                "pathlib._local",
                "builtins",
                "copyreg",
                "torch._C",
                "torch.serialization",
                "uuid",
            ];
            assert!(reviewed.contains(&module) || !reaches_system(module, name), "{module}.{name}");
        }
        for name in ["eval", "exec", "getattr", "__import__", "compile", "open", "globals", "object.__reduce__"] {
            assert_eq!(find("builtins", name), None, "{name}");
            assert!(reaches_system("builtins", name), "{name}");
        }
        for (of_python_2, name) in
            [("set", "set"), ("long", "int"), ("unicode", "str"), ("xrange", "range"), ("eval", "eval")]
        {
            assert_eq!(in_python_3("__builtin__", of_python_2), ("builtins", name));
        }
    }

    #[test]
    fn sizes_of_elements_are_those_of_our_types() {
        for known in TABLE {
            if let Role::Storage(element) | Role::Dtype(element) = known.role
                && let Some(dtype) = element.dtype
            {
                assert_eq!(dtype.block_bytes(), element.bytes, "{}", known.name);
            }
        }
    }
}

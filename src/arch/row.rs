//! A row of a family file: a GGUF tensor, what it is made of, and when it is there.

use super::language::{Formula, Template};
use crate::dtype::DType;

/// The role of a tensor in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// Embeddings of tokens, one row each.
    Embedding,
    /// Embeddings of positions.
    PositionEmbedding,
    /// Embeddings of token types: which of two texts a token belongs to.
    TypeEmbedding,
    /// The output head, from hidden states to tokens.
    OutputHead,
    /// The norm before attention.
    AttentionNorm,
    /// The norm before the feed-forward block.
    FeedForwardNorm,
    /// The norm of queries.
    QNorm,
    /// The norm of keys.
    KNorm,
    /// The norm after the last layer.
    LastNorm,
    /// Any other norm.
    Norm,
    /// The projection to queries.
    Q,
    /// The projection to keys.
    K,
    /// The projection to values.
    V,
    /// The projections to queries, keys and values in one.
    FusedQkv,
    /// The output projection of attention.
    O,
    /// The gate of the feed-forward block.
    Gate,
    /// The projection up of the feed-forward block.
    Up,
    /// Gate and up in one.
    FusedGateUp,
    /// The projection down of the feed-forward block.
    Down,
    /// The projection that selects the experts of a token.
    Router,
    /// The gate of the experts.
    ExpertGate,
    /// The projection up of the experts.
    ExpertUp,
    /// Gate and up of the experts in one.
    ExpertGateUp,
    /// The projection down of the experts.
    ExpertDown,
    /// The gate that scales the output of the shared expert, which every token uses.
    SharedRouter,
    /// The gate of the shared expert.
    SharedGate,
    /// The projection up of the shared expert.
    SharedUp,
    /// Gate and up of the shared expert in one.
    SharedGateUp,
    /// The projection down of the shared expert.
    SharedDown,
    /// Any other linear layer.
    Linear,
    /// Anything else.
    Parameter,
}

/// The roles by their names in family files.
pub(crate) const ROLES: &[(&str, Role)] = &[
    ("embedding", Role::Embedding),
    ("position", Role::PositionEmbedding),
    ("type", Role::TypeEmbedding),
    ("head", Role::OutputHead),
    ("attn_norm", Role::AttentionNorm),
    ("ffn_norm", Role::FeedForwardNorm),
    ("q_norm", Role::QNorm),
    ("k_norm", Role::KNorm),
    ("last_norm", Role::LastNorm),
    ("norm", Role::Norm),
    ("q", Role::Q),
    ("k", Role::K),
    ("v", Role::V),
    ("qkv", Role::FusedQkv),
    ("o", Role::O),
    ("gate", Role::Gate),
    ("up", Role::Up),
    ("gate_up", Role::FusedGateUp),
    ("down", Role::Down),
    ("router", Role::Router),
    ("expert_gate", Role::ExpertGate),
    ("expert_up", Role::ExpertUp),
    ("expert_gate_up", Role::ExpertGateUp),
    ("expert_down", Role::ExpertDown),
    ("shared_router", Role::SharedRouter),
    ("shared_gate", Role::SharedGate),
    ("shared_up", Role::SharedUp),
    ("shared_gate_up", Role::SharedGateUp),
    ("shared_down", Role::SharedDown),
    ("linear", Role::Linear),
    ("param", Role::Parameter),
];

impl Role {
    /// Whether transformers has it as a linear layer of its own, on which a low-rank adapter can act. Adapters replace
    /// embeddings and the output head as a whole. Routers and the experts of a layer are bare parameters in recent
    /// versions.
    pub(crate) fn is_linear(self) -> bool {
        use Role::*;
        match self {
            Q | K | V | FusedQkv | O | Gate | Up | FusedGateUp | Down | Linear => true,
            SharedRouter | SharedGate | SharedUp | SharedGateUp | SharedDown => true,
            Embedding | PositionEmbedding | TypeEmbedding | OutputHead | Parameter => false,
            AttentionNorm | FeedForwardNorm | QNorm | KNorm | LastNorm | Norm => false,
            Router | ExpertGate | ExpertUp | ExpertGateUp | ExpertDown => false,
        }
    }
}

/// A GGUF tensor, or one for each layer.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) role: Role,
    /// The whole name in GGUF; `{l}` is the layer.
    pub(crate) gguf: Template,
    /// What it is made of, in order of preference. A GGUF turns back into the first.
    pub(crate) forms: Vec<Form>,
    /// When it is there; always, without a condition.
    pub(crate) when: Option<Formula>,
    /// Whether it may be missing where `when` holds.
    pub(crate) is_optional: bool,
    /// Whether it is left out on the way back, because another row has the same values.
    pub(crate) is_copy: bool,
    /// The type that it always has, and when.
    pub(crate) kept_type: Option<(KeptType, Option<Formula>)>,
    /// Whether it comes before or behind the other tensors.
    pub(crate) end: Option<End>,
    /// How many layers there are of it, if not as many as the model has.
    pub(crate) over: Option<Formula>,
}

/// A place before or behind the other tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    First,
    Last,
    /// Before the others, too, but in the order of the family's rows; rows of the same layers come layer by layer.
    Listed,
}

/// A type that a tensor has whatever type the output has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeptType {
    F32,
    F16,
    /// F16 in an output of F16, otherwise F32.
    F16OrF32,
    /// The output's type, even where other matrices of such a name are F32.
    Output,
    Q8_0,
    /// Whole numbers of 32 or 64 bits.
    I32,
    I64,
}

/// One way to make a GGUF tensor from tensors of the checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    /// The parts, which are joined along `join`.
    pub(crate) parts: Vec<Part>,
    /// The dimension along which several parts are joined.
    pub(crate) join: usize,
    /// What is done to the joined parts.
    pub(crate) operations: Vec<Operation>,
    /// When it may be taken; always, without a condition.
    pub(crate) when: Option<Formula>,
}

impl Form {
    /// Whether the checkpoint has outputs and inputs the other way round.
    pub(crate) fn is_turned(&self) -> bool {
        matches!(self.operations.first(), Some(Operation::Swap(..)))
    }
}

/// A tensor of the checkpoint, or a stack of them.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The whole name in the checkpoint; `{e}` is the index in the stack.
    pub(crate) name: Template,
    /// How many tensors the stack has.
    pub(crate) stack: Option<Formula>,
    /// The shape of each tensor; `None` is any size.
    pub(crate) shape: Vec<Option<Formula>>,
    /// What is done to each tensor before they are stacked.
    pub(crate) each: Vec<Operation>,
    /// What is done to the part alone, as a stack where it is one.
    pub(crate) operations: Vec<Operation>,
    /// Whether an operation of another part uses it, instead of being joined.
    pub(crate) is_operand: bool,
}

/// An operation, with formulas for its numbers. Dimensions are in PyTorch's order; negative ones count from the last.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// A range of a dimension: dimension, start, length.
    Take(i64, Formula, Formula),
    /// Two dimensions exchanged.
    Swap(i64, i64),
    /// Another shape.
    Reshape(Vec<Formula>),
    /// A dimension, seen as several, in another order.
    Order(i64, Vec<Formula>, Vec<usize>),
    /// Within each head, the two halves of the first rows become neighbouring pairs.
    Pairs(Formula, Option<Formula>),
    /// The reverse of `Pairs`.
    Halves(Formula, Option<Formula>),
    /// Groups of queries, a key and a value become all queries, all keys, all values.
    Qkv(Formula),
    /// All dimensions in another order.
    Permute(Vec<usize>),
    /// A number added to every value.
    Add(Formula),
    /// Every value multiplied by a number.
    Multiply(Formula),
    /// A function of every value.
    Each(Change),
    /// `1 / x`
    Reciprocal,
    /// A dimension of size 1 put in, or left out.
    Unsqueeze(i64),
    Squeeze(i64),
    /// Zeros appended to a dimension up to a size.
    Pad(i64, Formula),
    /// Zeros put before a dimension's values up to a size.
    PadFront(i64, Formula),
    /// The sum over a dimension, which goes.
    Sum(i64),
    /// A square grid of vectors brought to another number of vectors on a side, between them in proportion.
    Grid(Formula),
    /// Rows past the tokenizer's vocabulary left out.
    TrimVocab,
    /// Values rounded to three, as BitNet computes them.
    Ternary,
    /// Smaller values replaced by this one.
    AtLeast(Formula),
    /// The activation function of this name.
    Activation(Formula),
    /// A linear layer: the products with the rows of a weight, plus a bias. Both are numbers of the form's operands.
    Linear {
        weight: usize,
        bias: Option<usize>,
    },
    /// Every row divided by its value of an operand.
    Divide(usize),
    /// A procedure in code.
    Procedure(String),
}

/// A function of every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Negative,
    Exp,
    /// `-exp(x)`
    NegativeExp,
    /// `ln(1 + exp(x))`
    Softplus,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x` times the standard normal distribution's part below it.
    Gelu,
    /// Negative values become 0.
    Relu,
}

impl Change {
    /// The activation function that config.json calls so.
    pub(crate) fn activation(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Change::Silu),
            "gelu" => Some(Change::Gelu),
            "relu" => Some(Change::Relu),
            _ => None,
        }
    }
}

impl Operation {
    /// The name of an operation that uses other tensors, too.
    pub(crate) fn of_several(&self) -> Option<&'static str> {
        match self {
            Operation::Linear { .. } => Some("linear"),
            Operation::Divide(_) => Some("divide"),
            _ => None,
        }
    }
}

impl Form {
    /// The name of the first operation that uses other tensors, too: what it makes can't be turned back.
    pub(crate) fn of_several(&self) -> Option<&'static str> {
        let of_parts = self.parts.iter().flat_map(|part| part.each.iter().chain(&part.operations));
        of_parts.chain(&self.operations).find_map(Operation::of_several)
    }
}

impl KeptType {
    /// The type, if it is one of whole numbers.
    pub(crate) fn whole(self) -> Option<DType> {
        match self {
            KeptType::I32 => Some(DType::I32),
            KeptType::I64 => Some(DType::I64),
            _ => None,
        }
    }
}

impl Row {
    /// Whether there is one for each layer.
    pub(crate) fn is_of_layers(&self) -> bool {
        self.gguf.has_layer() || self.forms.iter().any(|form| form.parts.iter().any(|part| part.name.has_layer()))
    }

    /// The first part of the first form.
    pub(crate) fn source(&self) -> &Part {
        &self.forms[0].parts[0]
    }

    /// Whether rows past the tokenizer's vocabulary are left out.
    pub(crate) fn is_trimmed(&self) -> bool {
        self.forms.iter().any(|form| matches!(form.operations.first(), Some(Operation::TrimVocab)))
    }

    /// Whether it is a bias.
    pub(crate) fn is_bias(&self) -> bool {
        self.gguf.text().ends_with(".bias")
    }

    /// Whether the checkpoint has the weight as `[d_in, d_out]`.
    pub(crate) fn is_transposed(&self) -> bool {
        let form = &self.forms[0];
        form.parts.len() == 1 && form.parts[0].stack.is_none() && form.parts[0].shape.len() == 2 && form.is_turned()
    }
}

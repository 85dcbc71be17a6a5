//! A row of a family's table: one tensor of each layer or of the model, under its two names.

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
    /// The gate of one expert.
    ExpertGate,
    /// The projection up of one expert.
    ExpertUp,
    /// The projection down of one expert.
    ExpertDown,
    /// The gate that scales the output of the shared expert, which every token uses.
    SharedRouter,
    /// The gate of the shared expert.
    SharedGate,
    /// The projection up of the shared expert.
    SharedUp,
    /// The projection down of the shared expert.
    SharedDown,
}

impl Role {
    /// Whether transformers has it as a linear layer of its own, on which a low-rank adapter can act. Adapters replace
    /// embeddings and the output head as a whole. Routers and the experts of a layer are bare parameters in recent
    /// versions.
    pub(crate) fn is_linear(self) -> bool {
        use Role::*;
        match self {
            Q | K | V | FusedQkv | O | Gate | Up | FusedGateUp | Down => true,
            SharedRouter | SharedGate | SharedUp | SharedDown => true,
            Embedding | PositionEmbedding | TypeEmbedding | OutputHead => false,
            AttentionNorm | FeedForwardNorm | QNorm | KNorm | LastNorm | Norm => false,
            Router | ExpertGate | ExpertUp | ExpertDown => false,
        }
    }
}

/// A tensor, or a family of tensors over layers and experts.
pub(crate) struct Tensor {
    /// The role in the model.
    pub(crate) role: Role,
    /// The name in transformers without `.weight` or `.bias`; `{}` marks the layer, `{e}` the index in a stack.
    pub(crate) hf: &'static str,
    /// The name in GGUF, also without `.weight` or `.bias`.
    pub(crate) gguf: &'static str,
    /// The shape in transformers.
    pub(crate) shape: &'static [Dim],
    /// How its values change for GGUF.
    pub(crate) transform: Transform,
    /// Whether it has a bias.
    pub(crate) bias: Presence,
    /// Whether it exists at all.
    pub(crate) presence: Presence,
}

/// Whether a tensor or a bias exists.
#[derive(Clone, Copy)]
pub(crate) enum Presence {
    Never,
    Always,
    /// Where this field of the config is true.
    If(&'static str),
    /// Where this field of the config is false.
    Unless(&'static str),
}

/// A dimension of a tensor's shape, as a quantity of the config.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dim {
    Vocab,
    Hidden,
    FeedForward,
    /// Gate and up together.
    GateUp,
    /// Query heads times their width.
    Queries,
    /// Key-value heads times their width.
    Keys,
    /// Queries, keys and values together.
    Qkv,
    /// The width of one head.
    Head,
    Heads,
    KvHeads,
    Experts,
    ExpertFeedForward,
    SharedFeedForward,
    Context,
    TokenTypes,
    One,
}

/// How a tensor's values change from transformers to GGUF.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Not at all.
    Same,
    /// The rows of each head, from halves to pairs: ggml's rotary layout. The dimension gives the number of heads.
    Pairs(Dim),
    /// One is added to every value: transformers stores the norm's weight as its distance from 1.
    PlusOne,
    /// Rows and columns are exchanged, in the weight only.
    Transposed,
    /// Several tensors become one; the dimension gives their number.
    Stack(Dim),
    /// Queries, keys and values of each head become all queries, then all keys, then all values.
    HeadwiseQkv,
    /// The same for groups of several query heads with one key head and one value head.
    GroupedQkv,
    /// Rows past the tokenizer's vocabulary are left out.
    TrimVocab,
    /// The rows before the first position in use (`pad_token_id + 1`) are left out.
    FromPosition,
}

impl Tensor {
    pub(super) const fn new(role: Role, hf: &'static str, gguf: &'static str, shape: &'static [Dim]) -> Self {
        Self { role, hf, gguf, shape, transform: Transform::Same, bias: Presence::Never, presence: Presence::Always }
    }

    pub(super) const fn transform(self, transform: Transform) -> Self {
        Self { transform, ..self }
    }

    pub(super) const fn bias(self, bias: Presence) -> Self {
        Self { bias, ..self }
    }

    pub(super) const fn presence(self, presence: Presence) -> Self {
        Self { presence, ..self }
    }
}

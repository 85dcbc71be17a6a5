//! A row of a family's table: one tensor of each layer or of the model, under both its names.

/// What a tensor is in the model.
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
    /// What picks the experts of a token.
    Router,
    /// The gate of one expert.
    ExpertGate,
    /// The projection up of one expert.
    ExpertUp,
    /// The projection down of one expert.
    ExpertDown,
    /// The weight of the expert that every token goes through.
    SharedRouter,
    /// The gate of that expert.
    SharedGate,
    /// Its projection up.
    SharedUp,
    /// Its projection down.
    SharedDown,
}

impl Role {
    /// Whether transformers has it as a linear layer of its own, which an adapter of low rank can act on.
    /// Embeddings and the output head are changed as a whole; a router and the experts of a layer are bare
    /// parameters in recent versions.
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

/// A tensor, or a family of them over layers and experts.
pub(crate) struct Tensor {
    /// What it is in the model.
    pub(crate) role: Role,
    /// The name in transformers without `.weight` or `.bias`; `{}` stands for the layer, `{e}` for
    /// the place in a stack.
    pub(crate) hf: &'static str,
    /// The name in GGUF, without `.weight` or `.bias` as well.
    pub(crate) gguf: &'static str,
    /// The shape in transformers.
    pub(crate) shape: &'static [Dim],
    /// What becomes of its values.
    pub(crate) transform: Transform,
    /// Whether it has a bias.
    pub(crate) bias: Presence,
    /// Whether it is there at all.
    pub(crate) presence: Presence,
}

/// Whether something is there.
#[derive(Clone, Copy)]
pub(crate) enum Presence {
    Never,
    Always,
    /// Where this field of the config is true.
    If(&'static str),
    /// Where this field of the config is false.
    Unless(&'static str),
}

/// A dimension of a tensor's shape, by what the config says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dim {
    Vocab,
    Hidden,
    FeedForward,
    /// Gate and up side by side.
    GateUp,
    /// Query heads times their width.
    Queries,
    /// Key heads times their width.
    Keys,
    /// Queries, keys and values side by side.
    Qkv,
    /// One head.
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

/// What becomes of a tensor's values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Nothing.
    Same,
    /// Rows of each head from halves to pairs: ggml's rotary layout. With the heads' number.
    Pairs(Dim),
    /// One is added to every value: the norm's weight is stored as its distance from 1.
    PlusOne,
    /// Rows and columns exchanged, of the weight alone.
    Transposed,
    /// As many tensors as the dimension says become one.
    Stack(Dim),
    /// Queries, keys and values of each head become all queries, all keys, all values.
    HeadwiseQkv,
    /// The same for groups of several queries with one key and one value.
    GroupedQkv,
    /// Rows past the vocabulary that the tokenizer has are left out.
    TrimVocab,
    /// The rows before the first position that is used (`pad_token_id + 1`) are left out.
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

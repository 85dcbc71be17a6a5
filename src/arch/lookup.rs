//! What a tensor's name means in a family's table, and which tensors a config asks for.

use super::params::Params;
use super::wrapper::text_name;
use super::{Dim, Family, Presence, Tensor, Transform};
use crate::error::Result;

/// A parsed tensor name and the table's row for it.
pub(crate) struct Match {
    pub(crate) tensor: &'static Tensor,
    /// The index of the row in the table.
    pub(crate) number: usize,
    pub(crate) layer: Option<usize>,
    /// The index in a stack.
    pub(crate) place: Option<usize>,
    /// `weight` or `bias`.
    pub(crate) suffix: &'static str,
}

/// What a table says about a name.
pub(crate) enum Lookup {
    Row(Match),
    Dropped,
    Unknown,
}

/// Finds a name of transformers in the table. The name may include the module of a text model in a wrapper class.
pub(crate) fn find(family: &'static Family, name: &str) -> Lookup {
    let name = &*text_name(name);
    let renamed = family.prefixes.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    let full = renamed.as_deref().unwrap_or(name);
    let matches = |pattern: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => full.ends_with(end),
        (_, Some(start)) => full.starts_with(start),
        _ => full == pattern,
    };
    if family.dropped.iter().any(|pattern| matches(pattern)) {
        return Lookup::Dropped;
    }
    let Some((module, suffix)) = full.rsplit_once('.') else { return Lookup::Unknown };
    let suffix = match suffix {
        "weight" | "gamma" => "weight",
        "bias" | "beta" => "bias",
        _ => return Lookup::Unknown,
    };
    let mut numbers = Vec::new();
    let parts: Vec<&str> = module
        .split('.')
        .map(|part| match part.parse::<usize>() {
            // Only one spelling per number: no sign, no leading zeros.
            Ok(number) if number.to_string() == part && numbers.len() < 2 => {
                numbers.push(number);
                if numbers.len() == 1 { "{}" } else { "{e}" }
            }
            _ => part,
        })
        .collect();
    let template = parts.join(".");
    let mut tensors = family.tensors.iter().copied().flatten().enumerate();
    // transformers 5 uses the same name for the block of Mixtral's experts as for other classes.
    let is_row = |hf: &str| {
        hf == template || hf.contains(".block_sparse_moe.") && hf.replace(".block_sparse_moe.", ".mlp.") == template
    };
    match tensors.find(|(_, tensor)| is_row(tensor.hf)) {
        Some((number, tensor)) => Lookup::Row(Match {
            tensor,
            number,
            layer: numbers.first().copied(),
            place: numbers.get(1).copied(),
            suffix,
        }),
        None => Lookup::Unknown,
    }
}

impl Match {
    /// The name in the class of transformers.
    pub(crate) fn hf_name(&self) -> String {
        named(self.tensor.hf, self.layer, self.place, self.suffix)
    }

    /// The name in GGUF.
    pub(crate) fn gguf_name(&self) -> String {
        named(self.tensor.gguf, self.layer, None, self.suffix)
    }
}

/// Fills the numbers into a template.
pub(crate) fn named(template: &str, layer: Option<usize>, place: Option<usize>, suffix: &str) -> String {
    let mut name = template.to_owned();
    for (mark, number) in [("{}", layer), ("{e}", place)] {
        if let Some(number) = number {
            name = name.replace(mark, &number.to_string());
        }
    }
    format!("{name}.{suffix}")
}

/// Whether a tensor may exist. A checkpoint with tied embeddings may still store its head.
pub(crate) fn may_have(params: &Params, presence: Presence) -> bool {
    matches!(presence, Presence::Unless("tie_word_embeddings")) || must_have(params, presence)
}

/// Whether a tensor must exist.
pub(crate) fn must_have(params: &Params, presence: Presence) -> bool {
    match presence {
        Presence::Never => false,
        Presence::Always => true,
        Presence::If(field) => params.flag(field, false),
        Presence::Unless(field) => !params.flag(field, false),
    }
}

/// A tensor that a checkpoint of the model must have.
pub(crate) struct Expected {
    /// Its name in transformers.
    pub(crate) name: String,
    pub(crate) tensor: &'static Tensor,
    pub(crate) number: usize,
    pub(crate) layer: Option<usize>,
    /// The index in a stack.
    pub(crate) place: Option<usize>,
    pub(crate) is_bias: bool,
    /// Its shape in transformers.
    pub(crate) shape: Vec<usize>,
}

/// Refuses a number of layers, heads or experts that would need more tensors than the `most` that exist. These counts
/// come from a file, so nothing may be allocated by a count that the tensors don't confirm.
///
/// # Errors
/// [`crate::Error::Mismatch`], naming the field.
pub(crate) fn check_counts(params: &Params, most: usize) -> Result<()> {
    check_heads(params)?;
    let layers = params.layers()?;
    let expected = |what: &str| format!("{what} for at most the {most} tensors that there are");
    for tensor in params.family.rows().filter(|tensor| must_have(params, tensor.presence)) {
        let layers = if tensor.hf.contains("{}") { layers } else { 1 };
        if layers > most {
            let finding = params.finding("num_hidden_layers").expected(expected("layers"));
            return Err(finding.found(layers).mismatch());
        }
        let Transform::Stack(dim) = tensor.transform else { continue };
        let count = params.count(dim)?;
        if count.checked_mul(layers).is_none_or(|count| count > most) {
            let (field, what) = match dim {
                Dim::Experts => ("num_experts", "experts"),
                Dim::KvHeads => ("num_key_value_heads", "heads"),
                _ => ("num_attention_heads", "heads"),
            };
            let field = if params.get(&["num_local_experts"]).is_some() && dim == Dim::Experts {
                "num_local_experts"
            } else {
                field
            };
            return Err(params.finding(field).expected(expected(what)).found(count).mismatch());
        }
    }
    Ok(())
}

/// Checks that the number of heads divides the hidden size (unless the config has `head_dim`), and that query heads
/// divide evenly among key-value heads.
fn check_heads(params: &Params) -> Result<()> {
    let (heads, groups) = (params.count(Dim::Heads)?, params.count(Dim::KvHeads)?);
    let hidden = params.count(Dim::Hidden)?;
    let has_width = params.whole(&["head_dim"])?.is_some_and(|width| width > 0);
    let none = params.whole(&["num_key_value_heads", "num_kv_heads"])? == Some(0);
    if heads == 0 || heads > hidden || !has_width && !hidden.is_multiple_of(heads) {
        let finding = params
            .finding("num_attention_heads")
            .expected(format_args!("a divisor of the width, {hidden}, by config.json"));
        return Err(finding.found(heads).mismatch());
    }
    if none || !heads.is_multiple_of(groups) {
        let field = if params.get(&["num_kv_heads"]).is_some() { "num_kv_heads" } else { "num_key_value_heads" };
        let finding = params.finding(field).expected(format_args!("a divisor of {heads} heads"));
        return Err(finding.found(if none { 0 } else { groups }).mismatch());
    }
    Ok(())
}

/// Every tensor that the table and the config require, and the optional ones that `also` selects. It is an error if
/// they can't be among `most` tensors.
///
/// # Errors
/// As [`check_counts`], and for sizes that config.json lacks.
pub(crate) fn expected(params: &Params, most: usize, also: impl Fn(&Tensor) -> bool) -> Result<Vec<Expected>> {
    check_counts(params, most)?;
    let layers = params.layers()?;
    let mut all = Vec::new();
    for (number, tensor) in params.family.tensors.iter().copied().flatten().enumerate() {
        let wanted = must_have(params, tensor.presence) || may_have(params, tensor.presence) && also(tensor);
        if !wanted {
            continue;
        }
        let of_layers: Vec<Option<usize>> =
            if tensor.hf.contains("{}") { (0..layers).map(Some).collect() } else { vec![None] };
        let places: Vec<Option<usize>> = match tensor.transform {
            Transform::Stack(dim) => (0..params.count(dim)?).map(Some).collect(),
            _ => vec![None],
        };
        for is_bias in [false, true] {
            if is_bias && !must_have(params, tensor.bias) {
                continue;
            }
            let shape = shape_of(params, tensor, is_bias)?;
            let suffix = if is_bias { "bias" } else { "weight" };
            for &layer in &of_layers {
                for &place in &places {
                    let name = named(tensor.hf, layer, place, suffix);
                    all.push(Expected { name, tensor, number, layer, place, is_bias, shape: shape.clone() });
                }
            }
        }
    }
    Ok(all)
}

/// The shape in transformers. A bias has one value per output of its layer.
pub(crate) fn shape_of(params: &Params, tensor: &Tensor, is_bias: bool) -> Result<Vec<usize>> {
    let shape: Vec<usize> = tensor.shape.iter().map(|dim| params.count(*dim)).collect::<Result<_>>()?;
    if !is_bias {
        return Ok(shape);
    }
    let output = if tensor.transform == Transform::Transposed { shape.last() } else { shape.first() };
    Ok(output.copied().into_iter().collect())
}

/// For every row of the fused projection in GGUF, its row in transformers.
pub(crate) fn qkv_rows(params: &Params, transform: Transform) -> Result<Vec<usize>> {
    let (heads, width) = (params.count(Dim::Heads)?, params.count(Dim::Head)?);
    check_heads(params)?;
    // A group has some query heads, one key head and one value head.
    let groups = if transform == Transform::HeadwiseQkv { heads } else { params.count(Dim::KvHeads)? };
    let queries = heads / groups;
    let row = |group: usize, place: usize| {
        let start = (group * (queries + 2) + place) * width;
        start..start + width
    };
    let all_queries = (0..groups).flat_map(|group| (0..queries).flat_map(move |q| row(group, q)));
    let keys = (0..groups).flat_map(|group| row(group, queries));
    let values = (0..groups).flat_map(|group| row(group, queries + 1));
    Ok(all_queries.chain(keys).chain(values).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn rows(config: serde_json::Value, transform: Transform) -> Result<Vec<usize>> {
        let params = Params::read(Path::new("folder"), config.as_object().unwrap(), &mut Vec::new())?;
        qkv_rows(&params.unwrap(), transform)
    }

    fn falcon(heads: usize, groups: usize) -> Result<Vec<usize>> {
        let config = json!({"architectures": ["FalconForCausalLM"], "new_decoder_architecture": true,
            "hidden_size": 2 * heads, "num_attention_heads": heads, "num_kv_heads": groups});
        rows(config, Transform::GroupedQkv)
    }

    #[test]
    fn fused_projections_are_queries_then_keys_then_values() {
        // Two groups, each with two query heads, a key head and a value head. A head has two rows.
        assert_eq!(falcon(4, 2).unwrap(), [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]);
        let neox = json!({"architectures": ["GPTNeoXForCausalLM"], "hidden_size": 4, "num_attention_heads": 2});
        assert_eq!(rows(neox, Transform::HeadwiseQkv).unwrap(), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }

    #[test]
    fn heads_that_do_not_divide_into_groups_are_refused() {
        for (heads, groups) in [(4, 3), (4, 8), (5, 2)] {
            let error = falcon(heads, groups).unwrap_err().to_string();
            let expected = format!("num_kv_heads: expected a divisor of {heads} heads, found {groups}");
            assert!(error.contains(&expected), "{error}");
        }
    }
}

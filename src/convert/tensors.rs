//! Makes the tensors of a GGUF: every weight is checked against its architecture's table, named, typed and ordered.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_tensors`) and `modify_tensors` of each model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::arch::lookup::{Lookup, Match, check_counts, expected, find, may_have, named, qkv_rows, shape_of};
use crate::arch::names::HEAD;
use crate::arch::params::Params;
use crate::arch::{Role, Tensor, Transform, is_buffer, rope, wrapper};
use crate::checkpoint::counted_parts;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The output's tensors: first those computed from the config, then the weights in the reference's order, file by file
/// and by name within each. Tensors that are left out are added to `notes`.
///
/// `origin` is the model's path, for messages. `stored_name` returns the names that tensors have in their files, which
/// determine their order. `vocab_rows` returns for how many rows of the embeddings the tokenizer has tokens; it is called
/// only for classes that leave the other rows out.
pub(super) fn plan<'a>(
    origin: &Path,
    stored_name: &dyn Fn(&'a str) -> &'a str,
    vocab_rows: &dyn Fn() -> Result<usize>,
    params: &Params,
    weights: &'a Plan,
    outtype: Option<DType>,
    notes: &mut Vec<String>,
) -> Result<Plan> {
    check_counts(params, weights.tensors.len())?;
    let mut collected =
        Collected { origin, vocab_rows, params, outtype, done: HashSet::new(), stacks: BTreeMap::new() };
    let mut ordered: Vec<((usize, usize), PlannedTensor)> = Vec::new();
    let mut dropped: Vec<&str> = weights.tensors.iter().map(|t| t.name.as_str()).filter(|n| is_buffer(n)).collect();
    let (mut head, mut others) = (None, BTreeMap::<&str, usize>::new());
    for (place, tensor) in in_reference_order(weights, stored_name).into_iter().enumerate() {
        match find(params.family, &tensor.name) {
            Lookup::Dropped => {
                head = Some(tensor).filter(|tensor| tensor.name.ends_with(HEAD)).or(head);
                dropped.push(tensor.name.as_str());
            }
            Lookup::Unknown => match wrapper::other_part(&tensor.name) {
                Some(part) => *others.entry(part).or_default() += 1,
                None => return Err(surplus(origin, tensor)),
            },
            Lookup::Row(known) => {
                if let Some(planned) = collected.take(place, tensor, &known)? {
                    ordered.push(((place, 0), planned));
                }
            }
        }
    }
    collected.check_complete(weights.tensors.len())?;
    if let Some(head) = head {
        check_tied(origin, params, head, weights)?;
    }
    // Only after the check have tensors confirmed the width of a head, which determines the size of these.
    let mut tensors = rope::extra_tensors(params)?;
    ordered.extend(collected.stacked()?);
    ordered.sort_by_key(|(place, _)| *place);
    tensors.extend(ordered.into_iter().map(|(_, tensor)| tensor));
    if !dropped.is_empty() {
        notes.push(format!("left out, because llama.cpp has no use for them: {}", dropped.join(", ")));
    }
    if !others.is_empty() {
        notes.push(format!("left out, because the GGUF holds the text model alone: {}", counted_parts(&others)));
    }
    Ok(Plan { tensors })
}

/// Refuses an output head that differs from the embeddings, for architectures in which llama.cpp uses the embeddings
/// instead.
fn check_tied(origin: &Path, params: &Params, head: &PlannedTensor, weights: &Plan) -> Result<()> {
    let is_embedding = |tensor: &&PlannedTensor| match find(params.family, &tensor.name) {
        Lookup::Row(known) => known.tensor.role == Role::Embedding,
        _ => false,
    };
    let Some(embeddings) = weights.tensors.iter().find(is_embedding) else { return Ok(()) };
    if head.shape == embeddings.shape && head.same_values(embeddings)? {
        return Ok(());
    }
    Err(finding(origin, head)
        .expected(format_args!(
            "the values of {:?}, which llama.cpp takes for {}'s head",
            embeddings.name, params.family.gguf
        ))
        .found("others")
        .hint("GGUF has no place for a head of this architecture: tie it to the embeddings")
        .unsupported())
}

/// The weights in the reference's order: tensors of safetensors files by name, those of other files in the file's
/// order. Weights that were unpacked from tensors with other names come last, sorted by those names. Buffers that
/// follow from the config are left out.
fn in_reference_order<'a>(weights: &'a Plan, stored_name: &dyn Fn(&'a str) -> &'a str) -> Vec<&'a PlannedTensor> {
    let mut kept: Vec<&PlannedTensor> = weights.tensors.iter().filter(|t| !is_buffer(&t.name)).collect();
    kept.sort_by_cached_key(|tensor| {
        let path = tensor.expr.source_path();
        let by_name = path.extension().is_none_or(|e| e == "safetensors");
        let name = stored_name(&tensor.name);
        let packed = tensor.expr.packed_in().map(|part| part.info().name.as_str()).filter(|packed| *packed != name);
        (packed.is_some(), path, by_name.then(|| packed.unwrap_or(name).to_owned()))
    });
    kept
}

/// The tensors of the table that were found so far.
struct Collected<'a> {
    origin: &'a Path,
    vocab_rows: &'a dyn Fn() -> Result<usize>,
    params: &'a Params,
    outtype: Option<DType>,
    done: HashSet<(usize, Option<usize>, Option<usize>, bool)>,
    stacks: BTreeMap<(Option<usize>, usize, bool), Stack<'a>>,
}

/// The parts of one stack, by index.
struct Stack<'a> {
    known: &'static Tensor,
    parts: BTreeMap<usize, &'a PlannedTensor>,
    /// The position of the last part among all tensors.
    last: usize,
}

impl<'a> Collected<'a> {
    /// Checks one tensor and plans it. A part of a stack is kept for later.
    fn take(&mut self, order: usize, tensor: &'a PlannedTensor, known: &Match) -> Result<Option<PlannedTensor>> {
        let is_bias = known.suffix == "bias";
        let layers = self.params.layers()?;
        let wanted = known.layer.is_none_or(|layer| layer < layers)
            && may_have(self.params, known.tensor.presence)
            && (!is_bias || may_have(self.params, known.tensor.bias));
        let stacked = match known.tensor.transform {
            Transform::Stack(dim) => Some(self.params.count(dim)?),
            _ => None,
        };
        if !wanted || known.place.zip(stacked).is_some_and(|(place, count)| place >= count) {
            return Err(surplus(self.origin, tensor));
        }
        let expected = shape_of(self.params, known.tensor, is_bias)?;
        // Rows past the vocabulary are padding, which only some checkpoints have.
        let padded = known.tensor.transform == Transform::TrimVocab
            && tensor.shape.len() == 2
            && tensor.shape[0] >= expected[0]
            && tensor.shape[1] == expected[1];
        if tensor.shape != expected && !padded {
            return Err(finding(self.origin, tensor)
                .expected(format_args!("{} by config.json", show_shape(&expected)))
                .found(show_shape(&tensor.shape))
                .mismatch());
        }
        if !self.done.insert((known.number, known.layer, known.place, is_bias)) {
            return Err(finding(self.origin, tensor).expected("each name once").found("it twice").mismatch());
        }
        if let (Some(place), Some(_)) = (known.place, stacked) {
            let stack = self.stacks.entry((known.layer, known.number, is_bias)).or_insert_with(|| Stack {
                known: known.tensor,
                parts: BTreeMap::new(),
                last: 0,
            });
            stack.parts.insert(place, tensor);
            stack.last = order;
            return Ok(None);
        }
        let expr = transformed(self.vocab_rows, self.params, tensor, known.tensor.transform, is_bias)?;
        Ok(Some(self.planned(known.gguf_name(), expr, tensor.dtype)))
    }

    fn planned(&self, name: String, expr: Expr, source: DType) -> PlannedTensor {
        let shape = expr.shape();
        PlannedTensor { dtype: output_dtype(&name, &shape, self.outtype, source), name, shape, expr }
    }

    /// Checks that every tensor that the table and the config ask for was found.
    fn check_complete(&self, most: usize) -> Result<()> {
        for wanted in expected(self.params, most, |_| false)? {
            if !self.done.contains(&(wanted.number, wanted.layer, wanted.place, wanted.is_bias)) {
                return Err(Finding::new(self.origin, format!("tensor {:?}", wanted.name))
                    .expected(format_args!("{} by config.json", show_shape(&wanted.shape)))
                    .found("none of that name")
                    .hint(match wanted.tensor.role {
                        Role::OutputHead => "a model whose embeddings are its head has `tie_word_embeddings` true",
                        _ => "config.json and weights may be of different models",
                    })
                    .mismatch());
            }
        }
        Ok(())
    }

    /// The stacks, each at the position of the last tensor of its group: the reference writes a group when it is
    /// complete.
    fn stacked(&self) -> Result<Vec<((usize, usize), PlannedTensor)>> {
        let group = |tensor: &Tensor| tensor.hf.split("{e}").next().unwrap_or_default().to_owned();
        let mut last: HashMap<(Option<usize>, String), usize> = HashMap::new();
        for ((layer, _, _), stack) in &self.stacks {
            let last = last.entry((*layer, group(stack.known))).or_default();
            *last = (*last).max(stack.last);
        }
        let mut planned = Vec::new();
        for ((layer, number, is_bias), stack) in &self.stacks {
            let parts: Vec<&PlannedTensor> = stack.parts.values().copied().collect();
            let Some(first) = parts.first() else { continue };
            let mut shape = first.shape.clone();
            let as_rows = shape.len() == 1;
            shape.insert(0, parts.len());
            let of = parts.iter().map(|part| match as_rows {
                true => Expr::Reshape { of: Box::new(part.expr.clone()), shape: vec![1, part.shape[0]] },
                false => part.expr.clone(),
            });
            let expr = Expr::concat(of.collect(), shape);
            let name = named(stack.known.gguf, *layer, None, if *is_bias { "bias" } else { "weight" });
            let place = (last[&(*layer, group(stack.known))], number + 1);
            planned.push((place, self.planned(name, expr, first.dtype)));
        }
        Ok(planned)
    }
}

/// The values in GGUF's form.
fn transformed(
    vocab_rows: &dyn Fn() -> Result<usize>,
    params: &Params,
    tensor: &PlannedTensor,
    transform: Transform,
    is_bias: bool,
) -> Result<Expr> {
    let of = tensor.expr.clone();
    let width = tensor.shape.get(1).copied();
    let shaped = |rows: usize| std::iter::once(rows).chain(width).collect::<Vec<usize>>();
    Ok(match transform {
        Transform::Same | Transform::Stack(_) => of,
        Transform::Pairs(heads) => {
            let per_head = tensor.shape[0] / params.count(heads)?;
            Expr::reordered(of, |row| {
                let (head, within) = (row / per_head, row % per_head);
                head * per_head + (within % 2) * (per_head / 2) + within / 2
            })
        }
        Transform::PlusOne => {
            let sum = Expr::AddConstant { of: Box::new(of), constant: 1.0 };
            match tensor.dtype {
                // torch adds in the tensor's own type; the reference has F16 here, and F32 for all other types.
                DType::F16 => Expr::Round { of: Box::new(sum), dtype: DType::F16 },
                _ => sum,
            }
        }
        Transform::Transposed if is_bias => of,
        Transform::Transposed => Expr::Transpose(Box::new(of)),
        Transform::HeadwiseQkv | Transform::GroupedQkv => {
            let order = qkv_rows(params, transform)?;
            Expr::reordered(of, |row| order[row])
        }
        Transform::TrimVocab => {
            let rows = vocab_rows()?.min(tensor.shape[0]);
            Expr::slice(of, 0, rows, shaped(rows))
        }
        Transform::FromPosition => {
            let start = params.padding_positions()?;
            let rows = tensor.shape[0].checked_sub(start).filter(|rows| *rows > 0).ok_or_else(|| {
                params.finding("pad_token_id").expected("an id below max_position_embeddings").found(start).mismatch()
            })?;
            Expr::slice(of, start, rows, shaped(rows))
        }
    })
}

/// Whether the reference keeps the tensor in F32 although it is a matrix: routers, positions and token types.
fn always_f32(name: &str) -> bool {
    [".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight"].iter().any(|end| name.ends_with(end))
        || ["position_embd.weight", "token_types.weight"].contains(&name)
}

/// The type of an output tensor. Vectors, norms, routers and tensors not called `.weight` are F32; rows that don't
/// divide into blocks become F16. Without an `outtype`, the source's type is kept if GGUF has it.
fn output_dtype(name: &str, shape: &[usize], outtype: Option<DType>, source: DType) -> DType {
    if shape.len() < 2 || name.ends_with("_norm.weight") || !name.ends_with(".weight") || always_f32(name) {
        return DType::F32;
    }
    let dtype = match outtype {
        Some(dtype) => dtype,
        None if source.ggml_id().is_some() => source,
        None => DType::F32,
    };
    let row_len = shape.last().copied().unwrap_or(1);
    if row_len.is_multiple_of(dtype.block_elems()) { dtype } else { DType::F16 }
}

fn finding(origin: &Path, tensor: &PlannedTensor) -> Finding {
    let file = tensor.expr.sources().first().map_or(origin, |source| source.path()).to_owned();
    Finding::new(file, format!("tensor {:?}", tensor.name))
}

fn surplus(origin: &Path, tensor: &PlannedTensor) -> crate::Error {
    finding(origin, tensor)
        .expected("only tensors that config.json asks for")
        .found(format_args!("this one, {}", show_shape(&tensor.shape)))
        .hint("config.json and weights may be of different models")
        .mismatch()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_matrices_get_the_output_type() {
        let cases = [
            ("blk.0.attn_q.weight", &[64, 64][..], DType::Q8_0),
            ("blk.0.attn_q.weight", &[64, 48], DType::F16),
            ("blk.0.attn_q.bias", &[64], DType::F32),
            ("blk.0.attn_norm.weight", &[64], DType::F32),
            ("blk.0.attn_norm.weight", &[2, 64], DType::F32),
            ("blk.0.ffn_gate_inp.weight", &[2, 64], DType::F32),
            ("position_embd.weight", &[2, 64], DType::F32),
            ("blk.0.scores", &[2, 64], DType::F32),
        ];
        for (name, shape, expected) in cases {
            assert_eq!(output_dtype(name, shape, Some(DType::Q8_0), DType::BF16), expected, "{name}");
        }
        assert_eq!(output_dtype("blk.0.attn_q.weight", &[64, 64], None, DType::BF16), DType::BF16);
    }
}

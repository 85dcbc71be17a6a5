//! Tensors of a checkpoint that a class has as several, or as one with others.
//!
//! All of these are the same rows in another order, so whatever is done to the class's tensors can be put back into the
//! checkpoint's.

use super::Rows;
use crate::arch::Config;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::rows;

/// A run of rows: its start and its length.
type Run = (usize, usize);

/// Tensors of a checkpoint, and the tensors of the class with the same rows.
#[derive(Debug, Clone)]
pub(crate) struct Regrouped {
    /// The places of the checkpoint's tensors in the plan.
    pub(crate) stored: Vec<usize>,
    /// The class's tensors, with the values of the plan.
    pub(crate) parts: Vec<PlannedTensor>,
    /// For each of the class's tensors, its rows among those of all of the checkpoint's tensors, one after another.
    order: Vec<Vec<Run>>,
    /// The checkpoint's shapes.
    shapes: Vec<Vec<usize>>,
}

impl Regrouped {
    /// The class's tensors `names`, which are rows of the tensor at `place`. `None` if these don't fit the tensor: then
    /// it isn't what the class would load.
    pub(super) fn split(config: &Config, plan: &Plan, place: usize, names: Vec<String>, by: Rows) -> Option<Self> {
        let tensor = &plan.tensors[place];
        let count = names.len();
        let (first, rest) = tensor.shape.split_first()?;
        // Rows of one index of the first dimension; a vector has a row for each element.
        let each = rows(&tensor.shape).checked_div(*first)?;
        let even = |total: usize| total.is_multiple_of(count).then(|| vec![total / count; count]);
        let runs = |sizes: &[usize], at: &dyn Fn(usize, usize) -> usize| -> Vec<Vec<Run>> {
            sizes.iter().enumerate().map(|(part, size)| joined_runs((0..*size).map(|row| at(part, row)))).collect()
        };
        let (shapes, order): (Vec<Vec<usize>>, Vec<Vec<Run>>) = match by {
            Rows::Even | Rows::ByHeads | Rows::Rotated(_) => {
                let sizes = if by == Rows::ByHeads { sizes_by_heads(config, *first, count)? } else { even(*first)? };
                let starts = starts(&sizes);
                let order = match by {
                    Rows::Rotated(part) => {
                        let heads = heads_of(config, part)?;
                        let (size, turned) = (*sizes.first()?, |place: usize| place < count.div_ceil(3) * 2);
                        let of_head = size.checked_div(heads).filter(|rows| rows * heads == size && rows % 2 == 0)?;
                        let half = of_head / 2;
                        let at = |row: usize| row / of_head * of_head + row % half * 2 + row % of_head / half;
                        runs(&sizes, &|place, row| starts[place] + if turned(place) { at(row) } else { row })
                    }
                    _ => starts.iter().zip(&sizes).map(|(start, size)| vec![(start * each, size * each)]).collect(),
                };
                (sizes.iter().map(|size| [&[*size], rest].concat()).collect(), order)
            }
            Rows::InTurns => {
                let sizes = even(*first)?;
                let order = runs(&sizes, &|place, row| row * count + place);
                (sizes.iter().map(|size| [&[*size], rest].concat()).collect(), order)
            }
            Rows::InTurnsOfMatrix => {
                let [experts, of_expert, columns] = *tensor.shape.as_slice() else { return None };
                let half = of_expert.is_multiple_of(2).then_some(of_expert / 2)?;
                let order = match count {
                    1 => vec![joined_runs((0..experts * of_expert).map(|row| {
                        let (expert, row) = (row / of_expert, row % of_expert);
                        expert * of_expert + row % half * 2 + row / half
                    }))],
                    2 => runs(&[experts * half; 2], &|place, row| row * 2 + place),
                    _ => return None,
                };
                (vec![vec![experts, of_expert / count, columns]; count], order)
            }
            Rows::OfMatrix => return None,
        };
        Self::of(plan, vec![place], names, shapes, order)
    }

    /// The class's tensor `name`, which joins the tensors at `places`. `None` if they don't fit each other.
    pub(super) fn joined(plan: &Plan, places: Vec<usize>, name: String, by: Rows) -> Option<Self> {
        let tensors: Vec<&PlannedTensor> = places.iter().map(|place| &plan.tensors[*place]).collect();
        let first = tensors.first()?;
        let dimension = usize::from(by == Rows::OfMatrix);
        let alike = |tensor: &&PlannedTensor| {
            let others = |shape: &[usize]| {
                shape.iter().enumerate().filter(|(at, _)| *at != dimension).map(|(_, n)| *n).collect::<Vec<_>>()
            };
            tensor.shape.len() == first.shape.len() && others(&tensor.shape) == others(&first.shape)
        };
        if first.shape.len() <= dimension + usize::from(dimension > 0) || !tensors.iter().all(alike) {
            return None;
        }
        let mut shape = first.shape.clone();
        shape[dimension] = tensors.iter().map(|tensor| tensor.shape[dimension]).sum();
        let counts: Vec<usize> = tensors.iter().map(|tensor| tensor.rows()).collect();
        let starts = starts(&counts);
        let matrices = if dimension == 0 { 1 } else { shape[0] };
        let of_matrix = |matrix: usize| {
            let each = counts.iter().zip(&starts);
            each.map(move |(count, start)| (start + matrix * (count / matrices), count / matrices))
        };
        let order = (0..matrices).flat_map(of_matrix).collect();
        Self::of(plan, places, vec![name], vec![shape], vec![order])
    }

    fn of(
        plan: &Plan,
        stored: Vec<usize>,
        names: Vec<String>,
        shapes: Vec<Vec<usize>>,
        order: Vec<Vec<Run>>,
    ) -> Option<Self> {
        let tensors: Vec<&PlannedTensor> = stored.iter().map(|place| &plan.tensors[*place]).collect();
        let dtype = tensors.first()?.dtype;
        if tensors.iter().any(|tensor| tensor.dtype != dtype || tensor.elems() == 0) {
            return None;
        }
        let of_stored = tensors.iter().map(|tensor| tensor.shape.clone()).collect();
        let mut regrouped = Self { stored, parts: Vec::new(), order, shapes: of_stored };
        let exprs: Vec<Expr> = tensors.iter().map(|tensor| tensor.expr.clone()).collect();
        regrouped.parts = (names.into_iter().zip(shapes).enumerate())
            .map(|(place, (name, shape))| {
                let expr = regrouped.part(place, &exprs, shape.clone());
                PlannedTensor { name, dtype, shape, expr }
            })
            .collect();
        Some(regrouped)
    }

    /// The class's tensor at `place` among [`Regrouped::parts`], made of the checkpoint's tensors `stored`.
    fn part(&self, place: usize, stored: &[Expr], shape: Vec<usize>) -> Expr {
        let counts = self.shapes.iter().map(|shape| rows(shape));
        picked(stored, &counts.collect::<Vec<_>>(), self.order[place].iter().copied(), shape)
    }

    /// The class's tensors, made of the checkpoint's tensors `stored`.
    pub(crate) fn parts_of(&self, stored: &[Expr]) -> Vec<Expr> {
        let parts = self.parts.iter().enumerate();
        parts.map(|(place, part)| self.part(place, stored, part.shape.clone())).collect()
    }

    /// The checkpoint's tensors, made of the class's tensors `parts`.
    pub(crate) fn stored_of(&self, parts: &[Expr]) -> Vec<Expr> {
        // Where each run of the checkpoint's rows is among those of the class's tensors.
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        let mut place = 0;
        for (start, len) in self.order.iter().flatten() {
            runs.push((*start, *len, place));
            place += len;
        }
        runs.sort_unstable();
        let counts: Vec<usize> = self.parts.iter().map(PlannedTensor::rows).collect();
        let mut end = 0;
        let of_tensor = |shape: &Vec<usize>| {
            let from = end;
            end += rows(shape);
            let inside = runs.iter().filter_map(|(start, len, place)| {
                let (first, last) = ((*start).max(from), (start + len).min(end));
                (first < last).then(|| (place + first - start, last - first))
            });
            picked(parts, &counts, inside, shape.clone())
        };
        self.shapes.iter().map(of_tensor).collect()
    }
}

/// Where each of some parts begins that follow one another.
fn starts(sizes: &[usize]) -> Vec<usize> {
    let start = |end: &mut usize, size: &usize| Some(std::mem::replace(end, *end + size));
    sizes.iter().scan(0, start).collect()
}

/// Rows one by one as runs.
fn joined_runs(all: impl Iterator<Item = usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for row in all {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == row => *len += 1,
            _ => runs.push((row, 1)),
        }
    }
    runs
}

/// Runs of the rows of all of `of`, one tensor after another, which have `counts` rows.
fn picked(of: &[Expr], counts: &[usize], runs: impl Iterator<Item = Run>, shape: Vec<usize>) -> Expr {
    let mut ranges = Vec::new();
    for (mut start, mut len) in runs {
        for (operand, count) in counts.iter().enumerate() {
            if start < *count {
                let here = len.min(count - start);
                ranges.push((operand, start, here));
                (start, len) = (0, len - here);
                if len == 0 {
                    break;
                }
            } else {
                start -= count;
            }
        }
    }
    Expr::picked_of(of.to_vec(), ranges, shape)
}

fn number(config: &Config, name: &str) -> Option<usize> {
    config.get(name)?.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0)
}

/// The number of heads that the part `part` of the config says, or the whole one, where it is empty.
fn heads_of(config: &Config, part: &str) -> Option<usize> {
    let of =
        if part.is_empty() { config } else { config.get(part).and_then(|part| part.as_object()).unwrap_or(config) };
    Some(number(of, "num_attention_heads").unwrap_or(1))
}

/// The sizes of queries, keys and values among `total` rows.
fn sizes_by_heads(config: &Config, total: usize, count: usize) -> Option<Vec<usize>> {
    let text = config.get("text_config").and_then(|text| text.as_object()).unwrap_or(config);
    let heads = number(text, "num_attention_heads")?;
    let of_keys = number(text, "num_key_value_heads").unwrap_or(heads);
    let all = of_keys.checked_mul(2)?.checked_add(heads)?;
    let each = total.is_multiple_of(all).then_some(total / all)?;
    (count == 3).then(|| vec![heads * each, of_keys * each, of_keys * each])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::arch::renames::Renames;
    use crate::dtype::DType;

    /// A plan of tensors of whole numbers from 0, and from where the one before ends.
    fn plan(tensors: &[(&str, &[usize])]) -> Plan {
        let mut next = 0;
        let tensor = |(name, shape): &(&str, &[usize])| {
            let values = (next..).take(shape.iter().product()).map(|value| value as f32).collect::<Vec<_>>();
            next += values.len();
            let expr = Expr::Values { shape: shape.to_vec(), values: values.into() };
            PlannedTensor { name: (*name).to_owned(), dtype: DType::F32, shape: shape.to_vec(), expr }
        };
        Plan { tensors: tensors.iter().map(tensor).collect() }
    }

    fn values(expr: &Expr) -> Vec<f32> {
        let (name, shape) = (String::new(), expr.shape());
        PlannedTensor { name, dtype: DType::F32, shape, expr: expr.clone() }.read().unwrap()
    }

    /// The class's tensors: names, shapes and values. They have to become the checkpoint's again.
    fn regrouped(config: serde_json::Value, tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let (plan, config) = (plan(tensors), config.as_object().unwrap());
        let class = config.get("architectures").and_then(|classes| classes[0].as_str());
        let mut found = Vec::new();
        for group in Renames::of(config, class).regrouped(config, &plan) {
            let parts: Vec<Expr> = group.parts.iter().map(|part| part.expr.clone()).collect();
            for (place, back) in group.stored.iter().zip(group.stored_of(&parts)) {
                let stored = &plan.tensors[*place];
                assert_eq!(
                    (back.shape(), values(&back)),
                    (stored.shape.clone(), values(&stored.expr)),
                    "{}",
                    stored.name
                );
            }
            found.extend(group.parts.iter().map(|part| (part.name.clone(), part.shape.clone(), values(&part.expr))));
        }
        found
    }

    #[test]
    fn one_tensor_is_several_of_the_class() {
        let found = regrouped(json!({"model_type": "nomic_bert"}), &[("encoder.layers.0.attn.Wqkv.weight", &[6, 2])]);
        let part = |name: &str, start: usize| {
            let values = (start..start + 4).map(|value| value as f32).collect();
            (format!("layers.0.self_attn.{name}.weight"), vec![2, 2], values)
        };
        assert_eq!(found, [part("q_proj", 0), part("k_proj", 4), part("v_proj", 8)]);
        // What doesn't divide is no such tensor.
        assert_eq!(
            regrouped(json!({"model_type": "nomic_bert"}), &[("encoder.layers.0.attn.Wqkv.weight", &[7, 2])]),
            []
        );
        let heads = json!({"model_type": "molmo2_text", "num_attention_heads": 4, "num_key_value_heads": 1});
        let found = regrouped(heads, &[("layers.0.self_attn.att_proj.bias", &[12])]);
        assert_eq!(found.iter().map(|(_, shape, _)| shape[0]).collect::<Vec<_>>(), [8, 2, 2]);
    }

    #[test]
    fn rows_take_turns_and_heads_are_rotated() {
        let names = json!({"model_type": "inkling_mm_model"});
        let found = regrouped(names.clone(), &[("model.llm.layers.0.mlp.w13_dn.weight", &[4, 1])]);
        let name = |part: &str| format!("model.language_model.layers.0.mlp.{part}.weight");
        let (gate, up) = (name("gate_proj"), name("up_proj"));
        assert_eq!(found, [(gate, vec![2, 1], vec![0.0, 2.0]), (up, vec![2, 1], vec![1.0, 3.0])]);
        let found = regrouped(names, &[("model.llm.layers.0.mlp.experts.w13_weight", &[2, 4, 1])]);
        assert_eq!(found[0].1, [2, 4, 1]);
        assert_eq!(found[0].2, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let kimi = json!({"model_type": "kimi_k25", "vision_config": {"num_attention_heads": 2}});
        let found = regrouped(kimi, &[("vision_tower.encoder.blocks.0.wqkv.bias", &[24])]);
        assert_eq!(found[0].0, "model.vision_tower.layers.0.attn.q_proj.bias");
        assert_eq!(found[0].2, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(found[2].2, [16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0]);
    }

    #[test]
    fn several_tensors_are_one_of_the_class() {
        let minimax = json!({"model_type": "minimax_m3_vl"});
        let layer = "language_model.model.layers.0.mlp";
        let (gate, up) = (format!("{layer}.gate_proj.weight"), format!("{layer}.up_proj.weight"));
        let found = regrouped(minimax.clone(), &[(&up, &[1, 2]), (&gate, &[1, 2])]);
        let name = "model.language_model.layers.0.mlp.gate_up_proj.weight".to_owned();
        assert_eq!(found, [(name, vec![2, 2], vec![2.0, 3.0, 0.0, 1.0])]);
        assert_eq!(regrouped(minimax, &[(&gate, &[1, 2])]), [], "a part is missing");
        let step = json!({"model_type": "step3p7", "architectures": ["Step3p7ForConditionalGeneration"]});
        let names = ["model.layers.0.moe.gate_proj.weight", "model.layers.0.moe.up_proj.weight"];
        let found = regrouped(step, &[(names[0], &[2, 1, 1]), (names[1], &[2, 1, 1])]);
        assert_eq!((found[0].1.as_slice(), found[0].2.as_slice()), (&[2, 2, 1][..], &[0.0, 2.0, 1.0, 3.0][..]));
    }
}

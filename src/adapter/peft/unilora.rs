//! UniLoRA: all numbers of all factors come from one vector.
//!
//! Reference: huggingface/peft `src/peft/tuners/unilora/layer.py` (`_get_lora_matrices`, `update_scaling`, which rounds
//! scales that it draws to the weight's type) and `model.py` (`_assign_unilora_indices_and_scales`, `generate_index`, which draws the
//! places with numpy's generator if the file doesn't have them).

use super::base::Base;
use super::change::{Change, LowRank};
use super::entries::Entries;
use super::module_weight::Weight;
use super::targets::Targets;
use super::vblora::integers;
use super::vera::shared;
use super::{Named, order, rows};
use crate::error::{Finding, Result};
use crate::json::Fields;
use crate::linalg::Pcg64;
use crate::plan::Expr;

const VECTOR: &str = "base_model.unilora_theta_d";

/// The places in the vector for both factors of a module, and the scales of the numbers.
struct Places {
    places: [Vec<usize>; 2],
    scales: [Vec<f32>; 2],
}

/// The changes of a UniLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 4)?;
    let len = fields.count_or("theta_d_length", 256)?;
    let seed: u64 = fields.get("proj_seed")?.unwrap_or(42);
    let saved = fields.get("save_indices")?.unwrap_or(false);
    fields.ignore(&["init_theta_d_bound", "init_weights", "unilora_dropout"]);
    let targets = Targets::read(fields)?;
    let vector = shared(entries, VECTOR)?;
    if vector.shape != [len] {
        let finding = entries.shared_finding(VECTOR).expected(format_args!("[{len}] by adapter_config.json"));
        return Err(finding.found(format_args!("{:?}", vector.shape)).mismatch());
    }
    let vector = vector.read()?;
    let mut modules = if saved { entries.modules("unilora_indices_A") } else { selected(&targets, base, fields)? };
    order::sort(base, entries, VECTOR, &mut modules)?;
    let mut weights = Vec::with_capacity(modules.len());
    for module in &modules {
        let weight = base.linear(entries, &format!("{module}.unilora_indices_A"), module, fan_in_fan_out)?;
        // The file of drawn places doesn't show the rank, by which memory is taken.
        let most = weight.d_in.max(weight.d_out);
        if r > most {
            return Err(fields.finding("r").expected(format_args!("at most {most}, for {module}")).found(r).mismatch());
        }
        weights.push(weight);
    }
    let found: Vec<Places> = match saved {
        true => modules.iter().zip(&weights).map(|(m, w)| read(entries, m, w, r, len)).collect::<Result<_>>()?,
        false => drawn(&weights, r, len, seed),
    };
    let mut changes = Vec::new();
    for (weight, Places { places, scales }) in weights.into_iter().zip(found) {
        let factor = |side: usize, shape: [usize; 2]| {
            let mut scales = scales[side].clone();
            if !saved {
                rows::round(&mut scales, base.rounding(weight.tensor.dtype).filter(|dtype| dtype.block_elems() == 1));
            }
            let values = places[side].iter().zip(&scales).map(|(place, scale)| vector[*place] * scale).collect();
            Expr::Values { shape: shape.to_vec(), values }
        };
        let (a, b) = (factor(0, [r, weight.d_in]), factor(1, [weight.d_out, r]));
        let update = LowRank { scale: 1.0, alpha: None, a, b, layout: weight.layout(), rounded: None };
        changes.push(weight.change(Change::LowRank(update)));
    }
    Ok(changes)
}

/// The modules that the config selects: the file doesn't say.
fn selected(targets: &Targets, base: &Base, fields: &Fields) -> Result<Vec<String>> {
    let mut modules = Vec::new();
    for (name, tensor) in base.named() {
        let Some(module) = name.strip_suffix(".weight").filter(|_| tensor.shape.len() == 2) else { continue };
        match targets.wants(module) {
            Some(true) => modules.push(module.to_owned()),
            Some(false) => {}
            None => {
                let expected =
                    "names or a regular expression without look-around, as the file doesn't name its modules";
                let finding: Finding = fields.finding("target_modules").expected(expected);
                return Err(finding.found("none").hint("save the adapter with save_indices set to true").unsupported());
            }
        }
    }
    Ok(modules)
}

/// The places and scales of a module in the file.
fn read(entries: &mut Entries, module: &str, weight: &Weight, r: usize, len: usize) -> Result<Places> {
    let mut side = |side: &str, shape: [usize; 2]| -> Result<(Vec<usize>, Vec<f32>)> {
        let name = format!("{module}.unilora_indices_{side}");
        let tensor = entries.of_whole_numbers(&name, &shape)?;
        let Some(places) = integers(&tensor).filter(|places| places.iter().all(|place| *place < len)) else {
            let finding = entries.finding(&name).expected(format_args!("whole numbers below {len}"));
            return Err(finding.found(format_args!("others, of type {}", tensor.dtype)).format());
        };
        Ok((places, entries.shaped(&format!("{module}.unilora_scales_{side}"), &shape)?.read()?))
    };
    let (a, scales_a) = side("A", [r, weight.d_in])?;
    let (b, scales_b) = side("B", [weight.d_out, r])?;
    Ok(Places { places: [a, b], scales: [scales_a, scales_b] })
}

/// The places that PEFT draws: every number of the vector as often as every other, or once more.
fn drawn(weights: &[Weight], r: usize, len: usize, seed: u64) -> Vec<Places> {
    let total: usize = weights.iter().map(|weight| r * (weight.d_in + weight.d_out)).sum();
    let mut generator = Pcg64::new(seed);
    let each = total / len;
    let mut places: Vec<usize> = (0..len).flat_map(|place| std::iter::repeat_n(place, each)).collect();
    let rest = total % len;
    if rest > 0 {
        places.extend(generator.choice(len, rest));
    }
    generator.shuffle(&mut places);
    let mut counts = vec![0usize; len];
    places.iter().for_each(|place| counts[*place] += 1);
    let scale = |place: &usize| 1.0 / (counts[*place] as f32).sqrt();
    let mut left = &places[..];
    let mut take = |count: usize| {
        let (now, later) = left.split_at(count);
        left = later;
        (now.to_vec(), now.iter().map(scale).collect::<Vec<f32>>())
    };
    let of_weight = |weight: &Weight| {
        let ((a, scales_a), (b, scales_b)) = (take(r * weight.d_in), take(r * weight.d_out));
        Places { places: [a, b], scales: [scales_a, scales_b] }
    };
    weights.iter().map(of_weight).collect()
}

//! A LoRA's factors for experts that transformers keeps in one parameter (`target_parameters`).
//!
//! Reference: peft `src/peft/tuners/lora/layer.py` (`ParamWrapper`).

use std::path::Path;

use super::{HostTensor, Tensors};
use crate::arch::names::{FUSED_EXPERTS, ends_path};
use crate::arch::{ExpertParameter, ExpertPart, ModelConfig};
use crate::error::{Finding, Result};
use crate::linalg::Random;
use crate::source::show_shape;

/// The path of a wrapped module within its wrapper. A module with several adapted parameters has several nested
/// wrappers, the one of the last parameter outside.
pub(crate) const WRAPPER: &str = ".base_layer";

/// The start of the names of all factors.
const START: &str = "base_model.model.";

/// A LoRA's factors for one parameter with experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpertFactorNames {
    pub(crate) layer: usize,
    pub(crate) part: ExpertPart,
    /// The name of `lora_A`, `[experts * r, d_in]`.
    pub(crate) a: String,
    /// The name of `lora_B`, `[d_out, r * experts]`.
    pub(crate) b: String,
}

/// The parameters of a module with experts that `targets` selects, by their places in [`FUSED_EXPERTS`].
fn selected(module: &str, targets: &[String]) -> Vec<usize> {
    let is_wanted = |place: &usize| {
        let path = format!("{module}.{}", FUSED_EXPERTS[*place].parameter);
        targets.iter().any(|target| ends_path(&path, target))
    };
    (0..FUSED_EXPERTS.len()).filter(is_wanted).collect()
}

/// The part of a parameter, by its place in [`FUSED_EXPERTS`].
const PARTS: [ExpertPart; 2] = [ExpertPart::GateUp, ExpertPart::Down];

/// The parameters of `base` that `target_parameters` selects, by layer.
pub(crate) fn selected_parameters<'a>(base: &'a ModelConfig, targets: &[String]) -> Vec<&'a ExpertParameter> {
    let is_wanted = |p: &&ExpertParameter| targets.iter().any(|target| ends_path(&p.path, target));
    base.expert_parameters().iter().filter(is_wanted).collect()
}

/// The names of a LoRA's factors for `parameter`, where `targets` selects it.
fn names(parameter: &ExpertParameter, targets: &[String]) -> Option<ExpertFactorNames> {
    let (module, _) = parameter.path.rsplit_once('.')?;
    let places = selected(module, targets);
    let depth = places.len() - 1 - places.iter().position(|place| PARTS[*place] == parameter.part)?;
    let wrapped = [START, module, &WRAPPER.repeat(depth)].concat();
    let name = |which: char| format!("{wrapped}.lora_{which}.weight");
    Some(ExpertFactorNames { layer: parameter.layer, part: parameter.part, a: name('A'), b: name('B') })
}

/// The factors for experts among `tensors`, by layer. The names alone don't say to which parameter a factor belongs;
/// `targets`, the LoRA's `target_parameters`, does.
pub(crate) fn expert_factors(tensors: &Tensors, targets: &[String]) -> Vec<ExpertFactorNames> {
    let mut all: Vec<ExpertFactorNames> = tensors
        .keys()
        .filter_map(|name| {
            let wrapped = name.strip_prefix(START)?.strip_suffix(".lora_A.weight")?;
            let module = wrapped.trim_end_matches(WRAPPER);
            let layer = module.split('.').find_map(|part| part.parse().ok())?;
            let places = selected(module, targets);
            let depth = (wrapped.len() - module.len()) / WRAPPER.len();
            let place = places.len().checked_sub(1 + depth)?;
            let b = format!("{START}{wrapped}.lora_B.weight");
            tensors.contains_key(&b).then(|| ExpertFactorNames {
                layer,
                part: PARTS[places[place]],
                a: name.clone(),
                b,
            })
        })
        .collect();
    all.sort_by_key(|factors| (factors.layer, factors.part));
    all
}

/// Adds fresh factors of rank `r` for every parameter that `targets` selects: A is Kaiming-uniform with a = sqrt 5, B is
/// zero.
pub(crate) fn add_fresh_expert_factors(
    tensors: &mut Tensors,
    targets: &[String],
    r: usize,
    base: &ModelConfig,
    random: &mut Random,
) {
    for parameter in selected_parameters(base, targets) {
        let Some(ExpertFactorNames { a, b, .. }) = names(parameter, targets) else { continue };
        let (rank, d_in, d_out) = (r * parameter.experts, parameter.d_in, parameter.d_out);
        let bound = 1.0 / (d_in as f32).sqrt();
        let values = (0..rank * d_in).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect();
        tensors.insert(a, HostTensor { shape: vec![rank, d_in], values });
        tensors.insert(b, HostTensor { shape: vec![d_out, rank], values: vec![0.0; d_out * rank].into() });
    }
}

/// Checks that the factors for experts have rank `r` and fit the experts of `base`.
pub(crate) fn check_expert_factors(
    file: &Path,
    tensors: &Tensors,
    targets: &[String],
    r: usize,
    base: &ModelConfig,
) -> Result<()> {
    for found in expert_factors(tensors, targets) {
        let finding = |name: &str| Finding::new(file, format!("tensor {name:?}"));
        let theirs = |parameter: &&ExpertParameter| names(parameter, targets).as_ref() == Some(&found);
        let Some(parameter) = base.expert_parameters().iter().find(theirs) else {
            return Err(finding(&found.a)
                .expected("experts of the base model")
                .found("none of this name")
                .hint("this adapter belongs to another base model")
                .mismatch());
        };
        let rank = r * parameter.experts;
        for (name, shape) in [(&found.a, [rank, parameter.d_in]), (&found.b, [parameter.d_out, rank])] {
            let shape_found = &tensors[name].shape;
            if *shape_found != shape {
                return Err(finding(name)
                    .expected(format_args!("{} for this base model", show_shape(&shape)))
                    .found(show_shape(shape_found))
                    .hint("this adapter belongs to another base model, or its r is not what its config says")
                    .mismatch());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapper_of_the_last_parameter_is_outside() {
        let parameter = |part, end: &str| ExpertParameter {
            layer: 3,
            part,
            path: format!("model.layers.3.mlp.experts.{end}"),
            experts: 2,
            d_out: 4,
            d_in: 5,
        };
        let inner = parameter(ExpertPart::GateUp, "gate_up_proj");
        let down = parameter(ExpertPart::Down, "down_proj");
        let both = ["experts.gate_up_proj".to_owned(), "experts.down_proj".to_owned()];
        let start = "base_model.model.model.layers.3.mlp.experts";
        assert_eq!(names(&inner, &both).unwrap().a, format!("{start}.base_layer.lora_A.weight"));
        assert_eq!(names(&down, &both).unwrap().b, format!("{start}.lora_B.weight"));
        assert_eq!(names(&inner, &both[..1]).unwrap().a, format!("{start}.lora_A.weight"));
        assert_eq!(names(&inner, &both[1..]), None);

        let tensor = HostTensor { shape: vec![0], values: [].into() };
        let of = |targets: &[String], parameters: &[&ExpertParameter]| {
            let expected: Vec<_> = parameters.iter().map(|p| names(p, targets).unwrap()).collect();
            let all = expected.iter().flat_map(|n| [n.a.clone(), n.b.clone()]);
            let tensors: Tensors = all.map(|name| (name, tensor.clone())).collect();
            assert_eq!(expert_factors(&tensors, targets), expected);
        };
        of(&both, &[&inner, &down]);
        of(&both[1..], &[&down]);
    }
}

//! LoRA of parameters that aren't a module's weight (`target_parameters`): the experts of a layer. transformers stores
//! them in one tensor with three dimensions, checkpoints may store them one by one.
//!
//! Reference: peft `src/peft/tuners/lora/layer.py` (`ParamWrapper`), and transformers `conversion_mapping.py` for the
//! names in checkpoints.

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank, WeightLayout};
use super::entries::Entries;
use super::targets::ends_path;
use crate::adapter::WRAPPER;
use crate::arch::names::{FUSED_EXPERTS, FusedExperts, UNGATED_EXPERTS, keeps_experts_transposed};
use crate::error::Result;
use crate::plan::{Expr, Pick, PlannedTensor};

/// The name of a parameter that is a module's only one.
const WEIGHT: &str = "weight";

/// The names of parameters with experts, in the order in which their modules have them.
const PARAMETERS: [&str; 4] =
    [FUSED_EXPERTS[0].parameter, UNGATED_EXPERTS.parameter, FUSED_EXPERTS[1].parameter, WEIGHT];

/// The module with a block's experts.
const EXPERTS: &str = ".experts";

/// The tensors of the base that make up one parameter.
enum ParameterTensors<'a> {
    /// One matrix, or one tensor with a matrix for each expert.
    Whole(&'a PlannedTensor),
    /// Several tensors: by expert, then in the order of their rows.
    Single(Vec<Vec<&'a PlannedTensor>>),
}

impl ParameterTensors<'_> {
    /// The number of experts, rows and columns.
    fn shape(&self) -> Option<[usize; 3]> {
        match self {
            ParameterTensors::Whole(tensor) => match *tensor.shape.as_slice() {
                [experts, rows, cols] => Some([experts, rows, cols]),
                [rows, cols] => Some([1, rows, cols]),
                _ => None,
            },
            ParameterTensors::Single(experts) => {
                let first = experts.first()?;
                let &[rows, cols] = first.first()?.shape.as_slice() else { return None };
                let alike = experts.iter().flatten().all(|part| part.shape == [rows, cols]);
                alike.then_some([experts.len(), rows * first.len(), cols])
            }
        }
    }
}

/// A parameter of a model that holds a matrix of every expert of a layer.
pub(crate) struct ExpertParameter<'a> {
    /// The name in its module.
    pub(crate) name: &'static str,
    tensors: ParameterTensors<'a>,
    /// The number of experts, and the rows and columns of their matrices.
    pub(crate) shape: [usize; 3],
    /// Whether PEFT takes rows for inputs.
    pub(crate) transposed: bool,
}

impl<'a> ExpertParameter<'a> {
    /// The parameters of `module` in the model, in the order of the class.
    pub(crate) fn all(model: &'a Base, module: &str) -> Vec<Self> {
        let find = |fused: &FusedExperts| {
            let (name, tensors) = (fused.parameter, parts(model, module, fused.parameter)?);
            let whole = matches!(tensors, ParameterTensors::Whole(_));
            let (shape, transposed) = (tensors.shape()?, whole && keeps_experts_transposed(model.config()));
            Some(Self { name, tensors, shape, transposed })
        };
        FUSED_EXPERTS.iter().filter_map(find).collect()
    }

    /// The model's tensors that it consists of.
    pub(crate) fn tensors(&self) -> Vec<&'a PlannedTensor> {
        match &self.tensors {
            ParameterTensors::Whole(tensor) => vec![tensor],
            ParameterTensors::Single(experts) => experts.iter().flatten().copied().collect(),
        }
    }

    /// The matrix of one expert.
    pub(crate) fn matrix(&self, expert: usize) -> PlannedTensor {
        let [_, rows, cols] = self.shape;
        let (first, expr) = match &self.tensors {
            ParameterTensors::Whole(tensor) => {
                (*tensor, Expr::slice(tensor.expr.clone(), expert * rows, rows, vec![rows, cols]))
            }
            ParameterTensors::Single(experts) => {
                let parts = experts[expert].iter().map(|part| part.expr.clone()).collect();
                (experts[expert][0], Expr::concat(parts, vec![rows, cols]))
            }
        };
        PlannedTensor { name: first.name.clone(), dtype: first.dtype, shape: vec![rows, cols], expr }
    }
}

/// The changes of the parameters that `targets` selects; `rank` and `scale` take their paths.
pub(super) fn changes(
    entries: &mut Entries,
    base: &Base,
    targets: &[String],
    rank: impl Fn(&str) -> usize,
    scale: impl Fn(&str, usize) -> f64,
) -> Result<Vec<Named>> {
    let wanted = |path: &str| targets.iter().any(|target| ends_path(path, target));
    let mut modules: Vec<String> = entries.modules("lora_A.weight");
    modules.iter_mut().for_each(|module| module.truncate(module.trim_end_matches(WRAPPER).len()));
    modules.dedup();
    let mut changes = Vec::new();
    by_own_names(entries, base, &rank, &scale, &mut changes)?;
    for module in modules {
        let parameters: Vec<(&str, ParameterTensors)> = PARAMETERS
            .into_iter()
            .filter(|parameter| wanted(&format!("{module}.{parameter}")))
            .filter_map(|parameter| Some((parameter, parts(base, &module, parameter)?)))
            .collect();
        for (place, (parameter, parts)) in parameters.iter().enumerate() {
            let path = format!("{module}.{parameter}");
            let wrapped = [module.as_str(), &WRAPPER.repeat(parameters.len() - 1 - place)].concat();
            let rank = rank(&path);
            one(entries, base, &wrapped, parts, rank, scale(&path, rank), &mut changes)?;
        }
    }
    Ok(changes)
}

/// The changes of parameters whose factors have the parameter's name in theirs, as other programs than PEFT save them.
fn by_own_names(
    entries: &mut Entries,
    base: &Base,
    rank: impl Fn(&str) -> usize,
    scale: impl Fn(&str, usize) -> f64,
    changes: &mut Vec<Named>,
) -> Result<()> {
    for path in entries.modules("lora_A.weight") {
        let Some((module, parameter)) = path.rsplit_once('.') else { continue };
        // The path of a module ends in the name of a parameter, too, in classes that have both.
        if !PARAMETERS.contains(&parameter) || !module.ends_with(EXPERTS) {
            continue;
        }
        let is_module = base.tensor(&format!("{path}.weight")).is_some();
        if let Some(parts) = parts(base, module, parameter).filter(|_| !is_module) {
            let rank = rank(&path);
            one(entries, base, &path, &parts, rank, scale(&path, rank), changes)?;
        }
    }
    Ok(())
}

/// The tensors of a parameter in the base's files.
fn parts<'a>(base: &'a Base, module: &str, parameter: &str) -> Option<ParameterTensors<'a>> {
    if let Some(tensor) = base.tensor(&format!("{module}.{parameter}")) {
        // A linear layer's weight is a matrix, and no parameter of its block.
        return (parameter != WEIGHT || tensor.shape.len() == 3).then_some(ParameterTensors::Whole(tensor));
    }
    let fused = FUSED_EXPERTS.iter().chain([&UNGATED_EXPERTS]).find(|fused| fused.parameter == parameter)?;
    let part = |names: Vec<String>| names.iter().find_map(|name| base.tensor(name));
    let expert = |number| fused.weights(module, number).map(part).collect::<Option<Vec<_>>>();
    let experts: Vec<_> = (0..).map_while(expert).collect();
    (!experts.is_empty()).then_some(ParameterTensors::Single(experts))
}

/// The changes of one parameter, whose factors have the prefix `wrapped`.
fn one(
    entries: &mut Entries,
    base: &Base,
    wrapped: &str,
    parts: &ParameterTensors,
    rank: usize,
    scale: f64,
    changes: &mut Vec<Named>,
) -> Result<()> {
    let name_a = format!("{wrapped}.lora_A.weight");
    let Some([experts, rows, cols]) = parts.shape() else {
        let finding =
            entries.finding(&name_a).expected("a parameter of two or three dimensions, alike for all experts");
        return Err(finding.found("another").unsupported());
    };
    // Some classes store all experts in one tensor with the inputs in rows. Earlier versions of PEFT assumed this for
    // every class. The shape of the adapter's factor A tells which is the case, unless there are as many inputs as
    // outputs.
    let whole = matches!(parts, ParameterTensors::Whole(tensor) if tensor.shape.len() == 3);
    let transposed = whole
        && match entries.row_len(&name_a).filter(|_| rows != cols) {
            Some(inputs) if inputs == rows => true,
            Some(inputs) if inputs == cols => false,
            _ => keeps_experts_transposed(base.config()),
        };
    let (d_out, d_in) = if transposed { (cols, rows) } else { (rows, cols) };
    let inner = experts * rank;
    let a = entries.shaped(&name_a, &[inner, d_in])?.expr;
    let b = entries.shaped(&format!("{wrapped}.lora_B.weight"), &[d_out, inner])?.expr;
    // A stacks the factors of the experts; in B, each group of columns has one column for each expert.
    let factors = |expert: usize| {
        let columns: Vec<Pick> = (0..rank).map(|k| Pick { of: 0, start: k * experts + expert, len: 1 }).collect();
        let turned = Expr::Transpose(Box::new(b.clone()));
        let picked = Expr::Rows { shape: vec![rank, d_out], of: vec![turned], picks: columns.into() };
        (Expr::slice(a.clone(), expert * rank, rank, vec![rank, d_in]), Expr::Transpose(Box::new(picked)))
    };
    match parts {
        ParameterTensors::Whole(tensor) => {
            let update = |expert: usize| {
                let (a, b) = if experts == 1 { (a.clone(), b.clone()) } else { factors(expert) };
                LowRank {
                    scale,
                    alpha: None,
                    a,
                    b,
                    layout: WeightLayout::of_linear(transposed),
                    rounded: base.rounding(tensor.dtype),
                }
            };
            let change = match tensor.shape.len() {
                2 => Change::LowRank(update(0)),
                _ => Change::Stack((0..experts).map(update).collect()),
            };
            changes.push((tensor.name.clone(), change));
        }
        ParameterTensors::Single(tensors) => {
            for (expert, parts) in tensors.iter().enumerate() {
                let rows = rows / parts.len();
                for (place, tensor) in parts.iter().enumerate() {
                    let (a, b) = factors(expert);
                    let b = Expr::slice(b, place * rows, rows, vec![rows, rank]);
                    let update = LowRank {
                        scale,
                        alpha: None,
                        a,
                        b,
                        layout: WeightLayout::OutputsFirst,
                        rounded: base.rounding(tensor.dtype),
                    };
                    changes.push((tensor.name.clone(), Change::LowRank(update)));
                }
            }
        }
    }
    Ok(())
}

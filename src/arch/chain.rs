//! All steps from the checkpoint's tensors to one GGUF tensor, with the shapes in between.

use super::lookup::{Slot, sources};
use super::params::Params;
use super::steps::{Misfit, Step, steps};
use crate::error::Result;
use crate::source::show_shape;

/// The steps from one form of a row's tensors to GGUF, for a layer.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) parts: Vec<PartChain>,
    pub(crate) join: usize,
    /// What is done to the joined parts.
    pub(crate) steps: Vec<Step>,
    /// The shape in GGUF.
    pub(crate) shape: Vec<usize>,
}

/// The steps of one part.
#[derive(Debug, Clone)]
pub(crate) struct PartChain {
    /// The names of its tensors: several for a stack.
    pub(crate) names: Vec<String>,
    pub(crate) is_stack: bool,
    /// The shape of each tensor.
    pub(crate) each: Vec<usize>,
    /// The steps of each tensor before they are stacked.
    pub(crate) each_steps: Vec<Step>,
    /// The shape after stacking, and after each of the steps.
    pub(crate) shapes: Vec<Vec<usize>>,
    pub(crate) steps: Vec<Step>,
}

impl PartChain {
    /// The steps of one tensor of a stack, before it is stacked.
    pub(crate) fn single(&self, name: &str) -> Self {
        Self {
            names: vec![name.to_owned()],
            is_stack: false,
            each: self.each.clone(),
            each_steps: Vec::new(),
            shapes: shapes_after(self.each.clone(), &self.each_steps),
            steps: self.each_steps.clone(),
        }
    }
}

/// A shape, and the shape after each of the steps.
fn shapes_after(shape: Vec<usize>, steps: &[Step]) -> Vec<Vec<usize>> {
    let mut shapes = vec![shape];
    for step in steps {
        shapes.push(step.shape(&shapes[shapes.len() - 1]));
    }
    shapes
}

/// What there is to make tensors of.
pub(crate) trait Stock {
    /// The shape of a tensor whose size the family leaves open.
    fn shape_of(&self, name: &str) -> Option<Vec<usize>>;
    /// Whether there can be a tensor of this shape. A config may say any size, and steps take memory for every row.
    fn can_have(&self, shape: &[usize]) -> bool;
}

/// The steps of a form, with the shapes in between.
///
/// # Errors
/// Errors of the formulas; `Ok(Err(..))` if operations don't fit, or a shape isn't known.
pub(crate) fn chain(
    params: &Params,
    slot: &Slot,
    form: usize,
    most: usize,
    stock: &dyn Stock,
) -> Result<std::result::Result<Chain, Misfit>> {
    let known = &slot.row.forms[form];
    if let Some(name) = known.of_several() {
        return Ok(Err((
            "values that can be turned back".to_owned(),
            format!("values made of several tensors by `{name}`"),
        )));
    }
    let wanted = sources(params, slot, form, most)?;
    let mut parts = Vec::new();
    for (number, part) in known.parts.iter().enumerate() {
        let of_part: Vec<_> = wanted.iter().filter(|wanted| wanted.part == number).collect();
        let Some(first) = of_part.first() else { continue };
        let Some(each) = first.whole_shape().or_else(|| stock.shape_of(&first.name)) else {
            return Ok(Err(("a size".to_owned(), format!("none for {}", first.name))));
        };
        if !stock.can_have(&each) {
            let found = format!("{} {}", first.name, show_shape(&each));
            return Ok(Err(("sizes that the tensors bear out".to_owned(), found)));
        }
        let each_steps = match steps(params, &part.each, &each, slot.layer, &|| Ok(usize::MAX))? {
            Ok(steps) => steps,
            Err(misfit) => return Ok(Err(misfit)),
        };
        let mut shape = each_steps.iter().fold(each.clone(), |shape, step| step.shape(&shape));
        if part.stack.is_some() {
            shape.insert(0, of_part.len());
        }
        let steps = match steps(params, &part.operations, &shape, slot.layer, &|| Ok(usize::MAX))? {
            Ok(steps) => steps,
            Err(misfit) => return Ok(Err(misfit)),
        };
        let shapes = shapes_after(shape, &steps);
        let names = of_part.iter().map(|wanted| wanted.name.clone()).collect();
        parts.push(PartChain { names, is_stack: part.stack.is_some(), each, each_steps, shapes, steps });
    }
    let ends: Vec<&Vec<usize>> = parts.iter().filter_map(|part| part.shapes.last()).collect();
    let Some(mut shape) = ends.first().map(|shape| (*shape).clone()) else {
        return Ok(Err(("a tensor".to_owned(), "none".to_owned())));
    };
    if parts.len() > 1 {
        let Some(size) = ends.iter().map(|shape| shape.get(known.join)).sum::<Option<usize>>() else {
            return Ok(Err((format!("a dimension {}", known.join), show_shape(&shape))));
        };
        shape[known.join] = size;
    }
    let steps = match steps(params, &known.operations, &shape, slot.layer, &|| Ok(usize::MAX))? {
        Ok(steps) => steps,
        Err(misfit) => return Ok(Err(misfit)),
    };
    let shape = steps.iter().fold(shape, |shape, step| step.shape(&shape));
    Ok(Ok(Chain { parts, join: known.join, steps, shape }))
}

//! Gradients with the activations of one part of the layers in memory at a time.
//!
//! The layers run once without a record of their computation; only the input of each part is kept. Then, from the last
//! part to the first, each runs again with a record, and its backward pass gives the gradients of its variables and of
//! its input. What an adapter hands from earlier layers to later ones besides, such as a bank's states, gets its gradient
//! from all parts that use it.

use candle_core::{Tensor, Var};

use super::Objective;
use super::dropout::Dropout;
use super::step::Gradients;
use crate::error::Result;
use crate::model::Sequence;
use crate::model::decoder::Pass;

/// A part of the layers: where it begins, its input, and how many values were kept before it.
struct Part {
    start: usize,
    input: Tensor,
    kept: usize,
}

/// Adds loss and gradients of `sequences`, as [`Objective::gradients`] takes them for a micro-batch: one of a step with
/// `tokens` tokens that carry loss, of which it is a `share`.
pub(super) fn add_gradients(
    objective: &Objective,
    sequences: &[Sequence],
    (tokens, share): (usize, f64),
    dropout: Option<Dropout>,
    total: &mut Gradients,
) -> Result<()> {
    let (decoder, trainable) = (objective.decoder, objective.trainable);
    let batch = objective.batch(sequences);
    let (pass, embedded) = decoder.start(&batch)?;
    let mut hook = trainable.hook(decoder.weights(), sequences, &batch, dropout)?;
    let layers = decoder.config().num_hidden_layers;
    let together = hook.as_hook().layers_together().min(layers).max(1);

    trainable.track(false);
    let mut parts = Vec::new();
    let mut x = embedded;
    for start in (0..layers).step_by(together) {
        parts.push(Part { start, input: x.clone(), kept: hook.as_hook().kept().len() });
        let ran = decoder.run(start..(start + together).min(layers), &x, &pass, hook.as_hook());
        x = ran.inspect_err(|_| trainable.track(true))?;
    }
    let kept = hook.as_hook().kept();
    trainable.track(true);

    // The loss, from the last layer's output and from what was kept.
    let last = Var::from_tensor(&x)?;
    let vars = variables(&kept)?;
    hook.as_hook().keep(&tensors(&vars));
    let (places, targets) = batch.targets();
    let hidden = decoder.normed(last.as_tensor())?;
    let mut loss = (decoder.loss_at(&hidden, &places, &targets, true)? * (1.0 / tokens as f64))?;
    if let Some(regularization) = hook.regularization(objective.regularizer)? {
        loss = (loss + (regularization * share)?)?;
    }
    total.loss += f64::from(loss.to_scalar::<f32>()?);
    let mut store = loss.backward()?;
    total.add(&mut store, trainable)?;
    let mut gradient = store.remove(last.as_tensor());
    let mut of_kept: Vec<Option<Tensor>> = vars.iter().map(|var| store.remove(var.as_tensor())).collect();
    drop((store, loss, hidden, last, x));

    for part in parts.into_iter().rev() {
        let end = (part.start + together).min(layers);
        let earlier = variables(&kept[..part.kept])?;
        hook.as_hook().keep(&tensors(&earlier));
        let Some(target) = target(objective, &pass, &mut hook, &part, end, (&gradient, &of_kept))? else { continue };
        let (input, target) = target;
        let mut store = target.backward()?;
        total.add(&mut store, trainable)?;
        gradient = input.and_then(|input| store.remove(input.as_tensor()));
        for (sum, var) in of_kept.iter_mut().zip(&earlier) {
            *sum = match (sum.take(), store.remove(var.as_tensor())) {
                (Some(sum), Some(more)) => Some((sum + more)?),
                (sum, more) => sum.or(more),
            };
        }
        of_kept.truncate(part.kept);
    }
    Ok(())
}

/// Runs a part again: its input as a variable, and a scalar whose gradients are those of the loss. `None` where the loss
/// doesn't depend on what it gives.
fn target(
    objective: &Objective,
    pass: &Pass,
    hook: &mut super::adapter::TrainedHook,
    part: &Part,
    end: usize,
    (gradient, of_kept): (&Option<Tensor>, &[Option<Tensor>]),
) -> Result<Option<(Option<Var>, Tensor)>> {
    // Nothing is trained before the first layer.
    let input = if part.start == 0 { None } else { Some(Var::from_tensor(&part.input)?) };
    let x = input.as_ref().map_or(&part.input, |input| input.as_tensor());
    let y = objective.decoder.run(part.start..end, x, pass, hook.as_hook())?;
    let mut terms = Vec::new();
    if let Some(gradient) = gradient {
        terms.push((y * gradient)?.sum_all()?);
    }
    for (made, gradient) in hook.as_hook().kept().iter().zip(of_kept).skip(part.kept) {
        if let Some(gradient) = gradient {
            terms.push((made * gradient)?.sum_all()?);
        }
    }
    match terms.len() {
        0 => Ok(None),
        _ => Ok(Some((input, Tensor::stack(&terms, 0)?.sum_all()?))),
    }
}

fn variables(all: &[Tensor]) -> Result<Vec<Var>> {
    all.iter().map(|tensor| Ok(Var::from_tensor(tensor)?)).collect()
}

fn tensors(all: &[Var]) -> Vec<Tensor> {
    all.iter().map(|var| var.as_tensor().clone()).collect()
}

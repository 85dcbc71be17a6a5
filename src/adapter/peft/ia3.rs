//! (IA)³: outputs, or inputs of feed-forward layers, are multiplied by learned factors.
//!
//! Reference: huggingface/peft `src/peft/tuners/ia3/layer.py` (`Linear.merge`).

use std::collections::HashSet;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::rows::{ScaleColumns, ScaleRows};
use super::targets::Targets;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::RowMap;
use crate::source::show_shape;

const FACTORS: &str = "ia3_l";

/// The changes of an (IA)³ adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    // The shape of a module's factors shows whether it is a feed-forward module.
    fields.ignore(&["feedforward_modules", "init_ia3_weights"]);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules(FACTORS) {
        let name = format!("{module}.{FACTORS}");
        let weight = base.linear(entries, &name, &module, fan_in_fan_out)?;
        let tensor = entries.need(&name)?;
        let inputs = match *tensor.shape {
            [1, len] if len == weight.d_in => true,
            [len, 1] if len == weight.d_out => false,
            _ => {
                return Err(entries
                    .finding(&name)
                    .expected(format_args!("[1, {}] or [{}, 1] by the base model", weight.d_in, weight.d_out))
                    .found(show_shape(&tensor.shape))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
        };
        let factors: Arc<[f32]> = tensor.read()?.into();
        let scale = |map: Arc<dyn RowMap>| Change::Map { others: Vec::new(), map, transposed: false };
        let by_column = inputs != weight.transposed;
        let map: Arc<dyn RowMap> = match by_column {
            true => Arc::new(ScaleColumns(factors.clone())),
            false => Arc::new(ScaleRows(factors.clone())),
        };
        changes.push((weight.tensor.name.clone(), scale(map)));
        adapted.insert(weight.tensor.name.clone());
        if let Some(bias) =
            base.tensor(&format!("{module}.bias")).filter(|bias| !inputs && bias.shape == [weight.d_out])
        {
            changes.push((bias.name.clone(), scale(Arc::new(ScaleRows(factors)))));
        }
    }
    targets.complete(entries, base, &adapted, FACTORS)?;
    Ok(changes)
}

//! BEFT: vectors that are added to the biases of linear layers.
//!
//! Reference: huggingface/peft `src/peft/tuners/beft/layer.py` (`merge`).

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::modules::each_module;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;

/// The changes of a BEFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    fields.ignore(&["init_weights"]);
    each_module(fields, entries, base, "beft_bias", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "BEFT")?;
        let added = entries.shaped(name, &[1, weight.d_out])?.expr;
        let Some(bias) = base.tensor(&format!("{module}.bias")) else {
            return Err(entries.finding(name).expected("a bias in the base to add it to").found("none").mismatch());
        };
        let added = Expr::Reshape { of: Box::new(added), shape: vec![weight.d_out] };
        Ok((weight, vec![(bias.name.clone(), Change::Add(added))]))
    })
}

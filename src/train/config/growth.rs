//! `kind = "grow"`: which settings a bank's growth takes, and those that the bank has already.

use serde_json::Value;

use super::{AdapterKind, AdapterSettings, TrainConfig};
use crate::bank::AtomBank;
use crate::error::{Finding, Result};

impl TrainConfig {
    /// Checks the settings of growth alone.
    pub(super) fn check_growth(&self) -> Result<()> {
        let finding = |key: &str| Finding::new(&self.file, key);
        if self.kind != AdapterKind::Grow {
            let given = [("from", &self.from), ("instructions", &self.instructions)];
            let Some((key, _)) = given.into_iter().find(|(_, path)| path.is_some()) else { return Ok(()) };
            let kind = serde_json::to_value(self.kind).unwrap_or_default();
            return Err(finding(key).expected("kind = \"grow\"").found(kind).mismatch());
        }
        if self.from.is_none() {
            return Err(finding("from").expected("the bank that grows").found("none").mismatch());
        }
        // What is old stays as it is, and a new atom's routing isn't trained.
        let t = &self.training;
        let unused = [
            ("training.weight_decay", t.weight_decay),
            ("training.lambda_prior", t.lambda_prior),
            ("training.lambda_balance", t.lambda_balance),
        ];
        match unused.into_iter().find(|(_, value)| *value != 0.0) {
            Some((key, value)) => Err(finding(key).expected("0 with kind = \"grow\"").found(value).mismatch()),
            None => Ok(()),
        }
    }

    /// The same run with the adapter's settings that `bank` has, which grows.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a setting of the adapter that is given and isn't the bank's.
    pub(crate) fn with_settings_of(&self, bank: &AtomBank) -> Result<Self> {
        let c = &bank.config;
        let of_bank = AdapterSettings {
            r: c.r,
            lora_alpha: c.lora_alpha,
            use_rslora: c.use_rslora,
            target_modules: c.target_modules.clone(),
            num_atoms: Some(c.num_atoms),
            top_k: Some(c.top_k),
            block_size: c.block_size,
            key_dim: Some(c.key_dim),
            descriptor_dim: Some(c.descriptor_dim),
            instruction_encoder: c.instruction_encoder.clone(),
            routing: c.routing,
            temperature: c.temperature,
            prior_strength: c.prior_strength,
            prior_temperature: c.prior_temperature,
            prompt_template: c.prompt_template.clone(),
            grow_rank: self.adapter.grow_rank,
            ..AdapterSettings::default()
        };
        let json = |settings: &AdapterSettings| serde_json::to_value(settings).unwrap_or_default();
        let (given, unset, bank) = (json(&self.adapter), json(&AdapterSettings::default()), json(&of_bank));
        for (key, value) in given.as_object().into_iter().flatten() {
            let [unset, bank] = [&unset, &bank].map(|settings| settings.get(key).unwrap_or(&Value::Null));
            if value != unset && value != bank {
                return Err(Finding::new(&self.file, format!("adapter.{key}"))
                    .expected(format_args!("{bank}, as in the bank that grows"))
                    .found(value)
                    .hint("leave it out: a bank keeps its settings")
                    .mismatch());
            }
        }
        Ok(Self { adapter: of_bank, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHORT, open};

    #[test]
    fn growth_needs_a_bank_and_trains_nothing_old() {
        for (changes, expected) in [
            (&["from='b'"][..], "from: expected kind = \"grow\", found \"bank\""),
            (&["kind=lora", "instructions='i'"], "instructions: expected kind = \"grow\", found \"lora\""),
            (&["kind=grow"], "from: expected the bank that grows, found none"),
            (&["kind=grow", "from='b'", "training.weight_decay=0.1"], "training.weight_decay: expected 0 with kind"),
            (&["kind=grow", "from='b'", "training.lambda_prior=0.1"], "training.lambda_prior: expected 0 with kind"),
        ] {
            let error = open(SHORT, changes).unwrap_err().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
        assert!(open(SHORT, &["kind=grow", "from='b'"]).is_ok());
    }
}
